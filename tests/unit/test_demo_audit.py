"""The demo's audit: the mailer's 250s against the twin's ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from relay.mailer import Told
from relay.service.demo.audit import Run, audit, limited_by, use
from relay.twin import Accepted, Ledger

RUN = Run(
    told=(),
    transactional=Told(),
    began_at=100.0,
    intake_ended_at=101.0,
    drained_at=120.0,
    waiting=0,
    attempts_by_throttling=0,
    spool_bytes_per_message=1,
    relay_cpu_s=0.0,
    doubles_cpu_s=0.0,
    load=0.1,
    processors=2,
    session_bound_share=0.0,
)


def told(*message_ids: str, at: float = 100.0) -> Told:
    return Told(
        accepted=[(one, "id") for one in message_ids], accepted_at=dict.fromkeys(message_ids, at)
    )


def ledger(*arrivals: tuple[str, float]) -> Ledger:
    made = Ledger(1000)
    made.limits.append((100.0, 10.0))
    for number, (message_id, at) in enumerate(arrivals):
        made.attempted(at)
        made.accepted(
            Accepted(
                id=str(number),
                wall_ms=0,
                at=at,
                session=1,
                sender="a@example.com",
                recipients=("b@example.org",),
                size_bytes=40_000,
                sha256="",
                sha256_bare="",
                received="",
                message_id=message_id,
                campaign="",
                subscriber="",
            )
        )
    return made


def test_what_was_promised_and_did_not_arrive_is_lost() -> None:
    """A 250 without a line in the ledger, and not on the queue, is a loss and makes it bad."""
    found = audit(replace(RUN, told=[told("<1>", "<2>")]), ledger(("<1>", 105.0)))

    assert (found.accepted, found.delivered, found.lost) == (2, 1, 1)
    assert not found.is_good


def test_what_still_waits_is_not_lost_but_not_good_either() -> None:
    """Mail on the queue at the end is told apart from mail that is nowhere."""
    found = audit(replace(RUN, told=[told("<1>", "<2>")], waiting=1), ledger(("<1>", 105.0)))

    assert (found.lost, found.waiting) == (0, 1)
    assert not found.is_good


def test_what_arrived_twice_is_counted() -> None:
    """The same message for the same reader in two lines of the ledger."""
    found = audit(replace(RUN, told=[told("<1>")]), ledger(("<1>", 105.0), ("<1>", 106.0)))

    assert (found.lost, found.twice) == (0, 1)
    assert not found.is_good


@pytest.mark.parametrize("fate", ["refusals", "lost_at_dot", "given_up"])
def test_what_listmonk_loses_at_intake_is_no_success(fate: str) -> None:
    """A refusal, or a link that died, loses the mail on Listmonk's side of the relay."""
    client = told("<1>")
    getattr(client, fate).append("<2>")

    found = audit(replace(RUN, told=[client]), ledger(("<1>", 105.0)))

    assert found.refused_at_intake == 1
    assert not found.is_good


def test_the_slowest_transactional_mail_is_found() -> None:
    """From the relay's 250 to the twin's accept; bulk mail does not count."""
    resets = Told(accepted=[("<1>", ""), ("<2>", "")], accepted_at={"<1>": 100.0, "<2>": 102.0})

    found = audit(
        replace(RUN, told=[told("<3>")], transactional=resets),
        ledger(("<1>", 100.5), ("<2>", 103.25), ("<3>", 119.0)),
    )

    assert found.transactional_slowest_s == 1.25
    assert found.is_good


def test_use_counts_from_the_warm_up_to_the_last_message() -> None:
    """Four of ten in that second: not what was before it, nor the last, which ends it."""
    arrivals = [("<0>", 100.5), *((f"<{n}>", 101.0 + n / 5) for n in range(1, 6))]

    assert use(ledger(*arrivals), 101.0) == pytest.approx(0.4)


def test_use_is_unknown_if_all_was_over_before() -> None:
    """No number is better than one that means nothing."""
    assert use(ledger(("<1>", 100.5)), 110.0) is None
    assert "more --messages" in limited_by(None, RUN, 10)


@pytest.mark.parametrize(
    ("used", "seen", "words"),
    [
        (0.99, {"relay_cpu_s": 9.9, "doubles_cpu_s": 9.9}, "send limit"),
        (0.5, {"relay_cpu_s": 9.0}, "processors"),
        (0.5, {"relay_cpu_s": 8.0, "doubles_cpu_s": 9.5}, "processors"),
        (0.5, {"load": 3.0}, "processors"),
        (0.5, {"session_bound_share": 0.6}, "sessions"),
        (0.5, {"relay_cpu_s": 2.0, "doubles_cpu_s": 2.0, "load": 1.0}, "the relay"),
    ],
)
def test_what_limited_the_run_is_told_honestly(
    used: float, seen: dict[str, Any], words: str
) -> None:
    """The account if its limit was used up; a busy machine; sessions; else we are to blame."""
    run = replace(RUN, **seen)

    assert words in limited_by(used, run, 10.0)

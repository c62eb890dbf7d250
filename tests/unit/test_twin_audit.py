"""What a ledger says of a run."""

from __future__ import annotations

import pytest

from relay.twin import Accepted, Audit, Ledger
from relay.twin import texts as words


def _record(at: float, *recipients: str, n: int = 0) -> Accepted:
    return Accepted(
        id=f"ses-{n}",
        wall_ms=0,
        at=at,
        session=1,
        sender="a@x.org",
        recipients=recipients or ("b@y.org",),
        size_bytes=1,
        sha256="",
        sha256_bare="",
        received="from x by relay with ESMTP id 01jz3a4b5c6d7; now",
        message_id=f"<{n}@x.org>",
        campaign="",
        subscriber="",
    )


def _ledger(limits: dict[float, float], accepts: list[float]) -> Ledger:
    ledger = Ledger(100_000)
    for at, rate in limits.items():
        ledger.limited(rate, at)
    for n, at in enumerate(accepts):
        ledger.accepted(_record(at, n=n))
    return ledger


def _evenly(since: float, until: float, per_s: float) -> list[float]:
    return [since + n / per_s for n in range(round((until - since) * per_s))]


def test_offered_is_the_limit_over_time_less_what_strangers_took() -> None:
    """Two seconds at 10 and three at 20, five recipients taken by another."""
    ledger = _ledger({100: 10, 105: 20}, [])
    ledger.taken(5, 104.0)
    ledger.taken(7, 200.0)

    audit = Audit(ledger)

    assert audit.offered(103, 108) == 75
    assert audit.offered(105, 108) == 60
    assert audit.offered(90, 101) == 10


def test_use_is_what_was_accepted_of_it() -> None:
    """Half of the limit."""
    audit = Audit(_ledger({100: 10}, _evenly(100, 110, 5)))

    assert audit.use(100, 110) == pytest.approx(0.5)
    assert audit.use(90, 100) == 0
    assert audit.accepted(100, 105) == 25


def test_lowest_rate_finds_the_gap_wherever_it_lies() -> None:
    """Ten a second with a hole of a second and a half: a window of one is empty, of two not."""
    audit = Audit(_ledger({100: 10}, [*_evenly(100, 103.3, 10), *_evenly(104.8, 110, 10)]))

    assert audit.rate_lowest(1) == 0
    assert audit.rate_lowest(2) == pytest.approx(2.5)
    assert audit.rate_lowest(1, since=105, until=109) == pytest.approx(10)
    assert audit.rate_lowest(60) == 0


def test_recovery_is_the_time_until_the_new_limit_is_used() -> None:
    """Three seconds at the old rate after a rise, then the new one."""
    accepts = [*_evenly(100, 113, 10), *_evenly(113, 120, 20)]
    audit = Audit(_ledger({100: 10, 110: 20}, accepts))

    assert audit.recovery_s(110) == pytest.approx(2.8)
    assert audit.recoveries() == [(110, audit.recovery_s(110))]
    assert audit.recovery_s(110, share=0.5) == 0


def test_recovery_that_never_came_is_none() -> None:
    """Half the limit is not 95 %, and what comes after the next change does not count."""
    accepts = [*_evenly(100, 120, 10), *_evenly(120, 130, 20)]

    assert Audit(_ledger({100: 10, 110: 20}, accepts[:200])).recovery_s(110) is None
    assert Audit(_ledger({100: 10, 110: 20, 120: 21}, accepts)).recovery_s(110) is None


def test_refused_share_of_an_interval_knows_nothing_of_the_rest() -> None:
    """One of four in the second second, all in the third."""
    ledger = _ledger({100: 10}, [])
    for at, text in (
        (101.1, words.RATE),
        (101.5, ""),
        (101.6, ""),
        (101.9, ""),
        (102, words.SIGV2),
    ):
        ledger.attempted(at)
        if text:
            ledger.refused(text, at)

    audit = Audit(ledger)

    assert audit.refused_share(101, 102) == 0.25
    assert audit.refused_share(101, 103) == 0.4
    assert audit.refused_share(100, 101) == 0
    assert audit.throttled_by_second() == {101: 1, 102: 1}


def test_lost_are_the_told_that_never_arrived() -> None:
    """By Message-ID, relay id or SES's id, for each recipient."""
    ledger = Ledger(10)
    ledger.accepted(_record(1, "b@y.org", "c@y.org", n=1))
    here = [("<1@x.org>", "b@y.org"), ("01jz3a4b5c6d7", "c@y.org"), ("ses-1", "c@y.org")]
    gone = {("<1@x.org>", "d@y.org"), ("<2@x.org>", "b@y.org")}

    assert Audit(ledger).lost([*here, *gone]) == gone


def test_audit_of_nothing_is_nothing() -> None:
    """An empty ledger has answers, too."""
    audit = Audit(Ledger(10))

    assert (audit.offered(0, 9), audit.use(0, 9), audit.rate_lowest(1)) == (0, 0, 0)
    assert audit.recoveries() == []

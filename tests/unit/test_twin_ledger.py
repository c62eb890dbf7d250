"""What the twin remembers, and the audits made from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.twin import Accepted, Ledger, by_relay_id
from relay.twin import ledger as ledger_module

RECORD = Accepted(
    id="1",
    wall_ms=0,
    at=0.0,
    session=1,
    sender="a@example.com",
    recipients=("b@example.org",),
    size_bytes=1,
    sha256="",
    sha256_bare="",
    received="from [127.0.0.1] by relay with ESMTP id 01jz3a4b5c6d7; Mon, 1 Jan 2024",
    message_id="<1@x>",
    campaign="",
    subscriber="",
)


def _ledger(*records: Accepted) -> Ledger:
    ledger = Ledger(1000)
    for record in records:
        ledger.accepted(record)
    return ledger


def test_twice_names_each_pair_that_came_more_than_once() -> None:
    """The same message to another recipient is no second copy; to the same one it is."""
    ledger = _ledger(
        replace(RECORD, recipients=("b@x", "c@x")), replace(RECORD, recipients=("c@x", "d@x"))
    )

    assert ledger.copies()[("<1@x>", "b@x")] == 1
    assert ledger.twice() == {("<1@x>", "c@x"): 2}


def test_messages_without_message_id_are_never_the_same() -> None:
    """An empty Message-ID joins nothing."""
    ledger = _ledger(replace(RECORD, message_id=""), replace(RECORD, message_id="", id="2"))

    assert ledger.twice() == {}


def test_relay_id_tells_a_clients_own_copies_from_ours() -> None:
    """One Message-ID under two relay ids came twice from the client, not from the relay."""
    again = replace(RECORD, received=RECORD.received.replace("01jz3a4b5c6d7", "01jz3a4b5c6d8"))

    ledger = _ledger(RECORD, again)

    assert RECORD.relay_id == "01jz3a4b5c6d7"
    assert ledger.twice() == {("<1@x>", "b@example.org"): 2}
    assert ledger.twice(by_relay_id) == {}
    assert replace(RECORD, received="from x by y with SMTP id ABC").relay_id == ""


def test_peak_is_the_most_in_any_window_not_only_in_aligned_ones() -> None:
    """Four recipients around the turn of a second are four in one second."""
    ledger = _ledger(*(replace(RECORD, at=at) for at in (0.0, 0.9, 0.95, 1.05, 1.1, 5.0)))

    assert ledger.rate_peak(1) == 4
    assert ledger.rate_peak(10) == pytest.approx(0.6)


def test_peak_counts_recipients() -> None:
    """A message to three is three."""
    assert _ledger(replace(RECORD, recipients=("a", "b", "c"))).rate_peak(1) == 3


def test_rates_count_windows_without_mail_as_well() -> None:
    """From the first message to the last, silence included."""
    ledger = _ledger(*(replace(RECORD, at=100 + at) for at in (0.0, 0.5, 2.5)))

    assert ledger.rates(1) == [2, 0, 1]
    assert _ledger().rates(1) == []
    assert _ledger().rate_peak(1) == 0


def test_refusals_are_counted_by_kind_and_by_second() -> None:
    """Rate and quota have figures of their own, all else goes by its text."""
    ledger = Ledger(10)
    ledger.attempted(7.2)
    ledger.refused("454 Throttling failure: Maximum sending rate exceeded.", 7.2)
    ledger.attempted(7.9)
    ledger.refused("454 Throttling failure: Daily message quota exceeded.", 7.9)
    ledger.refused("503 Sender already specified.", 8.0)

    assert (ledger.total.attempts, ledger.total.throttled, ledger.total.over_quota) == (2, 1, 1)
    assert ledger.total.refused == {"503 Sender already specified.": 1}
    assert (ledger.seconds[7].attempts, ledger.seconds[7].throttled) == (2, 1)
    assert ledger.seconds[8].refused.total() == 1
    assert ledger.refused_share() == 0.5


def test_ledger_forgets_the_oldest_not_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both limits hold, and the totals stay right."""
    monkeypatch.setattr(ledger_module, "SECONDS_MAX", 2)
    ledger = Ledger(3)

    for n in range(5):
        ledger.accepted(replace(RECORD, id=str(n), at=float(n)))

    assert [record.id for record in ledger.records] == ["2", "3", "4"]
    assert list(ledger.seconds) == [3, 4]
    assert ledger.total.accepted == 5

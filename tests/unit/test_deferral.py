"""When deferred mail is tried again."""

from __future__ import annotations

import pytest

from relay import config
from relay.deferral import IN_DOUBT_MS, due_at, in_doubt_at

NOW = 1_800_000_000_000
RETRY = config.Retry()


def test_wait_doubles_from_a_minute_to_an_hour() -> None:
    """The defaults: 1, 2, 4, 8, 16, 32, 60, 60 minutes."""
    waits = [due_at(RETRY, attempts, NOW, 0.5) - NOW for attempts in range(1, 9)]

    assert [wait / 60_000 for wait in waits] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_ten_thousandth_attempt_waits_as_long_as_the_tenth() -> None:
    """No overflow, with the default factor and the largest that may be set."""
    steep = config.Retry(factor=100)

    assert due_at(RETRY, 10_000, NOW, 0.5) == NOW + 3_600_000
    assert due_at(steep, 10_000, NOW, 0.5) == NOW + 3_600_000


def test_factor_of_one_never_grows() -> None:
    """Retries at a steady pace may be wished for."""
    steady = config.Retry(factor=1)

    assert due_at(steady, 10_000, NOW, 0.5) == NOW + 60_000


@pytest.mark.parametrize(("jitter", "wait_s"), [(0.0, 48), (0.5, 60), (1.0, 72)])
def test_jitter_moves_the_wait_by_its_share_either_way(jitter: float, wait_s: int) -> None:
    """20 % of a minute is 12 s."""
    assert due_at(RETRY, 1, NOW, jitter) == NOW + wait_s * 1000


def test_jitter_spreads_what_has_reached_the_cap() -> None:
    """A thousand messages put off by an hour each do not come back in one second."""
    assert due_at(RETRY, 99, NOW, 0.0) == NOW + 2_880_000
    assert due_at(RETRY, 99, NOW, 1.0) == NOW + 4_320_000


def test_mail_in_doubt_waits_ten_minutes() -> None:
    """Even after its first attempt, and at the lowest jitter."""
    assert in_doubt_at(RETRY, 1, NOW, 0.0) == NOW + IN_DOUBT_MS
    assert IN_DOUBT_MS == 600_000


def test_mail_that_stays_in_doubt_comes_ever_more_rarely() -> None:
    """Each try may be one more copy: from the fifth on, the schedule is longer."""
    waits = [in_doubt_at(RETRY, attempts, NOW, 0.5) - NOW for attempts in (4, 5, 9)]

    assert [wait / 60_000 for wait in waits] == [10, 16, 60]

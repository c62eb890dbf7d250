"""Back-off, width and pace of opening."""

from __future__ import annotations

import pytest

from relay.upstream.pacing import (
    AT_ONCE,
    SHORTEST_LIFE,
    WIDTH_MAX,
    Backoff,
    Pace,
    Width,
    share_of_life,
)


def test_backoff_doubles_from_one_second_to_a_minute() -> None:
    """1, 2, 4 … 60 s, and still 60 s at failure 10,000."""
    backoff, now, delays = Backoff(), 100.0, []

    for _ in range(10_000):
        backoff.on_failed(now, begun_at=now)
        delays.append(backoff.retry_at - now)
        now = backoff.retry_at

    assert delays[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert delays[-1] == 60


def test_failures_of_one_burst_are_one_failure() -> None:
    """Ten openings that began together and failed together double nothing."""
    backoff = Backoff()

    for n in range(10):
        backoff.on_failed(now=100 + n / 10, begun_at=99)

    assert backoff.retry_at == 101


def test_success_ends_the_backoff() -> None:
    """After an opening that worked, the next failure waits one second again."""
    backoff = Backoff()
    backoff.on_failed(100, begun_at=99)
    backoff.on_failed(102, begun_at=101)

    backoff.on_opened()

    assert backoff.retry_at < 102
    backoff.on_failed(110, begun_at=109)
    assert backoff.retry_at == 111


def test_width_trebles_by_rounds_and_narrows_to_one() -> None:
    """Each round that opens is followed by one three times as wide, up to ``WIDTH_MAX``."""
    width, seen = Width(), []

    for _ in range(7):
        seen.append(width.at_once)
        for _ in range(width.at_once):
            width.on_opened()
    width.on_narrowed()

    assert seen == [1, 3, 9, 27, 81, WIDTH_MAX, WIDTH_MAX]
    assert width.at_once == 1


def test_openings_are_paced() -> None:
    """Ten may begin together, then one each 10 ms, and again ten after a rest."""
    pace, begun = Pace(), []

    for tick in range(200):
        now = tick / 200
        while pace.room(now):
            pace.on_begun()
            begun.append(now)

    assert begun.count(0) == AT_ONCE
    assert len(begun) == AT_ONCE + 99
    assert pace.room_at(0.995) == pytest.approx(1)
    assert pace.room(10) == AT_ONCE


@pytest.mark.parametrize("count", [10, 100])
def test_sessions_opened_together_do_not_end_together(count: int) -> None:
    """Their shares lie between a half and all, and are spread evenly."""
    shares = [share_of_life(number) for number in range(count)]

    assert shares[0] == 1
    assert all(SHORTEST_LIFE < share <= 1 for share in shares)
    for tenth in range(10):
        low = SHORTEST_LIFE + tenth * 0.05
        assert abs(sum(low < share <= low + 0.05 for share in shares) - count / 10) <= 2

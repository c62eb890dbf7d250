"""Back-off, width and ceiling of opening."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.upstream.pacing import Backoff, Ceiling, Width


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


def test_width_doubles_by_rounds_to_ten_and_narrows_to_one() -> None:
    """Slow start: each round that opens is followed by one twice as wide."""
    width, seen = Width(), []

    for _ in range(6):
        seen.append(width.at_once)
        for _ in range(width.at_once):
            width.on_opened()
    width.on_narrowed()

    assert seen == [1, 2, 4, 8, 10, 10]
    assert width.at_once == 1


def test_refusal_cuts_the_ceiling_by_a_tenth_of_what_was_open() -> None:
    """With 50 open of 200 allowed, 45 are allowed next."""
    ceiling = Ceiling(200)

    ceiling.on_refused(100, begun_at=99, open_count=50)

    assert ceiling.at(100) == 45


def test_refusals_of_one_burst_cut_once() -> None:
    """Openings that began before the cut prove nothing about it, whatever is open by then."""
    ceiling = Ceiling(200)
    ceiling.on_refused(100, begun_at=99, open_count=50)

    ceiling.on_refused(101, begun_at=99.5, open_count=20)
    assert ceiling.at(101) == 45

    ceiling.on_refused(102, begun_at=101, open_count=20)
    assert ceiling.at(102) == 18


def test_ceiling_climbs_each_minute_without_refusals() -> None:
    """Ever faster, back towards ``sessions_max`` and not beyond, however long that is ago."""
    ceiling = Ceiling(60)
    ceiling.on_refused(100, begun_at=99, open_count=50)

    at = [ceiling.at(100 + minutes * 60) for minutes in (0, 0.99, 1, 2, 3, 4, 1e6)]

    assert at == [45, 45, 46, 48, 52, 60, 60]


def test_ceiling_that_fell_to_the_bottom_is_soon_high_again() -> None:
    """A refusal while few sessions were open must not starve an account for an hour."""
    ceiling = Ceiling(200)
    ceiling.on_refused(100, begun_at=99, open_count=1)

    assert ceiling.at(100) == 1
    assert ceiling.at(100 + 5 * 60) == 32


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.floats(0, 200), st.floats(0, 5), st.integers(0, 300))),
)
def test_ceiling_stays_within_one_and_the_maximum(
    sessions_max: int, refusals: list[tuple[float, float, int]]
) -> None:
    """Whatever is refused, and when, and a refusal never raises it."""
    ceiling, now = Ceiling(sessions_max), 0.0

    for gap_s, took_s, open_count in refusals:
        now += gap_s
        before = ceiling.at(now)
        ceiling.on_refused(now, now - took_s, open_count)
        assert 1 <= ceiling.at(now) <= before <= sessions_max


@given(st.floats(0, 1e6), st.integers(2, 50))
def test_ceiling_climbs_at_the_moment_it_says(cut_at: float, sessions_max: int) -> None:
    """A loop that sleeps until ``climbs_at`` finds it higher, to the top, and then no more."""
    ceiling, now = Ceiling(sessions_max), cut_at
    ceiling.on_refused(cut_at, cut_at - 1, sessions_max)

    while (at := ceiling.climbs_at(now)) < float("inf"):
        assert at > now
        assert ceiling.at(at) > ceiling.at(now)
        now = at

    assert ceiling.at(now) == sessions_max

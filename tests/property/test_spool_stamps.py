"""Due stamps: never backward, never behind a reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.spool.stamps import Stamps

MOMENTS = st.integers(1, 6)
EVENTS = st.lists(st.tuples(st.sampled_from(["give", "read", "hold"]), MOMENTS, MOMENTS))


@given(EVENTS)
def test_no_arrival_lies_behind_a_reader(events: list[tuple[str, int, int]]) -> None:
    """Whatever the order of stamps, reads and clocks, what comes later lies further on."""
    stamps, reached, given_before, held = Stamps(), (0, 0), 0, 0

    for event, now_ms, envelope_id in events:
        if event == "give":
            stamp = stamps.give(now_ms, envelope_id)
            assert (stamp, envelope_id) > reached
            assert stamp > held
            assert stamp >= max(now_ms, given_before)
            assert stamp <= max(now_ms, given_before, reached[0] + 1, held + 1)
            given_before = stamp
        elif event == "read":
            stamps.begin_read(now_ms)
            stamps.end_read(now_ms, (now_ms, envelope_id))
            reached = max(reached, (now_ms, envelope_id))
        else:
            stamps.begin_read(now_ms)  # Never ends: it may still reach as far as that.
            held = max(held, now_ms)


@given(MOMENTS, MOMENTS)
def test_read_that_found_nothing_binds_nothing(now_ms: int, envelope_id: int) -> None:
    """It has reached no further, so the present moment may still be given."""
    stamps = Stamps()
    stamps.begin_read(now_ms)
    stamps.end_read(now_ms, None)

    assert stamps.give(now_ms, envelope_id) == now_ms


@given(MOMENTS, MOMENTS)
def test_looking_into_the_future_puts_nothing_off(now_ms: int, further_ms: int) -> None:
    """A read that came upon mail of later is bounded by its present moment."""
    stamps = Stamps()
    stamps.begin_read(now_ms)
    stamps.end_read(now_ms, (now_ms + further_ms, 1))

    assert stamps.give(now_ms, 1) == now_ms + 1


@given(MOMENTS, MOMENTS)
def test_reset_follows_the_clock_back(before_ms: int, after_ms: int) -> None:
    """After the clock was set, stamps are the clock's again."""
    stamps = Stamps()
    stamps.give(before_ms, 1)
    stamps.begin_read(before_ms)
    stamps.end_read(before_ms, (before_ms, 1))

    stamps.reset()

    assert stamps.give(after_ms, 1) == after_ms

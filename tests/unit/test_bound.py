"""Whether sessions hold sending back, told without flicker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.dispatcher.bound import WINDOW_S, Bound


def test_shortage_shows_within_seconds_and_goes_within_seconds() -> None:
    """All time lost: said after half a second; five seconds after its end no more."""
    bound = Bound()
    bound.short(100.0)

    assert not bound.is_bound(100.4)
    assert bound.is_bound(100.6)
    assert bound.is_bound(160.0)

    bound.served(160.0)
    assert bound.is_bound(163.0)
    assert not bound.is_bound(160.0 + WINDOW_S + 1)


def test_what_the_rate_would_have_had_it_wait_is_not_lost() -> None:
    """A message whose moment is to come has lost nothing yet."""
    bound = Bound()

    for second in range(100, 120):
        bound.short(second + 0.99)
        bound.served(second + 0.9)

    assert not bound.is_bound(120)


def test_second_message_that_waits_does_not_hide_how_long_the_first_did() -> None:
    """The shortage lasts from the first on."""
    bound = Bound()
    bound.short(100.0)
    bound.short(104.9)

    assert bound.is_bound(105.0)


def test_claim_does_not_flicker() -> None:
    """Between a twentieth and a tenth lost it stays as it was."""
    rare, often = Bound(), Bound()
    often.short(90.0)
    often.served(100.0)
    assert often.is_bound(100.0)

    told = []
    for second in range(100, 130):
        for bound in (rare, often):
            bound.short(second + 0.5)
            bound.served(second + 0.57)
        told.append((rare.is_bound(second + 1), often.is_bound(second + 1)))

    assert set(told) == {(False, True)}


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30), st.booleans())))
def test_lost_time_never_exceeds_the_window(steps: list[tuple[float, float, bool]]) -> None:
    """Whatever the order of shortages and ends, and memory stays bounded."""
    bound, now = Bound(), 1000.0

    for gap_s, until_due_s, is_short in steps:
        now += gap_s
        if is_short:
            bound.short(now + until_due_s)
        else:
            bound.served(now)
        bound.is_bound(now)

        assert len(bound._lost_s) <= WINDOW_S + 2
        assert all(0 <= lost_s <= 1 + 1e-6 for lost_s in bound._lost_s.values())

"""Spacing of bookings, and the idle time between them."""

from __future__ import annotations

import pytest

from relay.shaper.pacing import AHEAD_MAX, GAPS_MAX, GUARD_MAX_S, GUARD_MIN_S, Pacer


def test_idle_time_is_reported_once_and_only_when_its_moment_has_come() -> None:
    """A gap of 2 s at 10/s, less spacing and catching up, belongs to what is sent after it."""
    pacer = Pacer(10)
    pacer.book(0, 1)
    pacer.book(2, 1)

    assert pacer.idle_until(1.9) == 0
    assert pacer.idle_until(2) == pytest.approx(2 - 0.1 - 0.1)
    assert pacer.idle_until(2) == 0


def test_caller_with_backlog_is_never_idle() -> None:
    """Calls at, or a timer's lateness after, the booked moment leave no gap."""
    pacer = Pacer(10)
    now = 0.0

    for _ in range(50):
        now = pacer.book(now, 1) + 0.004

    assert pacer.idle_until(now) == 0


def test_pause_is_not_idleness() -> None:
    """A pause delays the next booking and counts as nothing lost."""
    pacer = Pacer(10)
    pacer.book(0, 1)

    pacer.pause(0, 5)

    assert pacer.book(0, 1) == pytest.approx(5.1)
    assert pacer.idle_until(10) == 0


def test_slower_rate_stretches_the_running_spacing() -> None:
    """Half of 0.1 s is left; at a tenth of the rate it becomes 0.5 s."""
    pacer = Pacer(100)
    pacer.book(0, 10)

    pacer.change_rate(0.05, 10, spread_s=0)

    assert pacer.book(0.05, 1) == pytest.approx(0.55)


def test_rate_change_when_nothing_is_due_moves_nothing() -> None:
    """A spacing that has run out is not stretched."""
    pacer = Pacer(10)
    pacer.book(0, 1)

    pacer.change_rate(0.1, 20, spread_s=0)

    assert pacer.book(0.1, 1) == pytest.approx(0.1)


def test_bookings_never_go_back() -> None:
    """Two cancelled bookings do not bring a third before the moment of the second."""
    pacer = Pacer(10)
    moments = [pacer.book(0, 1) for _ in range(3)]

    pacer.cancel(0, 1)
    pacer.cancel(0, 1)

    assert pacer.book(0, 1) == moments[-1]


def test_low_rate_has_a_guard_of_the_latencys_spread_within_bounds() -> None:
    """It grows with the spread between its two bounds; there is none at higher rates."""
    pacer = Pacer(10)
    guards = []

    for rate, spread_s in ((1, 0.0), (1, 0.03), (1, 9.0), (3, 0.03)):
        pacer.change_rate(0, rate, spread_s)
        guards.append(pacer.guard_s)

    least, some, most, none = guards
    assert least == GUARD_MIN_S < some < most
    assert most == pytest.approx(GUARD_MIN_S + GUARD_MAX_S)
    assert none == 0


def test_bookings_to_come_are_not_under_way() -> None:
    """Of three bookings, one is now, one later, one cancelled."""
    pacer = Pacer(10)
    for _ in range(3):
        pacer.book(0, 1)
    pacer.cancel(0, 1)

    assert (pacer.open_count, pacer.under_way(0), pacer.under_way(0.1)) == (2, 1, 2)


def test_gaps_melt_together_when_nobody_asks() -> None:
    """Ten thousand gaps take bounded room, and none of their time is lost."""
    pacer = Pacer(10)

    for second in range(10_001):
        pacer.book(second, 1)

    assert len(pacer._gaps) == GAPS_MAX
    assert pacer.idle_until(20_000) == pytest.approx(10_000 * 0.9 - 0.1)


def test_bookings_far_ahead_take_bounded_room() -> None:
    """A caller that books without end does not fill the memory."""
    pacer = Pacer(10)

    for _ in range(AHEAD_MAX + 100):
        pacer.book(0, 1)

    assert len(pacer._ahead) == AHEAD_MAX

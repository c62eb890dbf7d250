"""The shaper's face: what a booking, a reply and a restart do."""

from __future__ import annotations

import json
import math

import pytest

from relay.config.schema import Rate, Upstream
from relay.shaper import Shaper, ShaperState
from relay.shaper.pacing import GUARD_MIN_S

NOW = 1000.0


def send_evenly(shaper: Shaper, count: int, now: float = NOW, latency_s: float = 0.01) -> float:
    """Send ``count`` single recipients with backlog, each accepted; return the last moment."""
    for _ in range(count):
        now = shaper.reserve(now, 1)
        shaper.accepted(now + latency_s, 1, now)
    return now


def test_default_config_gives_a_searching_shaper() -> None:
    """What an empty relay.toml yields starts at 10/s and knows no limit."""
    shaper = Shaper(Upstream().rate)

    shaper.reserve(NOW, 1)
    state = shaper.snapshot()

    assert isinstance(state, ShaperState)
    assert (state.rate_per_s, state.limit_per_s, state.phase) == (10, None, "searching")
    assert (state.error_share, state.refused_share, state.under_way) == (1, 0, 1)


def test_nothing_booked_is_idle() -> None:
    """With no booking and nothing under way the phase is idle, before and after mail."""
    shaper = Shaper(Rate())
    before = shaper.snapshot().phase

    at = shaper.reserve(NOW, 1)
    shaper.accepted(at + 0.1, 1, at)

    assert (before, shaper.snapshot().phase) == ("idle", "idle")


def test_first_booking_goes_at_once_and_the_next_ones_evenly() -> None:
    """At 10/s bookings with backlog are 0.1 s apart, the first is now."""
    shaper = Shaper(Rate(start_per_s=10))

    moments = [shaper.reserve(NOW, 1) for _ in range(4)]

    assert moments == pytest.approx([NOW, NOW + 0.1, NOW + 0.2, NOW + 0.3])


def test_pace_counts_recipients() -> None:
    """A message of five recipients takes the time of five."""
    shaper = Shaper(Rate(start_per_s=10))

    moments = [shaper.reserve(NOW, 5), shaper.reserve(NOW, 1), shaper.reserve(NOW, 1)]

    assert moments == pytest.approx([NOW, NOW + 0.5, NOW + 0.6])


def test_message_without_recipients_costs_one() -> None:
    """A booking of none is our own mistake; it may not stand time still."""
    shaper = Shaper(Rate(start_per_s=10))

    shaper.reserve(NOW, 0)

    assert shaper.reserve(NOW, 0) == pytest.approx(NOW + 0.1)


def test_cancelled_booking_gives_its_time_back() -> None:
    """The moment of an unused booking goes to the next one."""
    shaper = Shaper(Rate(start_per_s=10))
    shaper.reserve(NOW, 1)
    unused = shaper.reserve(NOW, 7)

    shaper.cancelled(NOW, 7)

    assert shaper.reserve(NOW, 1) == pytest.approx(unused)
    assert shaper.reserve(NOW, 1) == pytest.approx(unused + 0.1)


def test_cancelling_what_was_never_booked_saves_up_no_burst() -> None:
    """Time given back too often is worth one message, not a flood."""
    shaper = Shaper(Rate(start_per_s=10))
    shaper.reserve(NOW, 1)

    for _ in range(100):
        shaper.cancelled(NOW, 10)
    at_once = sum(shaper.reserve(NOW, 1) == NOW for _ in range(10))

    assert at_once <= 2
    assert shaper.snapshot().under_way == 10


def test_late_caller_catches_up_one_message_only() -> None:
    """After a second without a call two go at once, then the spacing is back."""
    shaper = Shaper(Rate(start_per_s=10))
    shaper.reserve(NOW, 1)

    moments = [shaper.reserve(NOW + 1, 1) for _ in range(4)]

    assert moments == pytest.approx([NOW + 1, NOW + 1, NOW + 1.1, NOW + 1.2])


def test_late_timers_cost_no_rate() -> None:
    """A timer that fires 3 ms late each time is made good: 100 sends take the time of 100."""
    shaper = Shaper(Rate(start_per_s=100))
    now = shaper.reserve(NOW, 1)

    for _ in range(100):
        now = shaper.reserve(now + 0.003, 1)

    assert now - NOW == pytest.approx(1.0, abs=0.011)


def test_low_rate_catches_nothing_up_and_keeps_a_guard() -> None:
    """Below 3/s a bucket may hold one token: spacing is never below 1/limit plus the guard."""
    shaper = Shaper(Rate(start_per_s=100))
    shaper.restore(NOW, {"limit_per_s": 1.0, "confidence": 0.99})
    now = shaper.reserve(NOW, 1)

    for lateness_s in (0.0, 0.9, 2.0, 0.0, 60.0, 0.0):
        at_once = shaper.reserve(now + lateness_s, 1)
        assert at_once - now >= 1 + GUARD_MIN_S - 1e-9
        now = at_once


def test_start_rate_keeps_floor_and_ceiling() -> None:
    """A start outside floor and ceiling is moved to them."""
    too_low = Shaper(Rate(start_per_s=1, floor_per_s=2))
    too_high = Shaper(Rate(start_per_s=50, ceiling_per_s=20))

    assert too_low.snapshot().rate_per_s == 2
    assert too_high.snapshot().rate_per_s == 20


def test_accepts_with_backlog_raise_the_rate() -> None:
    """The search grows with what is accepted: 300 recipients take it beyond 100/s."""
    shaper = Shaper(Rate(start_per_s=10))

    send_evenly(shaper, 300)

    assert shaper.snapshot().rate_per_s > 100


def test_growth_stops_at_the_ceiling() -> None:
    """However much is accepted, the rate does not pass the ceiling."""
    shaper = Shaper(Rate(start_per_s=10, ceiling_per_s=25))

    send_evenly(shaper, 300)

    assert shaper.snapshot().rate_per_s == 25


def test_accepts_without_backlog_raise_nothing() -> None:
    """Mail that comes at half the rate proves nothing about a higher one."""
    shaper = Shaper(Rate(start_per_s=10))
    now = NOW

    for _ in range(500):
        at = shaper.reserve(now, 1)
        shaper.accepted(at + 0.01, 1, at)
        now = at + 0.2

    assert shaper.snapshot().rate_per_s < 12
    assert not shaper.snapshot().has_backlog


def test_ignored_replies_change_nothing() -> None:
    """Quota refusals and bounces neither raise nor cut the rate."""
    shaper = Shaper(Rate(start_per_s=10))
    now = NOW

    for _ in range(100):
        now = shaper.reserve(now, 1)
        shaper.ignored(now + 0.01, 1, now)

    state = shaper.snapshot()
    assert (state.rate_per_s, state.refused_share, state.under_way) == (10, 0, 0)


def test_a_burst_of_refusals_is_one_signal() -> None:
    """Ten refusals of messages sent before the cut cut once: half is kept, nothing twice."""
    shaper = Shaper(Rate(start_per_s=40))
    moments = [shaper.reserve(NOW, 1) for _ in range(10)]

    for moment in moments:
        shaper.throttled(moments[-1] + 0.1, 1, moment)
    shaper.ignored(moments[-1] + 0.2, 1, shaper.reserve(moments[-1] + 0.2, 1))

    assert shaper.snapshot().phase == "idle"
    assert shaper.snapshot().rate_per_s == pytest.approx(20, rel=0.01)
    assert shaper.snapshot().refused_share == 1


def test_little_is_sent_until_what_is_under_way_has_told_how_much_passes() -> None:
    """Four refusals at 40/s brake at once, and the replies still to come change nothing."""
    shaper = Shaper(Rate(start_per_s=40))
    moments = [shaper.reserve(NOW, 1) for _ in range(30)]
    for moment in moments[:4]:
        shaper.throttled(moments[-1] + 0.1, 1, moment)
    braked_per_s = shaper.snapshot().rate_per_s

    for moment in moments[4:]:
        shaper.accepted(moments[-1] + 0.2, 1, moment)

    assert braked_per_s == pytest.approx(0.15 * 40)
    assert shaper.snapshot().rate_per_s == braked_per_s


def test_one_refusal_among_hundreds_cuts_nothing() -> None:
    """A lone 454 in the search is no limit."""
    shaper = Shaper(Rate(start_per_s=10))
    now = send_evenly(shaper, 200)
    before = shaper.snapshot().rate_per_s

    now = shaper.reserve(now, 1)
    shaper.throttled(now + 0.01, 1, now)
    send_evenly(shaper, 200, now + 0.02)

    assert shaper.snapshot().rate_per_s > before


def test_refused_share_counts_recipients() -> None:
    """One refused recipient among ten tried is a tenth."""
    shaper = Shaper(Rate())
    first, second = shaper.reserve(NOW, 9), shaper.reserve(NOW, 1)

    shaper.accepted(NOW + 1, 9, first)
    shaper.throttled(NOW + 1, 1, second)

    assert shaper.snapshot().refused_share == pytest.approx(0.1)


def test_learned_state_survives_a_restart_as_json() -> None:
    """What was learned is the start of the next run, held at once."""
    shaper = Shaper(Rate())
    shaper.restore(NOW, {"limit_per_s": 50, "burst": 60, "confidence": 0.999})
    kept = json.loads(json.dumps(shaper.learned()))

    again = Shaper(Rate())
    again.restore(NOW, kept)
    again.reserve(NOW, 1)

    state = again.snapshot()
    assert (state.limit_per_s, state.burst, state.phase) == (50, 60, "holding")
    assert state.rate_per_s == pytest.approx(50, rel=0.01)
    # However sure it was, a limit from an earlier run may be stale.
    assert state.error_share >= 0.005


def test_unlearned_state_is_kept_and_restored_as_nothing() -> None:
    """A shaper that knows nothing says so, and such a record starts no hold."""
    shaper = Shaper(Rate())
    kept = shaper.learned()

    shaper.restore(NOW, kept)

    assert kept == {
        "limit_per_s": None,
        "burst": None,
        "confidence": 0.0,
        "noise": 0.0,
    }
    assert shaper.snapshot().limit_per_s is None
    assert shaper.snapshot().rate_per_s == 10


@pytest.mark.parametrize("found", ["14", None, math.nan, math.inf, 0, -3, True, 10**400])
def test_damaged_limit_is_not_restored(found: object) -> None:
    """A record that no one can have written on purpose leaves the default start."""
    shaper = Shaper(Rate())

    shaper.restore(NOW, {"limit_per_s": found, "burst": found, "confidence": found})

    assert shaper.snapshot().limit_per_s is None


def test_restored_limit_without_confidence_is_a_guess() -> None:
    """The limit is tried, and its error is that of one message."""
    shaper = Shaper(Rate())

    shaper.restore(NOW, {"limit_per_s": 20})

    assert shaper.snapshot().rate_per_s == pytest.approx(20, rel=0.01)
    assert shaper.snapshot().error_share == 1


def test_restored_limit_keeps_the_ceiling() -> None:
    """A ceiling set since then holds."""
    shaper = Shaper(Rate(ceiling_per_s=5))

    shaper.restore(NOW, {"limit_per_s": 50, "confidence": 0.99})

    assert shaper.snapshot().rate_per_s == 5

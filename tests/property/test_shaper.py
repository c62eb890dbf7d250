"""Whatever the upstream answers, whenever, and however the caller errs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.schema import Rate
from relay.shaper import Shaper
from relay.shaper.evidence import NOISE_MAX
from relay.shaper.order import WAITING_MAX
from relay.shaper.pacing import AHEAD_MAX, GAPS_MAX
from tests.bench.shaping.model import Bucket, Course, Limit, Window

rates = st.builds(
    Rate,
    start_per_s=st.floats(0.1, 1e5),
    floor_per_s=st.floats(0.01, 10),
    ceiling_per_s=st.one_of(st.just(0.0), st.floats(10, 1e4)),
    use_max=st.floats(0.05, 1),
)
actions = st.sampled_from(["reserve", "accepted", "throttled", "ignored", "cancelled"])
gaps_s = st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(0, 1e5))
steps = st.lists(
    st.tuples(actions, gaps_s, st.integers(1, 50), st.one_of(st.just(0.0), st.floats(0, 700))),
    max_size=120,
)


def play(shaper: Shaper, config: Rate, script: list[tuple[str, float, int, float]]) -> None:
    """Act as the script says and check every bound after each step."""
    now, latest = 1000.0, -math.inf
    for action, gap_s, recipients, latency_s in script:
        now += gap_s
        if action == "reserve":
            moment = shaper.reserve(now, recipients)
            assert moment >= now
            assert moment >= latest
            latest = moment
        elif action == "cancelled":
            shaper.cancelled(now, recipients)
        else:
            getattr(shaper, action)(now, recipients, now - latency_s)
        check(shaper, config)


def check(shaper: Shaper, config: Rate) -> None:
    """No bound is left and no number is lost."""
    state = shaper.snapshot()
    assert config.floor_per_s <= state.rate_per_s
    assert state.rate_per_s <= (config.ceiling_per_s or math.inf)
    for figure in (state.rate_per_s, state.error_share, state.noise_share, state.limit_per_s or 1):
        assert math.isfinite(figure)
        assert figure >= 0
    assert 0 <= state.refused_share <= 1
    assert 0 <= state.noise_share <= NOISE_MAX
    assert 0 <= state.error_share <= 1


@settings(max_examples=60, deadline=None)
@given(rates, steps)
def test_rate_keeps_floor_and_ceiling_and_moments_never_go_back(
    config: Rate, script: list[tuple[str, float, int, float]]
) -> None:
    """Any calls in any order: floor <= rate <= ceiling, reserve is monotonic, nothing is NaN."""
    play(Shaper(config), config, script)


@settings(max_examples=60, deadline=None)
@given(rates, st.floats(1e-3, 1e5), st.floats(0, 1), steps)
def test_restored_shaper_keeps_the_same_bounds(
    config: Rate, limit: float, confidence: float, script: list[tuple[str, float, int, float]]
) -> None:
    """Also from any learned limit, through hold and probe."""
    shaper = Shaper(config)
    shaper.restore(1000.0, {"limit_per_s": limit, "confidence": confidence})
    play(shaper, config, script)


@settings(max_examples=20, deadline=None)
@given(rates, st.randoms(use_true_random=False), st.floats(0, 1), st.floats(0, 0.5))
def test_long_courses_with_backlog_keep_the_bounds(
    config: Rate, random: object, refused: float, latency_s: float
) -> None:
    """Hundreds of paced messages, refused by any share: every phase keeps the bounds."""
    shaper, now, latest = Shaper(config), 1000.0, -math.inf
    for _ in range(250):
        now = shaper.reserve(now, 1)
        assert now >= latest
        latest = now
        is_refused = random.random() < refused  # type: ignore[attr-defined]
        (shaper.throttled if is_refused else shaper.accepted)(now + latency_s, 1, now)
        check(shaper, config)


limits = st.one_of(
    st.builds(Bucket, st.floats(0.2, 300), st.floats(1, 900)),
    st.builds(Window, st.floats(1, 300), st.floats(0, 1)),
)


@settings(max_examples=25, deadline=None)
@given(
    rates,
    limits,
    st.floats(0, 1.5),
    st.sampled_from([0.0, 0.01, 0.2]),
    st.one_of(st.none(), st.floats(0.2, 300)),
    st.tuples(st.floats(0.1, 500), st.integers(1, 50), st.integers(0, 1000)),
)
def test_course_before_any_limit_keeps_the_bounds(
    config: Rate,
    limit: Limit,
    latency_s: float,
    noise: float,
    demand_per_s: float | None,
    more: tuple[float, int, int],
) -> None:
    """Any limit that moves once, late and chance replies, little mail, large messages, a gap."""
    moved_per_s, largest, seed = more
    config = replace(config, ceiling_per_s=min(300.0, config.ceiling_per_s or 300.0))
    course = Course(
        shaper=(shaper := Shaper(config)),
        limit=limit,
        latency_s=latency_s,
        spread=0.9,
        noise=noise,
        seed=seed,
        recipients=lambda chance: chance.randint(1, largest),
        demand_per_s=demand_per_s,
        gaps=((9, 12),),
    )
    course.change_at(7, moved_per_s, moved_per_s)

    for half_second in range(1, 33):
        course.run(half_second / 2)
        check(shaper, config)
        assert all(change.after_per_s is not None for change in shaper.changes())
    restored = Shaper(config)
    restored.restore(1000.0, json.loads(json.dumps(shaper.learned())))
    check(restored, config)


@given(rates, st.integers(1, 50), st.integers(1, 50))
def test_cancelled_booking_gives_its_time_back(config: Rate, first: int, unused: int) -> None:
    """Book, cancel, book: the second booking has the moment of the cancelled one."""
    shaper = Shaper(config)
    shaper.reserve(1000.0, first)
    moment = shaper.reserve(1000.0, unused)

    shaper.cancelled(1000.0, unused)

    assert shaper.reserve(1000.0, first) == pytest.approx(moment)


@settings(max_examples=60, deadline=None)
@given(rates, st.floats(0, 10))
def test_burst_after_any_gap_is_two_messages(config: Rate, gap_s: float) -> None:
    """However long nobody called, at most two go at once, plus what a timer's lateness holds."""
    shaper = Shaper(config)
    shaper.reserve(1000.0, 1)
    now = 1000.0 + gap_s

    at_once = sum(shaper.reserve(now, 1) <= now for _ in range(700))

    rate = shaper.snapshot().rate_per_s
    assert at_once <= 2 + 0.005 * rate


@pytest.mark.parametrize("action", ["reserve", "accepted", "throttled", "ignored", "cancelled"])
def test_one_call_ten_thousand_times_fills_no_memory(action: str) -> None:
    """A caller that only ever does one thing meets named bounds."""
    shaper = Shaper(Rate())
    for n in range(10_000):
        now = 1000.0 + n
        if action in ("reserve", "cancelled"):
            (shaper.reserve if action == "reserve" else shaper.cancelled)(now, 1)
        else:
            shaper.reserve(now, 1)
            shaper.reserve(now, 1)
            getattr(shaper, action)(now, 1, now - 0.001)

    assert len(shaper._order._waiting) <= WAITING_MAX + 1
    assert len(shaper._pacer._ahead) <= AHEAD_MAX
    assert len(shaper._pacer._gaps) <= GAPS_MAX

"""The real shaper against a bucket in virtual time: it finds the limit and keeps to it.

Bounds are looser than what the module's docstring reports, so that a better controller
passes and a broken one does not. All courses are deterministic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.config.schema import Rate
from relay.shaper import Shaper
from tests.fakes.bucket import Bucket, Course

if TYPE_CHECKING:
    from random import Random


def course(limit: float, depth: float, *, rate: Rate | None = None, seed: int = 1) -> Course:
    """A fresh shaper before a full bucket."""
    return Course(shaper=Shaper(rate or Rate()), bucket=Bucket(limit, depth), seed=seed)


@pytest.mark.parametrize("latency_s", [0.03, 0.25])
@pytest.mark.parametrize(
    ("limit", "depth", "seconds"),
    [(5, 3, 300), (5, 15, 300), (14, 4.2, 300), (14, 42, 300), (50, 50, 200), (200, 60, 90)],
)
def test_steady_limit_is_used_and_not_overrun(
    limit: float, depth: float, seconds: int, latency_s: float
) -> None:
    """After a minute 98 % of the limit is used at few refusals, whatever depth and latency."""
    run = course(limit, depth)
    run.latency_s = latency_s

    run.run(seconds)

    assert run.use(60, seconds, limit) >= 0.98
    assert run.refused_share(60, seconds) <= (0.007 if limit < 100 else 0.0035)
    assert run.shaper.snapshot().limit_per_s == pytest.approx(limit, rel=0.03)


def test_large_limit_is_reached_from_cold_within_a_quarter_minute() -> None:
    """From 10/s to 500/s in 15 s, and the overshoot costs no more than 1.5 s of the limit."""
    run = course(500, 500).run(20)

    assert run.reached(0.95, 500, after=0) <= 15
    assert sum(run.refused.values()) <= 1.5 * 500


def test_probes_wait_until_their_cost_is_earned() -> None:
    """At 500/s and 250 ms a probe costs a dozen refusals, and comes that much more rarely."""
    run = course(500, 500)
    run.latency_s = 0.25

    run.run(40)

    assert run.refused_share(20, 40) <= 0.0025


def test_thousand_a_second_is_held() -> None:
    """At 1000/s, where a quarter second holds 250 messages, half a minute suffices."""
    run = course(1000, 1000)
    run.latency_s = 0.25

    run.run(30)

    assert run.use(20, 30, 1000) >= 0.97
    assert run.refused_share(20, 30) <= 0.015


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("limit", "within_s"), [(14, 60), (50, 40)])
def test_raised_limit_is_followed(limit: float, within_s: float, seed: int) -> None:
    """Four times the limit is found by probing, within a minute even at 14/s."""
    run = course(limit, limit, seed=seed)
    run.change_at(70 + seed, 4 * limit, 4 * limit)

    run.run(71 + seed + within_s)

    assert run.reached(0.95, 4 * limit, after=70 + seed) <= within_s


def test_raise_beyond_a_probe_becomes_a_search() -> None:
    """A probe that no refusal ends grows into a search, and says so."""
    run = course(50, 50)
    run.change_at(60, 1000, 1000)

    phases = [run.run(60 + quarter / 4).shaper.snapshot().phase for quarter in range(120)]

    assert "searching" in phases
    assert run.reached(0.95, 1000, after=60) <= 30


@pytest.mark.parametrize("latency_s", [0.03, 0.25])
@pytest.mark.parametrize("limit", [25, 70, 250])
def test_cut_limit_is_followed_within_ten_seconds(limit: float, latency_s: float) -> None:
    """A fifth of the limit: no more than 1.2 s worth of the old rate refused, then full use."""
    run = course(limit, limit)
    run.latency_s = latency_s
    run.change_at(60, limit / 5, limit / 5)

    run.run(110)

    assert sum(run.refused.get(second, 0) for second in range(60, 80)) <= 1.3 * limit
    assert run.use(70, 110, limit / 5) >= 0.93
    assert run.refused_share(70, 110) <= 0.04


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lone_random_refusals_do_not_collapse_the_rate(seed: int) -> None:
    """0.5 % noise costs less than 5 % of use, and few refusals beyond itself."""
    run = course(50, 50, seed=seed)
    run.noise = 0.005

    run.run(200)

    assert run.use(60, 200, 50) >= 0.95
    assert run.refused_share(60, 200) <= 0.02
    assert run.shaper.snapshot().noise_share > 0.001


def test_idle_minutes_disturb_nothing() -> None:
    """After three minutes without mail the limit is used at once, and still known."""
    run = course(14, 14)
    run.gaps = ((120, 300),)

    run.run(119)
    before = run.shaper.snapshot().limit_per_s
    run.run(301)
    after = run.shaper.snapshot().limit_per_s
    run.run(400)

    assert after == pytest.approx(before, rel=0.01)
    assert run.use(300, 310, 14) >= 0.97
    assert run.use(310, 400, 14) >= 0.97
    assert run.refused_share(300, 400) <= 0.01


def test_mail_in_spurts_does_not_corrupt_the_estimate() -> None:
    """Five seconds on, five off, for ten minutes: a bucket refilled in pauses fools nobody."""
    run = course(14, 14)
    run.gaps = tuple((60 + 10 * n, 65 + 10 * n) for n in range(60))

    run.run(650)

    assert run.shaper.snapshot().limit_per_s == pytest.approx(14, rel=0.05)
    assert run.refused_share(60, 650) <= 0.02


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_demand_below_the_limit_inflates_nothing(share: float) -> None:
    """Mail that comes slower than the limit teaches no rate far above itself."""
    run = course(50, 50)
    run.demand_per_s = 50 * share

    run.run(200)

    assert run.refused_share(0, 200) <= 0.005
    assert run.shaper.snapshot().rate_per_s <= 2.5 * 50 * share
    assert not run.shaper.snapshot().has_backlog


def test_too_few_sessions_inflate_nothing() -> None:
    """Four attempts of 0.25 s at a time make 16/s; the rate stays near that, not at 10000."""
    run = course(10_000, 10_000)
    run.latency_s, run.sessions = 0.25, 4

    run.run(200)

    assert run.shaper.snapshot().rate_per_s <= 2 * 16
    assert run.use(60, 200, 16) >= 0.9


def test_several_recipients_a_message_are_paced_by_recipients() -> None:
    """Four recipients at a time, into the bucket's debt: same use, same refusals."""

    def four(_: Random) -> int:
        return 4

    run = course(50, 50)
    run.recipients = four

    run.run(300)

    assert run.use(60, 300, 50) >= 0.97
    assert run.refused_share(60, 300) <= 0.01


@pytest.mark.parametrize(("limit", "depth"), [(1, 1), (1, 3), (2, 2)])
def test_sandbox_limits_are_kept(limit: float, depth: float) -> None:
    """At 1/s, where a bucket may hold a single token, most of it is used at few refusals."""
    run = course(limit, depth)

    run.run(1200)

    assert run.use(120, 1200, limit) >= 0.8
    assert run.refused_share(120, 1200) <= 0.03


def test_low_limit_that_falls_further_is_followed() -> None:
    """From 2/s to 0.7/s: stepping down is not enough, the rate is cut."""
    run = course(2, 2)
    run.change_at(300, 0.7, 1)

    run.run(900)

    assert run.refused_share(330, 900) <= 0.05
    assert run.use(400, 900, 0.7) >= 0.6


def test_low_limit_learned_too_high_is_read_again() -> None:
    """A tenth above 2/s drains three tokens slowly enough for a reading of it."""
    run = course(2, 3)
    run.shaper.restore(run.start_at, {"limit_per_s": 2.2, "confidence": 0.99})

    run.run(60)

    assert run.shaper.snapshot().limit_per_s == pytest.approx(2, rel=0.08)


def test_share_for_others_is_left() -> None:
    """With use_max = 0.8 four fifths are sent, and hardly anything is refused."""
    run = course(50, 50, rate=Rate(use_max=0.8))

    run.run(300)

    assert run.use(100, 300, 50) == pytest.approx(0.8, abs=0.04)
    assert run.refused_share(100, 300) <= 0.003


def test_raise_is_found_below_a_share_too() -> None:
    """With use_max = 0.8 a raise shows at the next of the rare probes."""
    run = course(14, 14, rate=Rate(use_max=0.8))
    run.change_at(120, 28, 28)

    run.run(1000)

    assert run.shaper.snapshot().limit_per_s == pytest.approx(28, rel=0.05)
    assert run.use(960, 1000, 28) == pytest.approx(0.8, abs=0.1)


def test_floor_holds_below_the_limit_that_is_there() -> None:
    """Where even the floor is too fast, the rate stays at the floor and goes on trying."""
    run = course(1, 1, rate=Rate(floor_per_s=4))

    run.run(120)

    assert min(run.rates.values()) >= 4
    assert run.shaper.snapshot().rate_per_s < 10
    assert sum(run.accepted.values()) > 60


def test_first_search_tells_the_burst() -> None:
    """What passed beyond the limit before the first refusal is the bucket's depth, roughly."""
    run = course(50, 100).run(60)

    assert run.shaper.snapshot().burst == pytest.approx(100, rel=0.4)
    assert run.shaper.learned()["burst"] == run.shaper.snapshot().burst


def test_restored_limit_needs_no_search() -> None:
    """A start from the learned limit uses it in the first seconds, and corrects it if stale."""
    run = course(200, 200)
    run.shaper.restore(run.start_at, {"limit_per_s": 200, "confidence": 0.99})
    stale = course(50, 50)
    stale.shaper.restore(stale.start_at, {"limit_per_s": 200, "confidence": 0.99})

    run.run(20)
    stale.run(60)

    assert run.use(0, 20, 200) >= 0.97
    assert stale.use(20, 60, 50) >= 0.95
    assert stale.refused_share(20, 60) <= 0.02

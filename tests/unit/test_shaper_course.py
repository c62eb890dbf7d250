"""The real shaper against SES's limit in virtual time: it finds the limit and keeps to it.

The whole grid of limits, depths, latencies and seeds is in tests/bench/shaping; here are single
courses of it, each in well under a second. All courses are deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from relay.config.schema import Rate
from relay.shaper import Cause, Shaper, ShaperState
from tests.bench.shaping.model import START_AT, Bucket, Course, Limit, Window

SLOW, QUICK = 0.25, 0.03
"""Round trips in seconds: of a far region, of a near one."""


@dataclass(slots=True, kw_only=True)
class Run(Course):
    """A course of the real shaper, which tells more than the normative face."""

    shaper: Shaper

    @property
    def state(self) -> ShaperState:
        return self.shaper.snapshot()

    @property
    def limit_per_s(self) -> float:
        """The limit that the shaper has learned."""
        limit_per_s = self.state.limit_per_s
        assert limit_per_s is not None
        return limit_per_s


def course(
    limit: Limit, *, rate: Rate | None = None, latency_s: float = QUICK, seed: int = 1
) -> Run:
    """A fresh shaper before ``limit``."""
    return Run(shaper=Shaper(rate or Rate()), limit=limit, latency_s=latency_s, seed=seed)


def second_of(limit: float) -> Bucket:
    """A bucket that holds a second, and three tokens at least."""
    return Bucket(limit, max(3, limit))


# ---- a steady limit


@pytest.mark.parametrize("latency_s", [QUICK, SLOW])
@pytest.mark.parametrize(
    ("limit", "depth", "seconds"),
    [(14, 4.2, 660), (14, 42, 660), (50, 15, 360), (50, 150, 360), (200, 60, 180), (200, 600, 180)],
)
def test_steady_limit_is_used_and_not_overrun(
    limit: float, depth: float, seconds: int, latency_s: float
) -> None:
    """After a minute 99 % of the limit is used and 0.3 % refused, whatever depth and latency."""
    run = course(Bucket(limit, depth), latency_s=latency_s)

    run.run(seconds)

    assert run.use(60, seconds, limit) >= 0.99
    assert run.refused_share(60, seconds) <= 0.003
    assert run.limit_per_s == pytest.approx(limit, rel=0.01)


def test_thousand_a_second_is_held() -> None:
    """At 1000/s, where a quarter second holds 250 messages, half a minute suffices."""
    run = course(second_of(1000), latency_s=SLOW)

    run.run(30)

    assert run.use(20, 30, 1000) >= 0.96
    assert run.refused_share(20, 30) <= 0.003


@pytest.mark.parametrize(("limit", "depth"), [(1, 1), (1, 3), (2, 2)])
def test_sandbox_limits_are_kept(limit: float, depth: float) -> None:
    """At 1/s, where a bucket may hold a single token, most of it is used at few refusals."""
    run = course(Bucket(limit, depth))

    run.run(1260)

    assert run.use(60, 1260, limit) >= 0.85
    assert run.refused_share(60, 1260) <= 0.06


@pytest.mark.parametrize("latency_s", [QUICK, SLOW])
def test_several_recipients_a_message_are_paced_by_recipients(latency_s: float) -> None:
    """Four recipients at a time, into the bucket's debt: same use, hardly more refusals."""
    run = course(second_of(50), latency_s=latency_s)
    run.recipients = lambda _: 4

    run.run(360)

    assert run.use(60, 360, 50) >= 0.99
    assert run.refused_share(60, 360) <= 0.006


@pytest.mark.parametrize(("limit", "recipients"), [(14, 10), (50, 50)])
def test_large_messages_under_a_low_limit_are_learned(limit: float, recipients: int) -> None:
    """A second of the limit in one or two messages: its limit is found, too."""
    run = course(second_of(limit), latency_s=SLOW)
    run.recipients = lambda _: recipients

    run.run(1500)

    assert run.use(500, 1500, limit) >= 0.98
    assert run.refused_share(500, 1500) <= 0.006


@pytest.mark.parametrize("latency_s", [QUICK, SLOW])
def test_limit_by_the_second_of_the_clock_is_kept(latency_s: float) -> None:
    """So many in each second instead of a bucket: 96 % of it at 1 % refused."""
    run = course(Window(50), latency_s=latency_s)

    run.run(660)

    assert run.use(60, 660, 50) >= 0.96
    assert run.refused_share(60, 660) <= 0.01


# ---- a limit that moves


@pytest.mark.parametrize("latency_s", [QUICK, SLOW])
def test_large_limit_is_reached_from_cold_within_ten_seconds(latency_s: float) -> None:
    """From 10/s to 500/s in 10 s, and the overshoot costs less than 0.8 s of the limit."""
    run = course(second_of(500), latency_s=latency_s)

    run.run(20)

    assert run.reached(0.95, 500, after=0, window=1) <= 10
    assert sum(run.refused) <= 0.8 * 500


@pytest.mark.parametrize(
    ("limit", "within_s", "latency_s", "at"),
    [(50, 20, QUICK, 71), (50, 20, SLOW, 72), (50, 20, QUICK, 83), (14, 60, QUICK, 71)],
)
def test_raised_limit_is_followed(limit: float, within_s: float, latency_s: float, at: int) -> None:
    """Four times the limit is found by probing: in 20 s at 50/s, in a minute at 14/s."""
    run = course(second_of(limit), latency_s=latency_s)
    run.change_at(at, 4 * limit, 4 * limit)

    run.run(at + within_s + 3)

    assert run.reached(0.95, 4 * limit, after=at) <= within_s


def test_raise_beyond_a_probe_becomes_a_search() -> None:
    """A probe that no refusal ends grows into a search, and says so."""
    run = course(second_of(50))
    run.change_at(60, 1000, 1000)
    phases: set[str] = set()
    causes: set[Cause] = set()

    for quarter in range(120):
        run.run(60 + quarter / 4)
        phases.add(run.state.phase)
        causes.update(change.cause for change in run.shaper.changes())

    assert {"holding", "probing", "searching"} <= phases
    assert Cause.RAISED in causes
    assert run.reached(0.95, 1000, after=60) <= 30


@pytest.mark.parametrize(
    ("limit", "depth", "noise"), [(14, 4.2, 0.0), (5, 3, 0.0), (14, 4.2, 0.005)]
)
def test_low_estimate_is_found_out_though_a_small_bucket_hides_it(
    limit: float, depth: float, noise: float
) -> None:
    """A gentle probe is borne, and lifts it.

    A bucket of some messages is full before each probe, and bears the low estimate out: without
    gentle probes 98 % of 14/s and 96 % of 5/s are used, for ever.
    """
    run = course(Bucket(limit, depth), latency_s=SLOW)
    run.noise = noise
    run.shaper.restore(START_AT, {"limit_per_s": 0.96 * limit, "confidence": 0.999})

    run.run(900)

    assert run.use(600, 900, limit) >= 0.99
    assert run.refused_share(0, 900) <= 0.004 + 1.4 * noise


@pytest.mark.parametrize("latency_s", [QUICK, SLOW])
@pytest.mark.parametrize("limit", [25, 50, 200])
def test_cut_limit_is_followed_at_once(limit: float, latency_s: float) -> None:
    """A fifth of the limit: less than 0.8 s of the old rate refused, calm after 4 s, full use."""
    run = course(second_of(limit), latency_s=latency_s)
    run.change_at(60, limit / 5, max(3, limit / 5))

    run.run(120)

    assert run.calm_after(60) <= 4
    assert sum(run.refused[60:80]) <= 0.8 * limit
    assert run.use(70, 120, limit / 5) >= 0.95
    assert run.refused_share(70, 120) <= 0.03


def test_low_limit_that_falls_further_is_followed() -> None:
    """From 2/s to 0.7/s, below what single refusals would tell."""
    run = course(Bucket(2, 2))
    run.change_at(300, 0.7, 1)

    run.run(900)

    assert run.use(400, 900, 0.7) >= 0.6
    assert run.state.rate_per_s <= 1.4


@pytest.mark.parametrize("share", [0.95, 0.9])
def test_slightly_lower_limit_is_read_and_not_taken_for_noise(share: float) -> None:
    """Some per cent less: a few refusals tell how much, and the rate follows."""
    run = course(second_of(50))
    run.change_at(120, 50 * share, 50 * share)

    run.run(240)

    assert run.limit_per_s == pytest.approx(50 * share, rel=0.015)
    assert run.use(150, 240, 50 * share) >= 0.98
    assert run.refused_share(120, 240) <= 0.03


# ---- refusals by chance


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lone_random_refusals_cost_no_rate(seed: int) -> None:
    """0.5 % of noise: 99 % of use, and hardly more refused than the noise itself."""
    run = course(second_of(50), seed=seed)
    run.noise = 0.005

    run.run(660)

    assert run.use(60, 660, 50) >= 0.99
    assert run.refused_share(60, 660) <= 0.011
    assert run.state.noise_share > 0.001


def test_much_noise_costs_little_rate() -> None:
    """2 % by chance are tried as a lower limit, found to be none, and learned."""
    run = course(second_of(50))
    run.noise = 0.02

    run.run(660)

    assert run.use(60, 660, 50) >= 0.94
    assert run.refused_share(60, 660) <= 0.03
    assert run.state.noise_share == pytest.approx(0.02, rel=0.5)


def test_one_refusal_in_cruise_does_nothing() -> None:
    """A lone 454 of a well known limit moves neither limit nor rate by a per cent."""
    run = course(second_of(50))
    run.run(120)
    before = run.limit_per_s

    run.noise = 1.0
    run.run(120.03)
    run.noise = 0.0
    run.run(130)

    assert 1 <= sum(run.refused[119:121]) <= 2
    assert run.limit_per_s == pytest.approx(before, rel=0.01)
    assert run.use(120, 130, 50) >= 0.97


# ---- stretches in which the rate is not what holds sending back


def lull(run: Run, kind: str) -> None:
    """From now on it is mail, sessions or the day's quota that hold sending back."""
    if kind == "demand":
        run.demand_per_s = 30
        run._mail_at = START_AT + 120
    elif kind == "sessions":
        run.sessions, run.latency_s = 1, 0.1
    else:
        run.quota = 0


@pytest.mark.parametrize("kind", ["demand", "sessions", "quota"])
def test_stretch_bound_by_something_else_leaves_the_estimate_alone(kind: str) -> None:
    """Two minutes of too little mail, too few sessions or a spent quota: then all as before."""
    run = course(second_of(50))
    run.run(120)
    lull(run, kind)

    run.run(240)
    between = run.state
    run.demand_per_s = run.sessions = run.quota = None
    run.latency_s = QUICK
    run.run(300)

    assert not between.has_backlog
    assert between.limit_per_s == pytest.approx(50, rel=0.03)
    assert run.limit_per_s == pytest.approx(50, rel=0.03)
    assert run.use(245, 300, 50) >= 0.98
    assert run.refused_share(240, 300) <= 0.01


@pytest.mark.parametrize("limit", [14, 50])
def test_idle_minutes_disturb_nothing(limit: float) -> None:
    """After three minutes without mail the limit is used at once, and still known."""
    run = course(second_of(limit))
    run.gaps = ((120, 300),)

    run.run(119)
    before = run.limit_per_s
    run.run(301)
    after = run.limit_per_s
    run.run(400)

    assert after == pytest.approx(before, rel=0.01)
    assert min(run.use(300, 310, limit), run.use(300, 400, limit)) >= 0.98
    assert run.refused_share(300, 400) <= 0.01


def test_probe_after_an_idle_stretch_tells_the_burst() -> None:
    """A full bucket's depth is what passes beyond the limit until the first refusal, roughly."""
    run = course(second_of(50))
    run.gaps = ((120, 300),)

    run.run(119)
    before = run.state.burst
    run.run(360)

    assert before is None
    assert run.state.burst == pytest.approx(50, rel=0.4)
    assert run.shaper.learned()["burst"] == run.state.burst


def test_mail_in_spurts_does_not_corrupt_the_estimate() -> None:
    """Five seconds on, five off, for ten minutes: a bucket refilled in pauses fools nobody."""
    run = course(second_of(14))
    run.gaps = tuple((60 + 10 * n, 65 + 10 * n) for n in range(60))

    run.run(650)

    assert run.limit_per_s == pytest.approx(14, rel=0.05)
    assert run.refused_share(60, 650) <= 0.01


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_demand_below_the_limit_inflates_nothing(share: float) -> None:
    """Mail that comes slower than the limit teaches no rate far above itself."""
    run = course(second_of(50))
    run.demand_per_s = 50 * share

    run.run(200)

    assert run.refused_share(0, 200) <= 0.005
    assert run.state.rate_per_s <= 2.5 * 50 * share
    assert not run.state.has_backlog


def test_too_few_sessions_inflate_nothing() -> None:
    """Four attempts of 0.25 s at a time make 16/s; the rate stays near that, not at 10000."""
    run = course(second_of(10_000), latency_s=SLOW)
    run.sessions = 4

    run.run(200)

    assert run.state.rate_per_s <= 2 * 16
    assert run.use(60, 200, 16) >= 0.9


# ---- what people have set, and what was known before


def test_ceiling_holds_whatever_the_limit_allows() -> None:
    """With a ceiling of 20/s a limit of 50/s is never tried, let alone probed."""
    run = course(second_of(50), rate=Rate(ceiling_per_s=20))

    run.run(200)

    # The second that a booking begins in may hold one more.
    assert max(run.accepted) <= 21
    assert run.use(20, 200, 20) >= 0.99
    assert sum(run.refused) == 0


def test_floor_holds_below_the_limit_that_is_there() -> None:
    """Where even the floor is too fast, the rate stays at the floor and goes on trying."""
    run = course(Bucket(1, 1), rate=Rate(floor_per_s=4))
    rates = []

    for second in range(1, 120):
        run.run(second)
        rates.append(run.state.rate_per_s)

    assert min(rates) >= 4
    assert rates[-1] < 10
    assert sum(run.accepted) > 60


@pytest.mark.parametrize("latency_s", [QUICK, SLOW])
def test_restored_limit_needs_no_search(latency_s: float) -> None:
    """A start from the learned limit uses it from the first second on."""
    run = course(second_of(200), latency_s=latency_s)
    run.shaper.restore(START_AT, {"limit_per_s": 200, "confidence": 0.99})

    run.run(20)

    assert run.use(0, 20, 200) >= 0.97
    assert run.refused_share(0, 20) <= 0.01


def test_restored_limit_that_is_stale_is_corrected() -> None:
    """Four times too high: seconds later the truth is used."""
    run = course(second_of(50))
    run.shaper.restore(START_AT, {"limit_per_s": 200, "confidence": 0.99})

    run.run(60)

    assert run.use(20, 60, 50) >= 0.97
    assert run.refused_share(20, 60) <= 0.01


def test_remembered_limit_a_little_too_high_is_given_up() -> None:
    """A tenth above 2/s costs few refusals, and the limit comes down."""
    run = course(Bucket(2, 3))
    run.shaper.restore(START_AT, {"limit_per_s": 2.2, "confidence": 0.99})

    run.run(240)

    assert run.limit_per_s <= 2.15
    assert run.refused_share(0, 240) <= 0.06


def test_share_for_others_is_left() -> None:
    """With use_max = 0.8 and a known limit four fifths are sent, but for rare probes."""
    run = course(second_of(50), rate=Rate(use_max=0.8))
    run.shaper.restore(START_AT, {"limit_per_s": 50, "confidence": 0.999})

    run.run(900)

    assert run.use(0, 900, 50) == pytest.approx(0.8, abs=0.02)
    assert max(run.use(first, first + 100, 50) for first in range(0, 900, 100)) <= 0.84
    assert run.refused_share(0, 900) <= 0.001
    assert run.limit_per_s == pytest.approx(50, rel=0.03)


def test_raise_is_found_below_a_share_too() -> None:
    """With use_max = 0.8 a raise shows at the next of the rare probes, minutes later."""
    run = course(second_of(14), rate=Rate(use_max=0.8))
    run.shaper.restore(START_AT, {"limit_per_s": 14, "confidence": 0.999})
    run.change_at(60, 28, 28)

    run.run(700)

    assert run.limit_per_s >= 0.95 * 28
    assert run.use(600, 700, 28) >= 0.75


# ---- why it moved


def test_each_change_is_told_with_its_own_cause() -> None:
    """Found at first, then measured; a cut is a cut, and what is measured after it is not."""
    run = course(second_of(50))
    run.change_at(60, 10, 10)

    run.run(58)
    before = [change.cause for change in run.shaper.changes()]
    run.run(120)
    after = run.shaper.changes()

    assert before[0] is Cause.FOUND
    assert set(before[1:]) == {Cause.MEASURED}
    assert after[0].cause is Cause.LOWERED
    assert after[0].after_per_s == pytest.approx(10, rel=0.1)
    assert {change.cause for change in after[1:]} <= {Cause.MEASURED}

"""What refusals prove: suspicion, cycles, the estimate."""

from __future__ import annotations

import pytest

from relay.shaper.evidence import NOISE_SPAN, WEIGHT_MAX, Cycle, Estimate, Suspicion


def refuse_every(suspicion: Suspicion, accepted: int, times: int, *, cruising: bool) -> int:
    """Refuse one in ``accepted + 1``; return after which refusal it was confirmed, 0: never."""
    for n in range(1, times + 1):
        suspicion.refuse(float(n), cruising=cruising)
        if suspicion.confirmed:
            return n
        for _ in range(accepted):
            suspicion.accept(cruising=cruising)
    return 0


def test_two_refusals_close_together_are_a_limit() -> None:
    """The second within eight messages confirms the first."""
    assert refuse_every(Suspicion(), accepted=7, times=2, cruising=False) == 2


def test_two_refusals_far_apart_are_chance() -> None:
    """One in 200, for ever, is no limit."""
    assert refuse_every(Suspicion(), accepted=199, times=50, cruising=False) == 0


def test_slow_scale_finds_an_excess_of_a_few_per_cent() -> None:
    """One in 20, too rare for the quick scale, is confirmed at the fourth."""
    assert refuse_every(Suspicion(), accepted=19, times=10, cruising=False) == 4


def test_noise_is_learned_in_cruise_and_asks_for_more() -> None:
    """After 1 in 100 for a while the same pair proves nothing, and probes get careful."""
    suspicion = Suspicion()
    refuse_every(suspicion, accepted=99, times=40, cruising=True)

    again = refuse_every(suspicion, accepted=7, times=2, cruising=False)

    assert suspicion.noise_share == pytest.approx(0.01, rel=0.3)
    assert not suspicion.is_quiet
    assert again == 0


def test_noise_is_forgotten() -> None:
    """Thousands of accepts without a refusal make it quiet again."""
    suspicion = Suspicion()
    refuse_every(suspicion, accepted=99, times=40, cruising=True)

    for _ in range(int(3 * NOISE_SPAN)):
        suspicion.accept(cruising=True)

    assert suspicion.is_quiet


def test_refusals_outside_cruise_are_no_noise() -> None:
    """In a probe or a search refusals are the point."""
    suspicion = Suspicion()

    refuse_every(suspicion, accepted=99, times=40, cruising=False)

    assert suspicion.noise_share == 0


def test_cluster_ends_when_it_has_leaked_away() -> None:
    """Sixteen accepts after a refusal leave no share, and the next starts a cluster of its own."""
    suspicion = Suspicion()
    suspicion.refuse(1.0, cruising=False)
    share = suspicion.refused_share

    for _ in range(16):
        suspicion.accept(cruising=False)
    suspicion.refuse(2.0, cruising=False)

    assert share == 1
    assert (suspicion.since, suspicion.refused) == (2.0, 1)


def test_cleared_cluster_accuses_nobody() -> None:
    """An answered cluster starts from nothing."""
    suspicion = Suspicion()
    refuse_every(suspicion, accepted=0, times=2, cruising=False)

    suspicion.clear()

    assert not suspicion.confirmed
    assert suspicion.refused_share == 0


def test_reading_is_passed_recipients_over_the_time_between_refusals() -> None:
    """99 passed in 10 s, one counted on top: 10/s."""
    cycle = Cycle(since=100.0, accepted=99)

    cycle.mark(110.0)
    cycle.accepted += 50

    assert cycle.reading(unit=1) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("accepted", "span_s", "idle_s", "unit"),
    [(15, 10, 0, 1), (99, 0, 0, 1), (99, 10, 0.6, 1), (99, 10, 0, 10)],
    ids=["too few", "no time", "idle", "large messages"],
)
def test_cycle_that_tells_nothing_has_no_reading(
    accepted: float, span_s: float, idle_s: float, unit: float
) -> None:
    """Too short, too idle, or of too few messages: no reading at all."""
    cycle = Cycle(since=100.0, accepted=accepted, idle_s=idle_s)

    cycle.mark(100.0 + span_s)

    assert cycle.reading(unit) is None


def test_restarted_cycle_keeps_what_came_after_the_refusal() -> None:
    """The next reading starts at the last refusal, not at the moment of judging."""
    cycle = Cycle(since=100.0, accepted=99, idle_s=0.2)
    cycle.mark(110.0)
    cycle.accepted += 19
    cycle.idle_s += 0.05

    cycle.restart()
    cycle.mark(112.0)

    assert (cycle.since, cycle.accepted, cycle.marked) == (110.0, 19, 19)
    assert cycle.idle_s == pytest.approx(0.05)
    assert cycle.reading(unit=1) == pytest.approx(10.0)


def test_idle_share_of_a_cycle_makes_the_bucket_unknown() -> None:
    """A twentieth of the time, but never less than the smallest gap that counts."""
    cycle = Cycle(since=0.0, idle_s=0.5)

    assert cycle.is_idle(sent_at=10.0, idle_min_s=0.25)
    assert not cycle.is_idle(sent_at=11.0, idle_min_s=0.25)
    assert not cycle.is_idle(sent_at=1.0, idle_min_s=0.6)


def test_readings_blend_by_their_precision() -> None:
    """300 messages say 10.0, 100 say 10.04: the limit is 10.01."""
    estimate = Estimate()

    estimate.learn(10.0, weight=300)
    estimate.learn(10.04, weight=100)

    assert estimate.limit_per_s == pytest.approx(10.01)
    assert estimate.error_share == pytest.approx(1.5 / 400)


@pytest.mark.parametrize("reading", [2.0, 50.0])
def test_reading_beyond_both_errors_replaces_the_past(reading: float) -> None:
    """A limit that moved is not averaged with what it was."""
    estimate = Estimate(10.0, weight=4000)

    estimate.learn(reading, weight=20)

    assert (estimate.limit_per_s, estimate.weight) == (reading, 20)


def test_evidence_is_bounded_so_that_the_limit_can_drift() -> None:
    """However long it held, a new reading still counts."""
    estimate = Estimate(10.0, weight=WEIGHT_MAX)

    for _ in range(100):
        estimate.learn(10.005, weight=400)

    assert estimate.weight == WEIGHT_MAX
    assert estimate.limit_per_s == pytest.approx(10.005, rel=1e-4)


def test_lifted_limit_counts_for_little_and_never_sinks() -> None:
    """A rate that was borne is a lower bound, soon to be read anew."""
    estimate = Estimate(10.0, weight=3000)

    estimate.lift(12.0)
    estimate.lift(11.0)

    assert estimate.limit_per_s == 12.0
    assert estimate.weight < 100

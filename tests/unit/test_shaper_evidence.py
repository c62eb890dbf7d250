"""What refusals prove: scales, suspicion, cycles, the estimate."""

from __future__ import annotations

import pytest

from relay.shaper.evidence import (
    ALARM,
    EDGE,
    LIFTED_WEIGHT,
    NOISE_MAX,
    NOISE_SPAN_MAX,
    SCATTER_MAX,
    WEIGHT_MAX,
    Cycle,
    Estimate,
    Scale,
    Suspicion,
)


def refuse_every(suspicion: Suspicion, accepted: int, times: int, *, cruising: bool) -> int:
    """Refuse one in ``accepted + 1``; return after which refusal there is an alarm, 0: never."""
    for n in range(1, times + 1):
        suspicion.refuse(float(n), cruising=cruising)
        if suspicion.alarm is not None:
            return n
        for _ in range(accepted):
            suspicion.accept(1, cruising=cruising)
    return 0


# ---- one scale


def test_scale_counts_its_excursion_from_the_first_refusal() -> None:
    """Since when, how many messages, how many recipients passed."""
    scale = Scale(0.5)
    scale.calibrate(0.002)
    scale.accept(7)

    scale.refuse(10.0)
    scale.accept(3)
    scale.refuse(11.0)

    assert (scale.since, scale.refused, scale.accepted, scale.passed) == (10.0, 2, 1, 3)
    assert scale.refused_share == pytest.approx(2 / 3)


def test_excursion_ends_when_it_has_leaked_away() -> None:
    """Accepts take the score to nought; the next refusal starts one of its own."""
    scale = Scale(0.5)
    scale.calibrate(0.002)
    scale.refuse(10.0)

    for _ in range(20):
        scale.accept(1)
    leaked = (scale.score, scale.refused, scale.refused_share)
    scale.refuse(12.0)

    assert leaked == (0, 0, 0)
    assert (scale.since, scale.refused) == (12.0, 1)


def test_scale_that_noise_drowns_says_nothing() -> None:
    """A share of less than three times the noise cannot be told from it."""
    scale = Scale(0.03)
    scale.calibrate(0.02)

    for n in range(100):
        scale.refuse(float(n))

    assert scale.score == 0


# ---- suspicion


def test_two_refusals_close_together_are_a_limit() -> None:
    """The second within a few messages is no chance."""
    assert refuse_every(Suspicion(), accepted=3, times=2, cruising=False) == 2


def test_two_refusals_far_apart_are_chance() -> None:
    """One in 200, for ever, is no limit."""
    assert refuse_every(Suspicion(), accepted=199, times=50, cruising=False) == 0


def test_slow_scale_finds_an_excess_of_a_few_per_cent() -> None:
    """One in 25, too rare for the quick scale, raises the alarm after a few."""
    suspicion = Suspicion()

    alarmed = refuse_every(suspicion, accepted=24, times=10, cruising=False)

    assert 3 <= alarmed <= 6
    assert suspicion.alarm is not None
    assert suspicion.alarm.share < 0.2
    assert suspicion.alarm.score >= ALARM
    assert suspicion.first.refused == alarmed


def test_noise_is_learned_in_cruise_and_asks_for_more() -> None:
    """After 1 in 100 for a while what was an alarm proves nothing, and probes get careful."""
    suspicion = Suspicion()
    refuse_every(suspicion, accepted=99, times=40, cruising=True)

    again = refuse_every(suspicion, accepted=7, times=2, cruising=False)

    assert suspicion.noise_share == pytest.approx(0.01, rel=0.4)
    assert not suspicion.is_quiet
    assert again == 0


def test_noise_is_forgotten() -> None:
    """Thousands of accepts without a refusal make it quiet again."""
    suspicion = Suspicion()
    refuse_every(suspicion, accepted=99, times=40, cruising=True)

    for _ in range(int(3 * NOISE_SPAN_MAX)):
        suspicion.accept(1, cruising=True)

    assert suspicion.is_quiet


def test_refusals_outside_cruise_are_no_noise() -> None:
    """In a probe or a search refusals are the point."""
    suspicion = Suspicion()

    refuse_every(suspicion, accepted=99, times=40, cruising=False)

    assert suspicion.noise_share == 0


def test_cleared_suspicion_accuses_nobody() -> None:
    """An answered excursion starts from nothing."""
    suspicion = Suspicion()
    refuse_every(suspicion, accepted=0, times=2, cruising=False)

    suspicion.clear()

    assert suspicion.alarm is None
    assert suspicion.first.refused == 0


def test_acquitted_refusals_are_taken_out_of_the_noise() -> None:
    """Three counted as noise were the limit's: the share is what it was, never below nought."""
    suspicion = Suspicion()
    for n in range(3):
        suspicion.refuse(float(n), cruising=True)
    learned = suspicion.noise_share

    suspicion.acquit(3)
    once = suspicion.noise_share
    suspicion.acquit(3)

    assert learned > 0
    assert once == pytest.approx(0, abs=1e-9)
    assert suspicion.noise_share == 0


def test_convicted_noise_is_verified_and_bounded() -> None:
    """What a trial has shown is noise from then on; a smaller share lowers nothing."""
    suspicion = Suspicion()

    suspicion.convict(0.02, 10)
    suspicion.convict(0.01, 10)
    first = (suspicion.noise_share, suspicion.verified)
    suspicion.convict(0.9, 10)

    assert first == (0.02, 0.02)
    assert suspicion.noise_share == NOISE_MAX


def test_certain_noise_is_less_than_what_a_trial_saw() -> None:
    """Ten refusals may be three too many by chance, and what has ended since is certain no more."""
    suspicion = Suspicion()
    suspicion.convict(0.02, 10)
    certain = suspicion.chance_share

    for _ in range(3000):
        suspicion.accept(1, cruising=True)

    assert certain == pytest.approx(0.02 * (1 - 10**-0.5))
    assert suspicion.chance_share < 0.2 * certain
    assert suspicion.verified < 0.02


def test_short_trial_without_refusals_leaves_verified_noise() -> None:
    """32 messages without a refusal do not disprove 2 %; 1,000 leave 0.3 % of it possible."""
    suspicion = Suspicion()
    suspicion.convict(0.02, 10)

    suspicion.reprieve(0.0, 32)
    after_few = (suspicion.noise_share, suspicion.verified)
    suspicion.reprieve(0.0, 1000)

    assert after_few == (0.02, 0.02)
    assert suspicion.verified == suspicion.noise_share == pytest.approx(0.003)


def test_verified_noise_is_never_acquitted() -> None:
    """Refusals that belonged to the limit are taken out of the noise, what is verified is not."""
    suspicion = Suspicion()
    suspicion.convict(0.02, 10)

    suspicion.acquit(100)

    assert suspicion.noise_share == 0.02
    assert not suspicion.is_quiet


# ---- cycles


def test_reading_is_passed_recipients_over_the_time_between_refusals() -> None:
    """99 passed in 10 s, one counted on top: 10/s; what came after the refusal does not count."""
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


def test_late_mark_of_an_older_refusal_turns_no_clock_back() -> None:
    """A straggler is counted, but the empty moment stays the latest one."""
    cycle = Cycle(since=100.0, accepted=99)
    cycle.mark(110.0)

    cycle.mark(109.0)

    assert cycle.marked_at == 110.0


def test_restarted_cycle_keeps_what_came_after_the_refusal() -> None:
    """The next reading starts at the last refusal, not at the moment of judging."""
    cycle = Cycle(since=100.0, accepted=99, idle_s=0.2, saved=3.0, spared=2.0)
    cycle.mark(110.0)
    cycle.accepted += 19
    cycle.idle_s += 0.05
    cycle.saved += 1.0

    cycle.restart()
    cycle.mark(112.0)

    assert (cycle.since, cycle.accepted, cycle.marked) == (110.0, 19, 19)
    assert cycle.idle_s == pytest.approx(0.05)
    assert (cycle.saved, cycle.spared) == (1.0, 0.0)
    assert cycle.reading(unit=1) == pytest.approx(10.0)


def test_idle_share_of_a_cycle_makes_the_bucket_unknown() -> None:
    """A twentieth of the time, but never less than the smallest gap that counts."""
    cycle = Cycle(since=0.0, idle_s=0.5)

    assert cycle.is_idle(sent_at=10.0, idle_min_s=0.25)
    assert not cycle.is_idle(sent_at=11.0, idle_min_s=0.25)
    assert not cycle.is_idle(sent_at=1.0, idle_min_s=0.6)


# ---- the estimate


def test_first_reading_is_the_estimate() -> None:
    """Worse ends make it worth fewer messages of evidence."""
    estimate = Estimate()

    replaced = estimate.learn(10.0, weight=100, edge=2 * EDGE)

    assert replaced
    assert (estimate.limit_per_s, estimate.weight) == (10.0, 50)


def test_readings_blend_by_their_precision() -> None:
    """300 messages say 10.0, 100 say 10.04: the limit is 10.01."""
    estimate = Estimate()

    estimate.learn(10.0, weight=300, edge=EDGE)
    replaced = estimate.learn(10.04, weight=100, edge=EDGE)

    assert not replaced
    assert estimate.limit_per_s == pytest.approx(10.01)
    assert estimate.error_share == pytest.approx(EDGE / 400)


@pytest.mark.parametrize("reading", [2.0, 50.0])
def test_reading_beyond_both_errors_replaces_the_past(reading: float) -> None:
    """A limit that moved is not averaged with what it was."""
    estimate = Estimate(10.0, weight=4000)

    replaced = estimate.learn(reading, weight=20, edge=EDGE)

    assert replaced
    assert (estimate.limit_per_s, estimate.weight) == (reading, 20)


def test_evidence_is_bounded_so_that_the_limit_can_drift() -> None:
    """However long it held, a new reading still counts."""
    estimate = Estimate(10.0, weight=WEIGHT_MAX)

    for _ in range(100):
        estimate.learn(10.005, weight=300, edge=EDGE)

    assert estimate.weight == WEIGHT_MAX
    assert estimate.limit_per_s == pytest.approx(10.005, rel=1e-4)


def test_scatter_beyond_the_edges_is_learned_and_forgiven() -> None:
    """Readings that others' random mail shakes by 3 % widen the error and replace nothing."""
    estimate = Estimate(10.0, weight=1000)

    replaced = [
        estimate.learn(10.0 * (1.03 if n % 2 else 0.97), weight=400, edge=EDGE) for n in range(40)
    ]

    assert 0 < estimate.scatter <= SCATTER_MAX
    assert not any(replaced[20:])
    assert estimate.error_share > EDGE / estimate.weight
    assert estimate.limit_per_s == pytest.approx(10.0, rel=0.02)


def test_limit_that_moved_is_no_scatter() -> None:
    """Readings that all lie 10 % lower, one like the other, are a lower limit."""
    estimate = Estimate(10.0, weight=WEIGHT_MAX)

    for _ in range(20):
        estimate.learn(9.0, weight=40, edge=EDGE)

    assert estimate.scatter == 0


def test_scatter_against_a_young_estimate_is_its_own_error() -> None:
    """Before there is evidence nothing can be said about others' mail."""
    estimate = Estimate(10.0, weight=20)

    estimate.learn(10.3, weight=60, edge=EDGE)
    estimate.learn(9.7, weight=10, edge=EDGE)

    assert estimate.scatter == 0


def test_lifted_limit_counts_for_little_and_never_sinks() -> None:
    """A rate that was borne is a lower bound, soon to be read anew."""
    estimate = Estimate(10.0, weight=3000)

    estimate.lift(12.0)
    estimate.lift(11.0)

    assert estimate.limit_per_s == 12.0
    assert estimate.weight == LIFTED_WEIGHT


def test_lowered_limit_is_a_share_of_what_it_was() -> None:
    """Its evidence is what the lowering is worth, or less."""
    estimate = Estimate(10.0, weight=3000)

    estimate.lower(0.7, weight=12)
    estimate.lower(1.0)

    assert estimate.limit_per_s == pytest.approx(7.0)
    assert estimate.weight == 12


def test_unknown_limit_is_a_guess() -> None:
    """Without evidence the error is the whole of it."""
    assert Estimate().error_share == 1

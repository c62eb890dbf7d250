"""What the controller does with one outcome after another, without a bucket behind them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from relay.config.schema import Rate
from relay.shaper import tuning
from relay.shaper.control import Controller, Phase
from relay.shaper.episodes import Trial, Turns
from relay.shaper.evidence import Cycle
from relay.shaper.order import Kind, Outcome
from relay.shaper.pacing import Pacer
from relay.shaper.words import Cause

NOW = 1000.0
KNOWN = 1000.0
"""Messages of evidence with which a limit is well known."""


@dataclass(slots=True)
class Talk:
    """Messages at the controller's own pace, each answered at once, as the test says."""

    controller: Controller
    now: float = NOW
    number: int = field(default=0, init=False)

    def accept(self, count: int = 1) -> None:
        for _ in range(count):
            self.answer(Kind.ACCEPTED)

    def refuse(self, count: int = 1) -> None:
        for _ in range(count):
            self.answer(Kind.THROTTLED)

    def answer(self, kind: Kind, idle_s: float = 0.0) -> None:
        """Send one more, ``idle_s`` later than it might have gone."""
        self.now += 1 / self.controller.pacer.rate_per_s + idle_s
        self.judge(kind, self.now, idle_s)

    def judge(self, kind: Kind, sent_at: float, idle_s: float = 0.0) -> None:
        self.number += 1
        self.controller.judge(self.now, Outcome(sent_at, self.number, 1, kind), idle_s)

    def accept_until(self, phase: Phase) -> None:
        for _ in range(5000):
            if self.controller.phase is phase:
                return
            self.accept()
        pytest.fail(f"no {phase} within 5000 messages")

    def alarm(self) -> None:
        """Two refused of five: more than chance, less than most."""
        self.refuse()
        self.accept(3)
        self.refuse()

    def alarm_until_cut(self) -> None:
        for _ in range(50):
            trial = self.controller._trial
            if trial is not None and trial.is_cut:
                return
            self.alarm()
            self.accept(2)
        pytest.fail("no cut after 50 alarms")

    @property
    def limit_per_s(self) -> float:
        limit_per_s = self.controller.estimate.limit_per_s
        assert limit_per_s is not None
        return limit_per_s


def holding(limit_per_s: float, weight: float = KNOWN, config: Rate | None = None) -> Talk:
    """A controller that has learned ``limit_per_s`` and holds it."""
    controller = Controller(config or Rate(), Pacer(10))
    controller.start_from(NOW, limit_per_s, weight)
    return Talk(controller)


def searching(rate_per_s: float, latency_s: float) -> Talk:
    controller = Controller(Rate(), Pacer(rate_per_s))
    controller.latency_s = latency_s
    return Talk(controller)


# ---- holding


def test_holding_stays_a_little_below_the_limit_and_begins_with_a_pause() -> None:
    """0.2 % below, and one message's time of silence leaves a cushion in the bucket."""
    talk = holding(50)

    first = talk.controller.pacer.book(NOW, 1)

    assert talk.controller.pacer.rate_per_s == pytest.approx(50 * (1 - tuning.CRUISE))
    assert first == pytest.approx(NOW + 1 / talk.controller.pacer.rate_per_s)


def test_lone_refusal_below_a_known_limit_does_nothing() -> None:
    """Neither limit nor rate nor phase; it counts as noise."""
    talk = holding(50)
    talk.accept(20)
    rate_per_s = talk.controller.pacer.rate_per_s

    talk.refuse()

    assert talk.limit_per_s == 50
    assert talk.controller.pacer.rate_per_s == rate_per_s
    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller.suspicion.noise_share > 0


def test_no_probe_where_the_ceiling_rules() -> None:
    """A limit at or above the ceiling is never tried."""
    talk = holding(50, config=Rate(ceiling_per_s=20))

    talk.accept(3000)

    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller.pacer.rate_per_s == 20


def test_share_of_others_is_probed_rarely() -> None:
    """With use_max = 0.8 and a known limit four fifths are held for five minutes a probe."""
    talk = holding(5, config=Rate(use_max=0.8))

    talk.accept_until(Phase.PROBING)

    assert talk.now - NOW >= tuning.SHARE_PROBE_S


def test_probe_wants_backlog() -> None:
    """While demand holds sending back nothing is earned, hence nothing probed."""
    talk = holding(50)

    for _ in range(1000):
        talk.answer(Kind.ACCEPTED, idle_s=0.05)

    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller.idle_share > tuning.BUSY_IDLE_MAX


# ---- replies to what was sent before the last change of rate


def test_stale_refusals_accuse_nobody() -> None:
    """Four that were sent before the rate changed say nothing about the new one."""
    talk = holding(50)
    talk.accept(20)
    talk.controller._hold(talk.now)
    rate_per_s = talk.controller.pacer.rate_per_s

    for n in range(4):
        talk.judge(Kind.THROTTLED, talk.now - 0.3 + n * 0.02)

    assert talk.limit_per_s == 50
    assert talk.controller.pacer.rate_per_s == rate_per_s
    assert all(scale.score == 0 for scale in talk.controller.suspicion.scales)


def test_stale_refusals_that_go_on_tell_that_the_change_was_too_little() -> None:
    """If most of what was under way is refused, for longer than a moment, it brakes again."""
    talk = holding(50)
    talk.accept(20)
    talk.controller._hold(talk.now)
    talk.controller.latency_s = 0.5

    for n in range(12):
        talk.judge(Kind.THROTTLED, talk.now - 0.3 + n * 0.02)

    assert talk.controller.phase is Phase.BRAKING
    assert talk.controller.pacer.rate_per_s < 10


# ---- searching and braking


def test_refusals_heard_in_any_order_end_a_search_at_once() -> None:
    """Before their turn in send order has come: four within a few are no chance."""
    talk = searching(200, latency_s=0.25)

    for _ in range(tuning.HEARD_MAX):
        talk.controller.hear(NOW)
    braked_per_s = talk.controller.pacer.rate_per_s
    talk.controller.hear(NOW)

    assert braked_per_s == pytest.approx(200 * tuning.BRAKE)
    assert talk.controller.pacer.rate_per_s == braked_per_s
    assert talk.controller.phase is Phase.SEARCHING


def test_search_goes_on_if_what_was_heard_proves_nothing() -> None:
    """A message sent after braking is accepted, and no alarm came up: the old rate is back."""
    talk = searching(200, latency_s=0.25)
    for _ in range(tuning.HEARD_MAX):
        talk.controller.hear(NOW)
    talk.judge(Kind.ACCEPTED, NOW - 0.1)
    before = talk.controller.pacer.rate_per_s

    talk.accept()

    assert before == pytest.approx(200 * tuning.BRAKE)
    assert talk.controller.pacer.rate_per_s == pytest.approx(200)


def test_refusals_outside_a_search_are_not_heard() -> None:
    """A known limit is corrected in send order only."""
    talk = holding(200)
    rate_per_s = talk.controller.pacer.rate_per_s
    talk.controller.latency_s = 0.25

    for _ in range(10):
        talk.controller.hear(NOW)

    assert talk.controller.pacer.rate_per_s == rate_per_s


def test_heard_refusals_are_forgotten() -> None:
    """Three, a hundred accepted, three more: the search goes on."""
    talk = searching(100, latency_s=0.25)
    for _ in range(2):
        for _ in range(tuning.HEARD_MAX - 1):
            talk.controller.hear(talk.now)
        talk.accept(100)

    assert talk.controller.pacer.rate_per_s > 100


def test_search_that_chance_has_ended_goes_on() -> None:
    """Three refused at once, but nothing else of what was under way: back to the rate it had."""
    talk = searching(200, latency_s=0.25)
    talk.refuse(3)
    braking = talk.controller.phase
    for n in range(50):
        talk.judge(Kind.ACCEPTED, talk.now - 0.2 + n * 0.004)

    talk.now += 0.3
    talk.accept()

    assert braking is Phase.BRAKING
    assert talk.controller.phase is Phase.SEARCHING
    assert talk.controller.pacer.rate_per_s == pytest.approx(200, rel=0.05)
    assert talk.controller.estimate.limit_per_s is None


# ---- corrections and their trials


def test_alarm_in_cruise_begins_a_trial_and_a_second_one_cuts() -> None:
    """First the reading is refined; if refusals go on, the limit falls by what was refused."""
    talk = holding(50)
    talk.accept(20)

    talk.alarm()
    refined = talk.limit_per_s
    for _ in range(6):
        talk.alarm()
        talk.accept(2)

    assert refined == pytest.approx(50, rel=0.05)
    assert talk.controller.cause is Cause.LOWERED
    assert talk.limit_per_s < 0.75 * 50


def test_cut_on_trial_is_not_cut_again_at_once() -> None:
    """The verdict on a correction wants some messages."""
    talk = holding(50)
    talk.accept(20)
    talk.alarm_until_cut()
    cut = talk.limit_per_s

    talk.alarm()

    assert talk.limit_per_s == cut


def test_cut_after_an_idle_stretch_counts_anew() -> None:
    """A pause in mid-trial makes the bucket's content unknown; the cut begins a new cycle."""
    talk = holding(50)
    talk.accept(20)
    talk.alarm()
    talk.answer(Kind.ACCEPTED, idle_s=2.0)
    voided = talk.controller.cycle

    talk.alarm_until_cut()

    assert voided is None
    assert talk.limit_per_s < 50
    assert talk.controller.cycle is not None


def rare_refusals_until_refined(talk: Talk) -> None:
    """One in some twenty, until the first correction is on trial."""
    talk.refuse()
    for _ in range(8):
        if talk.controller._trial is None:
            talk.accept(22)
            talk.refuse()


def test_rare_refusals_that_a_refinement_did_not_end_lead_to_a_cut() -> None:
    """Too rare for a second alarm: the verdict on the first correction cuts."""
    talk = holding(50, weight=100)
    rare_refusals_until_refined(talk)
    refined = talk.limit_per_s

    for _ in range(8):
        talk.accept(22)
        talk.refuse()
        if talk.limit_per_s < 0.99 * refined:
            break

    assert refined == pytest.approx(50, rel=0.05)
    assert talk.limit_per_s < 0.99 * refined


def test_verdict_on_a_refinement_wants_a_cycle_for_a_cut() -> None:
    """An idle stretch in mid-trial has made the bucket's content unknown: nothing is cut."""
    talk = holding(50, weight=100)
    rare_refusals_until_refined(talk)
    refined = talk.limit_per_s
    talk.answer(Kind.ACCEPTED, idle_s=2.0)

    for _ in range(2):
        talk.accept(21)
        talk.refuse()
    talk.accept(12)

    assert talk.controller._trial is None
    assert talk.limit_per_s == refined


def test_verdict_may_fall_on_a_refused_message() -> None:
    """The last message of a trial counts like any other: one refusal alone is no failure."""
    talk = holding(50)
    talk.controller._trial = Trial(60.0, KNOWN, 0.1, left=1, is_cut=True, suspects=2.0)

    talk.refuse()

    assert talk.controller._trial is None
    assert talk.limit_per_s == pytest.approx(50, rel=0.01)


def test_too_many_refusals_are_no_noise_whatever_a_trial_says() -> None:
    """A cut that leaves a fifth refused is followed by the next alarm, not taken back."""
    talk = holding(50)
    trial = Trial(60.0, KNOWN, 0.2, left=10, is_cut=True, suspects=2.0, tried=9, refused=2)
    talk.controller._trial = trial

    talk.accept()

    assert talk.controller._trial is None
    assert talk.limit_per_s == 50
    assert talk.controller.suspicion.verified == 0


def test_refusals_that_no_correction_ends_are_noise() -> None:
    """One in thirty for ever, whatever the rate: the limit is given back, the noise learned."""
    talk = holding(50)
    causes: set[Cause] = set()

    for _ in range(120):
        talk.accept(29)
        talk.refuse()
        causes.add(talk.controller.cause)

    assert {Cause.LOWERED, Cause.NOISE} <= causes
    assert talk.limit_per_s >= 0.97 * 50
    assert 0.015 <= talk.controller.suspicion.noise_share <= 0.05


def test_correction_that_ends_the_refusals_stays() -> None:
    """After a cut nothing more is refused: the lower limit holds, the trial is over."""
    talk = holding(50)
    talk.accept(20)
    talk.alarm_until_cut()
    cut = talk.limit_per_s

    talk.accept(int(tuning.TRIAL_TRIED) + 3)

    assert talk.controller._trial is None
    assert talk.limit_per_s == cut
    assert talk.controller.suspicion.noise_share < 0.05


# ---- probing


def to_second_probe(talk: Talk) -> None:
    """Through a first probe, whose refusal begins a cycle, to the next one."""
    talk.accept_until(Phase.PROBING)
    talk.accept(5)
    talk.refuse()
    talk.accept_until(Phase.PROBING)


def test_probe_goes_above_the_limit_and_its_first_refusal_ends_it() -> None:
    """The bucket is empty then: back to holding, and the next probe makes a reading."""
    talk = holding(50)
    talk.accept_until(Phase.PROBING)
    above_per_s = talk.controller.pacer.rate_per_s

    talk.accept(5)
    talk.refuse()

    assert above_per_s > 50
    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller.pacer.rate_per_s < 50
    assert talk.controller.confirmed_at == talk.now
    assert talk.controller.cycle is not None


def test_idleness_voids_a_probe() -> None:
    """Its bucket may have filled meanwhile."""
    talk = holding(50)
    to_second_probe(talk)

    talk.answer(Kind.ACCEPTED, idle_s=2.0)

    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller.cycle is None


def test_probe_whose_cycle_has_no_reading_begins_another() -> None:
    """Some idleness in a short cycle: too much for a reading, too little to void the probe."""
    talk = holding(50, weight=40)
    to_second_probe(talk)
    talk.answer(Kind.ACCEPTED, idle_s=0.2)
    before = talk.limit_per_s

    talk.refuse()

    assert talk.limit_per_s == before
    assert talk.controller.cycle is not None
    assert talk.controller.cycle.since == talk.now


def test_outlived_small_probe_lifts_the_limit_a_little() -> None:
    """What was borne for longer than the bucket explains is a raise, by half the excess."""
    talk = holding(200)
    talk.controller.latency_s = 0.25
    to_second_probe(talk)
    first_per_s = talk.controller.pacer.rate_per_s
    for _ in range(5000):
        if talk.controller.pacer.rate_per_s != first_per_s:
            break
        talk.accept()

    excess = talk.controller.pacer.rate_per_s / talk.limit_per_s - 1
    talk.refuse(5)

    assert excess < 0.1
    assert talk.controller.cause is Cause.RAISED
    assert talk.limit_per_s == pytest.approx(200 * (1 + excess / 2), rel=0.005)


def to_gentle_probe(talk: Talk, noise: float = 0.0) -> float:
    """Through a first probe to a gentle one, if there is one; returns its excess."""
    talk.accept_until(Phase.PROBING)
    talk.refuse(3)
    talk.controller._gentle = Turns(left=0)
    accept_with_noise(talk, noise)
    return talk.controller._probe.excess


def accept_with_noise(talk: Talk, noise: float) -> None:
    """Hold until the next probe, where chance is known to refuse so much."""
    for _ in range(5000):
        if talk.controller.phase is Phase.PROBING:
            return
        talk.controller.suspicion.noise_share = talk.controller.suspicion.verified = noise
        talk.accept()
    pytest.fail("no probe within 5000 messages")


@pytest.mark.parametrize(
    ("limit_per_s", "noise", "excess"),
    [(14.0, 0.0, tuning.GENTLE), (14.0, 0.02, 2 * 0.02), (29.0, 0.0, tuning.GENTLE)],
    ids=["quiet", "noisy", "just small enough"],
)
def test_gentle_probe_goes_a_little_above_a_low_limit(
    limit_per_s: float, noise: float, excess: float
) -> None:
    """So little that it is borne if the estimate is low by as much; more where chance refuses."""
    assert to_gentle_probe(holding(limit_per_s), noise) == pytest.approx(excess, rel=0.15)


def test_high_limit_needs_no_gentle_probe() -> None:
    """At 50/s a bucket of 0.3 s holds fifteen messages: its readings are no lie."""
    talk = holding(50)

    to_gentle_probe(talk)

    assert not talk.controller._probe.is_gentle


def test_reading_from_a_full_bucket_asks_for_a_gentle_probe_at_any_limit() -> None:
    """It confirms 50/s and lowers nothing, so that it cannot tell whether 50/s is too little."""
    talk = holding(50)
    talk.accept_until(Phase.PROBING)
    talk.refuse()
    talk.controller.cycle = Cycle(talk.now - 100, accepted=4899, saved=200)
    talk.controller.cycle.mark(talk.now)
    talk.controller._take(talk.now, 49.0)
    talk.controller._gentle = Turns(left=0)

    talk.accept_until(Phase.PROBING)

    assert talk.limit_per_s == 50
    assert talk.controller._probe.is_gentle


def test_limit_below_three_a_second_gets_no_gentle_probe() -> None:
    """There a probe goes up by steps anyway, and keeps what it proved."""
    talk = holding(2)

    excess = to_gentle_probe(talk)

    assert not talk.controller._probe.is_gentle
    assert excess == tuning.LOW_EXCESS


@pytest.mark.parametrize(("left", "phase"), [(0, Phase.PROBING), (1, Phase.HOLDING)])
def test_gentle_probe_begins_a_little_in_debt(left: int, phase: Phase) -> None:
    """It takes long enough to earn the rest; any other waits until all is paid."""
    talk = holding(14)
    talk.accept_until(Phase.PROBING)
    talk.refuse()
    talk.controller._gentle = Turns(left=left)
    talk.controller._held = tuning.GAP_MAX
    talk.controller._credit = 0.1 - tuning.GENTLE_EARLY

    talk.accept()

    assert talk.controller.phase is phase


def test_noisy_probe_that_refuses_too_often_has_met_the_limit() -> None:
    """Never enough at once to prove it, but one in twenty where chance takes one in fifty."""
    talk = holding(50)
    accept_with_noise(talk, 0.02)
    for _ in range(500):
        if talk.controller.phase is not Phase.PROBING:
            break
        talk.accept(19)
        talk.refuse()

    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller._probe.outlived == 0
    assert talk.controller._probe.left <= 0


def test_gentle_probe_of_an_unsure_limit_ends_in_time() -> None:
    """Much may be in the bucket then, and a raise must not wait for minutes."""
    talk = holding(14, weight=5)

    to_gentle_probe(talk)

    assert talk.controller._probe.left <= tuning.GENTLE_MESSAGES + 2


def test_gentle_probe_that_was_borne_lifts_the_limit_and_lends_the_next_probe() -> None:
    """Half of the step that met the limit is a guess, and is read soon."""
    talk = holding(14)
    excess = to_gentle_probe(talk)
    talk.controller._credit = -0.2
    for _ in range(5000):
        if talk.controller._probe.outlived:
            break
        talk.accept()

    talk.refuse(3)

    assert talk.limit_per_s == pytest.approx(14 * (1 + 1.5 * excess), rel=0.005)
    assert talk.controller._credit == tuning.GENTLE_LENT
    assert talk.controller._gentle.left == tuning.GENTLE_GAP


def test_buckets_are_small_by_messages_not_by_recipients() -> None:
    """25 messages of four a second want gentle probes, and below ten readings lie."""
    talk = holding(100)
    talk.controller.cycle = Cycle(talk.now)
    talk.controller._gentle = Turns(left=0)
    single = talk.controller._is_gentle_due

    talk.controller._unit = 4.0
    by_four, is_small = talk.controller._is_gentle_due, talk.controller._is_small
    talk.controller._unit = 11.0

    assert (single, by_four) == (False, True)
    assert (is_small, talk.controller._is_small) == (False, True)


def test_gentle_probe_of_a_high_limit_is_planned_by_seconds() -> None:
    """At 100/s 600 messages are over too soon to use up much by little: 20 s are given."""
    talk = holding(100)

    _, excess = talk.controller._plan_gently(300.0)

    assert excess == pytest.approx(tuning.PROBE_ROOM * 300 / (tuning.GENTLE_S * 100))


def test_gentle_probe_that_was_borne_takes_no_credit_away() -> None:
    """What is lent after a lift is the least, not all, that the next probe may cost."""
    talk = holding(14)
    to_gentle_probe(talk)
    talk.controller._probe.outlived = 1
    talk.controller._credit = 2.5

    talk.controller._meet(talk.now, talk.now)

    assert talk.controller._credit == 2.5


@pytest.mark.parametrize(
    ("limit_per_s", "left"), [(20.0, tuning.GENTLE_FIRST), (5.0, tuning.GENTLE_FIRST_SMALL)]
)
def test_limit_found_anew_counts_gentle_probes_anew(limit_per_s: float, left: int) -> None:
    """What the limit before has taught about buckets is nothing now; a small one is asked soon."""
    talk = holding(100)
    talk.controller._gentle = Turns(left=-7, gap=tuning.GENTLE_GAP_MAX)
    talk.controller.cycle = Cycle(talk.now - 10, accepted=10 * limit_per_s)
    talk.controller.cycle.mark(talk.now)

    talk.controller._take_anew(talk.now, limit_per_s)

    assert talk.limit_per_s == limit_per_s
    assert talk.controller._gentle == Turns(left)


@pytest.mark.parametrize(
    ("limit_per_s", "noise", "gap"),
    [
        (14.0, 0.0, tuning.GENTLE_GAP_MAX),
        (5.0, 0.0, tuning.GENTLE_GAP_OFTEN),
        (14.0, 0.02, tuning.GENTLE_GAP_OFTEN),
    ],
    ids=["known", "small", "noisy"],
)
def test_gentle_probes_that_are_met_stay_frequent_where_readings_lie(
    limit_per_s: float, noise: float, gap: int
) -> None:
    """In a bucket of a few messages, or where chance refuses, an estimate is soon low again."""
    talk = holding(limit_per_s)
    to_gentle_probe(talk, noise)
    talk.controller._gentle.gap = tuning.GENTLE_GAP_MAX

    talk.refuse(3)

    assert talk.controller.phase is Phase.HOLDING
    assert talk.controller._gentle.left == gap


@pytest.mark.parametrize(
    ("noise", "planned"),
    [(0.0, (2.0, tuning.GENTLE)), (0.02, (tuning.GENTLE_NOISY * 2.0, 2 * 0.02))],
    ids=["quiet", "noisy"],
)
def test_gentle_probe_uses_up_more_where_chance_refuses(
    noise: float, planned: tuple[float, float]
) -> None:
    """What chance refused is still in the bucket, and must not pass for a raise."""
    talk = holding(14)
    talk.controller.suspicion.noise_share = noise

    assert talk.controller._plan_gently(2.0) == planned


@pytest.mark.parametrize(
    ("noise", "owed"),
    [(0.0, tuning.DEBT_MAX), (0.005, tuning.DEBT_NOISY), (0.02, tuning.DEBT_MAX)],
    ids=["quiet", "a little noise", "much noise"],
)
def test_most_that_is_owed_for_probes(noise: float, owed: float) -> None:
    """A little noise makes each probe dearer, and is paid; in much of it probes must go on."""
    talk = holding(14)
    talk.controller.suspicion.noise_share = noise

    talk.controller._pay(10)

    assert talk.controller._credit == -owed


def test_probe_that_nothing_ends_becomes_a_search() -> None:
    """Step after step is borne: the limit is somewhere else entirely."""
    talk = holding(50)

    talk.accept_until(Phase.PROBING)
    talk.accept_until(Phase.SEARCHING)

    assert talk.limit_per_s > 55
    assert talk.controller.cause is Cause.RAISED


# ---- where others send, too


def test_scatter_makes_a_longer_pause_and_costs_no_rate() -> None:
    """Beside random mail a bucket wanders: more time to fill after a refusal."""
    even, random = holding(50), holding(50)
    random.controller.estimate.scatter = 0.2

    for talk in (even, random):
        talk.controller._hold(talk.now)

    assert random.controller.pacer.rate_per_s == even.controller.pacer.rate_per_s
    first, then = (talk.controller.pacer.book(talk.now, 1) for talk in (even, random))
    assert then - first > 0.05


def test_probe_beside_random_mail_counts_on_what_that_left() -> None:
    """Scatter lengthens a probe: a lucky minute is no raise."""
    left = []
    for scatter in (0.0, 0.2):
        talk = holding(50)
        talk.controller.estimate.scatter = scatter
        talk.controller.cycle = Cycle(talk.now, accepted=250)
        talk.controller._begin_probe(talk.now)
        left.append(talk.controller._probe.saved)

    assert left[1] > left[0] + 5


def test_what_chance_refuses_is_sent_on_top() -> None:
    """A refusal by chance takes no token: with 2 % of them nearly 2 % more may be sent."""
    talk = holding(50)
    talk.controller.suspicion.convict(0.02, 100)

    talk.controller._hold(talk.now)

    assert 50 * 1.013 <= talk.controller.pacer.rate_per_s <= 50 / 0.98


def test_use_max_holds_whatever_is_refused_by_chance() -> None:
    """A share that must not be exceeded is not stretched by a guess about noise."""
    talk = holding(50, config=Rate(use_max=0.8))
    talk.controller.suspicion.convict(0.02, 100)

    talk.controller._hold(talk.now)

    assert talk.controller.pacer.rate_per_s <= 40


def test_young_limit_owes_nothing() -> None:
    """What learning cost does not keep the first probes away; a known limit pays its surprises."""
    young, known = holding(50, weight=20), holding(50)
    young.controller._is_new = True

    for talk in (young, known):
        talk.controller._credit = 0.5
        talk.controller._pay(4)

    assert young.controller._credit == 0
    assert known.controller._credit == -tuning.DEBT_MAX

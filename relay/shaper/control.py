"""What the replies, in send order, do to the rate: search, brake, settle, hold, probe.

- *searching*: no limit known (or it went up a lot): the rate grows exponentially in time,
  counted in accepted recipients, so that nothing grows while nothing is sent;
- *braking*: far too much is refused: hardly anything is sent until the replies to what is under
  way have told how much passes, which is a reading if there are enough of them;
- *settling*: without one: slow growth from below until the bucket is empty once more;
- *holding*: just below the estimate; refusals are weighed, corrections tried (``corrections``);
- *probing*: a little above it, to make the next reading, and to see whether the limit rose.

It turns the pacer's knobs and waits for nothing. Invariants: floor <= rate <= ceiling; one
response an epoch (replies to what was sent before the last change of rate accuse nobody, unless
most of it is refused: then the change was too little).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, inf, sqrt
from typing import TYPE_CHECKING

from relay.shaper import tuning as n
from relay.shaper.episodes import Brake, Probe, Trial
from relay.shaper.evidence import EDGE, Cycle, Estimate, Scale, Suspicion
from relay.shaper.order import Kind
from relay.shaper.pacing import LOW_PER_S
from relay.shaper.words import Cause

if TYPE_CHECKING:
    from relay.config.schema import Rate
    from relay.shaper.order import Outcome
    from relay.shaper.pacing import Pacer


class Phase(StrEnum):
    """What the controller is doing, in the words that ``status`` shows."""

    SEARCHING = "searching"
    BRAKING = "braking"
    SETTLING = "settling"
    HOLDING = "holding"
    PROBING = "probing"


@dataclass(slots=True)
class Controller:
    """Judges outcomes in send order and sets ``pacer``'s rate.

    ``cycle`` is None while nothing is known about the bucket's content; ``latency_s`` and
    ``spread_s`` are the latency and its deviation, as the face measures them; ``burst`` what
    the bucket held when a probe emptied it, if that was seen; ``confirmed_at`` the moment of
    the last reading.
    """

    config: Rate
    pacer: Pacer
    phase: Phase = field(default=Phase.SEARCHING, init=False)
    estimate: Estimate = field(default_factory=Estimate, init=False)
    suspicion: Suspicion = field(default_factory=Suspicion, init=False)
    cycle: Cycle | None = field(default=None, init=False)
    spread_s: float = field(default=0.0, init=False)
    latency_s: float = field(default=0.0, init=False)
    idle_share: float = field(default=0.0, init=False)
    burst: float | None = field(default=None, init=False)
    confirmed_at: float | None = field(default=None, init=False)
    cause: Cause = field(default=Cause.FOUND, init=False)
    _unit: float = field(default=1.0, init=False)
    _epoch_at: float = field(default=-inf, init=False)
    _stale: Scale = field(default_factory=lambda: Scale(0.5), init=False)
    _may_brake_again: bool = field(default=True, init=False)
    _growth: float = field(default=n.SEARCH_GROWTH, init=False)
    _search_from_per_s: float = field(default=0.0, init=False)
    _heard: int = field(default=0, init=False)
    _grown: int = field(default=0, init=False)
    _braked: tuple[float, float] | None = field(default=None, init=False)
    _brake: Brake | None = field(default=None, init=False)
    _probe: Probe = field(default_factory=Probe, init=False)
    _trial: Trial | None = field(default=None, init=False)
    _credit: float = field(default=n.LENT, init=False)
    _held: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._stale.calibrate(self.suspicion.noise_floor)

    def judge(self, now: float, outcome: Outcome, idle_s: float) -> None:
        """Draw the conclusions of one outcome; ``idle_s`` was lost since the one before."""
        if outcome.kind is Kind.IGNORED:
            idle_s += outcome.recipients / self.pacer.rate_per_s
        if self.phase is Phase.BRAKING and outcome.sent_at >= self._epoch_at:
            self._end_brake(now)
        self._count_idle(now, outcome, idle_s)
        if outcome.kind is Kind.ACCEPTED:
            self._accept(now, outcome)
        elif outcome.kind is Kind.THROTTLED:
            self._refuse(now, outcome)

    def hear(self, now: float) -> None:
        """Note a refusal whose turn has not come: enough of them end a search at once."""
        if self.phase is not Phase.SEARCHING or self._braked is not None:
            return
        self._heard += 1
        rate = self.pacer.rate_per_s
        if self._heard >= n.HEARD_MAX and rate * self.latency_s >= n.FEW:
            self._braked = (now, rate)
            self._set_rate(now, rate * n.BRAKE)

    def start_from(self, now: float, limit_per_s: float, weight: float) -> None:
        """Hold a limit learned earlier; the first probe comes soon, for it may be stale."""
        self.estimate = Estimate(limit_per_s, weight)
        self.suspicion.clear()
        self.cycle = self._trial = self._braked = self._brake = None
        self._credit = n.LENT
        self._hold(now)

    @property
    def _limit(self) -> float:
        limit = self.estimate.limit_per_s
        assert limit is not None
        return limit

    @property
    def _is_low(self) -> bool:
        """Whether the bucket may be one token deep: full at each send, so that readings fail."""
        return self._limit < LOW_PER_S

    @property
    def _is_cruising(self) -> bool:
        """Whether a refusal now is probably chance: below a limit that is well known."""
        is_steady = self.phase is Phase.HOLDING and self._trial is None
        return is_steady and self.estimate.weight >= n.SETTLED_WEIGHT

    @property
    def _disorder(self) -> float:
        """Messages by which arrivals stray: the root of how many come within the spread."""
        return sqrt(2 * self.pacer.rate_per_s * self.spread_s / self._unit)

    @property
    def _cushion(self) -> float:
        """Tokens that a pause leaves in the bucket: one message's, and the arrivals' disorder."""
        return self._unit * (1 + self._disorder)

    # ---- what one outcome says

    def _count_idle(self, now: float, outcome: Outcome, idle_s: float) -> None:
        """Follow how idle sending is, and what it does to the reading in the making."""
        recipients, rate = outcome.recipients, self.pacer.rate_per_s
        # Weighed by size: a bucket's debt is as deep as the large messages are.
        self._unit += (recipients - self._unit) * recipients / (recipients + 32 * self._unit)
        # One long gap must not count as many messages without backlog.
        lost_s = min(idle_s, 8 * recipients / rate)
        self.idle_share += (lost_s / (lost_s + recipients / rate) - self.idle_share) / 16
        if self.cycle is None:
            return
        if idle_s > n.SETTLE_IDLE_S or self.phase not in (Phase.BRAKING, Phase.SETTLING):
            self.cycle.idle_s += idle_s
        if self.phase is Phase.HOLDING:
            self.cycle.saved += recipients * max(0.0, self._limit / rate - 1)
        is_at_limit = self.phase in (Phase.HOLDING, Phase.PROBING)
        if is_at_limit and self.cycle.is_idle(outcome.sent_at, n.VOID_S):
            # The bucket may have filled: a probe that relied on its content is void, too.
            self.cycle = None
            if self.phase is Phase.PROBING:
                self._hold(now)

    def _accept(self, now: float, outcome: Outcome) -> None:
        if self.cycle is not None:
            self.cycle.accepted += outcome.recipients
        if outcome.sent_at < self._epoch_at:
            self._stale.accept(outcome.recipients)
            if self._brake is not None:
                self._brake.accepted += 1
            return
        self.suspicion.accept(outcome.recipients, cruising=self._is_cruising)
        if self._trial is not None and self._trial.weigh(refused=False):
            self._judge_trial(now)
        if self.idle_share <= n.BUSY_IDLE_MAX:
            self._advance(now, outcome)

    def _advance(self, now: float, outcome: Outcome) -> None:
        """Go on with the phase: grow, or count down to the next step of it."""
        if self.phase is Phase.SEARCHING:
            self._search(now, outcome)
        elif self.phase is Phase.SETTLING:
            slow = self.pacer.rate_per_s / (n.SETTLE_MESSAGES * self._unit)
            self._grow(now, min(n.SETTLE_GROWTH, slow), outcome.recipients)
        elif self.phase is Phase.HOLDING:
            self._earn(now, outcome.recipients)
        elif outcome.sent_at >= self._probe.began_at and self._probe.accept(outcome.recipients):
            self._outlive(now, outcome.sent_at)

    def _refuse(self, now: float, outcome: Outcome) -> None:
        sent_at = outcome.sent_at
        if self.cycle is not None:
            self.cycle.mark(sent_at)
        if sent_at < self._epoch_at:
            self._refuse_stale(now, outcome)
            return
        self.suspicion.refuse(sent_at, cruising=self._is_cruising)
        if self.phase is Phase.PROBING:
            self._pay(outcome.recipients)
            self._probe.refuse(sent_at)
        elif self.cycle is not None and self._is_cruising:
            self.cycle.spared += outcome.recipients
        if self._trial is not None and self._trial.weigh(refused=True):
            self._judge_trial(now)
        self._respond(now, sent_at)

    def _refuse_stale(self, now: float, outcome: Outcome) -> None:
        """Weigh a refusal of what was under way when the rate was last changed."""
        sent_at = outcome.sent_at
        self._stale.refuse(sent_at)
        if self._brake is not None:
            self._brake.refused += 1
            # What was sent after the first refused message, but overtook it, is no refill.
            if not self._brake.has_begun and sent_at >= self._brake.since + 2 * self.spread_s:
                self.cycle, self._brake.has_begun = Cycle(sent_at), True
            return
        self._pay(outcome.recipients)
        is_most = self._stale.refused_share >= n.STALE_SHARE
        if (
            is_most
            and self._may_brake_again
            and self.phase is Phase.HOLDING
            and self._stale.refused >= n.STALE_REFUSED
            and sent_at - self._stale.since >= n.HARD_S
        ):
            self._begin_brake(now, self._stale, sent_at)

    # ---- answers to refusals that are no noise

    def _respond(self, now: float, sent_at: float) -> None:
        alarm = self.suspicion.alarm
        if self.phase is Phase.SEARCHING:
            if alarm is not None and alarm.refused >= n.SEARCH_REFUSED:
                self._begin_brake(now, alarm, sent_at)
        elif self.phase is Phase.SETTLING:
            if sent_at - self._epoch_at >= n.SETTLE_S:
                self._settle(now, alarm, sent_at)
        elif self._is_hard(sent_at):
            self._begin_brake(now, self.suspicion.scales[0], sent_at)
        elif self.phase is Phase.PROBING:
            if self._probe.is_met(quiet=self.suspicion.is_quiet):
                self._meet(now, sent_at)
        else:
            self._respond_in_cruise(now, alarm, sent_at)

    def _respond_in_cruise(self, now: float, alarm: Scale | None, sent_at: float) -> None:
        """Correct the limit on an alarm; a lone refusal is one only while the limit is young."""
        if alarm is None:
            if self._is_doubtful:
                self._read(now)
        elif alarm.refused_share < n.HARD_SHARE:  # a hard cluster in the making is left to grow
            self._correct(now, alarm, sent_at)

    def _is_hard(self, sent_at: float) -> bool:
        """Whether the estimate is far off: most is refused, for longer than a moment."""
        scale = self.suspicion.scales[0]
        if scale.refused < n.HARD_REFUSED or scale.refused_share < n.HARD_SHARE:
            return False
        return sent_at - scale.since >= n.HARD_S or scale.refused >= n.HARD_S * self._limit

    @property
    def _is_doubtful(self) -> bool:
        """Whether a young estimate's error alone could have emptied the bucket by now."""
        if self.cycle is None or self._trial is not None or not self.suspicion.is_quiet:
            return False
        drawn = 2 * self.estimate.error_share * self.cycle.accepted
        is_young = self.estimate.weight < n.SETTLED_WEIGHT
        return is_young and drawn > self._cushion + self.cycle.saved

    def _read(self, now: float) -> None:
        """Take a lone refusal for an empty bucket: the cycle's reading, if it has one."""
        assert self.cycle is not None
        reading = self.cycle.reading(self._unit)
        if reading is not None:
            self._take(now, reading)
            self.suspicion.clear()
            self._hold(now)

    def _take(self, now: float, reading: float, weight_max: float = inf) -> None:
        """Blend the cycle's ``reading`` and count anew, unless a full bucket made it low."""
        cycle = self.cycle
        assert cycle is not None
        if not self._ran_over(cycle, reading):
            weight = min(weight_max, cycle.marked / self._unit)
            reading = max(self.config.floor_per_s, reading)
            self.estimate.learn(reading, weight, EDGE + self._disorder)
        self.confirmed_at = now
        cycle.restart()

    def _ran_over(self, cycle: Cycle, reading: float) -> bool:
        """Whether a low reading is explained by what a full bucket let run over."""
        limit = self.estimate.limit_per_s
        if limit is not None and limit < LOW_PER_S and 0.9 * limit < reading < limit:
            return True
        spilled = cycle.marked_saved
        if self.suspicion.verified:
            spilled += min(cycle.spared, n.SPARED_MAX * cycle.marked)
        if limit is None or spilled <= max(2 * self._unit, self._cushion):
            return False
        return 0 < 1 - reading / limit <= 1.2 * spilled / cycle.marked

    # ---- searching, braking, settling

    def _search(self, now: float, outcome: Outcome) -> None:
        if self._braked is not None:
            braked_at, rate = self._braked
            if outcome.sent_at >= braked_at:  # what was heard was chance
                self._braked, self._heard = None, 0
                self._set_rate(now, rate)
            return
        self._grown += 1
        if self._grown % n.HEARD_FORGET == 0:
            self._heard = max(0, self._heard - 1)
        self._grow(now, self._growth, outcome.recipients)

    def _begin_brake(self, now: float, scale: Scale, sent_at: float) -> None:
        """Send little until what is under way has told how much passes."""
        is_again = self.phase is Phase.SETTLING
        if not is_again or self.cycle is None:
            self.cycle = Cycle(scale.since, scale.passed)
        self.cycle.mark(sent_at)
        braked_at, from_per_s = self._braked or (now, self.pacer.rate_per_s)
        was_search = self.phase is Phase.SEARCHING
        refused, accepted = scale.refused, scale.accepted
        self._brake = Brake(scale.since, from_per_s, was_search, is_again, refused, accepted)
        self.phase, self._trial, self._braked = Phase.BRAKING, None, None
        self._heard, self._growth = 0, n.SEARCH_GROWTH
        self._begin_epoch(braked_at)
        self.suspicion.noise_share = min(self.suspicion.noise_share, self.suspicion.verified)
        self.suspicion.clear()
        if from_per_s * self.latency_s < n.FEW:
            self._end_brake(now)
        else:
            self._set_rate(now, from_per_s * n.BRAKE)

    def _end_brake(self, now: float) -> None:
        """Hold what was read; without a reading settle from below."""
        brake, cycle = self._brake, self.cycle
        assert brake is not None
        assert cycle is not None
        self._brake = None
        if brake.is_false:
            self.phase, self.cycle = Phase.SEARCHING, None
            self._set_rate(now, brake.from_per_s)
            return
        reading = cycle.reading(self._unit)
        if reading is None:
            rate = brake.kept_per_s(cycle.marked_at)
            if brake.was_search:
                rate = max(rate, 0.9 * self._search_from_per_s)
                self._search_from_per_s = 0.0
            self.phase = Phase.SETTLING
            self._begin_epoch(now)
            self._set_rate(now, rate)
            return
        braked_s, braked_per_s = now - self._epoch_at, self.pacer.rate_per_s
        self._take(now, min(reading, brake.from_per_s))
        cycle.saved += max(0.0, braked_s * (self._limit - braked_per_s))
        self._credit = n.LENT
        self._hold(now)
        # The first replies of the new epoch still show the old one's disorder.
        self._may_brake_again = False

    def _settle(self, now: float, alarm: Scale | None, sent_at: float) -> None:
        """Take the first reading; without one an alarm is a reason to fall again."""
        assert self.cycle is not None
        reading = self.cycle.reading(self._unit)
        if reading is not None and (alarm is not None or self.suspicion.is_quiet):
            reading = min(reading, 2 * self.pacer.rate_per_s) * n.FROM_ABOVE
            self._take(now, reading, n.SETTLE_WEIGHT_MAX)
            self.suspicion.clear()
            self._credit = n.LENT
            self._hold(now)
        elif alarm is not None:
            self._begin_brake(now, alarm, sent_at)

    def _begin_epoch(self, now: float) -> None:
        self._epoch_at = now
        self._may_brake_again = True
        self._stale.clear()

    # ---- corrections and their trials

    def _correct(self, now: float, alarm: Scale, sent_at: float) -> None:
        """Refine the limit first, then cut it, then take the refusals for noise."""
        trial = self._trial
        if self._is_low:
            self._step_down(now, sent_at)
        elif trial is None:
            self._refine(now, alarm)
        elif not trial.is_cut:
            if alarm.refused + alarm.accepted >= n.CUT_TRIED:
                self._cut(now, alarm, sent_at)
        elif trial.tried >= n.TRIAL_TRIED:
            self._judge_trial(now)

    def _step_down(self, now: float, sent_at: float) -> None:
        """Give way a little, where no reading can say by how much."""
        self.cause, self._trial = Cause.LOWERED, None
        self.estimate.lower(n.LOW_STEP, n.LIFTED_WEIGHT)
        self.cycle = Cycle(sent_at)
        self.suspicion.clear()
        self._hold(now)

    def _refine(self, now: float, alarm: Scale) -> None:
        """Blend the cycle's reading; without one, a cycle begins at the first of the refusals."""
        limit, weight = self._limit, self.estimate.weight
        reading = None if self.cycle is None else self.cycle.reading(self._unit)
        if reading is None:
            self.cycle = Cycle(alarm.since, alarm.passed)
        else:
            self._take(now, reading)
        self._try(now, limit, weight, alarm, is_cut=False)

    def _cut(self, now: float, alarm: Scale, sent_at: float) -> None:
        """Lower the limit by what was refused."""
        assert self._trial is not None
        kept = self.pacer.rate_per_s * (1 - alarm.refused_share) / self._limit
        self.estimate.lower(min(1.0, max(n.CUT_MIN, kept)), alarm.accepted)
        if self.cycle is None:
            self.cycle = Cycle(sent_at)
        else:
            self.cycle.restart()
        self._try(now, self._trial.limit_per_s, self._trial.weight, alarm, is_cut=True)

    def _try(
        self, now: float, limit_per_s: float, weight: float, alarm: Scale, *, is_cut: bool
    ) -> None:
        """Hold a corrected limit on trial; what was refused until now is not noise."""
        self.cause = Cause.LOWERED
        self.suspicion.acquit(alarm.refused)
        share = alarm.refused_share
        left = min(n.TRIAL_MAX, max(n.TRIAL_TRIED, 3 / share))
        self._trial = Trial(limit_per_s, weight, share, left, is_cut)
        self.suspicion.clear()
        self._hold(now)

    def _doubt(self, now: float) -> None:
        """Try whether a lower limit ends what would be taken for noise."""
        noise = self.suspicion.noise_share
        step = max(n.DOUBT_STEP, n.DOUBT_NOISES * noise)
        most = max(n.DOUBT_TRIED_MAX, n.DOUBT_S * self._limit / self._unit)
        left = min(most, n.DOUBT_REFUSED / noise)
        self._trial = Trial(self._limit, self.estimate.weight, noise, left, is_cut=True)
        self.cause = Cause.LOWERED
        self.estimate.lower(1 - step, EDGE / step)
        self.cycle = None
        self.suspicion.clear()
        self._hold(now)

    def _judge_trial(self, now: float) -> None:
        """Say whether the correction has ended the refusals."""
        trial = self._trial
        assert trial is not None
        share = trial.refused_share
        if trial.changed_nothing and not trial.is_cut:
            first = self.suspicion.first
            if first.refused >= 2 and self.cycle is not None:
                self._cut(now, first, self.cycle.marked_at)
                return
        elif trial.changed_nothing and share <= n.NOISE_SHARE_MAX:
            self._acquit(now, trial)
            return
        elif trial.is_cut:
            self._credit = n.LENT
            self.suspicion.noise_share = min(self.suspicion.noise_share, share)
        self._trial = None

    def _acquit(self, now: float, trial: Trial) -> None:
        """Give the limit back what refusals took that no correction ended: they are noise."""
        self.estimate.limit_per_s, self.estimate.weight = trial.limit_per_s, trial.weight
        self.suspicion.convict(min(trial.refused_share, trial.share))
        self.cause = Cause.NOISE
        self.cycle = self._trial = None
        self.suspicion.clear()
        self._hold(now)

    # ---- holding and probing

    def _hold(self, now: float) -> None:
        """Cruise below the estimate, after a pause that leaves a cushion in the bucket."""
        noise = n.MARGIN_NOISE * self.suspicion.noise_share
        margin = max(n.CRUISE, min(n.MARGIN_MAX, noise))
        self.phase = Phase.HOLDING
        self._held = 0.0
        self._begin_epoch(now)
        # A share of a guess helps nobody, and a bucket that is never empty cannot be read: until
        # the limit is known from this run or an earlier one, all of it is used.
        is_known = self.confirmed_at is None or self.estimate.weight >= n.SHARE_WEIGHT
        share = self.config.use_max if is_known else 1.0
        self._set_rate(now, self._limit * (1 - margin) * share)
        self.pacer.pause(now, self._cushion / self.pacer.rate_per_s)

    def _earn(self, now: float, recipients: int) -> None:
        """Earn the refusals that a probe may cost, and probe when there are enough."""
        budget = next(share for below_per_s, share in n.BUDGETS if self._limit < below_per_s)
        self._credit = min(n.LENT, self._credit + budget * recipients)
        self._held += recipients
        if self._trial is not None:
            return
        if self.suspicion.noise_share > 2 * self.suspicion.verified + n.DOUBT_NOISE:
            self._doubt(now)
        elif self._credit > 0 and self._held >= self._gap:
            self._begin_probe(now)

    @property
    def _gap(self) -> float:
        """Recipients to hold for before a probe may begin; no end where the ceiling rules."""
        if 0 < self.config.ceiling_per_s <= self._limit:
            return inf
        if self.config.use_max < 1 and self.estimate.weight >= n.SHARE_WEIGHT:
            return n.SHARE_PROBE_S * self._limit
        return self._unit * min(n.GAP_MAX, max(n.GAP_MIN, self.estimate.weight))

    def _pay(self, recipients: float) -> None:
        self._credit = max(-n.DEBT_MAX * self._unit, self._credit - recipients)

    def _begin_probe(self, now: float) -> None:
        """Go above the estimate by as much as empties the bucket in the planned time."""
        late = self._limit * (self.latency_s + 2 * self.spread_s) / self._unit
        calm = max(n.PROBE_EXCESS_MIN, n.PROBE_LATE / max(late, n.PROBE_LATE))
        full = n.FULL_S * self._limit + self._cushion
        if self.cycle is None:
            saved = full
            excess = max(n.PROBE_EXCESS_FULL, calm)
        else:
            unsure = self.cycle.spared + self.estimate.error_share * self.cycle.accepted
            saved = min(full, 1.5 * self._cushion + self._unit / 2 + self.cycle.saved + unsure)
            length = max(n.PROBE_MESSAGES * self._unit, n.PROBE_S * self._limit)
            excess = max(min(saved / length, calm), saved / (n.PROBE_LENGTHS_MAX * length))
        if self._is_low:
            saved, excess = self._unit, n.LOW_EXCESS
        if not self.suspicion.is_quiet:
            excess = max(excess, n.PROBE_NOISE * self.suspicion.noise_share)
            saved *= 2
        self._probe = Probe(saved)
        self.phase = Phase.PROBING
        self.suspicion.clear()
        self._go_above(now, min(n.PROBE_EXCESS_MAX, max(n.PROBE_EXCESS_MIN, excess)))

    def _go_above(self, now: float, excess: float) -> None:
        self._probe.step(now, excess, self._unit, self.suspicion.noise_floor)
        self._set_rate(now, self._limit * (1 + excess))

    def _outlive(self, now: float, sent_at: float) -> None:
        """The bucket should have been empty by now: go on with a multiple of the excess."""
        probe = self._probe
        if probe.is_beyond(self.suspicion.noise_share):
            self._meet(now, sent_at)
            return
        if self._is_low and probe.outlived < n.LOW_STEPS:
            # Nothing was saved in such a bucket: what was borne is the limit's.
            self.cause = Cause.RAISED
            self.estimate.lift(self._limit * (1 + probe.excess))
            probe.outlived += 1
            self._go_above(now, probe.excess)
            return
        probe.outlived += 1
        probe.saved = max(self._cushion, probe.saved / 2)
        if probe.excess < n.PROBE_STEPS_UP:
            self._go_above(now, n.PROBE_STEP * probe.excess)
            return
        self._search_from_per_s = self._limit
        self._lift(n.SETTLE_WEIGHT_MAX)
        self.phase, self.cycle = Phase.SEARCHING, None
        self._growth, self._heard = n.RAISE_GROWTH, 0
        self._credit = n.LENT

    def _lift(self, weight: float) -> None:
        """Raise the limit: half of what was sent above it may have come out of the bucket."""
        self.cause = Cause.RAISED
        self.estimate.lift(self._limit * (1 + self._probe.excess / 2), weight)

    def _meet(self, now: float, sent_at: float) -> None:
        """The bucket is empty: read the cycle, or begin one."""
        probe = self._probe
        reading = None if self.cycle is None else self.cycle.reading(self._unit)
        if probe.outlived and not self._is_low:
            self._lift(2 * EDGE / probe.excess)
            if probe.excess > 0.1:
                self._credit = n.LENT
        elif reading is not None:
            self.cause = Cause.MEASURED
            self._take(now, reading)
        elif self.cycle is None:
            self.burst = max(self._unit, probe.excess * probe.tried * self._unit)
            self.confirmed_at = now
        if probe.outlived or reading is None:
            self.cycle = Cycle(sent_at)
        self.suspicion.clear()
        self._hold(now)

    def _grow(self, now: float, growth: float, recipients: int) -> None:
        rate = self.pacer.rate_per_s
        self._set_rate(now, rate * exp(min(n.GROWTH_STEP_MAX, growth * recipients / rate)))

    def _set_rate(self, now: float, rate_per_s: float) -> None:
        ceiling = self.config.ceiling_per_s or n.RATE_MAX_PER_S
        rate_per_s = min(ceiling, max(self.config.floor_per_s, rate_per_s))
        self.pacer.change_rate(now, rate_per_s, self.spread_s)

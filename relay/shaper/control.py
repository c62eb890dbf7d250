"""What the replies, in send order, do to the rate: search, settle, hold, probe.

The phases of one round, each ended by refusals that are no noise:

- *searching*: no limit known (or it went up a lot): the rate grows exponentially in time,
  counted in accepted recipients, so that nothing grows while nothing is sent;
- *settling*: after a cut: slower growth from below until the bucket is empty once more,
  which makes the first reading;
- *holding*: just below the estimate; refusals are weighed, readings refine it;
- *probing*: a little above it, to make the next reading, and to see whether the limit rose.

It turns the pacer's knobs and waits for nothing. Invariants: floor <= rate <= ceiling; one
response an epoch (replies to what was sent before the last change of rate accuse nobody).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, inf, log, sqrt
from typing import TYPE_CHECKING

from relay.shaper.evidence import READ_MIN, Cycle, Estimate, Suspicion
from relay.shaper.order import Kind
from relay.shaper.pacing import LOW_PER_S

if TYPE_CHECKING:
    from relay.config.schema import Rate
    from relay.shaper.order import Outcome
    from relay.shaper.pacing import Pacer

SEARCH_GROWTH, SETTLE_GROWTH = 0.5, 0.25
"""Growth of the rate's logarithm a second: 10/s to 500/s takes 8 s; the overshoot before the
first refusal stays below four times the limit even at 3 s of burst."""

GROWTH_STEP_MAX = 0.1
"""One message never raises the rate by more than a tenth, however long it took."""

CUT_MIN = 0.5
"""A cut keeps at least half: more is cut an epoch later, when the first is proven too little."""

HARD_REFUSED, HARD_SHARE = 3, 0.25
"""A cluster of three refusals, a quarter of what was tried: the estimate is far off."""

CRUISE = 0.998
"""Held share of the estimate; what it leaves lies in the bucket until the next probe."""

BUDGET = 0.003
"""Refusals a probe may cost, per recipient accepted between two of them."""

PROBE_EXCESS_MIN, PROBE_EXCESS_MAX = 0.03, 0.25
"""A probe goes this share above the estimate: enough to end soon, little enough to be cheap."""

PROBE_EXCESS_LOW = 0.04
"""Below ``LOW_PER_S`` a bucket of one token shows the limit at once; larger steps miss it."""

PROBE_MESSAGES, PROBE_S = 40.0, 2.0
"""A probe should meet the limit within so many messages or seconds, whichever is longer."""

FULL_S = 3.0
"""Burst, in seconds of the limit, that a bucket of unknown content may hold; *assumed*."""

VOID_S = 0.25
"""So much idleness may fill a small bucket; less is only counted."""

BUSY_IDLE_MAX = 0.05
"""Idle share of recent sending above which there is no backlog, hence no growth."""

NOISE_WEIGHT = 300.0
"""Evidence wanted before refusals in cruise count as chance: a young estimate is too high."""

SHARE_WEIGHT = 150.0
"""Evidence wanted before ``use_max`` holds the rate down: a share of a guess helps nobody."""

SHARE_PATIENCE, SHARE_PROBE_S = 20.0, 300.0
"""With ``use_max`` below 1 a probe empties a full bucket that others use: rarely then."""

STEP_DOWN, STEP_MESSAGES = 0.97, 10.0
"""Below ``LOW_PER_S`` the rate gives way by this; twice within so many messages is a cut."""

RATE_MAX_PER_S = 1_000_000.0
"""No account sends this fast; a bound for the growth, nothing else."""


class Phase(StrEnum):
    """What the controller is doing, in the words that ``status`` shows."""

    SEARCHING = "searching"
    SETTLING = "settling"
    HOLDING = "holding"
    PROBING = "probing"


@dataclass(slots=True)
class Controller:
    """Judges outcomes in send order and sets ``pacer``'s rate.

    ``cycle`` is None while nothing is known about the bucket's content; ``unit`` the usual
    size of a message in recipients; ``spread_s`` the deviation of the latency, as the face
    measures it; ``burst`` what the bucket held when the search met it, if that was seen.
    """

    config: Rate
    pacer: Pacer
    phase: Phase = field(default=Phase.SEARCHING, init=False)
    estimate: Estimate = field(default_factory=Estimate, init=False)
    suspicion: Suspicion = field(default_factory=Suspicion, init=False)
    cycle: Cycle | None = field(default=None, init=False)
    spread_s: float = field(default=0.0, init=False)
    idle_share: float = field(default=0.0, init=False)
    burst: float | None = field(default=None, init=False)
    _unit: float = field(default=1.0, init=False)
    _epoch_at: float = field(default=-inf, init=False)
    _peak_per_s: float = field(default=0.0, init=False)
    _probe_in: float = field(default=0.0, init=False)
    _second_leg: bool = field(default=False, init=False)
    _probe_left: float = field(default=0.0, init=False)
    _probe_length: float = field(default=0.0, init=False)
    _probe_refused: float = field(default=0.0, init=False)
    _excess: float = field(default=0.0, init=False)
    _cost: float = field(default=1.0, init=False)
    _refused: float = field(default=0.0, init=False)
    _since_step: float = field(default=inf, init=False)

    def judge(self, now: float, outcome: Outcome, idle_s: float) -> None:
        """Draw the conclusions of one outcome; ``idle_s`` was lost since the one before."""
        if outcome.kind is Kind.IGNORED:
            idle_s += outcome.recipients / self.pacer.rate_per_s
        self._count_idle(now, outcome, idle_s)
        if outcome.kind is Kind.ACCEPTED:
            self._accept(now, outcome)
        elif outcome.kind is Kind.THROTTLED:
            self._refuse(now, outcome)

    def start_from(self, now: float, limit_per_s: float, weight: float) -> None:
        """Hold a limit learned earlier; the first probe comes soon, for it may be stale."""
        self.estimate = Estimate(limit_per_s, weight)
        self.suspicion.clear()
        self.cycle = None
        self._hold(now)
        self._probe_in = min(self._probe_in, PROBE_MESSAGES * self._unit)

    @property
    def _limit(self) -> float:
        limit = self.estimate.limit_per_s
        assert limit is not None
        return limit

    @property
    def _is_low(self) -> bool:
        return self._limit < LOW_PER_S

    @property
    def _is_cruising(self) -> bool:
        """Whether a refusal now is probably chance: below a limit that is well known."""
        return self.phase is Phase.HOLDING and self.estimate.weight >= NOISE_WEIGHT

    @property
    def _cushion(self) -> float:
        """Tokens that a pause leaves in the bucket: one message's, and the arrivals' disorder.

        That is about the root of how many arrive within the latency's spread.
        """
        return self._unit + sqrt(2 * self._unit * self.pacer.rate_per_s * self.spread_s)

    # ---- what one outcome says

    def _count_idle(self, now: float, outcome: Outcome, idle_s: float) -> None:
        """Follow how idle sending is, and what it does to the reading in the making."""
        recipients = outcome.recipients
        paced_s = recipients / self.pacer.rate_per_s
        # Weighed by size: a bucket's debt is as deep as the large messages are.
        self._unit += (recipients - self._unit) * recipients / (recipients + 32 * self._unit)
        # One long gap must not count as many messages without backlog.
        lost_s = min(idle_s, 8 * paced_s)
        self.idle_share += (lost_s / (lost_s + paced_s) - self.idle_share) / 16
        if self.cycle is not None:
            self.cycle.idle_s += idle_s + self._held_back_s(paced_s)
            self._void_if_idle(now, outcome.sent_at)

    def _held_back_s(self, paced_s: float) -> float:
        """Return the part of ``paced_s`` that ``use_max`` or the ceiling left to the bucket."""
        if self.phase is not Phase.HOLDING:
            return 0.0
        held = 1 - self.pacer.rate_per_s / self._limit
        return paced_s * held if held > 0.03 else 0.0

    def _void_if_idle(self, now: float, sent_at: float) -> None:
        """Drop a cycle in which the bucket may have filled, and a probe that relied on it."""
        assert self.cycle is not None
        if self.phase not in (Phase.HOLDING, Phase.PROBING):
            return
        if not self.cycle.is_idle(sent_at, VOID_S):
            return
        self.cycle = None
        if self.phase is Phase.PROBING or self._second_leg:
            self._hold(now)

    def _accept(self, now: float, outcome: Outcome) -> None:
        if self.cycle is not None:
            self.cycle.accepted += outcome.recipients
        self._since_step += 1
        self.suspicion.passed += outcome.recipients
        if outcome.sent_at < self._epoch_at:
            return
        self.suspicion.accept(cruising=self._is_cruising)
        if self.idle_share <= BUSY_IDLE_MAX:
            self._advance(now, outcome)

    def _advance(self, now: float, outcome: Outcome) -> None:
        """Go on with the phase: grow, or count down to the next step of it."""
        if self.phase is Phase.SEARCHING:
            self._grow(now, SEARCH_GROWTH, outcome.recipients)
        elif self.phase is Phase.SETTLING:
            self._grow(now, SETTLE_GROWTH, outcome.recipients)
        elif self.phase is Phase.HOLDING:
            self._probe_in -= outcome.recipients
            if self._probe_in <= 0:
                self._probe(now)
        else:
            self._probe_left -= outcome.recipients
            if self._probe_left <= 0:
                self._end_probe(now, outcome.sent_at)

    def _refuse(self, now: float, outcome: Outcome) -> None:
        if self.cycle is not None:
            self.cycle.mark(outcome.sent_at)
        is_stale = outcome.sent_at < self._epoch_at
        if is_stale or self.phase is Phase.PROBING:
            self._refused += outcome.recipients
        if is_stale:
            return
        self.suspicion.refuse(outcome.sent_at, cruising=self._is_cruising)
        self._probe_refused += 1
        expected = self.phase is Phase.PROBING and self.suspicion.is_quiet
        if expected or self.suspicion.confirmed:
            self._respond(now, outcome.sent_at)

    # ---- answers to refusals that are no noise

    def _respond(self, now: float, sent_at: float) -> None:
        if self.phase is Phase.SEARCHING:
            self._peak_per_s = self.pacer.rate_per_s
            self._cut(now, sent_at)
        elif self.phase is Phase.SETTLING:
            self._settle(now)
        elif self._is_low:
            self._step_down(now, sent_at)
        elif self.suspicion.refused >= HARD_REFUSED and self.suspicion.refused_share >= HARD_SHARE:
            self._cut(now, sent_at)
        else:
            self._correct(now, sent_at)

    def _cut(self, now: float, sent_at: float) -> None:
        """Fall back by what was refused, and count anew from the cluster's first refusal."""
        self.cycle = Cycle(self.suspicion.since, self.suspicion.passed)
        self.cycle.mark(sent_at)
        self._fall(now)

    def _fall(self, now: float) -> None:
        kept = max(CUT_MIN, 1 - self.suspicion.refused_share)
        self._set_rate(now, self.pacer.rate_per_s * kept)
        self.phase = Phase.SETTLING
        self._epoch_at = now
        self.suspicion.clear()

    def _settle(self, now: float) -> None:
        """Take the first reading, or fall again if too little passed for one."""
        # The climb from half the limit may have filled a small bucket: a weak reading.
        if self._learn(READ_MIN):
            self.suspicion.clear()
            self._refused = 0
            self._hold(now)
        else:
            self._fall(now)

    def _correct(self, now: float, sent_at: float) -> None:
        """Blend the reading; without one, this refusal starts a cycle and a second leg ends it."""
        unread = self.cycle is None
        if self.cycle is None:
            self.cycle = Cycle(self.suspicion.since, self.suspicion.passed)
            self.cycle.mark(sent_at)
        self._learn()
        self._hold(now)
        if unread:
            self._second_leg = True
            self._probe_in = min(self._probe_in, PROBE_MESSAGES * self._unit)

    def _step_down(self, now: float, sent_at: float) -> None:
        """Give way a little: a one-token bucket is full at each send, and readings fail."""
        if self.phase is Phase.PROBING:
            self.cycle = Cycle(sent_at)
        elif self._since_step < STEP_MESSAGES:
            self._cut(now, sent_at)
            return
        else:
            if self.cycle is None or not self._learn():
                self.estimate.lower(STEP_DOWN)
            self._since_step = 0
        self.suspicion.clear()
        self._hold(now)

    def _learn(self, weight_max: float = inf) -> bool:
        """Take the cycle's reading into the estimate and count anew; False if it has none."""
        assert self.cycle is not None
        if self.cycle.may_be_full:
            self.cycle.restart()
            return False
        reading = self.cycle.reading(self._unit)
        if reading is None:
            return False
        # Nothing passes faster than it is sent; the rate was twice this before a cut.
        reading = min(reading, self.pacer.rate_per_s / CUT_MIN)
        weight = min(weight_max, self.cycle.marked / self._unit)
        self.estimate.learn(max(self.config.floor_per_s, reading), weight)
        self.cycle.restart()
        self._measure_burst()
        return True

    def _measure_burst(self) -> None:
        """Tell the bucket's depth, roughly, from what the first search passed beyond the limit."""
        if self.burst is None and self._peak_per_s > self._limit:
            # Growing from L to xL, a search passes (x - 1) L/k in (ln x)/k seconds.
            beyond = self._peak_per_s / self._limit
            self.burst = max(1.0, (beyond - 1 - log(beyond)) * self._limit / SEARCH_GROWTH)

    # ---- the phases' own steps

    def _hold(self, now: float) -> None:
        """Cruise below the estimate, after a pause that leaves a cushion in the bucket."""
        self._probe_in = min(
            self._cost / BUDGET, self._unit * max(PROBE_MESSAGES, 2 * self.estimate.weight)
        )
        share = CRUISE
        if self.config.use_max < 1 and self.estimate.weight >= SHARE_WEIGHT:
            share *= self.config.use_max
            self._probe_in = max(SHARE_PATIENCE * self._probe_in, SHARE_PROBE_S * self._limit)
        self.phase = Phase.HOLDING
        self._second_leg = False
        self._epoch_at = now
        self._set_rate(now, self._limit * share)
        self.pacer.pause(now, self._cushion / self.pacer.rate_per_s)

    def _probe(self, now: float) -> None:
        """Go above the estimate by as much as empties the bucket in the planned time."""
        self._cost += (max(1.0, self._refused) - self._cost) / 4
        self._refused = 0
        if self._is_low:
            self._go_above(now, PROBE_EXCESS_LOW, self._cushion)
        elif self.cycle is None:
            self._go_above(now, PROBE_EXCESS_MAX, FULL_S * self._limit)
        else:
            unsure = self.estimate.error_share + 1 - CRUISE
            saved = 2 * self._cushion + unsure * self.cycle.accepted
            length = max(PROBE_MESSAGES * self._unit, PROBE_S * self._limit)
            visible = max(PROBE_EXCESS_MIN, 8 * self.suspicion.noise_share)
            self._go_above(now, min(PROBE_EXCESS_MAX, max(visible, saved / length)), saved)

    def _go_above(self, now: float, excess: float, saved: float) -> None:
        """Send at ``1 + excess`` times the estimate until ``saved`` is surely used up."""
        self._excess = excess
        self._probe_left = self._probe_length = 2 * self._unit + 2 * saved / excess
        self._probe_refused = 0
        self.phase = Phase.PROBING
        self._epoch_at = now
        self._set_rate(now, self._limit * (1 + excess))

    def _end_probe(self, now: float, sent_at: float) -> None:
        """Decide between an empty bucket, if there were refusals beyond noise, and a raise."""
        noise = self.suspicion.noise_share * self._probe_length / self._unit
        if self._probe_refused > 2 * noise:
            self._respond(now, sent_at)
            return
        self.cycle = None
        if self._excess >= PROBE_EXCESS_MAX:
            self.phase = Phase.SEARCHING
            return
        # Half of what was sent above it may have come out of the bucket.
        self.estimate.lift(self._limit * (1 + self._excess / 2))
        self._go_above(now, min(PROBE_EXCESS_MAX, 2 * self._excess), self._cushion)

    def _grow(self, now: float, growth: float, recipients: int) -> None:
        rate = self.pacer.rate_per_s
        self._set_rate(now, rate * exp(min(GROWTH_STEP_MAX, growth * recipients / rate)))

    def _set_rate(self, now: float, rate_per_s: float) -> None:
        ceiling = self.config.ceiling_per_s or RATE_MAX_PER_S
        rate_per_s = min(ceiling, max(self.config.floor_per_s, rate_per_s))
        self.pacer.change_rate(now, rate_per_s, self.spread_s)

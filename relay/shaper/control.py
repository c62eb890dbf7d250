"""What the replies, in send order, do to the rate: search, brake, settle, hold, probe.

- *searching*: no limit known (or it went up a lot): the rate grows exponentially in time,
  counted in accepted recipients, so that nothing grows while nothing is sent;
- *braking*: far too much is refused: hardly anything is sent until the replies to what is under
  way have told how much passes, which is a reading if there are enough of them;
- *settling*: without one: slow growth from below until the bucket is empty once more;
- *holding*: just below the estimate; refusals are weighed, corrections tried (``corrections``);
- *probing*: a little above it, to make the next reading, and to see whether the limit rose.

This room hands each outcome to the phase whose turn it is; the phases are in ``searching``,
``probing``, ``corrections`` and ``holding``.

It turns the pacer's knobs and waits for nothing. Invariants: floor <= rate <= ceiling; one
response an epoch (replies to what was sent before the last change of rate accuse nobody, unless
most of it is refused: then the change was too little).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.shaper import tuning as n
from relay.shaper.evidence import Cycle, Estimate
from relay.shaper.holding import Phase
from relay.shaper.order import Kind
from relay.shaper.searching import Searching

if TYPE_CHECKING:
    from relay.shaper.evidence import Scale
    from relay.shaper.order import Outcome

__all__ = ["Controller", "Phase"]


class Controller(Searching):
    """Judges outcomes in send order and sets ``pacer``'s rate."""

    __slots__ = ()

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
        if self._heard >= n.HEARD_MAX and rate * self.latency_s >= n.FEW * self._unit:
            self._braked = (now, rate)
            self._set_rate(now, rate * n.BRAKE)

    def start_from(self, now: float, limit_per_s: float, weight: float) -> None:
        """Hold a limit learned earlier; the first probe comes soon, for it may be stale."""
        self.estimate = Estimate(limit_per_s, weight)
        self.suspicion.clear()
        self.cycle = self._trial = self._braked = self._brake = None
        self._is_new = self._was_full = False
        self._begin_turns()
        self._credit = n.LENT
        self._hold(now)

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
            self.cycle.saved += recipients * (self._limit / rate - 1)
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

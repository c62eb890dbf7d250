"""Far from the limit: search upward, brake when most is refused, settle from below.

A brake sends hardly anything until the replies to what is under way have told how much passes;
if those are too few for a reading, settling climbs slowly to the first refusal.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from relay.shaper import tuning as n
from relay.shaper.episodes import Brake
from relay.shaper.evidence import Cycle
from relay.shaper.holding import Phase
from relay.shaper.probing import Probing
from relay.shaper.words import Cause

if TYPE_CHECKING:
    from relay.shaper.evidence import Scale
    from relay.shaper.order import Outcome


class Searching(Probing):
    """Finds a limit of which nothing useful is known."""

    __slots__ = ()

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
        if from_per_s * self.latency_s < n.FEW * self._unit:
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
        self._take_anew(now, min(reading, brake.from_per_s))
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
            self._take_anew(now, reading, n.SETTLE_WEIGHT_MAX)
            self.suspicion.clear()
            self._credit = n.LENT
            self._hold(now)
        elif alarm is not None:
            self._begin_brake(now, alarm, sent_at)

    def _take_anew(self, now: float, reading: float, weight_max: float = inf) -> None:
        """Take a reading that is far from what was known, and say which way it went."""
        known = self.estimate.limit_per_s
        self._take(now, reading, weight_max)
        self._is_new = True
        self._begin_turns()
        if known is not None:
            self.cause = Cause.LOWERED if self._limit < known else Cause.RAISED

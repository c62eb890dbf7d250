"""What the controller knows, and holding to it: the ground that all its episodes stand on.

The controller is one object in five rooms, each of which knows only those before it: ``holding``
(state, readings taken, the cruise), ``corrections`` (refusals in cruise that are no chance),
``probing`` (above the estimate), ``searching`` (far off: search, brake, settle), ``control``
(each outcome to the room whose turn it is).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, inf, sqrt
from typing import TYPE_CHECKING

from relay.shaper import tuning as n
from relay.shaper.episodes import Brake, Probe, Trial, Turns
from relay.shaper.evidence import EDGE, Cycle, Estimate, Scale, Suspicion
from relay.shaper.pacing import LOW_PER_S
from relay.shaper.words import Cause

if TYPE_CHECKING:
    from relay.config.schema import Rate
    from relay.shaper.pacing import Pacer


class Phase(StrEnum):
    """What the controller is doing, in the words that ``status`` shows."""

    SEARCHING = "searching"
    BRAKING = "braking"
    SETTLING = "settling"
    HOLDING = "holding"
    PROBING = "probing"


@dataclass(slots=True)
class Holding:
    """Keeps ``pacer``'s rate just below the estimate.

    ``cycle`` is None while nothing is known about the bucket's content; ``latency_s`` and
    ``spread_s`` are the latency and its deviation, as the face measures them; ``burst`` what
    the bucket held when a probe emptied it, if that was seen; ``confirmed_at`` the moment of
    the last reading; ``cause`` why the limit moved last.
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
    _gentle: Turns = field(default_factory=Turns, init=False)
    _trial: Trial | None = field(default=None, init=False)
    _credit: float = field(default=n.LENT, init=False)
    _held: float = field(default=0.0, init=False)
    _is_new: bool = field(default=False, init=False)
    _was_full: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._stale.calibrate(self.suspicion.noise_floor)

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

    @property
    def _wander(self) -> float:
        """Tokens by which others' random mail has moved the bucket's content in this cycle."""
        tried = 0.0 if self.cycle is None else self.cycle.accepted / self._unit
        return self._unit * sqrt(max(0.0, self.estimate.scatter - n.WANDER_MIN) * tried)

    @property
    def _scatter(self) -> float:
        """How much more readings scatter than even traffic explains."""
        return max(0.0, self.estimate.scatter - n.SCATTER_MIN)

    @property
    def _margin(self) -> float:
        """Share of the limit to leave where refusals come in cruise that are not mere chance."""
        noise = max(0.0, self.suspicion.noise_share - self.suspicion.verified)
        return n.MARGIN_NOISE * noise

    @property
    def _is_small(self) -> bool:
        """Whether a bucket of 0.3 s would hold a few messages only."""
        return self._limit < n.SMALL_PER_S * self._unit

    @property
    def _gap_messages(self) -> float:
        """Messages to hold for before a probe may begin: as many as the evidence."""
        return min(n.GAP_MAX, max(n.GAP_MIN, self.estimate.weight))

    def _hold(self, now: float) -> None:
        """Cruise below the estimate, after a pause that leaves a cushion in the bucket."""
        margin = max(n.CRUISE, min(n.MARGIN_MAX, self._margin))
        self.phase = Phase.HOLDING
        self._held = 0.0
        self._begin_epoch(now)
        # A share of a guess helps nobody, and a bucket that is never empty cannot be read: until
        # the limit is known from this run or an earlier one, all of it is used.
        is_known = self.confirmed_at is None or self.estimate.weight >= n.SHARE_WEIGHT
        if is_known and self.config.use_max < 1:
            rate = self._limit * (1 - margin) * self.config.use_max
        else:
            # What chance refuses takes no token: that much more may be sent.
            rate = self._limit * (1 - margin) / (1 - self.suspicion.chance_share)
        self._set_rate(now, rate)
        stray = n.PAUSE_SCATTER * self._unit * sqrt(self._scatter * self._gap_messages)
        self.pacer.pause(now, (self._cushion + stray) / self.pacer.rate_per_s)

    def _begin_epoch(self, now: float) -> None:
        self._epoch_at = now
        self._may_brake_again = True
        self._stale.clear()

    def _take(self, now: float, reading: float, weight_max: float = inf) -> None:
        """Blend the cycle's ``reading`` and count anew, unless a full bucket made it low."""
        cycle = self.cycle
        assert cycle is not None
        self.cause = Cause.FOUND if self.estimate.limit_per_s is None else Cause.MEASURED
        self._was_full = self._ran_over(cycle, reading)
        if not self._was_full:
            weight = min(weight_max, cycle.marked / self._unit)
            reading = max(self.config.floor_per_s, reading)
            self.estimate.learn(reading, weight, EDGE + self._disorder)
        self.confirmed_at = now
        cycle.restart()

    def _ran_over(self, cycle: Cycle, reading: float) -> bool:
        """Whether a low reading is explained by what a full bucket let run over."""
        limit = self.estimate.limit_per_s
        if limit is not None and limit < LOW_PER_S and n.LOW_READ * limit < reading < limit:
            return True
        spilled = cycle.marked_saved
        if self.suspicion.verified:
            spilled += min(
                cycle.spared, (n.SPARED_MAX + self.suspicion.chance_share) * cycle.marked
            )
        if limit is None or spilled <= max(2 * self._unit, self._cushion):
            return False
        return 0 < 1 - reading / limit <= 1.2 * spilled / cycle.marked

    def _pay(self, recipients: float) -> None:
        """Pay for refusals; until a limit that was just found is known, they are its price."""
        is_young = self.estimate.weight < n.YOUNG_WEIGHT
        self._is_new = self._is_new and is_young and not self._is_low
        is_noisy = not self.suspicion.is_quiet and self.suspicion.noise_max < n.NOISY_MAX
        most = n.DEBT_NOISY if is_noisy else n.DEBT_MAX
        least = 0.0 if self._is_new else -most * self._unit
        self._credit = max(min(self._credit, least), self._credit - recipients)

    def _grow(self, now: float, growth: float, recipients: int) -> None:
        rate = self.pacer.rate_per_s
        self._set_rate(now, rate * exp(min(n.GROWTH_STEP_MAX, growth * recipients / rate)))

    def _set_rate(self, now: float, rate_per_s: float) -> None:
        ceiling = self.config.ceiling_per_s or n.RATE_MAX_PER_S
        rate_per_s = min(ceiling, max(self.config.floor_per_s, rate_per_s))
        self.pacer.change_rate(now, rate_per_s, self.spread_s)

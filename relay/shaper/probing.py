"""Going above the estimate now and then: the next reading, and whether the limit rose.

A probe is planned to empty what the bucket may hold (``_begin_probe``), in the hope to be
refused: then the cycle since the last empty moment is a reading (``_meet``). One that outlives
that goes on in larger steps (``_outlive``) until it is met, or becomes a search. A gentle one
(``_plan_gently``) asks the other question, whether the estimate is low: it hopes to be borne.
"""

from __future__ import annotations

from math import inf

from relay.shaper import tuning as n
from relay.shaper.corrections import Correcting
from relay.shaper.episodes import Probe, Turns
from relay.shaper.evidence import EDGE, Cycle
from relay.shaper.holding import Phase
from relay.shaper.words import Cause


class Probing(Correcting):
    """Earns probes, begins them and draws their conclusions."""

    __slots__ = ()

    def _earn(self, now: float, recipients: int) -> None:
        """Earn the refusals that a probe may cost, and probe when there are enough."""
        budget = next(share for below_per_s, share in n.BUDGETS if self._limit < below_per_s)
        self._credit = min(n.LENT, self._credit + budget * recipients)
        self._held += recipients
        if self._trial is not None:
            return
        owed = n.GENTLE_EARLY if self._is_gentle_due else 0.0
        if self.suspicion.noise_share > 2 * self.suspicion.verified + n.DOUBT_NOISE:
            self._doubt(now)
        elif self._credit > -owed and self._held >= self._gap:
            self._begin_probe(now)

    def _begin_turns(self) -> None:
        """Count the probes of a new limit until its first gentle one."""
        self._gentle = Turns(n.GENTLE_FIRST_SMALL if self._is_small else n.GENTLE_FIRST)

    @property
    def _is_gentle_due(self) -> bool:
        """Whether the next probe asks if a small bucket hides that the estimate is a little low."""
        if self._gentle.left > 0 or self.cycle is None or self._is_low:
            return False
        return self._was_full or self._limit < n.GENTLE_BELOW * self._unit

    @property
    def _gap(self) -> float:
        """Recipients to hold for before a probe may begin; no end where the ceiling rules."""
        if 0 < self.config.ceiling_per_s <= self._limit:
            return inf
        if self.config.use_max < 1 and self.estimate.weight >= n.SHARE_WEIGHT:
            return n.SHARE_PROBE_S * self._limit
        return self._unit * self._gap_messages

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
            unsure += n.PROBE_WANDER * self._wander
            saved = min(full, 1.5 * self._cushion + self._unit / 2 + self.cycle.saved + unsure)
            length = max(n.PROBE_MESSAGES * self._unit, n.PROBE_S * self._limit)
            excess = max(min(saved / length, calm), saved / (n.PROBE_LENGTHS_MAX * length))
        if self._is_low:
            saved, excess = self._unit, n.LOW_EXCESS
        is_gentle = self._is_gentle_due
        if is_gentle:
            saved, excess = self._plan_gently(saved)
        elif not self.suspicion.is_quiet:
            excess = max(excess, n.PROBE_NOISE * self.suspicion.noise_share)
            saved *= 2
        self._probe = Probe(saved, is_gentle=is_gentle)
        self._gentle.count()
        self.phase = Phase.PROBING
        self.suspicion.clear()
        self._go_above(now, min(n.PROBE_EXCESS_MAX, max(n.PROBE_EXCESS_MIN, excess)))

    def _plan_gently(self, saved: float) -> tuple[float, float]:
        """Return what to use up, and an excess that is borne if the limit is a little higher."""
        excess = max(n.GENTLE, n.GENTLE_NOISES * self.suspicion.noise_share)
        if not self.suspicion.is_quiet:
            saved *= n.GENTLE_NOISY
        longest = max(n.GENTLE_MESSAGES * self._unit, n.GENTLE_S * self._limit)
        return saved, max(excess, n.PROBE_ROOM * saved / longest)

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
        if probe.is_gentle:
            often = self._is_small or not self.suspicion.is_quiet
            self._gentle.answer(outlived=probe.outlived > 0, often=often)
        if probe.outlived and not self._is_low:
            self._lift(2 * EDGE / probe.excess)
            least = n.LENT if probe.excess > 0.1 else n.GENTLE_LENT
            self._credit = max(self._credit, least)
        elif reading is not None:
            self._take(now, reading)
        elif self.cycle is None:
            self.burst = max(self._unit, probe.excess * probe.tried * self._unit)
            self.confirmed_at = now
        if probe.outlived or reading is None:
            self.cycle = Cycle(sent_at)
        self.suspicion.clear()
        self._hold(now)

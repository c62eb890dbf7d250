"""Refusals in cruise that are no chance: refine, cut, and take for noise what no cut ends.

Each correction is on trial (``episodes.Trial``). One that ends the refusals stands, and they were
the limit's; where neither a reading nor a cut ends them they are noise, and the limit is given
back. Noise itself is doubted whenever it doubles: a lower limit is tried, until it is clear what
refuses (``episodes.Trial``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.shaper import tuning as n
from relay.shaper.episodes import Trial
from relay.shaper.evidence import EDGE, Cycle
from relay.shaper.holding import Holding
from relay.shaper.words import Cause

if TYPE_CHECKING:
    from relay.shaper.evidence import Scale


class Correcting(Holding):
    """Answers an alarm, and judges what came of the answer."""

    __slots__ = ()

    def _correct(self, now: float, alarm: Scale, sent_at: float) -> None:
        """Refine the limit first, then cut it, then take the refusals for noise."""
        trial = self._trial
        if self._is_low:
            self._step_down(now, sent_at)
        elif trial is None:
            self._refine(now, alarm)
        elif not trial.is_cut:
            if alarm.refused + alarm.accepted >= n.CUT_TRIED:
                self._cut(now, alarm, alarm.refused_share, sent_at)
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

    def _cut(self, now: float, alarm: Scale, share: float, sent_at: float) -> None:
        """Lower the limit by the ``share`` that was refused."""
        assert self._trial is not None
        kept = self.pacer.rate_per_s * (1 - share) / self._limit
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
        share = alarm.refused_share
        left = min(n.TRIAL_MAX, max(n.TRIAL_TRIED, 3 / share))
        self._trial = Trial(limit_per_s, weight, share, left, is_cut, alarm.refused)
        self.suspicion.clear()
        self._hold(now)

    def _doubt(self, now: float) -> None:
        """Try whether a lower limit ends what would be taken for noise."""
        noise = self.suspicion.noise_share
        step = max(n.DOUBT_STEP, n.DOUBT_NOISES * noise)
        most = max(n.DOUBT_TRIED_MAX, n.DOUBT_S * self._limit / self._unit)
        left = min(most, n.DOUBT_REFUSED / noise)
        self._trial = Trial(
            self._limit, self.estimate.weight, noise, left, is_cut=True, suspects=0.0
        )
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
        if not trial.changed_nothing:
            self.suspicion.acquit(trial.suspects)
            if trial.is_cut:
                self._credit = n.LENT
                self.suspicion.reprieve(share, trial.tried)
        elif not trial.is_cut:
            first = self.suspicion.first
            if first.refused >= 2 and self.cycle is not None:
                self._cut(now, first, share, self.cycle.marked_at)
                return
        elif share <= n.NOISE_SHARE_MAX:
            self._acquit(now, trial)
            return
        self._trial = None

    def _acquit(self, now: float, trial: Trial) -> None:
        """Give the limit back what refusals took that no correction ended: they are noise."""
        self.estimate.limit_per_s, self.estimate.weight = trial.limit_per_s, trial.weight
        self.suspicion.convict(min(trial.refused_share, trial.share), trial.refused)
        self.cause = Cause.NOISE
        self.cycle = self._trial = None
        self.suspicion.clear()
        self._hold(now)

"""What a brake, a probe and a correction on trial remember while they last."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from relay.shaper import tuning as n
from relay.shaper.evidence import Scale


@dataclass(slots=True)
class Brake:
    """How much of what was under way passes, since the refusal at ``since``.

    ``from_per_s`` is the rate that was too high; ``has_begun`` tells that the cycle to be read
    starts behind the arrivals' disorder about the first refusal.
    """

    since: float
    from_per_s: float
    was_search: bool
    has_begun: bool
    refused: float
    accepted: float

    @property
    def is_false(self) -> bool:
        """Whether chance ended a search: hardly anything else was refused."""
        tried = self.refused + self.accepted
        return (
            self.was_search
            and tried >= n.SEARCH_TRIED_MIN
            and self.refused < n.SEARCH_SHARE_MIN * tried
        )

    def kept_per_s(self, until: float) -> float:
        """The rate to settle from if there is no reading; ``until`` is the last refusal's moment.

        Two more messages are taken for accepted: three refused of three are not all.
        """
        share = self.refused / (self.refused + self.accepted + 2)
        least = n.KEPT_MIN if until - self.since >= n.GOODPUT_S else n.KEPT_SHORT_MIN
        return self.from_per_s * min(n.KEPT_MAX, max(least, 1 - share))


@dataclass(slots=True)
class Probe:
    """A stretch above the estimate, in steps; ``saved`` recipients should be used up by each.

    ``outlived`` counts the steps that met no limit, ``tried`` and ``refused`` its messages;
    one that ``is_gentle`` asks whether the estimate is a little low.
    """

    saved: float = 0.0
    excess: float = 0.0
    began_at: float = inf
    left: float = 0.0
    outlived: int = 0
    tried: float = 0.0
    refused: float = 0.0
    is_gentle: bool = False
    scale: Scale = field(default_factory=lambda: Scale(0.1))

    def step(self, now: float, excess: float, unit: float, noise: float) -> None:
        """Begin a step at ``excess``; only what is sent from ``now`` on counts for it."""
        self.excess, self.began_at = excess, now
        self.left = 2 * unit + n.PROBE_ROOM * self.saved / excess
        self.scale.share = max(excess / (1 + excess), 3.1 * noise)
        self.scale.calibrate(noise)

    def accept(self, recipients: float) -> bool:
        """Count an accepted message; True if the step is outlived."""
        self.tried += 1
        self.scale.accept(recipients)
        self.left -= recipients
        return self.left <= 0

    def refuse(self, sent_at: float) -> None:
        """Count a refused message."""
        self.tried += 1
        self.refused += 1
        self.scale.refuse(sent_at)

    def is_met(self, *, quiet: bool) -> bool:
        """Whether its refusals mean an empty bucket: the first one, unless chance refuses, too."""
        return (quiet and not self.outlived) or self.scale.score >= n.MET_SCORE

    def is_beyond(self, noise: float) -> bool:
        """Whether, at the end of a step, more was refused than chance explains."""
        return self.refused > 1 + 2 * noise * self.tried


@dataclass(slots=True)
class Turns:
    """When it is a gentle probe's turn: ``left`` others come first; ``gap`` lay between two.

    ``left`` falls below 0 while none is wanted: at a high limit, or in an unknown bucket.
    """

    left: int = n.GENTLE_FIRST
    gap: int = n.GENTLE_GAP

    def count(self) -> None:
        """Count a probe that was begun."""
        self.left -= 1

    def answer(self, *, outlived: bool, often: bool) -> None:
        """Come again soon after a gentle probe that was outlived, else ever more rarely."""
        most = n.GENTLE_GAP_OFTEN if often else n.GENTLE_GAP_MAX
        self.gap = n.GENTLE_GAP if outlived else min(most, 2 * self.gap)
        self.left = self.gap


@dataclass(slots=True)
class Trial:
    """A correction on trial: if refusals go on at ``share``, they are not the limit's.

    ``limit_per_s`` and ``weight`` are the estimate before it; ``is_cut`` tells a correction by
    the whole refused share from one that only refined; ``suspects`` are the refusals that led
    to it, no noise if it ends them.
    """

    limit_per_s: float
    weight: float
    share: float
    left: float
    is_cut: bool
    suspects: float
    tried: float = 0.0
    refused: float = 0.0

    def weigh(self, *, refused: bool) -> bool:
        """Count one message; True if it is time for the verdict."""
        self.tried += 1
        self.refused += refused
        return self.tried >= self.left or self._is_proven

    @property
    def refused_share(self) -> float:
        """Refused share since the correction."""
        return self.refused / max(1.0, self.tried)

    @property
    def _is_proven(self) -> bool:
        """Whether a doubt is answered early: what was suspected goes on, and no more than that."""
        if self.suspects or self.refused < n.PROVEN_REFUSED:
            return False
        return self.changed_nothing and self.refused_share <= n.PROVEN_SHARES * self.share

    @property
    def changed_nothing(self) -> bool:
        """Whether refusals go on as before."""
        return self.refused >= 2 and self.refused_share >= n.STILL_SHARE * self.share

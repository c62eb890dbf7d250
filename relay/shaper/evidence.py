"""What replies prove: when refusals are more than noise, and what the limit must be.

``Suspicion`` weighs refusals; ``Cycle`` counts what passed between two moments at which the
server's bucket was empty; ``Estimate`` blends the readings of cycles by their precision.
None of them knows a rate or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, log, sqrt

SCALES = (0.5, 0.12, 0.03)
"""Refused shares looked for: far above the limit, above it, and a few per cent above it."""

ALARM = 6.0
"""Log likelihood at which refusals are the limit's: chance does that once in some 10,000
messages, whatever the noise."""

NOISE_MIN, NOISE_ROOM = 0.002, 1.5
"""Chance refusals taken for possible where none were seen; and how much more than learned."""

NOISE_SPAN_MIN, NOISE_SPAN_MAX = 400.0, 2000.0
"""Messages over which the share of chance refusals is learned: a young one moves fast."""

VERIFIED_SPAN = 2000.0
"""Accepted messages over which noise that a trial verified fades to what is seen since."""

NOISE_MAX = 0.25
"""More than this is no noise, whatever a check says."""

QUIET_MAX = 0.0025
"""Up to this share of noise one refusal in a probe means the limit."""

READ_MIN = 16.0
"""Messages a cycle must have passed before it says anything: its error is one or two."""

IDLE_MAX = 0.05
"""Share of a cycle that may be idle; more may have filled the bucket, and the reading is void."""

SLACK = 1.0
"""Messages by which two empty moments may differ (a token is left or is not); counted
upward, so that the estimate approaches the limit from above, where it is soon corrected."""

LIFTED_WEIGHT = 40.0
"""Messages of evidence that a lifted limit counts for: little, the next reading rules."""

WEIGHT_MAX, WEIGHT_CYCLES = 1500.0, 4.0
"""Messages of evidence, or cycles like the last, after which the oldest is forgotten."""

EDGE = 1.5
"""Messages by which one cycle may be wrong at its two ends."""

SCATTER_OFF_MAX = 0.15
"""A reading further off is a limit that moved, no scatter."""

SCATTER_WEIGHT, SCATTER_GAIN = 100.0, 1 / 6
"""Readings tell scatter only against an estimate of so much evidence, and move it by so much."""

SCATTER_MAX = 1.0
"""Variance of others' mail per message of ours; random traffic that takes 30 % makes 0.43."""


@dataclass(slots=True)
class Scale:
    """One likelihood test: whether ``share`` is refused rather than what chance refuses.

    ``since`` is the moment of the first refusal of the excursion under way, ``passed`` what
    was accepted in it in recipients, ``accepted`` and ``refused`` in messages.
    """

    share: float
    score: float = 0.0
    since: float = inf
    passed: float = 0.0
    accepted: float = 0.0
    refused: float = 0.0
    up: float = field(default=0.0, init=False)
    down: float = field(default=0.0, init=False)

    def calibrate(self, noise: float) -> None:
        """Set what one refusal and one accept weigh against ``noise``."""
        if self.share < 3 * noise:
            self.up = self.down = 0.0
            return
        self.up = log(self.share / noise)
        self.down = log((1 - noise) / (1 - self.share))

    def accept(self, recipients: float) -> None:
        """Weigh an accepted message; enough of them end the excursion."""
        if self.score <= 0:
            return
        self.accepted += 1
        self.passed += recipients
        self.score -= self.down
        if self.score <= 0:
            self.clear()

    def refuse(self, sent_at: float) -> None:
        """Weigh a refused message, the first of an excursion or one more."""
        if self.up <= 0:
            return
        if self.score <= 0:
            self.since = sent_at
        self.refused += 1
        self.score += self.up

    def clear(self) -> None:
        """End the excursion."""
        self.score = self.passed = self.accepted = self.refused = 0.0

    @property
    def refused_share(self) -> float:
        """Refused share of the excursion, 0 without one."""
        return self.refused / max(1.0, self.refused + self.accepted)


@dataclass(slots=True)
class Suspicion:
    """Whether the refusals of late are too many to be chance (a cumulative sum test).

    ``noise_share`` is refused in cruise, ``verified`` went on in a trial with a lower limit, and
    ``certain`` is the least of it, one standard deviation down.
    """

    noise_share: float = 0.0
    verified: float = 0.0
    certain: float = 0.0
    scales: list[Scale] = field(default_factory=lambda: [Scale(one) for one in SCALES])
    _span: float = NOISE_SPAN_MIN

    def __post_init__(self) -> None:
        self._calibrate()

    @property
    def alarm(self) -> Scale | None:
        """The quickest scale on which chance is no explanation any more."""
        for scale in self.scales:
            if scale.score >= ALARM:
                return scale
        return None

    @property
    def first(self) -> Scale:
        """The excursion with the most refusals, the quickest of equals."""
        return max(self.scales, key=lambda scale: scale.refused)

    @property
    def noise_max(self) -> float:
        """The larger of what is refused in cruise and what a trial verified."""
        return max(self.noise_share, self.verified)

    @property
    def is_quiet(self) -> bool:
        """Whether chance refusals are so rare that one refusal in a probe means the limit."""
        return self.noise_max <= QUIET_MAX

    @property
    def chance_share(self) -> float:
        """Share of refusals that surely are chance: they leave their tokens in the bucket."""
        return min(self.noise_share, self.verified, self.certain)

    @property
    def noise_floor(self) -> float:
        """The share of chance refusals to reckon with."""
        return max(NOISE_MIN, NOISE_ROOM * self.noise_max)

    def accept(self, recipients: float, *, cruising: bool) -> None:
        """Weigh an accepted message; in cruise it also tells how rare noise is."""
        for scale in self.scales:
            scale.accept(recipients)
        if cruising:
            self._span = min(NOISE_SPAN_MAX, self._span + 1)
            self.noise_share *= 1 - 1 / self._span
            self.verified -= max(0.0, self.verified - self.noise_share) / VERIFIED_SPAN

    def refuse(self, sent_at: float, *, cruising: bool) -> None:
        """Weigh one refused message, whatever its number of recipients."""
        if cruising:
            self.noise_share = min(NOISE_MAX, self.noise_share + 1 / self._span)
        self._calibrate()
        for scale in self.scales:
            scale.refuse(sent_at)

    def acquit(self, refused: float) -> None:
        """Take ``refused`` messages out of the noise again: they were the limit's."""
        least = min(self.noise_share, self.verified)
        self.noise_share = max(least, self.noise_share - refused / self._span)

    def reprieve(self, share: float, tried: float) -> None:
        """Learn that a correction left only ``share`` of ``tried`` messages refused.

        With none refused, three in so many are still possible (the rule of three).
        """
        self.verified = min(self.verified, max(share, 3 / tried))
        self.noise_share = min(self.noise_share, max(share, self.verified))

    def convict(self, share: float, refused: float) -> None:
        """Learn that ``share`` is refused by chance: ``refused`` messages after a correction."""
        self.noise_share = self.verified = min(NOISE_MAX, max(self.noise_share, share))
        self.certain = share * (1 - 1 / sqrt(max(1.0, refused)))
        self._calibrate()

    def clear(self) -> None:
        """Forget all excursions: they were answered."""
        for scale in self.scales:
            scale.clear()

    def _calibrate(self) -> None:
        noise = self.noise_floor
        for scale in self.scales:
            scale.calibrate(noise)


@dataclass(slots=True)
class Cycle:
    """What passed since the bucket was empty at ``since``, and up to the last refusal.

    ``saved`` is what it should have gained meanwhile: sent below the estimate; ``spared`` what
    chance refusals left in it.
    """

    since: float
    accepted: float = 0.0
    idle_s: float = 0.0
    saved: float = 0.0
    spared: float = 0.0
    marked_at: float = field(init=False)
    marked: float = field(default=0.0, init=False)
    marked_idle_s: float = field(default=0.0, init=False)
    marked_saved: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.marked_at = self.since

    def mark(self, sent_at: float) -> None:
        """Note that the bucket was empty again at ``sent_at``."""
        self.marked_at = max(self.marked_at, sent_at)
        self.marked, self.marked_idle_s = self.accepted, self.idle_s
        self.marked_saved = self.saved

    def is_idle(self, sent_at: float, idle_min_s: float) -> bool:
        """Whether so much of it was idle that the bucket's content is unknown."""
        return self.idle_s >= max(idle_min_s, IDLE_MAX * (sent_at - self.since))

    @property
    def may_be_full(self) -> bool:
        """Whether so much of it was idle that the bucket may have filled."""
        return self.marked_idle_s > IDLE_MAX * (self.marked_at - self.since)

    def reading(self, unit: float) -> float | None:
        """Recipients a second that the bucket refilled between both moments, if that is told.

        ``unit`` is the size of a message: debt makes an empty moment that uncertain.
        """
        span_s = self.marked_at - self.since
        if self.marked < READ_MIN * unit or span_s <= 0 or self.may_be_full:
            return None
        return (self.marked + SLACK * unit) / span_s

    def restart(self) -> None:
        """Count from the last refusal on."""
        self.since = self.marked_at
        self.accepted -= self.marked
        self.idle_s -= self.marked_idle_s
        self.saved -= self.marked_saved
        self.spared = 0.0
        self.marked = self.marked_idle_s = self.marked_saved = 0.0


@dataclass(slots=True)
class Estimate:
    """The limit as all readings together have it; ``weight`` is messages of evidence.

    ``scatter`` is the learned variance of readings beyond their edges, a message.
    """

    limit_per_s: float | None = None
    weight: float = 0.0
    scatter: float = 0.0
    _last: tuple[float, float, float] | None = field(default=None, init=False)

    def lift(self, proven: float, weight: float = LIFTED_WEIGHT) -> None:
        """Raise the limit to a rate that was borne for longer than any burst."""
        self.limit_per_s = max(proven, self.limit_per_s or 0.0)
        self.weight = min(self.weight, weight)

    def lower(self, share: float, weight: float = WEIGHT_MAX) -> None:
        """Take the limit for ``share`` of what it was."""
        self.limit_per_s = share * (self.limit_per_s or 0.0)
        self.weight = min(self.weight, weight)

    @property
    def error_share(self) -> float:
        """Likely error of the limit as a share of it."""
        return min(1.0, self._error(self.weight, EDGE))

    def _error(self, weight: float, edge: float) -> float:
        weight = max(1.0, weight)
        return sqrt(edge * edge + self.scatter * weight) / weight

    def learn(self, reading: float, weight: float, edge: float) -> bool:
        """Blend a reading by its precision; one that contradicts the past replaces it.

        ``edge`` is the error of its ends in messages. True if it replaced.
        """
        known = self.limit_per_s
        if known is None:
            self.limit_per_s, self.weight = reading, weight * EDGE / edge
            return True
        off = log(reading / known)
        likely = sqrt(self._error(weight, edge) ** 2 + self._error(self.weight, EDGE) ** 2)
        self._learn_scatter(reading, weight, edge)
        if abs(off) > 3 * likely:
            self.limit_per_s, self.weight = reading, weight * EDGE / edge
            return True
        share = weight / (weight + self.weight)
        self.limit_per_s = known + share * (reading - known)
        self.weight = min(max(WEIGHT_MAX, WEIGHT_CYCLES * weight), self.weight + weight)
        return False

    def _learn_scatter(self, reading: float, weight: float, edge: float) -> None:
        """Compare with the reading before: a limit that moved shifts both, scatter parts them."""
        last, self._last = self._last, (reading, weight, edge)
        if last is None or self.weight < SCATTER_WEIGHT:
            return
        off = log(reading / last[0])
        if abs(off) >= SCATTER_OFF_MAX:
            return
        excess = off * off - (edge / weight) ** 2 - (last[2] / last[1]) ** 2
        fresh = min(SCATTER_MAX, max(0.0, excess / (1 / weight + 1 / last[1])))
        self.scatter += (fresh - self.scatter) * SCATTER_GAIN

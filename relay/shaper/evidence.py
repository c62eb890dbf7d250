"""What replies prove: when refusals are more than noise, and what the limit must be.

``Suspicion`` weighs refusals; ``Cycle`` counts what passed between two moments at which the
server's bucket was empty; ``Estimate`` blends the readings of cycles by their precision.
None of them knows a rate or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

QUICK_LEAK, QUICK_MAX = 1 / 16, 1.5
"""Two refusals within about eight accepted messages are no noise: where one in 200 is refused
by chance, that happens once in 5,000 messages."""

SLOW_LEAK, SLOW_MAX = 0.01, 3.0
"""Nor are four within about a hundred: the second scale finds an excess of a few per cent."""

NOISE_STEPS = (0.0025, 0.01)
"""Above each of these shares of chance refusals one refusal more is asked for: then a false
alarm stays rarer than one in 10,000 messages up to 2 % noise."""

NOISE_SPAN = 2000.0
"""Messages over which the share of chance refusals is learned."""

READ_MIN = 16.0
"""Messages a cycle must have passed before it says anything: its error is one or two."""

IDLE_MAX = 0.05
"""Share of a cycle that may be idle; more may have filled the bucket, and the reading is void."""

SLACK = 1.0
"""Messages by which two empty moments may differ (a token is left or is not); counted
upward, so that the estimate approaches the limit from above, where it is soon corrected."""

LIFTED_WEIGHT = 40.0
"""Messages of evidence that a lifted limit counts for: little, the next reading rules."""

WEIGHT_MAX = 4000.0
"""Messages of evidence after which the oldest is forgotten."""


@dataclass(slots=True)
class Suspicion:
    """Refused messages since the first of a cluster, leaking away with every accept."""

    since: float = 0.0
    accepted: float = 0.0
    refused: float = 0.0
    passed: float = 0.0
    noise_share: float = 0.0
    _quick: float = 0.0
    _span: float = 400.0
    _slow: float = 0.0

    @property
    def confirmed(self) -> bool:
        """Whether the refusals of late are too many to be chance."""
        more = sum(self.noise_share > step for step in NOISE_STEPS)
        return self._quick > QUICK_MAX + more or self._slow > SLOW_MAX + 2 * more

    @property
    def is_quiet(self) -> bool:
        """Whether chance refusals are so rare that one refusal in a probe means the limit."""
        return self.noise_share <= NOISE_STEPS[0]

    @property
    def refused_share(self) -> float:
        """Refused share of the cluster, 0 without one."""
        return self.refused / max(1.0, self.refused + self.accepted)

    def accept(self, *, cruising: bool) -> None:
        """Weigh an accepted message; a cluster that leaks away while ``cruising`` was noise."""
        self._slow = max(0.0, self._slow - max(SLOW_LEAK, 3 * self.noise_share))
        self.accepted += 1
        if cruising:
            self._span = min(NOISE_SPAN, self._span + 1)
            self.noise_share *= 1 - 1 / self._span
        self._quick = max(0.0, self._quick - QUICK_LEAK)
        if self._quick == 0:
            self.refused = self.accepted = 0.0

    def refuse(self, sent_at: float, *, cruising: bool) -> None:
        """Weigh one refused message, whatever its number of recipients."""
        if self.refused == 0:
            if cruising:
                self.noise_share += 1 / self._span
            self.since, self.accepted, self.passed = sent_at, 0.0, 0.0
        self.refused += 1
        self._quick += 1
        self._slow += 1

    def clear(self) -> None:
        """Forget the cluster: it was answered."""
        self.accepted = self.refused = self._quick = self._slow = 0.0


@dataclass(slots=True)
class Cycle:
    """What passed since the bucket was empty at ``since``, and up to the last refusal."""

    since: float
    accepted: float = 0.0
    idle_s: float = 0.0
    marked_at: float = field(init=False)
    marked: float = field(default=0.0, init=False)
    marked_idle_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.marked_at = self.since

    def mark(self, sent_at: float) -> None:
        """Note that the bucket was empty again at ``sent_at``."""
        self.marked_at = max(self.marked_at, sent_at)
        self.marked, self.marked_idle_s = self.accepted, self.idle_s

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
        self.marked = self.marked_idle_s = 0.0


@dataclass(slots=True)
class Estimate:
    """The limit as all readings together have it; ``weight`` is messages of evidence."""

    limit_per_s: float | None = None
    weight: float = 0.0

    def lift(self, proven: float) -> None:
        """Raise the limit to a rate that was borne for longer than any burst."""
        self.limit_per_s = max(proven, self.limit_per_s or 0.0)
        self.weight = min(self.weight, LIFTED_WEIGHT)

    def lower(self, share: float) -> None:
        """Take the limit for ``share`` of what it was."""
        self.limit_per_s = share * (self.limit_per_s or 0.0)

    @property
    def error_share(self) -> float:
        """Likely error of the limit as a share of it."""
        return min(1.0, 1.5 / max(1.5, self.weight))

    def learn(self, reading: float, weight: float) -> None:
        """Blend a reading by its precision; one that contradicts the past replaces it."""
        known = self.limit_per_s
        if known is None or abs(log(reading / known)) > 2 * (1.5 / weight + self.error_share):
            self.limit_per_s, self.weight = reading, weight
            return
        share = weight / (weight + self.weight)
        self.limit_per_s = known + share * (reading - known)
        self.weight = min(WEIGHT_MAX, self.weight + weight)

"""The limits of an account: recipients a second, and recipients in 24 hours.

``now`` is monotonic seconds, handed in. All admit a message while anything at all is
left and then take its whole cost: a message to many overshoots and the debt must be
paid back before the next is admitted (*documented* in older editions of the AWS guide;
*observed*: 51,000 used of a quota of 50,000).
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_DAY_S = 86_400.0


class Bucket:
    """Tokens that come back at ``rate_per_s`` up to a depth, and may be owed.

    The depth is ``burst`` recipients, or one second's worth if None; at least one, as a
    shallower bucket would never admit anything.
    """

    __slots__ = ("_at", "_burst", "_tokens", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float | None, now: float) -> None:
        self.rate_per_s, self._burst, self._at = rate_per_s, burst, now
        self._tokens = self.depth

    @property
    def depth(self) -> float:
        """The most tokens that can be saved up."""
        return max(1.0, self.rate_per_s if self._burst is None else self._burst)

    def tokens(self, now: float) -> float:
        """What is left; negative is debt."""
        earned = max(0.0, now - self._at) * self.rate_per_s
        self._tokens = min(self.depth, self._tokens + earned)
        self._at = max(self._at, now)
        return self._tokens

    def admits(self, now: float) -> bool:
        """True while one recipient is left, whatever the message will cost."""
        return self.tokens(now) >= 1

    def take(self, cost: int, now: float) -> None:
        """Charge ``cost``, into debt if need be."""
        self._tokens = self.tokens(now) - cost

    def change(self, rate_per_s: float, burst: float | None, now: float) -> None:
        """Another rate from now on; what was earned until now stays, up to the new depth."""
        self.tokens(now)
        self.rate_per_s, self._burst = rate_per_s, burst
        self._tokens = min(self.depth, self._tokens)


class Window:
    """The same in fixed seconds of the clock: whole recipients in each, at least one.

    Nothing is saved up, so two windows' worth may pass around a turn of the second. What a
    message took beyond its window is taken from the windows that follow.
    """

    __slots__ = ("_second", "_used", "rate_per_s")

    def __init__(self, rate_per_s: float, now: float) -> None:
        self.rate_per_s = float(max(1, math.floor(rate_per_s)))
        self._second, self._used = math.floor(now), 0.0

    def tokens(self, now: float) -> float:
        """What is left of this second; negative is debt."""
        second = math.floor(now)
        if second > self._second:
            self._used = max(0.0, self._used - self.rate_per_s * (second - self._second))
            self._second = second
        return self.rate_per_s - self._used

    def admits(self, now: float) -> bool:
        """True while one recipient is left in this second."""
        return self.tokens(now) >= 1

    def take(self, cost: int, now: float) -> None:
        """Charge ``cost`` to this second and, what is too much for it, to the next ones."""
        self.tokens(now)
        self._used += cost

    def change(self, rate_per_s: float, _burst: float | None, now: float) -> None:
        """Another rate, from this very second on."""
        self.tokens(now)
        self.rate_per_s = float(max(1, math.floor(rate_per_s)))


class Quota:
    """What was sent in the last 24 hours, in steps of ``step_s``; a ``limit`` of 0 is none.

    ``used`` recipients stand there from the start. Its own clock runs ``speed`` times as
    fast as ``now`` and can be put forward, so that a test need not wait for a day.
    """

    __slots__ = ("_origin", "_skipped_s", "_speed", "_step_s", "_steps", "limit", "used")

    def __init__(
        self, limit: int, step_s: float, *, used: int = 0, speed: float = 1.0, now: float = 0.0
    ) -> None:
        self.limit, self.used = limit, 0
        self._step_s, self._speed, self._origin = step_s, speed, now
        self._skipped_s = 0.0
        self._steps: deque[list[int]] = deque()
        if used:
            self.take(used, now)

    def skip(self, seconds: float) -> None:
        """Let that much of the quota's own time pass at once."""
        self._skipped_s += max(0.0, seconds)

    def sent(self, now: float) -> int:
        """Recipients of the last 24 hours."""
        oldest = (self._time(now) - _DAY_S) // self._step_s
        while self._steps and self._steps[0][0] <= oldest:
            self.used -= self._steps.popleft()[1]
        return self.used

    def admits(self, now: float) -> bool:
        """True while the sum is below the limit."""
        return not self.limit or self.sent(now) < self.limit

    def take(self, cost: int, now: float) -> None:
        """Count ``cost`` recipients sent now."""
        step = int(self._time(now) // self._step_s)
        if not self._steps or self._steps[-1][0] != step:
            self.sent(now)
            self._steps.append([step, 0])
        self._steps[-1][1] += cost
        self.used += cost

    def _time(self, now: float) -> float:
        return self._origin + (now - self._origin) * self._speed + self._skipped_s


class Bursts:
    """When somebody else's bursts come: a Poisson process from ``now`` on."""

    __slots__ = ("_chance", "_per_s", "next_at")

    def __init__(self, per_s: float, chance: random.Random, now: float) -> None:
        self._per_s, self._chance = per_s, chance
        self.next_at = now
        self.advance()

    def advance(self) -> None:
        """Draw the next moment; never, if there are no bursts."""
        self.next_at += self._chance.expovariate(self._per_s) if self._per_s > 0 else math.inf

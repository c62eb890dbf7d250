"""The two limits of an account: recipients a second, and recipients in 24 hours.

``now`` is monotonic seconds, handed in. Both admit a message while anything at all is
left and then take its whole cost: a message to many overshoots and the debt must be
paid back before the next is admitted (*documented* in older editions of the AWS guide;
*observed*: 51,000 used of a quota of 50,000).
"""

from __future__ import annotations

from collections import deque

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


class Quota:
    """What was sent in the last 24 hours, in steps of ``step_s``; a ``limit`` of 0 is none."""

    __slots__ = ("_step_s", "_steps", "limit", "used")

    def __init__(self, limit: int, step_s: float) -> None:
        self.limit, self.used = limit, 0
        self._step_s = step_s
        self._steps: deque[list[int]] = deque()

    def admits(self, now: float) -> bool:
        """True while the sum is below the limit."""
        if not self.limit:
            return True
        oldest = (now - _DAY_S) // self._step_s
        while self._steps and self._steps[0][0] <= oldest:
            self.used -= self._steps.popleft()[1]
        return self.used < self.limit

    def take(self, cost: int, now: float) -> None:
        """Count ``cost`` recipients sent now."""
        if not self.limit:
            return
        step = int(now // self._step_s)
        if not self._steps or self._steps[-1][0] != step:
            self._steps.append([step, 0])
        self._steps[-1][1] += cost
        self.used += cost

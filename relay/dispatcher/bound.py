"""Whether sessions, not the rate and not the demand, hold sending back. Pure.

*Lost* is the time in which a message could go by the rate and no session was free, while as many
were open as may be. What the rate would have had it wait anyway is not lost. The claim is made
when a tenth of the last ``WINDOW_S`` was lost and withdrawn below half of that, so that it does
not flicker; it comes within a second or two of a shortage and goes within ``WINDOW_S`` of its
end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor

WINDOW_S = 5
BOUND_SHARE = 0.1
FREE_SHARE = 0.05


@dataclass(slots=True)
class Bound:
    """Time lost for want of sessions. Times are monotonic seconds."""

    _lost_s: dict[int, float] = field(default_factory=dict, init=False)
    """By second, those of the window."""
    _since: float | None = field(default=None, init=False)
    _is_bound: bool = field(default=False, init=False)

    def short(self, since: float) -> None:
        """From ``since`` on, which may be to come, a message waits for a session."""
        if self._since is None:
            self._since = since

    def served(self, now: float) -> None:
        """No message waits for a session any more."""
        self._bring_up(now)
        self._since = None

    def is_bound(self, now: float) -> bool:
        """Whether sessions hold sending back, of late."""
        self._bring_up(now)
        lost_share = sum(self._lost_s.values()) / WINDOW_S
        self._is_bound = lost_share > (FREE_SHARE if self._is_bound else BOUND_SHARE)
        return self._is_bound

    def _bring_up(self, now: float) -> None:
        """Count what was lost up to ``now``, and forget what is too long ago."""
        if self._since is not None and self._since < now:
            at = max(self._since, floor(now) - WINDOW_S)
            while at < now:
                end = min(now, floor(at) + 1)
                second = floor(at)
                self._lost_s[second] = self._lost_s.get(second, 0.0) + end - at
                at = end
            self._since = now
        for old in [second for second in self._lost_s if second <= now - WINDOW_S - 1]:
            del self._lost_s[old]

"""How fast mail goes out, for people to look at; nothing is decided by it."""

from __future__ import annotations

WINDOW_S = 10
"""Long enough that one large message does not show as a leap, short enough to see a stall."""


class Speed:
    """Recipients in each of the last ``WINDOW_S`` seconds. Times are monotonic."""

    def __init__(self) -> None:
        self._seconds: dict[int, int] = {}

    def count(self, now: float, recipients: int) -> None:
        """So many were accepted now."""
        second = int(now)
        if second not in self._seconds:
            self._forget(second)
        self._seconds[second] = self._seconds.get(second, 0) + recipients

    def per_s(self, now: float) -> float:
        """The mean over the last ``WINDOW_S`` full seconds."""
        self._forget(int(now))
        return sum(count for at, count in self._seconds.items() if at < int(now)) / WINDOW_S

    def _forget(self, second: int) -> None:
        for old in [at for at in self._seconds if at < second - WINDOW_S]:
            del self._seconds[old]

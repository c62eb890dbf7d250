"""The two clocks, and waiting on them.

Monotonic time (``float`` seconds) rules pacing and timeouts and lives in memory; wall
time (``int`` milliseconds since the epoch) rules what is written to disk. They never
meet. Only loops hold a clock; everything else is handed ``now``.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a loop may ask of time; tests run the same loops on a clock they turn by hand."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never backward."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, as the system has it; may jump either way."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``, at once if they are none."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """As ``Clock.monotonic``, on the scale of the event loop's timers."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """As ``Clock.wall_ms``."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """As ``Clock.sleep``."""
        await asyncio.sleep(max(0.0, seconds))

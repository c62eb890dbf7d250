"""A clock that a test turns by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class ManualClock:
    """Both clocks of ``relay.clock.Clock``, standing still until ``advance`` is called."""

    def __init__(self, monotonic: float = 1000.0, wall_ms: int = 1_800_000_000_000) -> None:
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self._monotonic

    def wall_ms(self) -> int:
        return self._wall_ms

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self._monotonic + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float, *, rounds: int = 50) -> None:
        """Pass ``seconds``, waking each sleeper at its moment; ``rounds`` loop turns after each."""
        end = self._monotonic + seconds
        await self._settle(rounds)
        while self._waiting and self._waiting[0][0] <= end:
            at, _, future = heapq.heappop(self._waiting)
            self._pass(at - self._monotonic)
            if not future.done():
                future.set_result(None)
            await self._settle(rounds)
        self._pass(end - self._monotonic)

    def step_wall(self, ms: int) -> None:
        """The system's clock is set: wall time jumps, monotonic time does not."""
        self._wall_ms += ms

    def _pass(self, seconds: float) -> None:
        self._monotonic += max(0.0, seconds)
        self._wall_ms += round(max(0.0, seconds) * 1000)

    @staticmethod
    async def _settle(rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)

"""How many bytes of message bodies may be in memory, over all connections together.

A body takes its share step by step as it grows. When all is taken, new bodies wait before
their 354 and those that have begun are read no further, until others are done; TCP holds
their clients. First come, first served.

Invariant: no deadlock. When bodies that have begun cannot go on, one of them, the
*leader*, may go over the limit until it is done. So memory stays below ``bytes_max`` + one
message, and somebody always comes to an end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

STEP_BYTES = 262_144
"""Taken before the 354 and then each time a body outgrows what it has. One step covers an
ordinary campaign message (37-60 kB, facts: listmonk.md 2) and what a socket yields at once."""


class Allowance:
    """The bytes that all bodies share."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._leader: Share | None = None
        self._waiting: list[_Turn] = []
        self.used_bytes = 0

    def open(self) -> Share:
        """A share of nothing yet, for one body; it must be closed."""
        return Share(self)

    def _try_take(self, share: Share) -> bool:
        if share is not self._leader and not (self._fits() and not self._waiting):
            if not self._may_lead(share):
                return False
            self._leader = share
        self._grant(share)
        return True

    async def _take(self, share: Share) -> None:
        turn = _Turn(share, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        try:
            await turn.came
        finally:
            if turn in self._waiting:  # cancelled
                self._waiting.remove(turn)
                self._admit()

    def _give_back(self, share: Share) -> None:
        self.used_bytes -= share.size_bytes
        if share is self._leader:
            self._leader = None
        self._admit()

    def _admit(self) -> None:
        while (turn := self._next_turn()) is not None:
            self._waiting.remove(turn)
            self._grant(turn.share)
            if not turn.came.done():
                turn.came.set_result(None)

    def _next_turn(self) -> _Turn | None:
        """Who goes on now: the first, if there is room; else a new leader, if there is none."""
        self._waiting = [turn for turn in self._waiting if not turn.came.cancelled()]
        if self._waiting and self._fits():
            return self._waiting[0]
        for turn in self._waiting:
            if self._may_lead(turn.share):
                self._leader = turn.share
                return turn
        return None

    def _may_lead(self, share: Share) -> bool:
        """A body that has begun must come to its end; one that has not can wait for others."""
        return self._leader is None and (share.size_bytes > 0 or self.used_bytes == 0)

    def _fits(self) -> bool:
        return self.used_bytes + STEP_BYTES <= self._bytes_max

    def _grant(self, share: Share) -> None:
        self.used_bytes += STEP_BYTES
        share.size_bytes += STEP_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    share: Share
    came: asyncio.Future[None]


class Share:
    """What one body may hold."""

    __slots__ = ("_allowance", "size_bytes")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self.size_bytes = 0

    def try_grow(self, held_bytes: int) -> bool:
        """Whether this body may hold ``held_bytes`` and more, if need be from now on.

        How much more, says ``size_bytes``: it is for the reader to take no more than that.
        """
        # The allowance is this class's other half.
        while self.size_bytes <= held_bytes:
            if not self._allowance._try_take(self):  # noqa: SLF001
                return False
        return True

    async def grow(self, held_bytes: int) -> None:
        """Return when ``try_grow`` would say yes.

        Cancelled while it waits, it has taken nothing that ``close`` does not give back.
        """
        while not self.try_grow(held_bytes):
            await self._allowance._take(self)  # noqa: SLF001

    def close(self) -> None:
        """Give all of it back; a second time changes nothing."""
        self._allowance._give_back(self)  # noqa: SLF001
        self.size_bytes = 0

"""A spool in memory, with the face that the listener uses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.envelope import Envelope, IdSource

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Kept:
    """One append that was committed."""

    envelopes: tuple[Envelope, ...]
    content: bytes


@dataclass
class FakeSpool:
    """Keeps at once; tests close it (no room), hold its commits back, or make it fail."""

    kept: list[Kept] = field(default_factory=list)
    failure: Exception | None = None
    waiting: int = 0
    """Callers that wait for room or for a commit."""
    _ids: IdSource = field(default_factory=IdSource)
    _room: asyncio.Event = field(default_factory=asyncio.Event)
    _disk: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self._room.set()
        self._disk.set()

    @property
    def has_room(self) -> bool:
        return self._room.is_set()

    def fill(self) -> None:
        self._room.clear()

    def free(self) -> None:
        self._room.set()

    def hold_commits(self) -> None:
        self._disk.clear()

    def let_commits_go(self) -> None:
        self._disk.set()

    async def wait_for_room(self) -> None:
        await self._wait(self._room)

    def new_id(self) -> int:
        return self._ids.next(1_800_000_000_000)

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        """Cancelled while it waits, nothing is kept."""
        await self._wait(self._room)
        await self._wait(self._disk)
        if self.failure is not None:
            raise self.failure
        self.kept.append(Kept(tuple(envelopes), content))
        if self.waiting or self._changed.locked():
            await self._tell()

    async def seen_waiting(self, callers: int) -> None:
        """Return when so many callers wait."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: self.waiting == callers)

    async def _wait(self, event: asyncio.Event) -> None:
        if event.is_set():
            return
        self.waiting += 1
        await self._tell()
        try:
            await event.wait()
        finally:
            self.waiting -= 1
            # Cancelled callers tell, too; the condition is free between loop turns.
            asyncio.get_running_loop().call_soon(self._tell_later)

    def _tell_later(self) -> None:
        self._task = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

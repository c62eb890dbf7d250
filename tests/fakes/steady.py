"""A Listmonk-like client that sends at a steady pace, and whose links can be cut."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.mailer import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relay.mailer import Connection, Mail, Told

BEHIND_MAX = 5_000
"""Mails that wait in the client while the relay is away; then the pace waits, too."""


class SteadyClient(Client):
    """``per_s`` mails a second, come what may; what a stop kept back is caught up with."""

    def __init__(self, host: str, port: int, *, connections: int = 10) -> None:
        # It gives nothing up: what it sends and the relay takes is what a test counts.
        super().__init__(host, port, connections=connections, attempts=100_000)
        self._open: set[Connection] = set()
        self._queue: asyncio.Queue[Mail | None] = asyncio.Queue(BEHIND_MAX)

    async def send_at(self, per_s: float, mails: Iterator[Mail], until: Callable[[], bool]) -> Told:
        """Send from ``mails`` until told to stop; what became of each is in the answer."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._connections):
                tasks.create_task(self._work())
            began, count = time.monotonic(), 0
            while not until():
                await self._queue.put(next(mails))
                count += 1
                await asyncio.sleep(max(0.0, began + count / per_s - time.monotonic()))
            for _ in range(self._connections):
                await self._queue.put(None)
        return self.told

    async def _work(self) -> None:
        connection: Connection | None = None
        # The two flags belong to a connection, all else to the client.
        told = replace(self.told)
        while (mail := await self._queue.get()) is not None:
            connection = await self._deliver(mail, connection, told)
            if connection is not None and connection not in self._open:
                self._open = {one for one in self._open if not one._writer.is_closing()}
                self._open.add(connection)
        if connection is not None:
            connection.close()

    def cut(self) -> None:
        """All its connections end with RST, whatever they are at."""
        for connection in self._open:
            connection.close()
        self._open.clear()

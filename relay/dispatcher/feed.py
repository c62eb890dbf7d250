"""Keeps the windows of the lanes filled from the spool.

Two things make it read: a window that runs low, and deferred mail that falls due. It
knows of both without polling: ``poke`` says that lanes have changed, ``falls_due`` that
something was put off until then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from relay.errors import SpoolError
from relay.lanes import StreamKey
from relay.spool import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.clock import Clock
    from relay.lanes import Lanes
    from relay.spool import Spool

_log = logging.getLogger(__name__)

DUE_GAP_S = 1.0
"""Deferred mail is looked for at most this often, however many moments it falls due at."""
RETRY_S = 5.0
"""Pause after the spool could not be read."""


class Feed:
    """Reads for one upstream; ``on_mail`` is called whenever a window was filled."""

    def __init__(
        self, upstream: str, spool: Spool, lanes: Lanes, clock: Clock, on_mail: Callable[[], None]
    ) -> None:
        self._upstream, self._spool, self._lanes, self._clock = upstream, spool, lanes, clock
        self._on_mail = on_mail
        self._poked = asyncio.Event()
        self._due_at: int | None = None

    def poke(self) -> None:
        """A window may have run low."""
        self._poked.set()

    def falls_due(self, due_at: int) -> None:
        """Something waits until ``due_at`` (wall ms)."""
        if self._due_at is None or due_at < self._due_at:
            self._due_at = due_at
            self._poked.set()

    def reread(self) -> None:
        """All that waits may have changed (a hold was lifted, the clock was set)."""
        depth = self._spool.depth()
        self._lanes.has_more(
            StreamKey(lane, campaign)
            for (upstream, lane, campaign, state), count in depth.items()
            if upstream == self._upstream and state is State.WAITING and count
        )
        self._poked.set()

    async def run(self) -> None:
        """Read whenever there is a reason to, until cancelled."""
        self.reread()
        while True:
            self._poked.clear()
            try:
                await self._fill()
                await self._look_for_due()
            except SpoolError as error:
                _log.error("spool cannot be read", extra={"error": str(error)})
                await self._clock.sleep(RETRY_S)
                continue
            await self._rest()

    async def _fill(self) -> None:
        for key, asked in self._lanes.to_read():
            try:
                found = await self._spool.read_due(
                    self._upstream,
                    key.lane,
                    key.campaign,
                    after=(0, 0),
                    now_ms=self._clock.wall_ms(),
                    limit=asked,
                )
            except BaseException:
                # Answered all the same, or this stream would never be read again.
                self._lanes.loaded(key, [], 0)
                raise
            self._lanes.loaded(key, [due.envelope for due in found], asked)
            self._on_mail()

    async def _look_for_due(self) -> None:
        now_ms = self._clock.wall_ms()
        if self._due_at is not None and self._due_at <= now_ms:
            self.reread()
        self._due_at = None
        found = await self._spool.next_due_at(self._upstream, now_ms)
        if found is not None:
            # What was put off during the read is in ``_due_at`` but may not be in ``found``.
            self._due_at = min(found, self._due_at or found)

    async def _rest(self) -> None:
        """Wait for a poke or for the next due moment."""
        if self._due_at is None:
            await self._poked.wait()
            return
        wait_s = max(DUE_GAP_S, (self._due_at - self._clock.wall_ms()) / 1000)
        due = asyncio.ensure_future(self._clock.sleep(wait_s))
        poked = asyncio.ensure_future(self._poked.wait())
        try:
            await asyncio.wait({due, poked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            due.cancel()
            poked.cancel()

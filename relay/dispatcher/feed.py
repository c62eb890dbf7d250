"""Keeps the windows of the lanes filled from the spool, and lends out what is parked.

Two things make it read: a window that runs low, and deferred mail that falls due. It
knows of both without polling: ``poke`` says that lanes have changed, ``falls_due`` that
something was put off until then.

A parked envelope that goes out as a probe is *lent*: it never enters a lane, or it would be
there twice as soon as its hold is lifted. What is left of it afterwards stays where the spool
says, parked or released.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.dispatcher.pause import first_of
from relay.errors import SpoolError
from relay.lanes import StreamKey
from relay.spool import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.clock import Clock
    from relay.envelope import Envelope, Recipient
    from relay.lanes import Lanes
    from relay.spool import Spool

_log = logging.getLogger(__name__)

DUE_GAP_S = 1.0
"""Deferred mail is looked for at most this often, however many moments it falls due at."""
RETRY_S = 5.0
"""Pause after the spool could not be read: what is wrong with a disk takes seconds at least,
and each try is a line in the log."""


class Feed:
    """Reads for one upstream; ``on_mail`` is called whenever a window was filled.

    ``on_failure`` is told the room of each surprise that was logged and survived.
    """

    def __init__(
        self,
        upstream: str,
        spool: Spool,
        lanes: Lanes,
        clock: Clock,
        on_mail: Callable[[], None],
        *,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._upstream, self._spool, self._lanes, self._clock = upstream, spool, lanes, clock
        self._on_mail, self._on_failure = on_mail, on_failure
        self._poked = asyncio.Event()
        self._due_at: int | None = None
        self._is_due_stale = True
        self._lent: set[int] = set()

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
        self._is_due_stale = True
        self._poked.set()

    # -- Leases ----------------------------------------------------------------------------

    async def lease_parked(
        self, keys: Iterable[str], is_held: Callable[[str], bool]
    ) -> Envelope | None:
        """Lease an envelope that is parked under one of ``keys``; None if there is none.

        Raises: SpoolError.
        """
        for key in keys:
            before = frozenset(self._lent)
            limit = len(before) + 1
            for found in await self._spool.read_parked(self._upstream, key, limit=limit):
                # A lease that ended during the read: what was read may be stale. A hold released
                # during the read: it may be in its lane by now.
                if found.id not in before | self._lent and is_held(key):
                    self._lent.add(found.id)
                    return found
        return None

    def end_lease(self, envelope: Envelope, back: tuple[Recipient, ...] = ()) -> None:
        """End the lease of ``envelope``, wherever it came from.

        ``back`` are the recipients that were as good as not tried: they go to the head of the
        lane, or, if the envelope was lent, stay where the spool says.
        """
        if envelope.id in self._lent:
            self._lent.discard(envelope.id)
            self._lanes.settled(envelope)
            self.reread()
        elif back:
            self._lanes.give_back(replace(envelope, recipients=back))
        else:
            self._lanes.settled(envelope)

    # -- The loop --------------------------------------------------------------------------

    async def run(self) -> None:
        """Read whenever there is a reason to, until cancelled."""
        self.reread()
        while True:
            try:
                await self._step()
            except SpoolError as error:
                _log.error("spool cannot be read", extra={"error": str(error)})
                await self._clock.sleep(RETRY_S)
            except Exception:
                _log.exception("reading for a lane failed", extra={"upstream": self._upstream})
                self._on_failure("dispatcher")
                await self._clock.sleep(RETRY_S)

    async def _step(self) -> None:
        """Read all there is a reason to, then wait for the next reason."""
        self._poked.clear()
        await self._fill()
        await self._look_for_due()
        await self._rest()

    async def _fill(self) -> None:
        """Read until no window is low that could be filled; mail may arrive meanwhile.

        Raises: SpoolError: a stream could not be read, after all others were.
        """
        failure: SpoolError | None = None
        while failure is None and (wanted := deque(self._lanes.to_read())):
            try:
                while wanted:
                    try:
                        await self._read(*wanted[0])
                    except SpoolError as error:
                        failure = error
                        self._lanes.loaded(wanted[0][0], [], 0)
                    wanted.popleft()
            finally:
                # Answered all the same, or these streams would never be read again.
                for key, _ in wanted:
                    self._lanes.loaded(key, [], 0)
        if failure is not None:
            raise failure

    async def _read(self, key: StreamKey, asked: int) -> None:
        found = await self._spool.read_due(
            self._upstream,
            key.lane,
            key.campaign,
            now_ms=self._clock.wall_ms(),
            limit=asked,
        )
        is_all = len(found) < asked
        here = [due.envelope for due in found if due.envelope.id not in self._lent]
        self._lanes.loaded(key, here, asked if is_all else len(here))
        self._on_mail()

    async def _look_for_due(self) -> None:
        """Know when mail falls due next; the spool is asked only if that may have changed."""
        now_ms = self._clock.wall_ms()
        if self._due_at is not None and self._due_at <= now_ms:
            self.reread()
        if not self._is_due_stale:
            return
        self._due_at, self._is_due_stale = None, False
        try:
            found = await self._spool.next_due_at(self._upstream, now_ms)
        except BaseException:
            self._is_due_stale = True
            raise
        if found is not None:
            # What was put off during the read is in ``_due_at`` but may not be in ``found``.
            self._due_at = min(found, self._due_at or found)

    async def _rest(self) -> None:
        """Wait for a poke or for the next due moment."""
        if self._due_at is None:
            await self._poked.wait()
            return
        wait_s = max(DUE_GAP_S, (self._due_at - self._clock.wall_ms()) / 1000)
        await first_of(self._clock.sleep(wait_s), self._poked.wait())

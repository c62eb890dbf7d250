"""The durable store of envelopes, as the rest of the relay sees it.

One SQLite file, one writer, readers beside it, owned by one process. Nothing of SQLite
shows here: a second implementation on PostgreSQL is planned. Every change returns once
it is on disk (P1, P2); leases are the dispatcher's and live in memory, so that a crash
returns them (P3).

Order: mail of a stream is read in the order of (due_at, id), always from the start (``lanes``
says why there is no cursor). Arrivals and released mail join the end, whatever the clock does:
nothing ever becomes due at or before a place that was read (``stamps``), but for ``clamp_due``.

Searching what is queued reads the whole queue (about a second for a million): an index
by address would cost each message more than the rare search is worth.
"""

from __future__ import annotations

import json
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from relay.breaker import Hold, Source
from relay.envelope import id_text
from relay.errors import SpoolDamaged, SpoolError
from relay.spool import opening, reading, settling
from relay.spool.connection import run
from relay.spool.failures import is_damage, translated
from relay.spool.gate import Bar
from relay.spool.transaction import WRITE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from relay.clock import Clock
    from relay.config.schema import Spool as Config
    from relay.envelope import Envelope
    from relay.spool.connection import Connection
    from relay.spool.settlement import Settlement
    from relay.spool.stamps import Place
    from relay.spool.transaction import Transaction
    from relay.spool.words import DepthKey, Due, Found, Room

T = TypeVar("T")
log = logging.getLogger(__name__)

STEP_ENVELOPES: Final = 500
"""Envelopes that one transaction moves when a hold is released or due times are clamped."""
RUINED_MAX: Final = 10_000
"""Envelopes on damaged pages that are remembered, so that each is told of once."""


class Spool:
    """The durable store. ``open`` it, set ``on_arrival``, keep ``run`` running, ``close`` it."""

    def __init__(self, stack: AsyncExitStack, parts: opening.Parts, clock: Clock) -> None:
        self.path = parts.path
        self._stack, self._clock = stack, clock
        self._writer, self._reader, self._upkeep = parts.writer, parts.reader, parts.upkeep
        self._gate, self._stamps, self._ids = parts.gate, parts.stamps, parts.ids
        self._presence = parts.presence
        self._ruined: set[int] = set()

    @classmethod
    async def open(
        cls,
        path: Path,
        config: Config,
        *,
        clock: Clock,
        create: bool,
        ballast_bytes: int | None = None,
    ) -> Self:
        """The spool at ``path``, owned by this process until ``close``.

        ``ballast_bytes`` of 0 is none, None is chosen from the size of the disk.

        Raises: SpoolBusy if it is owned by another process; SpoolBroken if there is none and
        ``create`` is False, or if it is damaged, too new, or in a place that will not do.
        """
        async with AsyncExitStack() as stack:
            parts = await opening.open_parts(
                stack, path, config, clock=clock, create=create, ballast_bytes=ballast_bytes
            )
            return cls(stack.pop_all(), parts, clock)

    async def run(self) -> None:
        """Do the spool's housework until cancelled."""
        await self._upkeep.run()

    async def close(self) -> None:
        """Write what is pending, then give the file up. Appends without room are refused.

        If the file is not at its place any more, what it holds is written there first.
        """
        await self._writer.close()
        if self._presence.is_moved:
            await self._reader.run(self._presence.rescue)
        await self._stack.aclose()

    # --- who wants to know -------------------------------------------------------------

    @property
    def on_arrival(self) -> Callable[[Sequence[Due]], None]:
        """Called on the loop, in order, with what a commit has just made durable."""
        return self._writer.on_arrival

    @on_arrival.setter
    def on_arrival(self, listener: Callable[[Sequence[Due]], None]) -> None:
        self._writer.on_arrival = listener

    @property
    def on_commit(self) -> Callable[[float, int], None]:
        """Called on the loop with the seconds a batch took and the jobs it held."""
        return self._writer.on_commit

    @on_commit.setter
    def on_commit(self, listener: Callable[[float, int], None]) -> None:
        self._writer.on_commit = listener

    @property
    def on_failure(self) -> Callable[[str], None]:
        """Called on the loop with this room's name when a surprise was logged and survived."""
        return self._writer.on_failure

    @on_failure.setter
    def on_failure(self, listener: Callable[[str], None]) -> None:
        self._writer.on_failure = listener

    # --- room --------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether new mail may be invited; at most a second old."""
        return self._gate.has_room

    @property
    def stalled_since(self) -> float | None:
        """Since when (monotonic seconds) there is no room; None while there is."""
        return self._gate.stalled_since

    @property
    def barred(self) -> str:
        """Why no mail is taken whatever room there is, with what to do; "" if nothing is wrong."""
        return self._gate.barred

    def room(self) -> Room:
        """The latest look at the room there is."""
        return self._gate.room

    async def wait_for_room(self) -> None:
        """Return once there is room; all who wait return together."""
        await self._gate.wait()

    # --- mail in and out ---------------------------------------------------------------

    def new_id(self) -> int:
        """An id that no envelope or content has had."""
        return self._ids.next(self._clock.wall_ms())

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        """Return once all the envelopes and their ``content`` are on disk (P1).

        They must share one content id. Without room this waits. If the caller is
        cancelled while it waits, they are withdrawn; once they are being written, they
        may be kept all the same.

        Raises: SpoolError if they cannot be kept as they are.
        """
        if not envelopes or not all(envelope.recipients for envelope in envelopes):
            raise SpoolError("an envelope needs a recipient")
        if len({envelope.content_id for envelope in envelopes}) > 1:
            raise SpoolError("envelopes that are kept together must share their content")
        await self._writer.append(envelopes, content)

    async def read_due(
        self, upstream: str, lane: str, campaign: str, *, now_ms: int, limit: int
    ) -> list[Due]:
        """The first ``limit`` envelopes of a stream that are due at ``now_ms``, in order.

        Fewer than ``limit``: there are no more. Each has only the recipients that are due.
        What cannot be read is quarantined on the way, and others take its place.
        """
        stream = reading.Lane(upstream, lane, campaign)
        after: Place = (0, 0)
        found: list[Due] = []
        bad: Sequence[reading.Bad] = (reading.Bad(0, ""),)
        while bad and len(found) < limit:
            good, bad, last = await self._read_part(stream, after, now_ms, limit - len(found))
            found += good
            after = last or after
            for envelope_id, reason in bad:
                await self._quarantine_unread(envelope_id, lane, reason)
        return found

    async def _read_part(
        self, stream: reading.Lane, after: Place, now_ms: int, limit: int
    ) -> tuple[list[Due], list[reading.Bad], Place | None]:
        reached: Place | None = None
        bound_ms = min(now_ms, self._clock.wall_ms())
        self._stamps.begin_read(bound_ms)
        try:
            await self._writer.caught_up(now_ms)
            query = reading.DueQuery(stream, after, now_ms, limit)
            try:
                good, bad, reached = await self._read(partial(reading.due, query=query))
            except SpoolDamaged:
                work = partial(reading.due_one_by_one, query=query)
                good, bad, reached = await self._read(work)
        finally:
            self._stamps.end_read(bound_ms, reached)
        return good, bad, reached

    async def _quarantine_unread(self, envelope_id: int, lane: str, reason: str) -> None:
        if envelope_id in self._ruined:
            return
        try:
            await self.quarantine(envelope_id, reason)
        except SpoolError as error:  # The rest of the lane must not wait for this one.
            if isinstance(error, SpoolDamaged) and len(self._ruined) < RUINED_MAX:
                self._ruined.add(envelope_id)
            facts = {"envelope": id_text(envelope_id), "lane": lane, "reason": reason}
            log.warning("envelope not quarantined", exc_info=error, extra=facts)

    async def read_content(self, content_id: int) -> bytes:
        """The bytes of a message, proven to be those that were kept.

        Raises: ContentDamaged if they are not.
        """
        return await self._read(partial(reading.content, content_id=content_id))

    async def settle(self, settlement: Settlement) -> int | None:
        """Return once all that is new about an envelope is on disk (P2).

        What is returned is the moment at which it is due now (wall ms, perhaps past), by any of
        its recipients that wait; None if it waits in no lane any more.

        The same settlement again is harmless. A full disk gives up its ballast for this.

        Raises: SpoolError, with nothing changed, if it contradicts what is on disk;
        SpoolFull, SpoolBusy or SpoolBroken if it cannot be written: stop sending, try again.
        """
        return await self._writer.call(
            partial(settling.settle, settlement=settlement),
            earliest_due_at=settlement.earliest_due_at,
        )

    async def quarantine(self, envelope_id: int, reason: str) -> None:
        """Take an envelope that cannot be read off the queue, for a person to look at."""
        work = partial(settling.quarantine, envelope_id=envelope_id, reason=reason)
        lane = await self._writer.call(work)
        if lane is not None:
            facts = {"envelope": id_text(envelope_id), "lane": lane, "reason": reason}
            log.error("envelope quarantined", extra=facts)

    async def read_parked(self, upstream: str, hold_key: str, *, limit: int) -> list[Envelope]:
        """Envelopes of an upstream that are parked under a key, the longest untried first.

        What cannot be read is quarantined on the way, and others take its place.
        """
        ruined: set[int] = set()
        while True:
            # More by those that could not even be quarantined: they must not stand in the way.
            asked = limit + len(ruined)
            work = partial(reading.parked, upstream=upstream, hold_key=hold_key, limit=asked)
            good, bad = await self._read(work)
            fresh = [one for one in bad if one.envelope_id not in ruined]
            if not fresh:
                return good[:limit]
            for envelope_id, reason in fresh:
                ruined.add(envelope_id)
                await self._quarantine_unread(envelope_id, "", reason)

    async def parked_keys(self) -> list[str]:
        """The keys under which anything is parked, in order."""
        return await self._read(reading.parked_keys)

    async def release(self, hold_key: str) -> int:
        """Let all that is parked under the key wait again, at the end of its lane; how many.

        Not more than were parked when it began: if the key is held again meanwhile, what was
        released is parked again at the other end, and would keep this going for ever.
        """
        left = await self._writer.call(partial(settling.count_parked, hold_key=hold_key))
        released = 0
        while released < left:
            limit = min(STEP_ENVELOPES, left - released)
            work = partial(settling.release, hold_key=hold_key, limit=limit)
            step = await self._writer.call(work, earliest_due_at=0)
            if not step:
                break
            released += step
        return released

    async def clamp_due(self, latest_ms: int, back_ms: int = 0) -> None:
        """Make what is due later than ``latest_ms`` due then: the clock was set back.

        If it is known that it went back by ``back_ms``, all that waits is due so much earlier,
        as it would have been; what was put off between the step and this call goes too early,
        once. Arrivals are stamped by the new time from then on, even before what was read already.
        """
        after: int | None = 0
        now_ms = self._clock.wall_ms()
        change = settling.SetBack(now_ms=now_ms, back_ms=back_ms, latest_ms=latest_ms)
        self._stamps.reset()
        while after is not None:
            work = partial(settling.clamp, change=change, after_id=after, limit=STEP_ENVELOPES)
            after = await self._writer.call(work, earliest_due_at=min(now_ms, latest_ms))
        self._stamps.reset()

    # --- what is there -----------------------------------------------------------------

    def depth(self) -> Mapping[DepthKey, int]:
        """Recipients by stream and state, exact as of the last commit; no zeros."""
        return dict(self._writer.depth)

    def oldest(self) -> Mapping[tuple[str, str, str], int]:
        """When the head of each (upstream, lane, campaign) with waiting mail was received.

        Wall ms. Ten seconds old at most while ``run`` runs, else from ``open``; see
        ``reading.oldest`` for how near the head comes to the oldest.
        """
        return self._upkeep.oldest

    async def next_due_at(self, upstream: str, now_ms: int) -> int | None:
        """The earliest moment after ``now_ms`` at which waiting mail is due; None for never."""
        return await self._read(partial(reading.next_due_at, upstream=upstream, now_ms=now_ms))

    async def sent_by_time(
        self, upstream: str, since_ms: int, bucket_ms: int
    ) -> list[tuple[int, int]]:
        """(start of a stretch of ``bucket_ms``, recipients sent in it), in order, without zeros."""
        work = partial(
            reading.sent_by_time, upstream=upstream, since_ms=since_ms, bucket_ms=bucket_ms
        )
        return await self._search(work)

    async def tally(self) -> dict[tuple[str, int], int]:
        """Recipients that ended, by outcome and number of attempts; reads all outcomes."""
        return await self._search(reading.tally)

    async def find(self, query: str) -> list[Found]:
        """What became of, or waits for, an address, Message-ID, SES id or envelope id."""
        return await self._search(partial(reading.find, query=query))

    # --- what others have learned ------------------------------------------------------

    async def put_hold(self, hold: Hold) -> None:
        """Keep a hold over a restart; it replaces the one of the same key and source."""
        times = (hold.since_at, hold.next_probe_at, hold.probes)
        await self._change("put_hold", (hold.key, hold.source.value, hold.reason, *times))

    async def drop_hold(self, key: str, source: Source) -> bool:
        """Forget a hold; False if there was none."""
        return bool(await self._change("drop_hold", (key, source.value)))

    async def holds(self) -> list[Hold]:
        """The holds that were kept, the oldest first."""
        return [
            Hold(key, Source(source), reason, since_at, next_probe_at, probes)
            for key, source, reason, since_at, next_probe_at, probes in await self._read(
                reading.holds
            )
        ]

    async def put_state(self, key: str, value: Mapping[str, object]) -> None:
        """Keep what another room has learned; ``value`` must be fit for JSON."""
        await self._change("put_state", (key, json.dumps(value)))

    async def state(self, key: str) -> dict[str, object] | None:
        """What was kept under ``key``, None if nothing was."""
        return await self._read(partial(reading.state, key=key))

    # --- the ways to the file ----------------------------------------------------------

    async def _change(self, statement: str, values: tuple[object, ...]) -> int:
        def work(transaction: Transaction) -> int:
            return transaction.db.execute(WRITE[statement], values).rowcount

        return await self._writer.call(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(self._reader, work)

    async def _search(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read what takes long beside upkeep, so that no lane waits for it."""
        return await self._run(self._upkeep.connection, work)

    async def _run(self, connection: Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await run(connection, self.path, work)
        except SpoolError as error:
            if isinstance(error, SpoolDamaged) or is_damage(error.__cause__):
                # P1: no 250 for what would be written into a broken file.
                self._gate.bar(Bar.DAMAGE, str(translated(error.__cause__ or error, self.path)))
            raise

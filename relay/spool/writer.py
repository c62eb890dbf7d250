"""Gathers what is to be written and has it written, batch after batch.

While one batch is being committed the next one gathers; nobody waits for a timer. A
batch takes the calls (settlements, holds) first, then appends as far as there is room.
The task that writes exists only while there is something to write: it is no member of
the service's TaskGroup, because it must outlive the group for the last settlements, and
``close`` waits for it.

An append whose caller is cancelled before its batch began is withdrawn; after that it
may be kept all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, cast

from relay.errors import SpoolBroken, SpoolError, SpoolFull
from relay.spool.batch import Append, Batch, Call, Report, Scribe
from relay.spool.gate import Bar
from relay.spool.room import judge
from relay.spool.words import DepthKey, Due

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.clock import Clock
    from relay.envelope import Envelope
    from relay.spool.connection import Connection
    from relay.spool.gate import Gate
    from relay.spool.room import Limits
    from relay.spool.stamps import Stamps
    from relay.spool.transaction import Transaction

T = TypeVar("T")
log = logging.getLogger(__name__)

BATCH_CALLS_MAX: Final = 500
BATCH_APPENDS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 8 << 20
"""Limits of one commit, so that who comes next waits tens of milliseconds at most. One
append alone may be larger: a message may be 40 MB."""

MEASURE_EVERY_S: Final = 0.1
"""Look at the disk with the next batch after so long: others fill it, too. A look costs some
30 microseconds (measured), next to nothing of that time."""
MEASURE_SLACK_SHARE: Final = 8
"""And after an eighth of the remaining slack at the latest, so that the sizes assumed here
(``ROW_BYTES``) may be far off and a burst still stops short of the limit."""

ROW_BYTES: Final = 1024
"""Assumed size in the log of an envelope with its recipient and index entries."""


class Writer:
    """The only way to change the spool."""

    def __init__(
        self,
        connection: Connection,
        scribe: Scribe,
        limits: Limits,
        gate: Gate,
        stamps: Stamps,
        clock: Clock,
    ) -> None:
        self.depth: Counter[DepthKey] = Counter()
        self.on_arrival: Callable[[Sequence[Due]], None] = _ignore
        self.on_commit: Callable[[float, int], None] = _ignore
        self.on_failure: Callable[[str], None] = _ignore
        self.unsaved_bytes = 0
        self.checkpoint_wanted = asyncio.Event()
        self._connection, self._scribe = connection, scribe
        self._limits, self._gate, self._stamps, self._clock = limits, gate, stamps, clock
        # Dicts for their order: an entry is withdrawn without a search.
        self._calls: dict[Call, None] = {}
        self._appends: dict[Append, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._earliest = 0
        self._written: asyncio.Future[None]
        self._measured_at = clock.monotonic()
        self._unmeasured_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return self._task is None

    @property
    def anyone_waits(self) -> bool:
        """Whether an append waits to be written."""
        return bool(self._appends)

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        """Return once the envelopes and their content are on disk.

        Raises: SpoolError if they cannot be kept as they are, SpoolFull if the spool is
        closed before there was room.
        """
        self._refuse_if_closed()
        job = Append(envelopes, content, asyncio.get_running_loop().create_future())
        self._appends[job] = None
        self.wake()
        try:
            await job.done
        finally:
            self._appends.pop(job, None)

    async def call(
        self, work: Callable[[Transaction], T], *, earliest_due_at: int | None = None
    ) -> T:
        """What ``work`` returns, once it is on disk; see ``batch.Call``.

        It is carried out even if the caller is cancelled.

        Raises: SpoolError, SpoolFull, SpoolBusy, SpoolBroken.
        """
        self._refuse_if_closed()
        job = Call(work, asyncio.get_running_loop().create_future(), earliest_due_at)
        self._calls[job] = None
        self.wake()
        return cast("T", await job.done)

    def wake(self) -> None:
        """Write what is waiting, if there is room for it."""
        if self._task is None and (self._calls or self._appends):
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="spool writer")

    async def close(self) -> None:
        """Write what is pending, refuse what has no room, take no more."""
        self._closed = True
        while self._task is not None:
            await asyncio.wait([self._task])
        for job in self._appends:
            if not job.done.done():
                job.done.set_exception(SpoolFull("the relay stops and the spool has no room"))
        self._appends.clear()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise SpoolBroken("the spool is closed: the relay stops")

    async def caught_up(self, now_ms: int) -> None:
        """Return once no mail due by ``now_ms`` is being written any more.

        Batches that begin later are stamped beyond a read that has begun.
        """
        if self._task is not None and self._earliest <= now_ms:
            await asyncio.wait([self._written])

    async def _drain(self) -> None:
        try:
            while batch := self._next_batch():
                self._earliest = _earliest(batch)
                self._written = asyncio.get_running_loop().create_future()
                try:
                    await self._write(batch)
                finally:
                    self._written.set_result(None)
        finally:
            self._task = None

    async def _write(self, batch: Batch) -> None:
        try:
            report = await self._connection.run(partial(self._scribe.write, batch=batch))
            self._apply(batch, report)
        except BaseException as error:
            _fail(error, batch.calls, batch.appends)
            if not isinstance(error, Exception):
                raise
            log.exception("spool batch failed")
            self.on_failure("spool")

    def _next_batch(self) -> Batch | None:
        calls = list(self._calls)[:BATCH_CALLS_MAX]
        appends = self._next_appends()
        if not calls and not appends:
            return None
        for call in calls:
            del self._calls[call]
        for append in appends:
            del self._appends[append]
        written = sum(map(_size, appends)) + len(calls) * ROW_BYTES
        self._unmeasured_bytes += written
        self.unsaved_bytes += written
        first_id = min((e.id for a in appends for e in a.envelopes), default=0)
        first_id = 0 if any(c.earliest_due_at == 0 for c in calls) else first_id
        return Batch(
            calls=calls,
            appends=appends,
            floor=self._stamps.floor(),
            stamp=self._stamps.give(self._clock.wall_ms(), first_id),
            measured=self._is_measure_due(),
        )

    def _next_appends(self) -> list[Append]:
        """The appends that may go now, in order; one too large for the disk lets others pass."""
        if self._gate.is_trying:
            smallest = min(self._appends, key=_size, default=None)
            return [smallest] if smallest and self._gate.admits(_size(smallest)) else []
        chosen: list[Append] = []
        budget = min(BATCH_BYTES_MAX, self._limits.wal_max_bytes // 2, self._gate.room.slack_bytes)
        for job in self._appends:
            size = _size(job)
            if not self._gate.admits(size):
                continue
            if chosen and (size > budget or len(chosen) == BATCH_APPENDS_MAX):
                break
            chosen.append(job)
            budget -= size
        return chosen

    def _is_measure_due(self) -> bool:
        slack = max(0, self._gate.room.slack_bytes)
        now = self._clock.monotonic()
        if (
            now - self._measured_at < MEASURE_EVERY_S
            and self._unmeasured_bytes < slack // MEASURE_SLACK_SHARE
        ):
            return False
        self._measured_at, self._unmeasured_bytes = now, 0
        return True

    def _apply(self, batch: Batch, report: Report) -> None:
        """Tell everyone what became of their job. Nothing here may fail or wait."""
        self._count(report.depth)
        for call, result in report.results:
            _resolve(call.done, result)
        for append in report.kept:
            _resolve(append.done, None)
        for append, failure in report.refused:
            _resolve(append.done, failure)
        self._requeue(report.waiting)
        self._look(report)
        if report.surprised:
            self.on_failure("spool")
        if self.unsaved_bytes >= self._limits.checkpoint_bytes:
            self.checkpoint_wanted.set()
        self._tell(batch, report)

    def _count(self, changes: Counter[DepthKey]) -> None:
        for key, change in changes.items():
            self.depth[key] += change
            if not self.depth[key]:
                del self.depth[key]

    def _requeue(self, waiting: Sequence[Append]) -> None:
        """Put appends that found no room back in front, but for those nobody waits for."""
        still = {job: None for job in waiting if not job.done.done()}
        self._appends = still | self._appends

    def _look(self, report: Report) -> None:
        if report.wall:
            self._gate.hit_wall(report.wall)
        elif report.kept:
            self._gate.passed()
        if report.astray:
            self._gate.bar(Bar.FILES, report.astray)
        if report.damage:
            self._gate.bar(Bar.DAMAGE, report.damage)
        if report.usage is not None:
            self._gate.measured(judge(report.usage, self._limits))
            if not report.wall:
                self._gate.open_trial(anyone_waits=self.anyone_waits)

    def _tell(self, batch: Batch, report: Report) -> None:
        arrived = [Due(e, batch.stamp) for append in report.kept for e in append.envelopes]
        try:
            if arrived:
                self.on_arrival(arrived)
            self.on_commit(report.seconds, len(report.kept) + len(report.results))
        except Exception:
            # The mail is on disk and will be read from there.
            log.exception("spool listener failed")
            self.on_failure("spool")


def _ignore(*_: object) -> None:
    """Nobody listens."""


def _size(append: Append) -> int:
    return len(append.content) + ROW_BYTES * sum(len(e.recipients) for e in append.envelopes)


def _earliest(batch: Batch) -> int:
    """The earliest moment at which anything in the batch is due."""
    dues = (call.earliest_due_at for call in batch.calls)
    return min((due for due in dues if due), default=batch.stamp)


def _fail(error: BaseException, calls: Sequence[Call], appends: Sequence[Append]) -> None:
    """The writer itself failed (our bug, or the loop ends): nobody may wait for ever."""
    failure = SpoolError(f"the spool's writer stopped: {type(error).__name__}: {error}")
    for call in calls:
        _resolve(call.done, failure)
    for append in appends:
        _resolve(append.done, failure)


def _resolve(future: asyncio.Future[T], result: object) -> None:
    if future.done():  # Its caller was cancelled.
        return
    if isinstance(result, SpoolError):
        future.set_exception(result)
    else:
        future.set_result(cast("T", result))

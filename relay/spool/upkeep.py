"""The spool's own housework, away from the path of mail.

* Checkpoints: committed pages are copied from the log to the file in a connection of
  their own. Only the last step, between two batches, is the writer's (``batch``).
* The watch, once a second: are the files where they were, is there room, does the ballast
  stand, may what hit the wall try again, does the disk need free pages back.
* Retention: dead mail and old outcomes go in small steps. Nothing goes in the first ten
  minutes, nor within ten minutes of a jump of the clock (design 5, Clocks).
* The age of the oldest mail is looked up every ten seconds, for people to look at.
* Vacuum: when nothing is written and much of the file is empty, some of it is given back.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from relay.errors import SpoolError
from relay.spool import reading, settling
from relay.spool.batch import checkpoint
from relay.spool.failures import is_damage, translated
from relay.spool.gate import Bar
from relay.spool.room import disk_for_mail, judge, measure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from relay.clock import Clock
    from relay.config.schema import Spool as Config
    from relay.spool.connection import Connection
    from relay.spool.gate import Gate
    from relay.spool.presence import Presence
    from relay.spool.room import Ballast, Limits, Usage
    from relay.spool.transaction import Transaction
    from relay.spool.writer import Writer

log = logging.getLogger(__name__)

WATCH_S: Final = 1.0
"""Between two looks at the disk: who stalls for room goes on within a second of it, and what
others write in a second is small beside the margin."""
OLDEST_S: Final = 10.0
"""Between two looks at the oldest mail: Prometheus comes by every 15 s or so, and an age that
matters is minutes."""
RETENTION_S: Final = 60.0
"""Between two rounds of retention: what is kept for days may stay a minute longer."""
CALM_S: Final = 600.0
"""No retention for so long after the start and after a jump of the clock."""
JUMP_MS: Final = 60_000
"""What counts as one: NTP's slewing and a late timer stay far below, and a minute is nothing
beside the days that are kept."""
STEP_ROWS: Final = 200
"""Rows that go in one step of retention: a few milliseconds of the writer's time."""
STEP_PAUSE_S: Final = 0.05
"""Between two steps: mail has the writer for nine tenths of the time."""
VACUUM_STEP_PAGES: Final = 256
"""1 MiB of pages of 4 kB in one transaction: half a millisecond of the writer's time (measured)
and a sync, so that mail hardly waits for it."""
VACUUM_STEPS_MAX: Final = 64
"""Steps in one watch when the disk needs pages back; 64 MiB of pages of 4 kB."""
VACUUM_SHARE: Final = 4
VACUUM_MIN_PAGES: Final = 4096
"""When idle, give back above a quarter of the file and 16 MiB; the rest is used again."""
_DAY_MS: Final = 86_400_000


@dataclass(slots=True, kw_only=True)
class Upkeep:
    """Runs beside the writer until it is cancelled."""

    path: Path
    config: Config
    limits: Limits
    ballast: Ballast
    writer: Writer
    gate: Gate
    presence: Presence
    clock: Clock
    connection: Connection
    oldest: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """When the head of each stream was received, as of the last look."""

    async def run(self) -> None:
        """Checkpoint, watch, and forget what is old; never returns by itself."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop(self._checkpoint), name="spool checkpoint")
            group.create_task(self._loop(self._watch), name="spool watch")
            group.create_task(self._loop(self._look_at_oldest), name="spool age")
            group.create_task(self._retain(), name="spool retention")

    async def _loop(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except Exception as error:
                log.warning("spool upkeep failed", exc_info=error)
                self.writer.on_failure("spool")
                if is_damage(error):
                    self.gate.bar(Bar.DAMAGE, str(translated(error, self.path)))

    async def _checkpoint(self) -> None:
        await self.writer.checkpoint_wanted.wait()
        self.writer.checkpoint_wanted.clear()
        self.writer.unsaved_bytes = 0
        await self.connection.run(checkpoint)

    async def _watch(self) -> None:
        before = self.writer.unsaved_bytes
        await self.clock.sleep(WATCH_S)
        is_idle = self.writer.is_idle and self.writer.unsaved_bytes == before
        astray = self.presence.trouble()
        self.gate.bar(Bar.FILES, astray)
        if astray:
            # If only the log is gone, what is copied to the file lasts all the same.
            await self.connection.run(checkpoint)
            return
        usage = await self.connection.run(partial(measure, path=self.path))
        await self._stand_ballast(usage)
        room = judge(usage, self.limits)
        self.gate.measured(room)
        self.gate.open_trial(anyone_waits=self.writer.anyone_waits)
        self.writer.wake()
        if is_idle and before:
            self.writer.checkpoint_wanted.set()
        if room.vacuum_bytes:
            await self._vacuum(room.vacuum_bytes // usage.page_bytes + 1, VACUUM_STEPS_MAX)
        elif is_idle and usage.free_pages > max(VACUUM_MIN_PAGES, usage.pages // VACUUM_SHARE):
            await self._vacuum(VACUUM_STEP_PAGES, 1)

    async def _look_at_oldest(self) -> None:
        await self.clock.sleep(OLDEST_S)
        self.oldest = await self.connection.run(reading.oldest)

    async def _stand_ballast(self, usage: Usage) -> None:
        """Allocate the ballast anew once the disk can bear it beside all other claims."""
        missing = usage.ballast_bytes != self.limits.ballast_bytes
        if missing and disk_for_mail(usage, self.limits) >= 0:
            await asyncio.to_thread(self.ballast.restore)

    async def _vacuum(self, pages: int, steps: int) -> None:
        """Give free pages back to the disk, in steps; the last copy cuts the file."""
        for _ in range(min(steps, -(-pages // VACUUM_STEP_PAGES))):
            await self.writer.call(vacuum)
        await self.connection.run(checkpoint)

    async def _retain(self) -> None:
        """Forget old mail and outcomes once a minute, unless the clock is in doubt."""
        calm_at, offset_ms = self.clock.monotonic() + CALM_S, self._offset_ms()
        while True:
            await self.clock.sleep(RETENTION_S)
            now, new_offset_ms = self.clock.monotonic(), self._offset_ms()
            if abs(new_offset_ms - offset_ms) > JUMP_MS:
                calm_at = now + CALM_S
            offset_ms = new_offset_ms
            if now < calm_at:
                continue
            try:
                await self._forget(settling.purge_dead, self.config.dead_keep_days)
                await self._forget(settling.purge_outcomes, self.config.outcomes_keep_days)
            except SpoolError as error:
                log.warning("spool retention failed", exc_info=error)

    def _offset_ms(self) -> float:
        """How far wall time is from monotonic time; constant but for steps of the clock."""
        return self.clock.wall_ms() - self.clock.monotonic() * 1000

    async def _forget(
        self, purge: Callable[[Transaction, int, int], int], keep_days: float
    ) -> None:
        before_ms = self.clock.wall_ms() - int(keep_days * _DAY_MS)
        while await self.writer.call(lambda transaction: purge(transaction, before_ms, STEP_ROWS)):
            await self.clock.sleep(STEP_PAUSE_S)


def vacuum(transaction: Transaction) -> None:
    """Take one step's free pages off the end of the file."""
    # One page at a time: asked for many, the pragma frees a page for each row that is read,
    # and Python 3.11 reads no row that has no column (observed: 1 page of 256).
    for _ in range(VACUUM_STEP_PAGES):
        transaction.db.execute("PRAGMA incremental_vacuum(1)").fetchall()

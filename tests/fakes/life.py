"""A spool's whole life on a recorded disk, with a mark in the record for each answer it gives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from relay.clock import SystemClock
from relay.envelope import Outcome
from relay.errors import SpoolBroken
from relay.spool import Finished, Rescheduled, Spool
from relay.spool.upkeep import VACUUM_STEP_PAGES
from tests.fakes.mail import envelope
from tests.fakes.spool_file import finished, open_spool, settle

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from relay.envelope import Envelope
    from relay.spool import Due
    from tests.fakes.recorder import Recorder

WORKERS: Final = 10
"""As many clients as Listmonk's default has connections: several appends share a commit."""
STAGES: Final = ("open", "append", "settle", "checkpoint", "vacuum", "ballast", "close")
"""In the order of a life."""
ROUNDS: Final = 5
"""Messages of each worker in a stage."""
BODY_BYTES: Final = (200, 20_000)
"""From a row within a page to one of several pages."""
WAL_BYTES: Final = 512 << 10
"""A small cap of the log: copied to the file every few commits, begun anew several times."""
BALLAST_BYTES: Final = 64 << 10
SPLIT_SHARE: Final = 0.2
TRIES_MAX: Final = 50
FOREVER_MS: Final = 1 << 60


def body_of(number: int) -> bytes:
    low, high = BODY_BYTES
    return b"%d," % number * ((low + number * 7919 % (high - low)) // 20)


@dataclass
class Life:
    """One spool from its opening to its end; every answer is marked in the record."""

    record: Recorder
    chance: random.Random
    waiting: list[Envelope] = field(default_factory=list)
    failures: int = 0
    """Settlements that had to be tried again."""

    async def live(self, wanted: Sequence[str] = STAGES) -> None:
        """Those stages, on a disk that is being recorded."""
        stages: Mapping[str, Callable[[Spool], Awaitable[None]]] = {
            "append": partial(self.every_worker, work=self.append),
            "settle": partial(self.every_worker, work=self._settle),
            "checkpoint": self.checkpoints,
            "vacuum": self._vacuum,
            "ballast": self._full_disk,
        }
        self.record.mark("open")
        async with open_spool(
            self.record.folder, SystemClock(), ballast_bytes=BALLAST_BYTES
        ) as spool:
            self.waiting = [due.envelope for due in await everything(spool)]
            for stage in [one for one in stages if one in wanted]:
                self.record.mark(stage)
                await stages[stage](spool)
            self.record.mark("close")

    async def every_worker(self, spool: Spool, work: Callable[[Spool], Awaitable[None]]) -> None:
        async def worker() -> None:
            for _ in range(ROUNDS):
                await work(spool)

        await asyncio.gather(*(worker() for _ in range(WORKERS)))

    def _mark(self, word: str, made: Envelope) -> None:
        for recipient in made.recipients:
            self.record.mark(word, key(made.id, recipient.n))

    async def append(self, spool: Spool) -> None:
        """A message for up to three recipients, now and then split into two envelopes."""
        cost, first = self.chance.randint(1, 3), spool.new_id()
        made = [envelope(first, campaign="c", cost=cost)]
        if self.chance.random() < SPLIT_SHARE:
            made.append(replace(envelope(spool.new_id(), campaign="c"), content_id=first))
        for one in made:
            self._mark("began", one)
        await spool.append(made, body_of(first))
        for one in made:
            self._mark("kept", one)
        self.waiting += made

    async def _settle(self, spool: Spool) -> None:
        """All recipients of one envelope have an end, or all are put off, or each its own."""
        if not self.waiting:
            return
        at = self.chance.randrange(len(self.waiting))
        self.waiting[at], one = self.waiting[-1], self.waiting[at]
        self.waiting.pop()
        ends = set(self.chance.choice((one.recipients, one.recipients[:1], ())))
        ended = replace(one, recipients=tuple(r for r in one.recipients if r in ends))
        put_off = replace(one, recipients=tuple(r for r in one.recipients if r not in ends))
        outcome = self.chance.choice((Outcome.SENT, Outcome.SENT, Outcome.BOUNCED))
        self._mark("sent", ended)
        changes: tuple[Finished | Rescheduled, ...] = (
            *(finished(outcome, r.n) for r in ended.recipients),
            *(Rescheduled(n=r.n, due_at=1, attempts=1) for r in put_off.recipients),
        )
        await self._insist(lambda: settle(spool, one, *changes, at=1 << 50))
        self._mark("settled", ended)
        self._mark("put off", put_off)
        if put_off.recipients:
            self.waiting.append(put_off)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Try until it is written, as the dispatcher's books do."""
        for _ in range(TRIES_MAX):
            try:
                return await work()
            except SpoolBroken:
                self.failures += 1
        raise AssertionError("the disk never recovers")

    async def checkpoints(self, spool: Spool) -> None:
        """Mail comes and goes while upkeep copies the log to the file."""
        upkeep = asyncio.ensure_future(spool.run())

        async def both(spool: Spool) -> None:
            await self.append(spool)
            await self._settle(spool)

        await self.every_worker(spool, both)
        spool._writer.checkpoint_wanted.set()
        await self.every_worker(spool, self._settle)
        upkeep.cancel()
        await asyncio.wait([upkeep])

    async def _vacuum(self, spool: Spool) -> None:
        for _ in range(len(self.waiting) // 2):
            await self._settle(spool)
        await spool._upkeep._vacuum(VACUUM_STEP_PAGES, 1)

    async def _full_disk(self, spool: Spool) -> None:
        """The disk is full until the ballast goes, which settlements make it do."""
        self.record.blocker = self.record.folder / "relay.db.ballast"
        assert self.record.blocker.exists()
        self.record.is_full = True
        for _ in range(ROUNDS * WORKERS):
            if self.waiting and self.record.blocker.exists():
                await self._settle(spool)
        assert not self.record.blocker.exists()
        for _ in range(min(ROUNDS, len(self.waiting))):
            await self._settle(spool)
        self.record.is_full = False


async def everything(spool: Spool) -> Sequence[Due]:
    return await spool.read_due("ses", "bulk", "c", now_ms=FOREVER_MS, limit=1_000_000)


def key(envelope_id: int, n: int) -> int:
    """One number for a recipient."""
    return envelope_id << 8 | n

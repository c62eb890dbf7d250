"""A spool on a disk that is really full: a small tmpfs, mounted for each test."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from relay.clock import SystemClock
from relay.config.schema import Spool as Config
from relay.envelope import Outcome
from relay.errors import SpoolFull
from tests.fakes.machine import filled, small_disk
from tests.fakes.spool_file import (
    PATIENCE_S,
    finished,
    keep,
    new_envelope,
    open_spool,
    query,
    read,
    settle,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from relay.envelope import Envelope
    from relay.spool import Spool

MIB = 1 << 20
LEFT_BYTES = 400_000
"""More than opening takes, less than the log is long."""
TO_THE_WALL = Config(free_min_bytes=0, size_max_bytes=1 << 40)
"""No limit but the disk's own."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@asynccontextmanager
async def running(
    disk: Path, config: Config, ballast_bytes: int | None = None
) -> AsyncIterator[Spool]:
    """A spool with its upkeep, on the real clock."""
    async with open_spool(disk, SystemClock(), config, ballast_bytes=ballast_bytes) as spool:
        upkeep = asyncio.ensure_future(spool.run())
        try:
            yield spool
        finally:
            upkeep.cancel()
            await asyncio.wait([upkeep])


class Campaign:
    """Clients that send mail as fast as the spool takes it."""

    def __init__(self, spool: Spool, clients: int, size_bytes: int) -> None:
        self.kept: list[int] = []
        self.failures: list[BaseException] = []
        self._spool, self._body = spool, os.urandom(size_bytes)
        self._tasks = [asyncio.ensure_future(self._client()) for _ in range(clients)]

    async def _client(self) -> None:
        while True:
            await self._spool.wait_for_room()
            made = new_envelope(self._spool)
            try:
                await self._spool.append([made], self._body)
            except Exception as error:
                self.failures.append(error)
                return
            self.kept.append(made.id)

    async def stalls(self) -> None:
        """Return once nothing more comes in and the spool says so."""
        async with asyncio.timeout(PATIENCE_S):
            before = -1
            while self._spool.has_room or len(self.kept) != before:
                before = len(self.kept)
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


async def send_some(spool: Spool, sent: list[int], count: int) -> None:
    """Send the next ``count`` envelopes, proving each body, and settle them together."""
    due = await spool.read_due("ses", "bulk", "c", now_ms=1 << 60, limit=count)
    for one in due:
        await spool.read_content(one.envelope.content_id)
        sent.append(one.envelope.id)
    await asyncio.gather(
        *(settle(spool, one.envelope, finished(Outcome.SENT), at=1) for one in due)
    )


@pytest.mark.parametrize("config", [Config(), TO_THE_WALL], ids=["defaults", "to the wall"])
async def test_p1_p2_campaign_larger_than_the_disk_stalls_and_flows(
    disk: Path, config: Config
) -> None:
    """Nothing is refused, lost or sent twice; space is used again, three disks' worth."""
    sent: list[int] = []
    async with running(disk, config) as spool:
        campaign = Campaign(spool, clients=20, size_bytes=50_000)
        await campaign.stalls()
        assert spool.stalled_since is not None

        async with asyncio.timeout(2 * PATIENCE_S):
            while len(campaign.kept) * 50_000 < 3 * 64 * MIB:
                await send_some(spool, sent, 50)
        await campaign.stop()
        async with asyncio.timeout(PATIENCE_S):
            while spool.depth():
                await send_some(spool, sent, 200)

        assert campaign.failures == []
        assert len(sent) == len(set(sent))
        assert set(campaign.kept) <= set(sent)
        assert (disk / "relay.db.ballast").exists()
    outcomes = {row[0] for row in query(disk, "SELECT envelope_id FROM outcome")}
    assert outcomes == set(sent)


async def test_p1_p2_disk_filled_by_another_program_stops_intake_not_settlements(
    disk: Path,
) -> None:
    """Appends wait, the ballast makes settlements pass, and all recovers by itself."""
    async with running(disk, TO_THE_WALL) as spool:
        campaign = Campaign(spool, clients=20, size_bytes=20_000)
        await until(lambda: len(campaign.kept) >= 300)

        with filled(disk):
            await campaign.stalls()
            sent: list[int] = []
            for _ in range(10):
                await send_some(spool, sent, 25)
            assert len(sent) == 250
            before = len(campaign.kept)

        await until(lambda: len(campaign.kept) >= before + 300)
        await until((disk / "relay.db.ballast").exists)
        await campaign.stop()
        assert campaign.failures == []
        waiting = {due.envelope.id for due in await read(spool, 1 << 60)}
    outcomes = {row[0] for row in query(disk, "SELECT envelope_id FROM outcome")}
    assert outcomes == set(sent)
    assert set(campaign.kept) <= waiting | outcomes
    assert not waiting & outcomes


async def test_append_on_a_full_disk_waits_and_is_kept_when_room_returns(disk: Path) -> None:
    """Not refused, not lost; and it can be withdrawn while it waits."""
    async with running(disk, TO_THE_WALL) as spool:
        await keep(spool)
        with filled(disk):
            stays = asyncio.ensure_future(keep(spool, body=bytes(8 * MIB)))
            gone = asyncio.ensure_future(keep(spool, body=bytes(8 * MIB)))
            await until(lambda: not spool.has_room)
            gone.cancel()
            assert not stays.done()

        kept = await asyncio.wait_for(stays, PATIENCE_S)

        await asyncio.wait_for(spool.wait_for_room(), PATIENCE_S)
        assert await spool.read_content(kept.content_id) == bytes(8 * MIB)
        assert len(await read(spool, 1 << 60)) == 2


async def test_settlement_that_cannot_be_written_says_so_and_counts_once_later(
    disk: Path,
) -> None:
    """Without ballast a full disk fails it as SpoolFull; told again, it is one outcome."""
    async with open_spool(disk, SystemClock(), TO_THE_WALL, ballast_bytes=0) as spool:
        kept: list[Envelope] = [await keep(spool, cost=50) for _ in range(10)]
        changes = [finished(Outcome.SENT, n) for n in range(50)]
        with filled(disk):
            full = 0
            for one in kept:
                try:
                    await settle(spool, one, *changes)
                except SpoolFull:
                    full += 1
            assert full

        for one in kept:
            await settle(spool, one, *changes)

        assert spool.depth() == {}
    assert query(disk, "SELECT count(*) FROM outcome") == [(500,)]


async def test_spool_opens_on_a_full_disk(disk: Path) -> None:
    """A restart must be possible just then, or no mail would leave to make room."""
    async with open_spool(disk, SystemClock(), TO_THE_WALL, ballast_bytes=None) as spool:
        kept = await keep(spool)

    with filled(disk):
        async with open_spool(disk, SystemClock(), TO_THE_WALL, ballast_bytes=None) as spool:
            await settle(spool, kept, finished(Outcome.SENT))

            assert not spool.has_room
    assert query(disk, "SELECT count(*) FROM outcome") == [(1,)]


async def test_p1_spool_opens_on_a_nearly_full_disk_after_a_crash(
    disk: Path, tmp_path: Path
) -> None:
    """The log is as long as it was, and there is no room to write it to the database."""
    files = [disk / name for name in ("relay.db", "relay.db-wal")]
    async with open_spool(disk, SystemClock(), TO_THE_WALL, ballast_bytes=0) as spool:
        await asyncio.gather(*(keep(spool, body=os.urandom(50_000)) for _ in range(60)))
        for file in files:
            shutil.copy(file, tmp_path)
    for file in files:
        shutil.copy(tmp_path / file.name, file)

    with filled(disk):
        os.truncate(disk / "other", (disk / "other").stat().st_size - LEFT_BYTES)
        async with open_spool(disk, SystemClock(), TO_THE_WALL, ballast_bytes=0) as spool:
            assert sum(spool.depth().values()) == 60

"""The spool's own files: gone, or damaged, under a spool that is open or was left by a crash."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from relay.dispatcher.feed import Feed
from relay.envelope import Outcome
from relay.errors import ContentDamaged, SpoolBroken, SpoolDamaged
from relay.lanes import Lanes
from relay.spool import wal
from tests.fakes.clock import ManualClock
from tests.fakes.machine import PAGE_BYTES, pages_of, spoil
from tests.fakes.spool_file import (
    PATIENCE_S,
    finished,
    keep,
    open_spool,
    query,
    read,
    settle,
    turns,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from relay.spool import Due

WAL_HEAD_BYTES, WAL_FRAME_BYTES = 32, 24 + PAGE_BYTES


async def left_by_a_crash(tmp_path: Path) -> tuple[Path, list[int]]:
    """A folder with a spool whose log holds twenty commits, and the ids of the mail in them."""
    folder, crashed = tmp_path / "living", tmp_path / "crashed"
    folder.mkdir()
    async with open_spool(folder) as spool:
        ids = [(await keep(spool, body=bytes(6000))).id for _ in range(20)]
        shutil.copytree(folder, crashed)
    return crashed, ids


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def alarms(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [vars(one) for one in caplog.records if "log was damaged" in one.getMessage()]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
async def test_p1_damaged_log_is_told_and_kept(
    tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite forgets what stands behind the bad frame without a word; we say how much it was."""
    folder, ids = await left_by_a_crash(tmp_path)
    log = folder / "relay.db-wal"
    flip(log, int(log.stat().st_size * share) + 20)
    damaged = log.read_bytes()

    async with open_spool(folder) as spool:
        there = {due.envelope.id for due in await read(spool, 1 << 60)}

    assert there == set(ids[: len(there)])
    [alarm] = alarms(caplog)
    assert alarm["commits_lost"]
    [copy] = folder.glob("relay.db-wal.damaged-*")
    assert copy.read_bytes() == damaged
    assert copy.stat().st_mode & 0o777 == 0o600


async def test_p1_log_that_a_power_cut_has_torn_is_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut anywhere, or with its last transaction spoilt: nothing that was acknowledged is lost."""
    folder, ids = await left_by_a_crash(tmp_path)
    whole = (folder / "relay.db-wal").read_bytes()
    written = wal.scan(folder / "relay.db")
    last_but_one = WAL_HEAD_BYTES + written.commits[-2] * WAL_FRAME_BYTES
    rng = random.Random(6)
    torn = [whole, whole[:10], whole[: rng.randrange(len(whole))], whole[: len(whole) - 1]]
    spoilt = bytearray(whole)
    spoilt[last_but_one + 100] ^= 0xFF
    torn.append(bytes(spoilt))

    there: set[int] = set()
    for n, content in enumerate(torn):
        again = tmp_path / str(n)
        shutil.copytree(folder, again)
        (again / "relay.db-wal").write_bytes(content)
        async with open_spool(again) as spool:
            there = {due.envelope.id for due in await read(spool, 1 << 60)}
        assert there == set(ids[: len(there)])

    assert len(there) == len(ids) - 1
    assert alarms(caplog) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock"])
async def test_p1_250_waits_while_a_file_is_gone(tmp_path: Path, suffix: str) -> None:
    """The next batch notices it; a settlement is written; all goes on when the file is back."""
    clock = ManualClock()
    file, aside = tmp_path / f"relay.db{suffix}", tmp_path / "aside"
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool)
        upkeep = asyncio.ensure_future(spool.run())
        file.rename(aside)

        waiting = asyncio.ensure_future(keep(spool))
        await settle(spool, kept, finished(Outcome.SENT))
        await until(lambda: not spool.has_room)
        await turns()
        assert file.name in spool.barred
        assert not waiting.done()
        aside.rename(file)
        async with asyncio.timeout(PATIENCE_S):
            while not waiting.done():
                await clock.advance(1)
                await asyncio.sleep(0.01)

        assert spool.has_room
        upkeep.cancel()
        await asyncio.wait([upkeep])
    assert query(tmp_path, "SELECT count(*) FROM outcome") == [(1,)]
    assert query(tmp_path, "SELECT count(*) FROM envelope") == [(1,)]


async def test_p2_stream_that_cannot_be_read_does_not_starve_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One campaign's index page is bad: the others are read in the same round, and each round."""
    clock, lanes = ManualClock(), Lanes({})
    async with open_spool(tmp_path, clock) as spool:
        for campaign in ("a", "b"):
            await keep(spool, campaign=campaign)
        read_due = spool.read_due

        async def damaged(upstream: str, lane: str, campaign: str, **more: int) -> list[Due]:
            if campaign == "a":
                raise SpoolDamaged("database disk image is malformed")
            return await read_due(upstream, lane, campaign, **more)

        monkeypatch.setattr(spool, "read_due", damaged)
        feed = Feed("ses", spool, lanes, clock, lambda: None)
        reading = asyncio.ensure_future(feed.run())

        await until(lanes.ready)
        first = lanes.choose()
        assert first is not None
        assert first.campaign == "b"
        assert not lanes.ready()
        reading.cancel()
        await asyncio.wait([reading])


async def test_p1_250_waits_once_damage_was_met(tmp_path: Path) -> None:
    """Mail that was invited before waits as well, and the message names what can be read still."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool, body=bytes(2000)) for _ in range(40)]
    spoil(tmp_path / "relay.db", pages_of(tmp_path / "relay.db", "content")[3], random.Random(1))

    async with open_spool(tmp_path, clock) as spool:
        upkeep = asyncio.ensure_future(spool.run())
        damaged = 0
        for one in kept:
            try:
                await spool.read_content(one.content_id)
            except ContentDamaged:
                damaged += 1
        waiting = asyncio.ensure_future(keep(spool))
        for _ in range(5):
            await clock.advance(1)
            await asyncio.sleep(0.01)

        assert 0 < damaged < 10
        assert not spool.has_room
        assert not waiting.done()
        waiting.cancel()
        upkeep.cancel()
        await asyncio.wait([upkeep, waiting])


@pytest.mark.parametrize("deleted", [("",), ("", "-wal", "-shm")], ids=len)
async def test_p1_database_that_was_deleted_is_written_anew_at_the_end(
    tmp_path: Path, deleted: tuple[str, ...]
) -> None:
    """With all that its log held, and nothing of what was settled meanwhile."""
    async with open_spool(tmp_path) as spool:
        kept = [await keep(spool) for _ in range(20)]
        for suffix in deleted:
            (tmp_path / f"relay.db{suffix}").unlink()
        await settle(spool, kept[0], finished(Outcome.SENT))

    async with open_spool(tmp_path, create=False) as spool:
        assert [due.envelope for due in await read(spool, 1 << 60)] == kept[1:]
    assert (tmp_path / "relay.db").stat().st_mode & 0o777 == 0o600


async def test_p1_log_without_its_database_is_not_thrown_away(tmp_path: Path) -> None:
    """SQLite deletes such a log; it may be all that is left of the mail."""
    folder, _ = await left_by_a_crash(tmp_path)
    database, log = folder / "relay.db", folder / "relay.db-wal"
    for harm in (database.unlink, database.touch):
        harm()
        before = log.read_bytes()

        with pytest.raises(SpoolBroken, match="may hold mail"):
            async with open_spool(folder):
                pass

        assert log.read_bytes() == before

"""Damaged rows and files, and a database that somebody else has locked."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from relay.envelope import Outcome
from relay.errors import ContentDamaged, SpoolBroken, SpoolBusy, SpoolError
from relay.spool import State
from tests.fakes.clock import ManualClock
from tests.fakes.spool_file import (
    PATIENCE_S,
    finished,
    keep,
    open_spool,
    park,
    query,
    read,
    settle,
    turns,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("UPDATE content SET body = CAST('other' AS BLOB)", "hash does not match"),
        ("UPDATE content SET hash = x'00'", "hash does not match"),
        ("UPDATE content SET codec = 'newer'", "codec 'newer'"),
        ("DELETE FROM content", "missing"),
    ],
)
async def test_damaged_content_is_never_sent(tmp_path: Path, change: str, text: str) -> None:
    """Each read is proven; the failure is this message's alone."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool)
        query(tmp_path, change)

        with pytest.raises(ContentDamaged, match=text):
            await spool.read_content(kept.content_id)

        other = await keep(spool, body=b"fine")
        assert await spool.read_content(other.content_id) == b"fine"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE envelope SET sender = CAST(x'ff' AS TEXT) WHERE id = ?",
        "UPDATE recipient SET address = CAST(x'61c3' AS TEXT) WHERE envelope_id = ?",
        "DELETE FROM recipient WHERE envelope_id = ?",
    ],
)
async def test_unreadable_envelopes_are_quarantined_and_the_rest_goes_on(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A page is full all the same: what cannot be read is replaced by what comes after it."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool) for _ in range(6)]
        for bad in (kept[0], kept[2]):
            query(tmp_path, damage, (bad.id,))

        found = await spool.read_due("ses", "bulk", "c", now_ms=clock.wall_ms(), limit=3)

        assert [due.envelope.id for due in found] == [kept[n].id for n in (1, 3, 4)]
        assert len(await read(spool, clock.wall_ms())) == 4
    states = query(tmp_path, "SELECT state FROM envelope ORDER BY id")
    assert [row[0] for row in states] == [3, 0, 3, 0, 0, 0]
    told = [vars(r) for r in caplog.records if r.getMessage() == "envelope quarantined"]
    assert [facts["envelope"] for facts in told] == [kept[0].name, kept[2].name]
    assert {facts["lane"] for facts in told} == {"bulk"}


async def test_envelope_that_can_be_neither_read_nor_moved_is_told_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the lane does not wait for it, and the log says which it is."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool) for _ in range(2)]
        query(tmp_path, "DELETE FROM recipient WHERE envelope_id = ?", (kept[0].id,))

        async def refuse(_id: int, _reason: str) -> None:
            raise SpoolError("disk I/O error")

        monkeypatch.setattr(spool, "quarantine", refuse)
        found = await read(spool, clock.wall_ms())

        assert [due.envelope for due in found] == [kept[1]]
    [told] = [vars(r) for r in caplog.records if r.getMessage() == "envelope not quarantined"]
    assert (told["envelope"], told["lane"]) == (kept[0].name, "bulk")


async def test_unreadable_parked_mail_does_not_hide_the_rest(tmp_path: Path) -> None:
    """A probe is chosen from what can be read."""
    async with open_spool(tmp_path) as spool:
        kept = [await keep(spool) for _ in range(2)]
        await park(spool, [one.id for one in kept], "k")
        query(
            tmp_path, "UPDATE envelope SET sender = CAST(x'ff' AS TEXT) WHERE id = ?", (kept[0].id,)
        )

        assert await spool.read_parked("ses", "k", limit=1) == [kept[1]]
        assert [key.state for key in spool.depth()] == [State.PARKED, State.QUARANTINED]


async def test_parked_mail_that_cannot_be_quarantined_does_not_hide_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look costs a try; what comes behind it is found all the same."""
    async with open_spool(tmp_path) as spool:
        kept = [await keep(spool) for _ in range(3)]
        await park(spool, [one.id for one in kept], "k")
        query(
            tmp_path, "UPDATE envelope SET sender = CAST(x'ff' AS TEXT) WHERE id < ?", (kept[2].id,)
        )

        async def refuse(_id: int, _reason: str) -> None:
            raise SpoolError("disk I/O error")

        monkeypatch.setattr(spool, "quarantine", refuse)

        assert await spool.read_parked("ses", "k", limit=1) == [kept[2]]


async def test_unreadable_state_is_told(tmp_path: Path) -> None:
    """What was learned is lost, and nothing worse."""
    async with open_spool(tmp_path) as spool:
        await spool.put_state("rate", {})
        query(tmp_path, "UPDATE state SET value = '{'")

        with pytest.raises(SpoolError, match="'rate'"):
            await spool.state("rate")


def damage(path: Path) -> None:
    """Overwrite all but the first page, as a failing disk might."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


async def test_damaged_file_is_told_in_our_words(tmp_path: Path) -> None:
    """No exception of SQLite's leaves the room; the text says how to save what can be saved."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, body=bytes(100_000))
    damage(tmp_path / "relay.db")

    with pytest.raises(SpoolBroken, match=r"damaged.*\.recover"):
        async with open_spool(tmp_path) as spool:
            await spool.read_content(kept.content_id)


async def test_locked_database_stalls_mail_and_fails_settlements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's tool holds it: mail waits, settlements say who; then all goes on."""
    monkeypatch.setattr("relay.spool.connection._BUSY_TIMEOUT_S", 0.05)
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool)
        upkeep = asyncio.ensure_future(spool.run())
        with closing(sqlite3.connect(tmp_path / "relay.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(SpoolBusy, match="another program"):
                await settle(spool, kept, finished(Outcome.SENT))
            waiting = asyncio.ensure_future(keep(spool))
            await until(lambda: not spool.has_room)
            assert not waiting.done()
            other.execute("ROLLBACK")

        async with asyncio.timeout(PATIENCE_S):
            while not waiting.done():
                await clock.advance(1)
                await asyncio.sleep(0.01)
        await settle(spool, kept, finished(Outcome.SENT))
        assert spool.has_room
        await turns()
        upkeep.cancel()
        await asyncio.wait([upkeep])

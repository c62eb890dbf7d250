"""kill -9 while the file is brought to the next format: it is done or not, never half."""

from __future__ import annotations

import random
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from relay.spool import migrations
from relay.spool.statements import script
from relay.twin import NO_LATENCY, Twin, TwinConfig
from tests.fakes.dead import FAST, Left, copy_files, fill, trapped
from tests.fakes.running import RunningRelay
from tests.fakes.spool_file import keep, open_spool, query
from tests.fault import victim

if TYPE_CHECKING:
    from pathlib import Path

MIGRATED = 100
"""Messages that wait while their file is brought to the next format."""
MIGRATION_MAX_S = 0.003
"""The longest that a kill comes after a step began: it takes some milliseconds."""


def migration_traps(first: int, statements: int, call: int) -> list[tuple[str, str, int]]:
    """Every place to die in one step: around it, between its statements, before its COMMIT.

    ``first`` statements and ``call - 1`` steps went before.
    """
    apply, split = victim.STAGES["migration"]
    around = [(apply, moment, call) for moment in victim.MOMENTS]
    return around + [(split, "after", first + n + 1) for n in range(statements + 1)]


def length(script: str) -> int:
    return len(list(migrations._split(script)))


def traps_of_step(step: int) -> list[tuple[str, str, int]]:
    """The same, for a step of ours that is reached from an empty file."""
    lengths = [length(script(f"{n:04}.sql")) for n in range(1, step + 1)]
    return migration_traps(sum(n + 1 for n in lengths[:-1]), lengths[-1], step)


def schema(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        pragmas = ("user_version", "application_id", "auto_vacuum", "journal_mode")
        numbers = [db.execute(f"PRAGMA {name}").fetchall()[0] for name in pragmas]
        return numbers + db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", range(1, migrations.VERSION + 1))
async def test_p1_kill_9_in_a_migration_leaves_a_file_that_the_next_start_finishes(
    tmp_path: Path, step: int, kills: int
) -> None:
    """Killed anywhere in a step, the file is at that step or the one before, and goes on."""
    whole = tmp_path / "whole"
    whole.mkdir()
    async with open_spool(whole):
        pass
    traps = traps_of_step(step)
    for n, trap in enumerate(random.sample(traps, min(kills, len(traps)))):
        folder = tmp_path / str(n)
        folder.mkdir()
        relay = RunningRelay(folder, 1, folder / "relay.db", log_level="warning")
        relay.program = trapped(*trap, delay_s=random.random() * MIGRATION_MAX_S)
        await relay.spawn()

        assert await relay.ended() == -signal.SIGKILL, relay.log
        [(version,)] = query(folder, "PRAGMA user_version")
        assert version in {step - 1, step}
        async with open_spool(folder, create=True) as spool:
            kept = await keep(spool, body=b"after")
            assert await spool.read_content(kept.content_id) == b"after"
        assert schema(folder / "relay.db") == schema(whole / "relay.db")
        assert query(folder, "PRAGMA integrity_check") == [("ok",)]
    print(f"\nstep {step}: {min(kills, len(traps))} kills, each finished by the next start")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_p1_p3_kill_9_in_a_migration_keeps_the_mail(tmp_path: Path, kills: int) -> None:
    """A step that rewrites all rows, killed over and over: it is done or not, no mail is lost."""
    twin = Twin(TwinConfig(rate_per_s=1000, latency=NO_LATENCY, seed=1, quota=0))
    relay = RunningRelay(
        tmp_path, await twin.start(), tmp_path / "relay.db", upstream=FAST, log_level="warning"
    )
    traps, before = migration_traps(0, length(victim.NEXT_STEP), 1), migrations.VERSION
    copy, base = tmp_path / "copy", tmp_path / "base"
    copy.mkdir()
    base.mkdir()
    try:
        accepted = await fill(relay, MIGRATED)
        copy_files(relay.spool, base)
        done = 0
        for _ in range(kills):
            trap = random.choice(traps)
            relay.program = trapped(*trap, random.random() * MIGRATION_MAX_S, "--step")
            await relay.spawn()
            assert await relay.ended() == -signal.SIGKILL, relay.log
            left = Left.of(relay.spool, copy)
            [(version,)] = query(copy, "PRAGMA user_version")

            assert left.sound
            assert left.waiting == accepted
            assert version in {before, before + 1}
            if version == before + 1:
                assert query(copy, "SELECT DISTINCT colour FROM crayon") == [("red",)]
                done += 1
                copy_files(base / relay.spool.name, relay.spool.parent)

        relay.program = trapped("", "", 0, 0, "--step")
        await relay.start()
        await relay.command("resume")
        await relay.until_sent(twin, len(accepted))
        assert await relay.stop() == 0

        assert {record.relay_id for record in twin.ledger.records} == accepted
        assert len(twin.ledger.records) == len(accepted) == MIGRATED
        print(f"\nnext step: {kills} kills, {done} of them after its commit, lost 0, twice 0")
    finally:
        if relay._running is not None:
            await relay.kill()
        await twin.stop()

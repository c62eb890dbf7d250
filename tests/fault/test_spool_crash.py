"""kill -9 of a process that fills and empties a spool. Run as a module it is that process."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from relay.clock import SystemClock
from relay.config.schema import Spool as Config
from relay.envelope import Outcome
from relay.spool import Due, Spool
from tests.fakes.mail import envelope
from tests.fakes.spool_file import PATIENCE_S, finished, open_spool, query, settle

ROOT = Path(__file__).parents[2]
APPENDERS = 10
"""As many clients as Listmonk's default has connections."""
LINES_BEFORE_KILL = 400


def body_of(envelope_id: int) -> bytes:
    return b"%d," % envelope_id * 200


async def child(path: Path) -> None:
    """Append without end, settle every second mail; say so only once the spool has said so."""
    spool = await Spool.open(
        path, Config(free_min_bytes=0), clock=SystemClock(), create=True, ballast_bytes=0
    )
    upkeep = asyncio.ensure_future(spool.run())

    async def client() -> None:
        while not upkeep.done():
            made = envelope(spool.new_id(), campaign="c")
            say(f"began {made.id}")
            await spool.append([made], body_of(made.id))
            say(f"kept {made.id}")
            if made.id % 2:
                say(f"sent {made.id}")
                await settle(spool, made, finished(Outcome.SENT))
                say(f"settled {made.id}")

    await asyncio.gather(*(client() for _ in range(APPENDERS)))


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def run_until_killed(path: Path, lines_max: int) -> dict[str, set[int]]:
    """What a child said before it was killed, by word."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(path), cwd=ROOT, stdout=PIPE
    )
    assert process.stdout is not None
    said: dict[str, set[int]] = {"began": set(), "kept": set(), "sent": set(), "settled": set()}
    async with asyncio.timeout(PATIENCE_S):
        count = 0
        while line := await process.stdout.readline():
            word, _, number = line.decode().partition(" ")
            said[word].add(int(number))
            count += 1
            if count == lines_max:
                process.send_signal(signal.SIGKILL)  # What it said until then is still read.
        assert await process.wait() == -signal.SIGKILL
    return said


async def test_p1_p2_p3_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    """After each kill: what was kept is there, what was settled is not sent again."""
    chance = random.Random()
    total: dict[str, set[int]] = {}
    for _ in range(4):
        lines_max = LINES_BEFORE_KILL + chance.randrange(LINES_BEFORE_KILL)
        said = await run_until_killed(tmp_path / "relay.db", lines_max)
        for word, ids in said.items():
            total.setdefault(word, set()).update(ids)

        async with open_spool(tmp_path, SystemClock(), create=False) as spool:
            waiting = {due.envelope.id for due in await everything(spool)}
            for envelope_id in waiting:
                assert await spool.read_content(envelope_id) == body_of(envelope_id)
        ended = {row[0] for row in query(tmp_path, "SELECT envelope_id FROM outcome")}

        assert total["kept"] <= waiting | ended  # P1
        assert waiting | ended <= total["began"]
        assert not waiting & ended  # P2
        assert total["settled"] <= ended <= total["sent"]
        # P3: what may go twice is what was sent but not settled.
        assert len(total["sent"] & waiting) <= APPENDERS * 4
        assert query(tmp_path, "PRAGMA integrity_check") == [("ok",)]
        assert len(query(tmp_path, "SELECT 1 FROM content")) == len(waiting)


async def everything(spool: Spool) -> list[Due]:
    return await spool.read_due("ses", "bulk", "c", now_ms=1 << 60, limit=1_000_000)


def start_anew(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


async def test_crash_during_the_first_start_is_no_obstacle(tmp_path: Path) -> None:
    """Killed at any moment of creating the file, the next start succeeds."""
    for delay_s in (0.0, 0.2, 0.3, 0.4, 0.5):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, str(tmp_path / "relay.db"), cwd=ROOT, stdout=DEVNULL
        )
        await asyncio.sleep(delay_s)  # Not waiting for something: the moment is the point.
        process.send_signal(signal.SIGKILL)
        await process.wait()

        async with open_spool(tmp_path, SystemClock()) as spool:
            assert spool.has_room
        start_anew(tmp_path)


if __name__ == "__main__":
    asyncio.run(child(Path(sys.argv[1])))

"""The disk under a running relay fails: full, read-only, broken, and locked by a stranger.

Each test drives a real relay in front of a twin and holds it to its word: what was answered
with 250 arrives, nothing is refused, and when the disk is well again all flows without a hand.
"""

from __future__ import annotations

import asyncio
import errno
import random
import sqlite3
from collections import Counter
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from relay.dispatcher.books import UNSETTLED_MAX
from tests.fakes.machine import (
    FAST_START,
    FAST_TWIN,
    Load,
    failing_disk,
    filled,
    small_disk,
)
from tests.fakes.running import PATIENCE_S, relay_and_twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.running import RunningRelay


SLOW = pytest.mark.slow
BY_NAME = errno.errorcode.get


@asynccontextmanager
async def filled_and_paused(folder: Path, count: int) -> AsyncIterator[tuple[RunningRelay, Load]]:
    """A relay whose spool holds so much mail, none of it sent yet."""
    settings = {"upstream": FAST_START, "words": ("--paused",)}
    async with relay_and_twin(folder, FAST_TWIN, **settings) as (relay, twin):
        load = Load(relay, twin, count=count)
        load.start()
        await load.accepted(count)
        relay.words = ()
        yield relay, load


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(errno.EROFS),
        pytest.param(errno.ENOSPC, marks=SLOW),
        pytest.param(errno.EIO, marks=SLOW),
    ],
    ids=BY_NAME,
)
async def test_p1_p2_disk_that_refuses_stalls_and_flows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In the midst of batches and settlements: clients wait, nothing is sent beyond a batch."""
    disk = failing_disk(tmp_path, monkeypatch)
    async with relay_and_twin(tmp_path, FAST_TWIN, upstream=FAST_START) as (relay, twin):
        with disk:
            load = Load(relay, twin, count=300)
            load.start()
            await load.accepted(100)

            disk.fail(number, after_calls=3)
            await load.stalls()
            assert not load.is_over
            assert disk.refused
            disk.mend()

            assert await load.audited() == 0


@pytest.mark.parametrize(
    ("number", "is_killed"),
    [
        pytest.param(errno.ENOSPC, True),
        pytest.param(errno.ENOSPC, False, marks=SLOW),
        pytest.param(errno.EROFS, False, marks=SLOW),
        pytest.param(errno.EROFS, True, marks=SLOW),
        pytest.param(errno.EIO, False, marks=SLOW),
        pytest.param(errno.EIO, True, marks=SLOW),
    ],
)
async def test_p3_settlements_that_cannot_be_written_stop_dispatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_killed: bool
) -> None:
    """At most a batch goes out unwritten; killed just then, that is all that comes twice.

    A start on the sick disk says in words what is wrong with it, and loses nothing.
    """
    disk = failing_disk(tmp_path, monkeypatch)
    async with filled_and_paused(tmp_path, 600) as (relay, load):
        with disk:
            await relay.command("resume")
            await relay.until_sent(load.twin, 100)

            disk.fail(number, after_calls=3)
            sent_at = load.twin.ledger.total.accepted
            await stopped(load)
            assert load.twin.ledger.total.accepted - sent_at <= UNSETTLED_MAX + 100
            if is_killed:
                load.crashed()
                await relay.kill()
                assert await ends_at_once(relay) in {73, 74}
                # Words, no traceback: the killed one may have logged a checkpoint's before.
                assert relay.log.splitlines()[-1].startswith("relay: ")
            disk.mend()
            if is_killed:
                await relay.start()

            twice = await load.audited()
            assert twice <= load.twice_max
            print(f"\n{BY_NAME(number)} in settlement, killed {is_killed}: lost 0, twice {twice}")


async def ends_at_once(relay: RunningRelay, patience_s: float = 5) -> int | None:
    """Start it; the code that it ends with, None if it is still there after a while."""
    await relay.spawn()
    running = relay._running
    assert running is not None
    try:
        code = await asyncio.wait_for(running.wait(), patience_s)
    except TimeoutError:
        return None
    relay._running = None
    return code


async def stopped(load: Load) -> None:
    """Return once nothing has been sent for a second."""
    before = -1
    while load.twin.ledger.total.accepted != before:
        before = load.twin.ledger.total.accepted
        await asyncio.sleep(1)


@pytest.mark.slow
async def test_p1_p2_p3_disk_that_fails_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty faults of each kind at random moments, some with a kill: lost 0, twice in bounds."""
    disk = failing_disk(tmp_path, monkeypatch)
    rng = random.Random(8)
    faults: Counter[str] = Counter()
    kills = 0
    async with relay_and_twin(tmp_path, FAST_TWIN, upstream=FAST_START) as (relay, twin):
        with disk:
            load = Load(relay, twin, count=20_000)
            load.start()
            for _ in range(60):
                number = rng.choice([errno.EROFS, errno.ENOSPC, errno.EIO])
                syncs_only = rng.random() < 0.3
                await asyncio.sleep(rng.random())
                disk.fail(number, after_calls=rng.randrange(40), syncs_only=syncs_only)
                await asyncio.sleep(rng.random() * 2)
                is_killed = rng.random() < 0.2
                if is_killed:
                    kills += 1
                    load.crashed()
                    await relay.kill()
                disk.mend()
                if is_killed:
                    await relay.start()
                faults[f"{BY_NAME(number)}{' of syncs' if syncs_only else ''}"] += 1

            twice = await load.audited()
            print(
                f"\ndisk: {dict(faults)}, kills {kills}: lost 0, twice {twice} <= {load.twice_max}"
            )


@pytest.mark.slow
async def test_p1_p2_full_disk_in_mid_run_stalls_and_flows_again(tmp_path: Path) -> None:
    """Another program fills a real disk: intake waits; stopped and started, nothing is lost."""
    with small_disk(tmp_path / "disk") as disk:
        spool = disk / "relay.db"
        async with relay_and_twin(tmp_path, FAST_TWIN, spool=spool, upstream=FAST_START) as (
            relay,
            twin,
        ):
            load = Load(relay, twin, count=400)
            load.start()
            await load.accepted(100)

            with filled(disk):
                await load.stalls()
                assert not load.is_over
                await load.leave()
                assert await relay.stop() == 0
                code = await ends_at_once(relay)
                assert code in {None, 73}
                if code is None:
                    await relay.kill()
                    load.crashed()
                else:
                    assert "is full" in relay.log

            await relay.start()
            await load.audited()


async def until_locked(relay: RunningRelay) -> None:
    """Return once the relay has said that somebody else has the lock."""
    async with asyncio.timeout(PATIENCE_S):
        while "another program has locked" not in relay.log:  # noqa: ASYNC110  # a process
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", pytest.param("BEGIN EXCLUSIVE", marks=SLOW)])
async def test_p1_p2_locked_database_stalls_and_flows_again(tmp_path: Path, begin: str) -> None:
    """A stranger holds the write lock for longer than the busy timeout."""
    async with relay_and_twin(tmp_path, FAST_TWIN, upstream=FAST_START) as (relay, twin):
        load = Load(relay, twin, count=300)
        load.start()
        await load.accepted(100)

        with closing(sqlite3.connect(relay.spool, isolation_level=None)) as other:
            other.execute(begin)
            await until_locked(relay)
            assert not load.is_over
            other.execute("ROLLBACK")

        assert await load.audited() == 0


@pytest.mark.slow
async def test_p3_locked_database_stops_dispatch_and_a_start(tmp_path: Path) -> None:
    """Settlements wait for it; a relay that starts meanwhile says who is in the way."""
    async with filled_and_paused(tmp_path, 600) as (relay, load):
        await relay.command("resume")
        await relay.until_sent(load.twin, 100)

        with closing(sqlite3.connect(relay.spool, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            sent_at = load.twin.ledger.total.accepted
            await until_locked(relay)
            await stopped(load)
            assert load.twin.ledger.total.accepted - sent_at <= UNSETTLED_MAX + 100
            load.crashed()
            await relay.kill()
            assert await ends_at_once(relay, patience_s=20) == 75
            assert "Traceback" not in relay.log[-2000:]
            other.execute("ROLLBACK")
        await relay.start()

        print(f"\nlocked in settlement, killed: lost 0, twice {await load.audited()}")

"""The spool's files under a running relay: deleted, moved, replaced, damaged.

Each test drives a real relay in front of a twin and holds it to its word.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from relay.twin import Twin
from tests.fakes.machine import (
    FAST_START,
    FAST_TWIN,
    PAGE_BYTES,
    Load,
    all_pages,
    pages_of,
    spoil,
)
from tests.fakes.rawsmtp import dialled
from tests.fakes.running import PATIENCE_S, RunningRelay, relay_and_twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


SLOW_TWIN = replace(FAST_TWIN, rate_per_s=30)
"""So slow that mail is left in the spool when the relay is stopped."""


async def until_told(relay: RunningRelay, text: str) -> None:
    """Return once the relay's log says so."""
    async with asyncio.timeout(30):
        while text not in relay.log:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)


def delete(suffix: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"relay.db{suffix}").unlink()


def delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(delete(""), id="database", marks=pytest.mark.slow),
        pytest.param(delete("-wal"), id="log", marks=pytest.mark.slow),
        pytest.param(delete(".lock"), id="lock", marks=pytest.mark.slow),
        pytest.param(delete("-shm"), id="index", marks=pytest.mark.slow),
        pytest.param(delete_folder, id="folder", marks=pytest.mark.slow),
        pytest.param(move_folder, id="folder moved", marks=pytest.mark.slow),
    ],
)
async def test_p1_deleted_files_stop_intake_and_nothing_is_lost(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """No 250 for what would be gone; what is there is sent, or kept by a clean stop."""
    folder = tmp_path / "spool"
    folder.mkdir()
    settings = {"spool": folder / "relay.db", "upstream": FAST_START}
    async with relay_and_twin(tmp_path, SLOW_TWIN, **settings) as (relay, twin):
        load = Load(relay, twin, count=1000)
        load.start()
        await load.accepted(200)

        harm(folder)
        await until_told(relay, "spool takes no mail")
        accepted_at, sent_at = len(load.told.accepted), twin.ledger.total.accepted
        await relay.until_sent(twin, sent_at + 10)
        assert len(load.told.accepted) == accepted_at
        await load.leave()
        assert await relay.stop() == 0
        assert accepted_at > twin.ledger.total.accepted
        twin.set_rate(400)
        await relay.start()

        assert await load.audited() == 0


@pytest.mark.slow
async def test_p1_files_that_come_back_are_used_again(tmp_path: Path) -> None:
    """A folder that was moved and moved back needs no restart."""
    folder = tmp_path / "spool"
    folder.mkdir()
    settings = {"spool": folder / "relay.db", "upstream": FAST_START}
    async with relay_and_twin(tmp_path, FAST_TWIN, **settings) as (relay, twin):
        load = Load(relay, twin, count=400)
        load.start()
        await load.accepted(100)

        folder.rename(tmp_path / "elsewhere")
        await until_told(relay, "spool takes no mail")
        assert not load.is_over
        (tmp_path / "elsewhere").rename(folder)

        assert await load.audited() == 0


@pytest.mark.slow
async def test_p1_replaced_database_keeps_both(tmp_path: Path) -> None:
    """Another file stands at the spool's place: it is left alone, and ours is kept beside it."""
    async with relay_and_twin(tmp_path, SLOW_TWIN, upstream=FAST_START) as (relay, twin):
        load = Load(relay, twin, count=1000)
        load.start()
        await load.accepted(200)

        other = tmp_path / "other"
        other.write_bytes(b"somebody's file")
        other.replace(relay.spool)
        await until_told(relay, "spool takes no mail")
        await load.leave()
        assert await relay.stop() == 0
        assert relay.spool.read_bytes() == b"somebody's file"
        [kept] = relay.spool.parent.glob("relay.db.rescued-*")
        kept.rename(relay.spool)
        twin.set_rate(400)
        await relay.start()

        assert await load.audited() == 0


def says(relay: RunningRelay, text: str) -> bool:
    return text in relay.log


def told_of(relay: RunningRelay) -> set[str]:
    """The envelopes that the log names as damaged."""
    lines = [line for line in relay.log.splitlines() if "quarantined" in line]
    return {found[1] for line in lines if (found := re.search(r" envelope=(\w+)", line))}


async def filled(relay: RunningRelay, twin: Twin, count: int) -> Load:
    """Mail in the spool of a relay that is stopped, and will be paused at first."""
    relay.words = ("--paused",)
    await relay.start()
    load = Load(relay, twin, count=count, body_bytes=2000)
    load.start()
    await load.accepted(count)
    assert await relay.stop() == 0
    relay.words = ()
    return load


@asynccontextmanager
async def relay_to_be(folder: Path) -> AsyncIterator[tuple[RunningRelay, Twin]]:
    """A relay that was not started yet, in front of a twin."""
    twin = Twin(FAST_TWIN)
    relay = RunningRelay(folder, await twin.start(), folder / "relay.db", upstream=FAST_START)
    try:
        yield relay, twin
    finally:
        if relay._running is not None:
            await relay.kill()
        await twin.stop()


async def is_stalled(relay: RunningRelay) -> bool:
    """Whether a client that says MAIL gets no answer."""
    async with dialled(relay.smtp_port) as client:
        client.send(b"EHLO x\r\n")
        assert (await client.reply()).startswith("250-")
        client.send(b"MAIL FROM:<a@example.com>\r\n")
        try:
            await asyncio.wait_for(client.reader.readline(), 1)
        except TimeoutError:
            return True
    return False


@pytest.mark.parametrize(
    ("table", "is_running"),
    [
        ("content", False),
        pytest.param("content", True, marks=pytest.mark.slow),
        pytest.param("envelope", True, marks=pytest.mark.slow),
    ],
)
async def test_p1_p2_damaged_page_costs_only_what_stands_on_it(
    tmp_path: Path, table: str, is_running: bool
) -> None:
    """The rest is sent, the damaged is named, and no more is taken into the broken file."""
    rng = random.Random(3)
    async with relay_to_be(tmp_path) as (relay, twin):
        # More than a window of the lanes, so that some is read from the file afterwards.
        load = await filled(relay, twin, count=600 if is_running else 300)
        pages = pages_of(relay.spool, table)
        if is_running:
            await relay.start()
        spoil(relay.spool, rng.choice(pages[1:]), rng)
        if not is_running:
            await relay.start()

        await relay.command("resume")
        await until_told(relay, "spool takes no mail")
        bad = await load.missing(lambda: told_of(relay))

        assert len(bad) < 100
        assert ".recover" in relay.log
        assert await is_stalled(relay)


@pytest.mark.slow
async def test_p1_file_beyond_use_says_what_to_do_and_is_left_as_it_is(tmp_path: Path) -> None:
    """Exit code 74 and a text; what was there is there, but for the header's counters."""
    async with relay_to_be(tmp_path) as (relay, twin):
        await filled(relay, twin, count=100)
        spoil(relay.spool, pages_of(relay.spool, "envelope")[0], random.Random(4))
        before = relay.spool.read_bytes()[PAGE_BYTES:]

        await relay.spawn()
        assert relay._running is not None
        assert await asyncio.wait_for(relay._running.wait(), 30) == 74
        relay._running = None

        assert "is damaged" in relay.log
        assert ".recover" in relay.log
        assert "Traceback" not in relay.log
        assert relay.spool.read_bytes()[PAGE_BYTES:] == before


async def started_or_ended(relay: RunningRelay) -> int | None:
    """Start it anew; None once it runs, though it may take no mail, else its exit code."""
    starts = relay.log.count("relay started")
    await relay.spawn()
    running = relay._running
    assert running is not None
    async with asyncio.timeout(PATIENCE_S):
        while running.returncode is None and relay.log.count("relay started") == starts:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    if running.returncode is not None:
        relay._running = None
    return running.returncode


@pytest.mark.slow
async def test_p1_p2_any_damaged_page_is_met_in_words(tmp_path: Path) -> None:
    """Wherever it is: what does not arrive is told of, or the relay ends and says what to do."""
    rng = random.Random(5)
    table: dict[str, list[str]] = {}
    for n in range(25):
        folder = tmp_path / str(n)
        folder.mkdir()
        async with relay_to_be(folder) as (relay, twin):
            load = await filled(relay, twin, count=150)
            page, kind = rng.choice(all_pages(relay.spool))
            spoil(relay.spool, page, rng)
            fates = table.setdefault(kind, [])
            if (code := await started_or_ended(relay)) is not None:
                fates.append("ended")
                assert code == 74
                assert "is damaged" in relay.log or "another program" in relay.log
                continue
            await relay.command("resume")
            missing = await load.missing(
                partial(told_of, relay), or_else=partial(says, relay, "cannot be read")
            )
            fates.append(f"{len(missing)} of 150 wait")
    print("\na damaged page of", *(f"{kind}: {fates}" for kind, fates in table.items()), sep="\n  ")

"""The spool's housework: checkpoints, retention, vacuum, ballast."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.config.schema import Spool as Config
from relay.envelope import Outcome
from relay.spool import Rescheduled
from relay.spool.reading import READ
from relay.spool.upkeep import OLDEST_S, VACUUM_MIN_PAGES, VACUUM_STEP_PAGES, vacuum
from tests.fakes.clock import ManualClock
from tests.fakes.spool_file import (
    PATIENCE_S,
    finished,
    keep,
    new_envelope,
    open_spool,
    park,
    query,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from relay.envelope import Envelope
    from relay.spool import Spool
    from relay.spool.batch import Scribe

DAY_MS = 86_400_000


@asynccontextmanager
async def upkeep(spool: Spool) -> AsyncIterator[None]:
    task = asyncio.ensure_future(spool.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def passes(clock: ManualClock, seconds: float, until: Callable[[], bool]) -> None:
    """Turn the clock in steps of ``seconds`` until the claim holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not until():
            await clock.advance(seconds)
            await asyncio.sleep(0.001)  # The threads of SQLite run by their own time.


def count(folder: Path, table: str) -> int:
    ((number,),) = query(folder, f"SELECT count(*) FROM {table}")
    assert isinstance(number, int)
    return number


async def test_dead_mail_is_kept_for_its_days_and_then_forgotten(tmp_path: Path) -> None:
    """Content and recipients go after ``dead_keep_days``; the outcome stays its own time."""
    clock, config = ManualClock(), Config(free_min_bytes=0, dead_keep_days=7)
    async with open_spool(tmp_path, clock, config) as spool, upkeep(spool):
        for _ in range(450):
            await settle(spool, await keep(spool), finished(Outcome.BOUNCED), at=clock.wall_ms())
        await clock.advance(3600)
        assert count(tmp_path, "content") == 450

        clock.step_wall(6 * DAY_MS)
        await clock.advance(3600)
        assert count(tmp_path, "content") == 450

        clock.step_wall(1 * DAY_MS)
        await passes(clock, 60, lambda: not spool.depth())

        assert [count(tmp_path, t) for t in ("content", "recipient", "envelope")] == [0, 0, 0]
        assert count(tmp_path, "outcome") == 450


async def test_outcomes_are_forgotten_after_their_days(tmp_path: Path) -> None:
    """The oldest first, in steps; newer ones stay."""
    clock, config = ManualClock(), Config(free_min_bytes=0, outcomes_keep_days=30)
    async with open_spool(tmp_path, clock, config) as spool, upkeep(spool):
        for days in [31] * 250 + [29]:
            at = clock.wall_ms() - days * DAY_MS
            await settle(spool, await keep(spool), finished(Outcome.SENT), at=at)

        await passes(clock, 60, lambda: count(tmp_path, "outcome") == 1)


async def test_nothing_is_forgotten_just_after_start_or_a_jump_of_the_clock(
    tmp_path: Path,
) -> None:
    """A clock that runs a year ahead for some minutes costs nothing."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await settle(spool, await keep(spool), finished(Outcome.BOUNCED), at=clock.wall_ms())
        clock.step_wall(365 * DAY_MS)
        async with upkeep(spool):
            await clock.advance(590)
            clock.step_wall(DAY_MS)
            await clock.advance(590)
            clock.step_wall(-366 * DAY_MS)
            await clock.advance(1200)
            await spool.put_state("all that was asked for is done", {})

            assert count(tmp_path, "content") == 1
            assert count(tmp_path, "outcome") == 1


async def test_age_of_the_oldest_mail_is_known_by_stream(tmp_path: Path) -> None:
    """That of the head: what waits longest unless it was put off; none where none waits."""
    clock = ManualClock()
    news, other = ("ses", "bulk", "news"), ("ses", "bulk", "other")
    async with open_spool(tmp_path, clock) as spool:
        old, young = await kept_at(spool, 1000, "news"), await kept_at(spool, 2000, "news")
        parked = await kept_at(spool, 500, "other")
        await park(spool, [parked.id], "k")
        async with upkeep(spool):
            assert spool.oldest() == {}
            await passes(clock, OLDEST_S, lambda: spool.oldest() == {news: 1000})

            put_off = Rescheduled(n=0, due_at=clock.wall_ms() + DAY_MS, attempts=1)
            await settle(spool, old, put_off)
            await spool.release("k")
            await passes(clock, OLDEST_S, lambda: spool.oldest() == {news: 2000, other: 500})

            await settle(spool, young, finished(Outcome.SENT))
            await passes(clock, OLDEST_S, lambda: spool.oldest() == {news: 1000, other: 500})

            await settle(spool, old, finished(Outcome.BOUNCED))
            await passes(clock, OLDEST_S, lambda: spool.oldest() == {other: 500})
    async with open_spool(tmp_path, clock, create=False) as spool:
        assert spool.oldest() == {other: 500}


def test_oldest_mail_is_found_without_a_look_at_each_row(tmp_path: Path) -> None:
    """One step into the index of each stream: a million waiting envelopes cost nothing."""
    asyncio.run(an_empty_spool(tmp_path))

    plan = query(tmp_path, f"EXPLAIN QUERY PLAN {READ['oldest']}")

    steps = [str(row[-1]) for row in plan]
    assert any("USING INDEX envelope_waiting (stream_id=?)" in step for step in steps), steps
    assert not [step for step in steps if "SCAN e" in step or "B-TREE" in step], steps


async def an_empty_spool(folder: Path) -> None:
    async with open_spool(folder):
        pass


async def kept_at(spool: Spool, received_at: int, campaign: str) -> Envelope:
    made = replace(new_envelope(spool, campaign=campaign), received_at=received_at)
    await spool.append([made], b"x")
    return made


async def test_failing_upkeep_is_counted_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the housework is logged each time and costs no mail."""
    clock, failures = ManualClock(), list[str]()

    def fail(_: object) -> dict[tuple[str, str, str], int]:
        raise ZeroDivisionError

    async with open_spool(tmp_path, clock) as spool:
        spool.on_failure = failures.append
        await kept_at(spool, 1000, "news")
        async with upkeep(spool):
            with monkeypatch.context() as patch:
                patch.setattr("relay.spool.reading.oldest", fail)
                await passes(clock, OLDEST_S, lambda: len(failures) >= 2)
            await passes(clock, OLDEST_S, lambda: bool(spool.oldest()))

    assert set(failures) == {"spool"}
    assert caplog.messages.count("spool upkeep failed") == len(failures)


async def test_log_is_copied_in_the_background_and_used_again(tmp_path: Path) -> None:
    """However much is written, the log stays near its calm size."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        _small_log(spool, 1 << 20)
        async with upkeep(spool):
            for _ in range(300):
                await keep(spool, body=bytes(20_000))

        wal_bytes = (tmp_path / "relay.db-wal").stat().st_size
        assert wal_bytes < 2 << 20
        assert count(tmp_path, "envelope") == 300


async def test_log_is_bounded_even_without_upkeep(tmp_path: Path) -> None:
    """A command that runs by itself does not fill the disk either."""
    async with open_spool(tmp_path) as spool:
        _small_log(spool, 1 << 20)
        for _ in range(300):
            await keep(spool, body=bytes(20_000))

        assert (tmp_path / "relay.db-wal").stat().st_size < 2 << 20


def _small_log(spool: Spool, wal_max_bytes: int) -> None:
    scribe: Scribe = spool._writer._scribe
    limits = replace(scribe._limits, wal_max_bytes=wal_max_bytes)
    scribe._limits = spool._writer._limits = spool._upkeep.limits = limits


async def test_empty_pages_are_given_back_when_idle(tmp_path: Path) -> None:
    """After a great campaign the file shrinks to what is used again soon."""
    clock = ManualClock()
    path = tmp_path / "relay.db"
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool, body=bytes(1 << 20)) for _ in range(20)]
        for one in kept:
            await settle(spool, one, finished(Outcome.SENT))
        async with upkeep(spool):
            await passes(clock, 1, lambda: path.stat().st_size > 20 << 20)

            await passes(clock, 1, lambda: path.stat().st_size < (VACUUM_MIN_PAGES + 600) * 4096)

    assert path.stat().st_size > 12 << 20


async def test_ballast_is_really_there(tmp_path: Path) -> None:
    """Its blocks are allocated; a promise of a sparse file would be none."""
    async with open_spool(tmp_path, ballast_bytes=3 << 20):
        status = (tmp_path / "relay.db.ballast").stat()

    assert status.st_size == 3 << 20
    assert status.st_blocks * 512 >= 3 << 20


async def test_ballast_of_another_size_is_made_anew(tmp_path: Path) -> None:
    """A larger disk, or a crash in the midst of allocating, leaves the wrong size behind."""
    (tmp_path / "relay.db.ballast").write_bytes(b"x")

    async with open_spool(tmp_path, ballast_bytes=1 << 20):
        assert (tmp_path / "relay.db.ballast").stat().st_size == 1 << 20
    async with open_spool(tmp_path, ballast_bytes=0):
        assert not (tmp_path / "relay.db.ballast").exists()


async def test_ballast_comes_back_by_itself(tmp_path: Path) -> None:
    """Once released and no longer needed, it is allocated again by the watch."""
    clock = ManualClock()
    ballast = tmp_path / "relay.db.ballast"
    async with open_spool(tmp_path, clock, ballast_bytes=1 << 20) as spool, upkeep(spool):
        ballast.unlink()

        await passes(clock, 1, ballast.exists)


async def test_one_step_of_vacuum_gives_back_all_its_pages(tmp_path: Path) -> None:
    """On a full disk room returns in steps of a megabyte, not of a page."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, body=os.urandom(3 * VACUUM_STEP_PAGES * 4096))
        await settle(spool, kept, finished(Outcome.SENT))
        [(before,)] = query(tmp_path, "PRAGMA freelist_count")

        await spool._writer.call(vacuum)

        [(after,)] = query(tmp_path, "PRAGMA freelist_count")
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert before - after >= VACUUM_STEP_PAGES

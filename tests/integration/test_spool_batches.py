"""How what is to be written gathers into commits, and what a failing job costs the others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.config.schema import Spool as Config
from relay.envelope import Outcome
from relay.errors import SpoolError, SpoolFull
from relay.spool import DepthKey, State
from relay.spool.writer import BATCH_APPENDS_MAX
from tests.fakes.clock import ManualClock
from tests.fakes.spool_file import (
    PATIENCE_S,
    busy_writer,
    finished,
    keep,
    new_envelope,
    open_spool,
    query,
    read,
    settle,
    turns,
)

if TYPE_CHECKING:
    from pathlib import Path

WAITING = DepthKey("ses", "bulk", "c", State.WAITING)


async def test_what_comes_during_a_commit_shares_the_next_one(tmp_path: Path) -> None:
    """Appends and settlements gather while the disk is at work; there is no timer."""
    batches: list[int] = []
    async with open_spool(tmp_path) as spool:
        settled = await keep(spool)
        spool.on_commit = lambda _, jobs: batches.append(jobs)

        async with busy_writer(spool):
            tasks = [asyncio.ensure_future(keep(spool)) for _ in range(30)]
            tasks.append(asyncio.ensure_future(settle(spool, settled, finished(Outcome.SENT))))  # type: ignore[arg-type]
            await turns()
        await asyncio.gather(*tasks)

    assert batches == [1, 31]


async def test_batch_has_a_maximum(tmp_path: Path) -> None:
    """However many wait, one commit stays short."""
    batches: list[int] = []
    async with open_spool(tmp_path) as spool:
        spool.on_commit = lambda _, jobs: batches.append(jobs)

        async with busy_writer(spool):
            tasks = [asyncio.ensure_future(keep(spool)) for _ in range(BATCH_APPENDS_MAX + 1)]
            await turns()
        await asyncio.gather(*tasks)

    assert batches == [1, BATCH_APPENDS_MAX, 1]


async def test_large_messages_do_not_make_a_large_batch(tmp_path: Path) -> None:
    """A batch is bounded in bytes, too; a message larger than that goes alone."""
    batches: list[int] = []
    async with open_spool(tmp_path) as spool:
        spool.on_commit = lambda _, jobs: batches.append(jobs)

        async with busy_writer(spool):
            tasks = [
                asyncio.ensure_future(keep(spool, body=bytes(size << 20))) for size in (9, 5, 5, 2)
            ]
            await turns()
        await asyncio.gather(*tasks)

    assert batches == [1, 1, 1, 2]


async def test_append_withdrawn_before_its_batch_leaves_nothing(tmp_path: Path) -> None:
    """The client has gone: a mail that is not being written yet is not kept."""
    async with open_spool(tmp_path) as spool:
        async with busy_writer(spool):
            gone, stays = (asyncio.ensure_future(keep(spool)) for _ in range(2))
            await turns()
            gone.cancel()
            await turns()
            assert gone.cancelled()
        kept = await stays

        assert spool.depth() == {WAITING: 1}
    assert query(tmp_path, "SELECT id FROM envelope") == [(kept.id,)]
    assert query(tmp_path, "SELECT id FROM content") == [(kept.id,)]


async def test_append_cancelled_in_its_batch_harms_nobody(tmp_path: Path) -> None:
    """It is kept (its client will send it again), counted, told; the others get their answer."""
    heard: list[object] = []
    async with open_spool(tmp_path) as spool:
        spool.on_arrival = heard.extend
        gone, stays = (asyncio.ensure_future(keep(spool)) for _ in range(2))
        async with busy_writer(spool):  # The appends are in its batch.
            assert not spool._writer.anyone_waits
            gone.cancel()
            await turns()

        await stays

        assert gone.cancelled()
        assert spool.depth() == {WAITING: 2}
        assert len(heard) == 2


async def test_settlement_goes_on_without_its_caller(tmp_path: Path) -> None:
    """What was sent was sent: the outcome is written although nobody waits for it."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool)
        async with busy_writer(spool):
            task = asyncio.ensure_future(settle(spool, kept, finished(Outcome.SENT)))
            await turns()
            task.cancel()
            await turns()

        await spool.put_state("next", {})

        assert spool.depth() == {}


@pytest.mark.parametrize(("campaign", "text"), [("c", "UNIQUE"), ("\udc80", "surrogates")])
async def test_one_bad_append_fails_alone(tmp_path: Path, campaign: str, text: str) -> None:
    """A row that SQLite cannot take is its own caller's failure, not its batch's.

    The others' stream is new: what the failed batch knew of it was undone with it.
    """
    async with open_spool(tmp_path) as spool:
        taken = await keep(spool)
        bad = replace(new_envelope(spool, campaign=campaign), content_id=taken.id)
        if campaign != "c":
            bad = replace(bad, content_id=bad.id)

        async with busy_writer(spool):
            good = [asyncio.ensure_future(keep(spool, campaign="new")) for _ in range(2)]
            wrong = asyncio.ensure_future(spool.append([bad], b"x"))
            good.append(asyncio.ensure_future(keep(spool, campaign="new")))
            await turns()

        await asyncio.wait_for(asyncio.gather(*good), PATIENCE_S)
        with pytest.raises(SpoolError, match=text):
            await wrong
        assert spool.depth() == {WAITING: 1, WAITING._replace(campaign="new"): 3}
        assert len(await read(spool, 1 << 60, campaign="new")) == 3
    assert query(tmp_path, "SELECT count(*) FROM stream") == [(2,)]


async def test_one_bad_settlement_fails_alone(tmp_path: Path) -> None:
    """It shares its batch's one commit with the good ones, having changed nothing."""
    batches: list[int] = []
    async with open_spool(tmp_path) as spool:
        good, bad = await keep(spool), await keep(spool)
        await settle(spool, bad, finished(Outcome.SENT))
        spool.on_commit = lambda _, jobs: batches.append(jobs)

        async with busy_writer(spool):
            wrong = asyncio.ensure_future(settle(spool, bad, finished(Outcome.BOUNCED)))
            right = asyncio.ensure_future(settle(spool, good, finished(Outcome.SENT)))
            await turns()

        await right
        with pytest.raises(SpoolError, match="ended as sent"):
            await wrong
        assert spool.depth() == {}
    assert batches == [1, 2]


async def test_job_with_a_bug_fails_alone(tmp_path: Path) -> None:
    """Even a settlement that trips over itself costs its neighbours nothing; it is counted."""
    failures: list[str] = []
    async with open_spool(tmp_path) as spool:
        spool.on_failure = failures.append
        good, bad = await keep(spool), await keep(spool)

        async with busy_writer(spool):
            twice = (finished(Outcome.BOUNCED), finished(Outcome.BOUNCED))
            wrong = asyncio.ensure_future(settle(spool, bad, *twice))
            right = asyncio.ensure_future(settle(spool, good, finished(Outcome.SENT)))
            await turns()

        await right
        with pytest.raises(SpoolError, match="UNIQUE"):
            await wrong
        assert spool.depth() == {WAITING: 1}
    assert failures == ["spool"]


async def test_failing_writer_lets_nobody_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the writing itself have a bug, each caller hears of it and the next may try."""
    failures: list[str] = []
    async with open_spool(tmp_path) as spool:
        spool.on_failure = failures.append
        scribe = spool._writer._scribe
        with monkeypatch.context() as patched:
            patched.setattr(scribe, "write", None)
            with pytest.raises(SpoolError, match="TypeError"):
                await keep(spool)

        await keep(spool)

        assert spool.depth() == {WAITING: 1}
    assert failures == ["spool"]


async def test_mail_waits_while_the_spool_is_at_its_size_limit(tmp_path: Path) -> None:
    """Past ``size_max`` nothing more is invited or taken; what leaves makes room, all wake."""
    config = Config(free_min_bytes=0, size_max_bytes=1 << 20)
    clock = ManualClock()
    async with open_spool(tmp_path, clock, config) as spool:
        kept = []
        while spool.has_room:
            kept.append(await keep(spool, body=bytes(50_000)))
            clock.step_wall(1)
            await clock.advance(1)
        assert spool.room().used_bytes > (1 << 20) - (1 << 16) - 100_000
        assert spool.stalled_since is not None
        waiting = [asyncio.ensure_future(spool.wait_for_room()) for _ in range(3)]
        await turns()
        assert not any(one.done() for one in waiting)

        for one in kept[:6]:
            await clock.advance(1)
            await settle(spool, one, finished(Outcome.SENT))

        await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
        assert spool.has_room
        assert spool.stalled_since is None


async def test_append_beyond_the_limit_waits_and_can_be_withdrawn(tmp_path: Path) -> None:
    """It stalls, holds nothing up, takes no memory once its client is gone."""
    config = Config(free_min_bytes=0, size_max_bytes=1)
    async with open_spool(tmp_path, config=config) as spool:
        stalled = asyncio.ensure_future(keep(spool))
        gone = asyncio.ensure_future(keep(spool))
        await turns()
        await spool.put_state("other", {})
        gone.cancel()
        await turns()

        assert len(spool._writer._appends) == 1
        assert not stalled.done()
        assert not spool.has_room
    with pytest.raises(SpoolFull, match="stops"):
        await stalled
    assert query(tmp_path, "SELECT count(*) FROM envelope") == [(0,)]


async def test_settlement_lets_mail_at_the_wall_try_again(tmp_path: Path) -> None:
    """What leaves makes room: who waits need not wait for the watch."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool)
        spool._gate.hit_wall("as if the disk were full")
        waiting = asyncio.ensure_future(keep(spool))
        await turns()
        assert not waiting.done()

        await clock.advance(1)
        await settle(spool, kept, finished(Outcome.SENT))

        await asyncio.wait_for(waiting, PATIENCE_S)
        assert spool.has_room

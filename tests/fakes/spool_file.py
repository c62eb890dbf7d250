"""A real spool in a folder, and ways to look behind its back."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from relay.config.schema import Spool as Config
from relay.spool import Finished, Parked, Settlement, Spool
from tests.fakes.clock import ManualClock
from tests.fakes.mail import envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from relay.clock import Clock
    from relay.envelope import Envelope, Outcome
    from relay.spool import Due, Rescheduled

PATIENCE_S = 30
"""How long a test waits for something that must come."""
ROOMY = Config(free_min_bytes=0)
"""Lets a test run on any disk."""


@asynccontextmanager
async def open_spool(
    folder: Path,
    clock: Clock | None = None,
    config: Config = ROOMY,
    *,
    create: bool = True,
    ballast_bytes: int | None = 0,
) -> AsyncIterator[Spool]:
    spool = await Spool.open(
        folder / "relay.db",
        config,
        clock=clock or ManualClock(),
        create=create,
        ballast_bytes=ballast_bytes,
    )
    try:
        yield spool
    finally:
        await spool.close()


def new_envelope(spool: Spool, *, campaign: str = "c", cost: int = 1) -> Envelope:
    return envelope(spool.new_id(), campaign=campaign, cost=cost)


async def keep(spool: Spool, *, campaign: str = "c", cost: int = 1, body: bytes = b"x") -> Envelope:
    """One envelope that the spool has kept."""
    made = new_envelope(spool, campaign=campaign, cost=cost)
    await spool.append([made], body)
    return made


async def read(
    spool: Spool, now_ms: int, *, campaign: str = "c", after: tuple[int, int] = (0, 0)
) -> list[Due]:
    """All that is due in the bulk lane's campaign and stands beyond a place."""
    found = await spool.read_due("ses", "bulk", campaign, now_ms=now_ms, limit=10_000)
    return [due for due in found if (due.due_at, due.envelope.id) > after]


async def settle(
    spool: Spool,
    what: Envelope,
    *changes: Finished | Rescheduled,
    parked: Parked | None = None,
    at: int = 1,
) -> None:
    await spool.settle(Settlement(envelope=what, changes=changes, parked=parked, at=at))


async def park(spool: Spool, envelope_ids: Sequence[int], hold_key: str) -> None:
    """Park waiting envelopes under a key, as after a refusal."""
    parked = Parked(hold_key=hold_key)
    await asyncio.gather(*(settle(spool, envelope(one), parked=parked) for one in envelope_ids))


def finished(outcome: Outcome, n: int = 0, **more: object) -> Finished:
    return Finished(n=n, outcome=outcome, reply="Ok", code=250, ses_id=f"ses-{n}", **more)  # type: ignore[arg-type]


@asynccontextmanager
async def busy_writer(spool: Spool) -> AsyncIterator[None]:
    """While this lasts the spool's writer is in the midst of a batch."""
    begun, done = threading.Event(), threading.Event()

    def block(_: object) -> None:
        begun.set()
        done.wait(PATIENCE_S)

    call = asyncio.ensure_future(spool._writer.call(block))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    try:
        yield
    finally:
        done.set()
        await call


async def turns(count: int = 20) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(claim: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Return once the claim holds; it depends on threads and disks, which give no event."""
    async with asyncio.timeout(patience_s):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def query(folder: Path, sql: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
    """The rows of any statement on the file, by another connection."""
    with closing(sqlite3.connect(folder / "relay.db")) as db:
        rows = db.execute(sql, values).fetchall()
        db.commit()
    return rows

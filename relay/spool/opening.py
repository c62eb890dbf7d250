"""Opening a spool: the place, the owner, the format, the counts; then the parts of it."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from relay.envelope import IdSource
from relay.errors import SpoolBroken, SpoolFull
from relay.spool import place, reading, wal
from relay.spool.batch import Scribe
from relay.spool.connection import Connection, run
from relay.spool.gate import Gate
from relay.spool.migrations import migrate
from relay.spool.presence import Presence
from relay.spool.room import Ballast, Limits, disk_for_mail, disk_size, judge, measure
from relay.spool.stamps import Stamps
from relay.spool.transaction import WRITE
from relay.spool.upkeep import Upkeep
from relay.spool.writer import Writer

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

    from relay.clock import Clock
    from relay.config.schema import Spool as Config
    from relay.spool.room import Usage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a spool is made of."""

    path: Path
    writer: Writer
    reader: Connection
    upkeep: Upkeep
    gate: Gate
    stamps: Stamps
    ids: IdSource
    presence: Presence


async def open_parts(
    stack: AsyncExitStack,
    path: Path,
    config: Config,
    *,
    clock: Clock,
    create: bool,
    ballast_bytes: int | None,
) -> Parts:
    """The parts of the spool at ``path``; ``stack`` closes what they hold.

    Raises: as ``Spool.open``.
    """
    _own(stack, path, create=create)
    limits = Limits.of(config, disk_size(path), ballast_bytes)
    ballast = Ballast(place.beside(path, ".ballast"), limits.ballast_bytes)
    connection = await _set_up(stack, path, ballast, create=create)
    reader, aside = await _reader(stack, path), await _reader(stack, path)
    await run(connection, path, partial(_limit_log, limits))
    usage = await run(connection, path, partial(_stand_ballast, path, limits, ballast))
    gate, stamps = Gate(limits, judge(usage, limits), clock), Stamps()
    presence = Presence(path)
    scribe = Scribe(path, limits, ballast, presence)
    writer = Writer(connection, scribe, limits, gate, stamps, clock)
    writer.depth = await run(reader, path, reading.depth)
    upkeep = Upkeep(
        path=path,
        config=config,
        limits=limits,
        ballast=ballast,
        writer=writer,
        gate=gate,
        presence=presence,
        clock=clock,
        connection=aside,
        oldest=await run(aside, path, reading.oldest),
    )
    ids = IdSource(await run(reader, path, reading.last_id))
    return Parts(
        path=path,
        writer=writer,
        reader=reader,
        upkeep=upkeep,
        gate=gate,
        stamps=stamps,
        ids=ids,
        presence=presence,
    )


def _own(stack: AsyncExitStack, path: Path, *, create: bool) -> None:
    """Check the place, take the lock, and see that there is a file."""
    try:
        place.check(path, create=create)
        place.check_owners(path)
        with place.private_files():
            stack.callback(place.Lock.take(path).close)
            place.prepare(path)
    except OSError as error:
        raise SpoolBroken(
            f"{error.filename or path} cannot be opened ({error.strerror});"
            " the folder must belong to the user that runs the relay"
        ) from error


async def _set_up(
    stack: AsyncExitStack, path: Path, ballast: Ballast, *, create: bool
) -> Connection:
    """The writer's connection, to a file of this program's format."""
    written = wal.scan(path)
    try:
        connection = await _connect(stack, path)
        await run(connection, path, partial(wal.check, path=path, written=written))
        await run(connection, path, partial(migrate, path=path, create=create))
    except SpoolFull:
        # Opening needs some kB for shared memory; without mail going out no room comes back.
        if not ballast.release():
            raise
        log.exception("spool ballast released", extra={"path": str(path)})
        return await _set_up(stack, path, ballast, create=create)
    await connection.run(_forget_streams)
    return connection


async def _connect(stack: AsyncExitStack, path: Path) -> Connection:
    connection = await Connection.open(path)
    stack.push_async_callback(connection.close)
    return connection


async def _reader(stack: AsyncExitStack, path: Path) -> Connection:
    connection = await _connect(stack, path)
    connection.text_factory = bytes
    return connection


def _forget_streams(db: sqlite3.Connection) -> None:
    try:
        db.execute(WRITE["forget_streams"])
    except sqlite3.Error as error:  # A full disk: they cost some bytes until the next start.
        log.warning("empty streams not forgotten", exc_info=error)


def _limit_log(limits: Limits, db: sqlite3.Connection) -> None:
    """Have the log cut when it starts anew, or one burst would leave it past its calm size."""
    db.execute(f"PRAGMA journal_size_limit = {limits.wal_calm_bytes}")  # Takes no bound value.


def _stand_ballast(path: Path, limits: Limits, ballast: Ballast, db: sqlite3.Connection) -> Usage:
    """Allocate the ballast if the disk can bear it; the usage after that."""
    if disk_for_mail(measure(db, path), limits) >= 0 and not ballast.restore():
        log.warning("spool ballast not allocated", extra={"bytes": limits.ballast_bytes})
    return measure(db, path)

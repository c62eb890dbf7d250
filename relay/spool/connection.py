"""One SQLite connection and the thread it lives in.

``aiosqlite`` crosses to its thread and back once a call. A transaction is a dozen
statements, some of which depend on what others found, so here a whole function crosses,
once: it is given the ``sqlite3.Connection`` and may use it only until it returns. So
nothing comes between its statements, and rolling back is plain code. It also costs a
fifth less CPU (measured: 42 against 54 microseconds a message of 4 kB, 10 at once, one
``executemany`` a table). aiosqlite has no public name for that; ``_execute`` and
``_conn`` are the core of each of its calls, and the tests of this room fail if they
change.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, TypeVar

import aiosqlite

from relay.errors import SpoolBroken
from relay.spool.failures import translated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

T = TypeVar("T")

SQLITE_MIN: Final = (3, 37, 0)
"""STRICT tables (documented: sqlite.org/stricttables.html)."""

_BUSY_TIMEOUT_S: Final = 2.0
"""Only an administrator's own tool can hold a lock: this process has one writer."""

_THREAD_END_S: Final = 5.0
"""For a thread that has nothing left to do."""

_ITER_CHUNK_SIZE: Final = 64
"""Rows a hop when iterating; unused, functions fetch their rows themselves."""

_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",  # P1: WAL with NORMAL loses the last commits at a power cut.
    "PRAGMA wal_autocheckpoint = 0",  # Off the hot path: see upkeep.
    "PRAGMA temp_store = MEMORY",  # A full disk must not stop a sort, nor a sort leak mail.
    "PRAGMA cache_size = -8000",  # kB. The working set is the tail of each table.
    "PRAGMA secure_delete = FAST",  # Some builds zero freed pages: twice the log for each mail.
    "PRAGMA trusted_schema = OFF",  # Nothing in the file may call functions.
)


class Connection(aiosqlite.Connection):
    """A connection that runs whole functions in its thread, one after the other."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """A connection to the existing file ``path``, set up.

        Raises: SpoolError if it cannot be used.
        """
        if sqlite3.sqlite_version_info < SQLITE_MIN:
            raise SpoolBroken(
                f"SQLite {sqlite3.sqlite_version} is too old, 3.37 is needed:"
                " use a newer Python or system"
            )
        connection = cls(lambda: _connect(path), _ITER_CHUNK_SIZE)
        try:
            await connection
        except sqlite3.Error as error:
            # It was told to end, but nobody waits for that; it must not outlive the event loop.
            connection._thread.join(_THREAD_END_S)
            raise translated(error, path) from error
        return connection

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` returns or raises, run in this connection's thread.

        If the caller is cancelled the work still goes on, and its result is dropped.
        """
        result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return result


async def run(connection: Connection, path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """What ``work`` returns; SQLite's exceptions become ours."""
    try:
        return await connection.run(work)
    except sqlite3.Error as error:
        raise translated(error, path) from error


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are written out. mode=rw: never creates a file.
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_TIMEOUT_S,
        cached_statements=256,
    )
    try:
        for pragma in _PRAGMAS:
            db.execute(pragma).fetchall()
    except BaseException:
        db.close()
        raise
    return db

"""The file's format, brought forward step by step.

``PRAGMA user_version`` counts the steps done; step N is ``sql/000N.sql``, run in one
transaction with the count, so that a crash leaves the file at one step or the next.
Steps only go forward: a file that a newer relay has written is refused.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from relay.errors import SpoolBroken
from relay.spool.statements import script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION: Final = 1
"""The format that this program reads and writes."""

APPLICATION_ID: Final = 0x72656C79
"""``rely`` in ASCII: tells a spool from any other SQLite file (``PRAGMA application_id``)."""


def migrate(db: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Bring the file to ``VERSION``; an empty one is made a spool if ``create``.

    Raises: SpoolBroken if it is newer, or no spool.
    """
    version = _number(db, "user_version")
    is_empty = not version and not _number(db, "schema_version")
    if is_empty and not create:
        raise SpoolBroken(f"{path} is empty, not a spool; `relay serve` fills it")
    if not is_empty and _number(db, "application_id") != APPLICATION_ID:
        raise SpoolBroken(f"{path} is a database of another program; change spool.path")
    if version > VERSION:
        raise SpoolBroken(
            f"{path} has format {version}, written by a newer relay; this one knows formats up to"
            f" {VERSION}: install the newer relay again"
        )
    # Before the first table: auto_vacuum cannot be changed later without a full VACUUM.
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise SpoolBroken(f"the file system of {path} cannot keep a write-ahead log; move it")
    for step in range(version + 1, VERSION + 1):
        _apply(db, step)


def _number(db: sqlite3.Connection, pragma: str) -> int:
    number: int = db.execute(f"PRAGMA {pragma}").fetchone()[0]
    return number


def _apply(db: sqlite3.Connection, step: int) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _split(script(f"{step:04}.sql")):
            db.execute(statement)
        # A pragma takes no bound values; both are numbers of this module.
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {step}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _split(text: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would commit behind our back."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

"""Whether the files at the spool's place are still those that SQLite writes to.

A file that was deleted or moved stays open: SQLite goes on writing to it, each commit
succeeds, and all of it is gone with the process. So the names are compared with what was
found behind them at the start, before each batch and once a second. While one differs no
mail is taken. What is in the files is still sent; and when the relay is stopped and nothing
stands at the spool's place, what is left is written there anew (``rescue``).

Only ``stat`` by name: why nothing here opens the files, ``place`` says.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from relay.spool.place import beside, private_files, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_LOSES: Final = "nothing written would last"
_RISKS: Final = {
    "": _LOSES,
    "-wal": _LOSES,
    "-shm": "another program that opens the spool would spoil it",
    ".lock": "a second relay could start and send everything twice",
}
"""What comes of it if a file is not where it was, by its suffix."""

_GONE: Final = (
    "{file} was deleted, moved or replaced while the relay runs: {risk}. No mail is taken, what is"
    " in the spool is still sent. Put the file back if it was moved, else stop the relay with"
    " SIGTERM (never SIGKILL: what is left is written to {path} anew) and start it again"
)

Identity = tuple[int, int]
"""Device and inode."""


class Presence:
    """The files of the spool at ``path``, once SQLite has opened them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        files = {beside(path, suffix): risk for suffix, risk in _RISKS.items()}
        self._files = {file: (_identity(file), risk) for file, risk in files.items()}

    def trouble(self) -> str:
        """Which file is not where it was, with what to do about it; "" while all are.

        Costs some microseconds. A file that comes back is no trouble any more.
        """
        for file, (known, risk) in self._files.items():
            if _identity(file) != known:
                return _GONE.format(file=file, path=self._path, risk=risk)
        return ""

    @property
    def is_moved(self) -> bool:
        """Whether the database itself is not at its place."""
        known, _ = self._files[self._path]
        return _identity(self._path) != known

    def rescue(self, db: sqlite3.Connection) -> None:
        """Copy what ``db`` holds to the spool's place, or beside it if something stands there.

        Runs in a connection's thread. Raises nothing; the log says where the copy is.
        """
        facts = {"path": str(self._path)}
        try:
            copy = self._copied(db)
        except (OSError, sqlite3.Error):
            log.exception("spool is not at its place, and not rescued", extra=facts)
        else:
            log.error("spool was not at its place, rescued", extra={**facts, "copy": str(copy)})

    def _copied(self, db: sqlite3.Connection) -> Path:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._path
        if place.exists():
            place = beside(place, f".rescued-{os.getpid()}")
        unfinished = beside(place, ".unfinished")
        unfinished.unlink(missing_ok=True)
        with private_files(), closing(sqlite3.connect(unfinished)) as copy:
            db.backup(copy)
        # A log without its database would be taken for the log of the copy.
        for suffix in ("-wal", "-shm"):
            beside(place, suffix).unlink(missing_ok=True)
        unfinished.rename(place)
        sync_folder(place.parent)
        return place


def _identity(file: Path) -> Identity | None:
    """What stands behind a name, None if nothing does."""
    try:
        found = os.stat(file)  # noqa: PTH116  # Path.stat costs twice as much, once a batch
    except OSError:
        return None
    return found.st_dev, found.st_ino

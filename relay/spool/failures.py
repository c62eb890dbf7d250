"""SQLite's exceptions in our words, with what to do about them. None leaves the room."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Final

from relay.errors import SpoolBroken, SpoolBusy, SpoolDamaged, SpoolError, SpoolFull

if TYPE_CHECKING:
    from pathlib import Path

FULL_BELOW_BYTES: Final = 1 << 20
"""An I/O error with less than this left on the disk is taken for a full disk: SQLite
reports a log or shared-memory file that could not grow as plain IOERR (observed: tmpfs,
SQLite 3.40)."""

# Primary result codes ("Result and Error Codes", sqlite.org/rescode.html). Written out:
# the sqlite3 module has the names only since Python 3.11 and only those its build knows.
_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _CORRUPT, _FULL = 5, 6, 7, 8, 10, 11, 13
_CANTOPEN, _PROTOCOL, _NOTADB = 14, 15, 26
_STUCK: Final = frozenset(
    (_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _PROTOCOL, _NOTADB)
)

_DAMAGED: Final = (
    "{path} is damaged ({error}); stop the relay, copy the file and its -wal aside, save what can"
    " be saved with `sqlite3 OLD .recover | sqlite3 NEW`, and start on NEW"
)
_LOCKED_BY: Final = "another program has locked {path}; close it ({error})"
_UNUSABLE: Final = "{path} cannot be used ({error}); look at the disk and at the kernel's log"
_WORDS: Final[dict[int, tuple[type[SpoolError], str]]] = {
    _BUSY: (SpoolBusy, _LOCKED_BY),
    _LOCKED: (SpoolBusy, _LOCKED_BY),
    _CORRUPT: (SpoolDamaged, _DAMAGED),
    _NOTADB: (SpoolDamaged, _DAMAGED),
    _READONLY: (SpoolBroken, "{path} cannot be written ({error}); look at its mode and mount"),
    _NOMEM: (SpoolBroken, "there is no memory left for {path} ({error})"),
    _IOERR: (SpoolBroken, _UNUSABLE),
    _CANTOPEN: (SpoolBroken, _UNUSABLE),
    _PROTOCOL: (SpoolBroken, _UNUSABLE),
}


def code(error: BaseException) -> int:
    """SQLite's primary result code, 0 if it is none of its errors."""
    extended: int = getattr(error, "sqlite_errorcode", 0) if is_ours(error) else 0
    return extended & 0xFF


def is_ours(error: BaseException) -> bool:
    """Whether the error comes from SQLite."""
    return isinstance(error, sqlite3.Error)


def is_stuck(error: BaseException) -> bool:
    """Whether the spool as a whole cannot write now, as opposed to one row being bad."""
    return code(error) in _STUCK


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite has met a page that makes no sense."""
    return error is not None and code(error) in (_CORRUPT, _NOTADB)


def is_full(error: BaseException, path: Path) -> bool:
    """Whether the error means that the disk is full."""
    if code(error) == _FULL:
        return True
    if code(error) not in (_IOERR, _CANTOPEN):
        return False
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < FULL_BELOW_BYTES


def translated(error: BaseException, path: Path) -> SpoolError:
    """The failure to raise in the place of ``error``."""
    if isinstance(error, SpoolError):
        return error
    if is_full(error, path):
        return SpoolFull(
            f"the disk of {path} is full; free some space, the relay goes on by itself"
        )
    failure, text = _WORDS.get(code(error), (SpoolError, "{path} refused one operation ({error})"))
    return failure(text.format(path=path, error=f"{type(error).__name__}: {error}"))

"""How much the spool may still take, and the ballast that keeps settlements writable.

Three things claim the disk before mail does: the write-ahead log up to its cap (mail
passes through it), the ballast (it is there for settlements), and pages that are
committed to the log but not yet copied to the file. What is left, and the free pages
inside the file, is room for mail. Free pages alone are not: without disk for the log
they cannot be written; then the spool gives them back (``vacuum_bytes``).

``judge`` is pure; ``measure`` asks the disk and is called in a connection's thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from relay.spool.place import beside
from relay.spool.words import Room

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from relay.config.schema import Spool as Config

_MIB: Final = 1 << 20
WAL_MAX_BYTES: Final = 64 * _MIB
"""Cap of the write-ahead log on a large disk: eight of the largest batches, so that upkeep has
time to copy it, and no more for a start after a crash to read again."""
BALLAST_BYTES: Final = 64 * _MIB
"""Design 5. A settlement is some kB, so this is room for thousands after the last mail."""
FREE_MIN_BYTES: Final = 1 << 30
"""Left to others on a large disk, a twentieth of a small one (design 5): what shares it, logs
and package updates, breaks in strange ways without."""
SMALL_SHARE: Final = 16
"""On a small disk the log and the ballast may each take a sixteenth."""
MARGIN_SHARE: Final = 16
"""What is kept for mail that is under way when room ends (after MAIL, a stalled client that
gives up loses its mail for good): a sixteenth of ``free_min``, at least a sixteenth of the
log, at most a sixteenth of ``size_max``. 64 MiB on a large disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the configuration and the size of the disk allow."""

    free_min_bytes: int
    size_max_bytes: int
    wal_max_bytes: int
    ballast_bytes: int

    @classmethod
    def of(cls, config: Config, disk_bytes: int, ballast_bytes: int | None = None) -> Self:
        """The limits on a disk of that size; what is configured rules."""
        small = disk_bytes // SMALL_SHARE
        free_min, size_max = config.free_min_bytes, config.size_max_bytes
        return cls(
            free_min_bytes=min(FREE_MIN_BYTES, disk_bytes // 20) if free_min is None else free_min,
            size_max_bytes=disk_bytes // 2 if size_max is None else size_max,
            wal_max_bytes=min(WAL_MAX_BYTES, small),
            ballast_bytes=min(BALLAST_BYTES, small) if ballast_bytes is None else ballast_bytes,
        )

    @property
    def margin_bytes(self) -> int:
        """The slack at which new mail is no longer invited; see ``MARGIN_SHARE``."""
        wanted = max(self.free_min_bytes, self.wal_max_bytes)
        return min(wanted, self.size_max_bytes) // MARGIN_SHARE

    @property
    def wal_calm_bytes(self) -> int:
        """The size to which the log is cut when it starts anew.

        Below it the file is overwritten in place, which spares the file system a change
        of size a commit; above it the file's size says how much waits to be copied.
        """
        return self.wal_max_bytes // 4

    @property
    def checkpoint_bytes(self) -> int:
        """How much is written before it is copied to the file in the background."""
        return self.wal_max_bytes // 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One look at the file and its disk."""

    page_bytes: int
    pages: int
    free_pages: int
    file_bytes: int
    wal_bytes: int
    ballast_bytes: int
    disk_free_bytes: int


def measure(db: sqlite3.Connection, path: Path) -> Usage:
    """The usage at this moment; costs some 20 microseconds."""
    page_bytes, pages, free_pages = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    return Usage(
        page_bytes=page_bytes,
        pages=pages,
        free_pages=free_pages,
        file_bytes=file_bytes(path),
        wal_bytes=file_bytes(beside(path, "-wal")),
        ballast_bytes=file_bytes(beside(path, ".ballast")),
        disk_free_bytes=disk_free(path),
    )


def disk_for_mail(usage: Usage, limits: Limits) -> int:
    """What the disk has left once all claims are met; negative if it cannot meet them."""
    claimed = (
        max(0, usage.pages * usage.page_bytes - usage.file_bytes)
        + max(0, limits.wal_max_bytes - usage.wal_bytes)
        + max(0, limits.ballast_bytes - usage.ballast_bytes)
    )
    return usage.disk_free_bytes - claimed


def judge(usage: Usage, limits: Limits) -> Room:
    """What that usage leaves to mail."""
    disk = disk_for_mail(usage, limits)
    inside = usage.free_pages * usage.page_bytes
    used = usage.pages * usage.page_bytes - inside
    slack = min(disk + inside - limits.free_min_bytes, limits.size_max_bytes - used)
    return Room(
        free_bytes=max(0, disk + inside if disk >= 0 else disk),
        free_min_bytes=limits.free_min_bytes,
        used_bytes=used,
        size_max_bytes=limits.size_max_bytes,
        slack_bytes=slack if disk >= 0 else disk,
        vacuum_bytes=min(inside, max(0, limits.margin_bytes - disk)),
    )


def disk_free(path: Path) -> int:
    """Bytes that this process may still take from the disk of ``path``."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def disk_size(path: Path) -> int:
    """Bytes of the disk of ``path``, used and free."""
    disk = os.statvfs(path.parent)
    return disk.f_blocks * disk.f_frsize


def file_bytes(path: Path) -> int:
    """The size of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@dataclass(frozen=True, slots=True)
class Ballast:
    """A file that is there to be deleted: its blocks are for settlements on a full disk."""

    path: Path
    size_bytes: int

    def restore(self) -> bool:
        """Allocate the file, if it is missing; False if the disk did not have the room."""
        if file_bytes(self.path) == self.size_bytes:
            return True
        self.release()
        if not self.size_bytes:
            return True
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
        except OSError:
            self.release()
            return False
        finally:
            os.close(descriptor)
        return True

    def release(self) -> bool:
        """Give the blocks to whoever writes next; False if there were none."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True

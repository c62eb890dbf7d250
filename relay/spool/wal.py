"""Whether SQLite read the whole write-ahead log that a crash has left.

SQLite reads the log up to the first frame whose checksum is wrong and silently forgets the
rest, because that is what a power cut leaves: the last transaction half written. But if a disk
has damaged a frame in the midst, whole transactions behind it are forgotten, too, with mail
that was answered with 250. That cannot be mended here. It is told, and the log is kept aside
before anything is written over it.

The two are told apart by what follows: each commit is on disk before the next transaction
begins (``synchronous = FULL``), so that a power cut leaves at most one commit unread, and
nothing behind it. Format: sqlite.org/walformat.html.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from relay.spool.place import beside, private_files

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

log = logging.getLogger(__name__)

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_MAGIC: Final = 0x377F0682
"""The lowest bit says whether checksums are big-endian."""
_PAGE_BYTES_MIN: Final = 512
"""The smallest that SQLite makes (sqlite.org/fileformat2.html, 1.3.2)."""


@dataclass(frozen=True, slots=True)
class Written:
    """What stands in a log, checksums of frames aside."""

    frames: int = 0
    commits: tuple[int, ...] = ()
    """The numbers of the frames that end a transaction, from 1."""
    is_head_sound: bool = True
    size_bytes: int = 0
    """Of the whole file: as much as writing it to the database can take."""

    def unread(self, recovered: int) -> int:
        """How many commits were forgotten that had been whole, if SQLite read so many frames."""
        if not self.is_head_sound:
            return max(1, len(self.commits))
        lost = [number for number in self.commits if number > recovered]
        may_be_torn = len(lost) == 1 and lost[0] == self.frames
        return 0 if may_be_torn else len(lost)


def scan(path: Path) -> Written:
    """What stands in the log of the spool at ``path``; to be called before SQLite opens it."""
    try:
        with beside(path, "-wal").open("rb") as file:
            head = file.read(_HEADER_BYTES)
            if len(head) < _HEADER_BYTES:
                return Written()
            magic, _, page_bytes, _, *salts = struct.unpack(">6I", head[:24])
            if not _is_sound(head, magic) or page_bytes < _PAGE_BYTES_MIN:
                is_empty = os.fstat(file.fileno()).st_size <= _HEADER_BYTES
                return Written(is_head_sound=is_empty or not any(head))
            frames, commits = 0, []
            while len(frame := file.read(_FRAME_HEADER_BYTES)) == _FRAME_HEADER_BYTES:
                _, size_after, *own = struct.unpack(">4I", frame[:16])
                if own != salts:  # The rest is of an older round.
                    break
                frames += 1
                if size_after:
                    commits.append(frames)
                file.seek(page_bytes, os.SEEK_CUR)
            size_bytes = os.fstat(file.fileno()).st_size
            return Written(frames, tuple(commits), size_bytes=size_bytes)
    except OSError:
        return Written()


def check(db: sqlite3.Connection, path: Path, written: Written) -> None:
    """Tell of what SQLite has forgotten of the log, and keep the log aside.

    Copies what was read to the file, if there is room for it: without, nothing is told, for
    mail that goes out makes room, and none can while the start is refused. To be called before
    anything is written.
    """
    if shutil.disk_usage(path.parent).free < written.size_bytes:
        log.warning("the disk is full: the spool's log was not looked at")
        return
    _, recovered, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    unread = written.unread(recovered)
    if not unread or recovered < 0:  # Below 0: another program was at the log.
        return
    facts: dict[str, object] = {"path": str(path), "frames_read": recovered, "commits_lost": unread}
    copy = beside(path, f"-wal.damaged-{os.getpid()}")
    try:
        with private_files():
            shutil.copyfile(beside(path, "-wal"), copy)
        facts["copy"] = str(copy)
    except OSError as error:
        facts["not_copied"] = str(error)
    log.error(
        "the spool's log was damaged: mail of the last minutes before the crash may be lost, and"
        " some may be sent again; compare Listmonk's campaign with relay find",
        extra=facts,
    )


def _is_sound(head: bytes, magic: int) -> bool:
    if magic & ~1 != _MAGIC:
        return False
    order = ">" if magic & 1 else "<"
    one = two = 0
    words = struct.unpack(f"{order}6I", head[:24])
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return struct.unpack(">2I", head[24:]) == (one, two)

"""The place on disk: which file systems will do, who owns the files, who may read them.

SQLite's locks and its shared memory do not work over a network ("SQLite Over a Network,
Caveats", sqlite.org/useovernet.html), so a network file system is refused by its type.
Ownership is a ``flock`` on a file of its own: were it on the database, closing that
descriptor would drop SQLite's own POSIX locks ("How To Corrupt An SQLite Database File",
section 2.2). For the same reason nothing here ever opens the database once SQLite has.

The files hold other people's mail and addresses, so they are for the relay's user alone. Modes
are put right, with a warning: what was read cannot be taken back, and a relay that does not
start loses mail. Refused is what no chmod mends: a file of another user, who can change it at
any time, and a link. A link would be written through, to a file that somebody else has chosen;
and one to the database would leave its lock and log beside the link, so that two relays could
own one spool. A folder in which everybody may delete gets a warning only: volumes of Docker
often are like that, with nobody else in the container.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from relay.errors import SpoolBroken, SpoolBusy

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK_TYPES: Final = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
    )
)
"""Types as the kernel names them in mountinfo; 9p is also how WSL 2 shows Windows drives."""

log = logging.getLogger(__name__)

_MODE: Final = 0o600
_SUFFIXES: Final = ("", "-wal", "-shm", ".lock", ".ballast")
"""All files of a spool but its control socket, which is made anew at each start."""
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def beside(path: Path, suffix: str) -> Path:
    """The file that belongs to the spool at ``path``: ``relay.db`` and ``.lock`` or ``-wal``."""
    return path.with_name(path.name + suffix)


def file_system(folder: Path, mountinfo: str) -> str:
    """The type of the file system that holds ``folder``, by the text of mountinfo.

    Format: proc(5), "/proc/pid/mountinfo". Of two mounts at one point the later one hides
    the earlier. An unknown place has the type "".
    """
    best, found = -1, ""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split(" ")[4])
        depth = len(Path(point).parts)
        if depth >= best and folder.is_relative_to(point):
            best, found = depth, rest.split(" ")[0]
    return found


def check(path: Path, *, create: bool) -> None:
    """Make sure that a spool can live at ``path``.

    Raises: SpoolBroken if there is none and none may be created, or the place will not do.
    """
    if not path.parent.is_dir():
        raise SpoolBroken(f"there is no folder {path.parent}; create it or change spool.path")
    if not create and not path.is_file():
        raise SpoolBroken(f"there is no spool at {path}; `relay serve` creates it")
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return  # Not Linux: SQLite's own checks have to do.
    kind = file_system(path.resolve().parent, mountinfo)
    if kind in NETWORK_TYPES:
        raise SpoolBroken(
            f"{path} is on a network file system ({kind}), which loses mail at a crash;"
            " set spool.path to a local disk"
        )


def check_owners(path: Path) -> None:
    """Make sure that the spool's files are plain ones that nobody else put there.

    Ours are those of root, of whoever runs this, and of the folder's owner: root may look
    into the spool of a relay that runs as somebody else.

    Raises: SpoolBroken, naming the file and what to do; OSError.
    """
    folder = path.parent.stat()
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        log.warning(
            "spool folder open to all: anybody can delete the spool; chmod o-w it",
            extra={"folder": str(path.parent)},
        )
    ours = {0, os.geteuid(), folder.st_uid}
    for file in (beside(path, suffix) for suffix in _SUFFIXES):
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(found.st_mode):
            raise SpoolBroken(f"{file} is a link; set spool.path to where the file itself is")
        if not stat.S_ISREG(found.st_mode):
            raise SpoolBroken(f"{file} is not a plain file; move it away, or change spool.path")
        if found.st_uid not in ours:
            raise SpoolBroken(
                f"{file} belongs to user {found.st_uid}, who could change it at any time;"
                f" chown it to user {folder.st_uid} if it is the spool, else move it away"
            )


@contextmanager
def private_files() -> Iterator[None]:
    """While this lasts the process creates files that only its user can read."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def prepare(path: Path) -> None:
    """Create the database file if it is missing, and close all files to other users.

    Raises: SpoolBroken if it is missing or empty and its log is not: SQLite would delete that.
    """
    created = not path.exists()
    log_file = beside(path, "-wal")
    if (created or not path.stat().st_size) and log_file.exists() and log_file.stat().st_size:
        raise SpoolBroken(
            f"{path} is missing or empty, but its log {log_file} may hold mail; put the file back,"
            " or move the log away to start with an empty spool"
        )
    if created:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE))
        sync_folder(path.parent)
    for file in (beside(path, suffix) for suffix in _SUFFIXES):
        if file.exists():
            _close_to_others(file)


def _close_to_others(file: Path) -> None:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        log.warning("spool file was open to others", extra={"file": str(file), "mode": f"{mode:o}"})
    if mode != _MODE:
        file.chmod(_MODE)


def sync_folder(folder: Path) -> None:
    """Make the names of the files in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """The ownership of one spool, until ``close`` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Self:
        """Own the spool at ``path``.

        Raises: SpoolBusy if another process does.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(beside(path, ".lock"), flags, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise SpoolBusy(
                f"the spool {path} belongs to a running relay (pid {owner or 'unknown'});"
                " stop that one first, or ask it over its control socket"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return cls(descriptor)

    def close(self) -> None:
        """Give the spool up. The file stays: unlinking it would let two owners in."""
        os.close(self._descriptor)

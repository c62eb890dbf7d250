"""Writes down what SQLite does to a folder, step by step, so that its power can be cut later.

``Recorder`` puts itself between SQLite and the system: a copy of SQLite's own VFS becomes the
default one, in which opening, writing, cutting, syncing and deleting go through Python. The
files are real all the same, and the program above is unchanged. Every step lands in one list,
together with marks of the test ("this append has returned"); so one run holds thousands of
moments at which the power may fail (``power``).

Needs nothing but a ``_sqlite3`` whose library shows its functions, as Debian's, Ubuntu's and
python.org's do (*observed*: Debian 12, SQLite 3.40). Not for processes in which other threads
open databases meanwhile.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import stat
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.power import Cut, Dropped, FolderSynced, Made, Mark, Synced, Unlinked, Wrote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.power import Step

_OK, _FULL, _IOERR_FSYNC = 0, 13, 1034
_P, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_OPEN = ctypes.CFUNCTYPE(_INT, _P, _P, _P, _INT, _P)
_DELETE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT)
_SET_CALL = ctypes.CFUNCTYPE(_INT, _P, ctypes.c_char_p, _P)
_GET_CALL = ctypes.CFUNCTYPE(_P, _P, ctypes.c_char_p)
_OPEN_FOLDER = ctypes.CFUNCTYPE(_INT, _P, _P)
_CLOSE = ctypes.CFUNCTYPE(_INT, _P)
_WRITE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT, _LONG)
_TRUNCATE = ctypes.CFUNCTYPE(_INT, _P, _LONG)
_SYNC = ctypes.CFUNCTYPE(_INT, _P, _INT)


class _Methods(ctypes.Structure):
    """``sqlite3_io_methods``; only what is replaced has a name of its own."""

    _fields_ = (
        ("version", _INT),
        ("close", _P),
        ("read", _P),
        ("write", _P),
        ("truncate", _P),
        ("sync", _P),
        ("rest", _P * 13),
    )


class _File(ctypes.Structure):
    """The beginning of each ``sqlite3_file``."""

    _fields_ = (("methods", ctypes.POINTER(_Methods)),)


class _Vfs(ctypes.Structure):
    """``sqlite3_vfs``, version 3."""

    _fields_ = (
        ("version", _INT),
        ("file_bytes", _INT),
        ("path_max", _INT),
        ("next", _P),
        ("name", ctypes.c_char_p),
        ("data", _P),
        ("open", _P),
        ("delete", _P),
        ("between", _P * 10),
        ("time", _P),
        ("set_call", _P),
        ("get_call", _P),
        ("next_call", _P),
    )


def sqlite_library() -> ctypes.CDLL | None:
    """The very SQLite that Python uses; None if it shows no functions."""
    # A look-up in a library also searches what that library was linked to.
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    except AttributeError:
        return None
    return library


@dataclass
class Recorder:
    """Records one folder while ``recording`` lasts."""

    folder: Path
    steps: list[Step] = field(default_factory=list)
    is_full: bool = False
    """SQLite can write nothing while ``blocker`` is there, as on a file system that copies on
    write: there even an overwritten byte needs room."""
    blocker: Path | None = None
    sync_fails: Callable[[], bool] = lambda: False
    """Asked at each sync of a file."""
    found: dict[Path, bytes] = field(default_factory=dict)
    """What was there at the start, all of it on the disk for good."""

    def __post_init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._open: dict[int, tuple[int, Any]] = {}
        self._untold: set[int] = set()
        """Open files whose next sync must fail: another's failed, and each hears of it once."""
        self._count = 0
        self._tables: dict[int, _Methods] = {}
        self._in_thread, self._lock = threading.local(), threading.Lock()
        for path in sorted(self.folder.iterdir()):
            if path.name.endswith((".db", "-wal", "-journal")):
                self.found[path] = path.read_bytes()
                self._files[path] = self._number()

    def mark(self, word: str, number: int = 0) -> None:
        self.steps.append(Mark(word, number))

    def file_of(self, name: str) -> int:
        """The number of the file that has that name now."""
        return self._files[self.folder / name]

    # -- What Python itself does to the folder ----------------------------------------------

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _made(self, path: Path) -> int:
        """A file has come to be; its number."""
        number = self._files[path] = self._number()
        self.steps.append(Made(path, number))
        return number

    def _python_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:  # noqa: ANN401
            is_new = bool(flags & os.O_CREAT) and not os.path.exists(path)  # noqa: PTH110
            descriptor = real(path, flags, *more, **named)
            if is_new and Path(path).suffix == ".db" and Path(path).parent == self.folder:
                self._made(Path(path))
            return descriptor

        return opened

    def _python_fsync(self, real: Callable[..., None]) -> Callable[..., None]:
        def fsync(descriptor: int) -> None:
            upto = len(self.steps)
            real(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self.steps.append(FolderSynced(path, upto))
            elif path in self._files:
                self.steps.append(Synced(self._files[path], upto))

        return fsync

    # -- What SQLite does -------------------------------------------------------------------

    def _sqlite_open(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = Path(os.fsdecode(ctypes.string_at(name))) if name else Path()
        is_new = not path.exists()
        code: int = self._real_open(vfs, name, file, flags, out)
        if code != _OK or path.parent != self.folder:
            return code
        number = self._made(path) if is_new else self._files[path]
        head = ctypes.cast(file, ctypes.POINTER(_File)).contents
        real = head.methods.contents
        address = ctypes.addressof(real)
        if address not in self._tables:
            self._tables[address] = self._table(real)
        self._open[file] = (number, real)
        head.methods = ctypes.pointer(self._tables[address])
        return code

    def _table(self, real: _Methods) -> _Methods:
        table = _Methods.from_buffer_copy(real)
        for name, kind, function in (
            ("close", _CLOSE, self._close),
            ("write", _WRITE, self._write),
            ("truncate", _TRUNCATE, self._truncate),
            ("sync", _SYNC, self._sync),
        ):
            setattr(table, name, self._entry(kind, function))
        return table

    def _entry(self, kind: Any, function: Callable[..., int]) -> int | None:  # noqa: ANN401
        """A pointer that C can call; it lives as long as the process."""
        entry = kind(function)
        _ALIVE.append(entry)
        return ctypes.cast(entry, _P).value

    def _close(self, file: int) -> int:
        _, real = self._open.pop(file)
        self._untold.discard(file)
        return int(_CLOSE(real.close)(file))

    def _write(self, file: int, data: int, amount: int, offset: int) -> int:
        number, real = self._open[file]
        if self.is_full and self.blocker is not None and self.blocker.exists():
            return _FULL
        content = ctypes.string_at(data, amount)
        code = int(_WRITE(real.write)(file, data, amount, offset))
        # Afterwards: a sync that has begun meanwhile need not cover it.
        self.steps.append(Wrote(number, offset, content))
        return code

    def _truncate(self, file: int, size: int) -> int:
        number, real = self._open[file]
        code = int(_TRUNCATE(real.truncate)(file, size))
        self.steps.append(Cut(number, size))
        return code

    def _sync(self, file: int, flags: int) -> int:
        number, real = self._open[file]
        upto, self._in_thread.folder = len(self.steps), False
        if self.sync_fails():
            with self._lock:
                self.steps.append(Dropped(number, upto))
                self._untold |= {f for f, (n, _) in self._open.items() if n == number} - {file}
            return _IOERR_FSYNC
        code = int(_SYNC(real.sync)(file, flags))
        with self._lock:
            if file in self._untold:
                # What was written since stays with the system, and the next sync covers it.
                self._untold.discard(file)
                return _IOERR_FSYNC
            if code == _OK:
                self.steps.append(Synced(number, upto))
                if self._in_thread.folder:
                    self.steps.append(FolderSynced(self.folder, upto))
        return code

    def _delete(self, vfs: int, name: int, sync_folder: int) -> int:
        path = Path(os.fsdecode(ctypes.string_at(name)))
        self._in_thread.folder = False
        code: int = self._real_delete(vfs, name, sync_folder)
        if code == _OK and path in self._files:
            del self._files[path]
            self.steps.append(Unlinked(path))
            if self._in_thread.folder:
                self.steps.append(FolderSynced(self.folder, len(self.steps)))
        return code

    def _open_folder(self, name: int, descriptor: int) -> int:
        """SQLite opens a folder only to sync it (*observed*: os_unix.c, unixSync, unixDelete)."""
        self._in_thread.folder = True
        return int(self._real_open_folder(name, descriptor))

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """While this lasts, whoever opens a database in this process opens it through here."""
        library = sqlite_library()
        assert library is not None
        base = library.sqlite3_vfs_find(None)
        assert base.contents.version >= 3
        self._real_open = _OPEN(base.contents.open)
        self._real_delete = _DELETE(base.contents.delete)
        self._real_open_folder = _OPEN_FOLDER(
            _GET_CALL(base.contents.get_call)(ctypes.addressof(base.contents), b"openDirectory")
        )
        vfs = _Vfs.from_buffer_copy(base.contents)
        vfs.name = b"power"
        vfs.open = self._entry(_OPEN, self._sqlite_open)
        vfs.delete = self._entry(_DELETE, self._delete)
        set_call = _SET_CALL(base.contents.set_call)
        here = ctypes.addressof(base.contents)
        real_open, real_fsync = os.open, os.fsync
        os.open, os.fsync = self._python_open(real_open), self._python_fsync(real_fsync)
        set_call(here, b"openDirectory", self._entry(_OPEN_FOLDER, self._open_folder))
        library.sqlite3_vfs_register(ctypes.byref(vfs), 1)
        try:
            yield self
        finally:
            library.sqlite3_vfs_register(base, 1)
            library.sqlite3_vfs_unregister(ctypes.byref(vfs))
            set_call(here, b"openDirectory", None)
            os.open, os.fsync = real_open, real_fsync
            _ALIVE.append(vfs)


_ALIVE: list[object] = []
"""What C may still point to."""

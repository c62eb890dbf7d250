"""The programs that stand for Listmonk: built from ``tests/interop`` when a test first asks.

Where there is no Go, or the library cannot be fetched, a test that asks is skipped and says so.
A program that does not compile, or a library that is not what go.sum says, is an error. What was
built is kept beside the sources, under a name that is theirs alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCES = Path(__file__).parents[1] / "interop"
_BUILT = _SOURCES / ".build"
_GO_PATH = f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/lib/go/bin"
_GO = shutil.which("go", path=_GO_PATH)
_GO_MIN = (1, 23)
_FETCH_S, _BUILD_S = 60, 120
"""Far above what is needed (observed: 32 s for all versions, Go's own library compiled along), and
together below pytest's ``faulthandler_timeout``."""


def program(version: str) -> Path:
    """The program with that version of smtppool, built if it is not there. Skips without Go."""
    reason = _unfit() or _build(version)
    if reason:
        pytest.skip(reason)
    return _place(version)


def vet(version: str) -> str:
    """The names of source files that gofmt would write otherwise. Raises if ``go vet`` objects."""
    program(version)
    _go("vet", "-buildvcs=false", "./...", "interop/client", folder=_folder(version))
    gofmt = shutil.which("gofmt", path=_GO_PATH)
    if gofmt is None:
        return ""
    words = [gofmt, "-l", *map(str, _sources(version, ".go"))]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@cache
def _unfit() -> str:
    """Why the Go that is here cannot build the programs, if so."""
    if _GO is None:
        return "Listmonk's client is a Go library, and there is no Go here"
    said = subprocess.run([_GO, "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < _GO_MIN:
        return f"smtppool needs Go {_GO_MIN[0]}.{_GO_MIN[1]}, and this is {said.strip()}"
    return ""


@cache
def _build(version: str) -> str:
    """Build that program, once for all processes of the tests; why it cannot be fetched, if so.

    Raises: CalledProcessError if it does not compile, or the library is not what go.sum says.
    """
    assert _GO is not None
    _BUILT.mkdir(exist_ok=True)
    target, folder = _place(version), _folder(version)
    with (_BUILT / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return ""
        reason = _fetch(folder)
        if not reason:
            fresh = _BUILT / f"new-{target.name}"
            _go("build", "-buildvcs=false", "-o", str(fresh), ".", folder=folder)
            for old in _BUILT.glob(f"{version}-*"):
                old.unlink()
            fresh.replace(target)
        return reason


def _fetch(folder: Path) -> str:
    """Let Go fetch the modules; why it could not, if so."""
    try:
        _go("mod", "download", folder=folder, within_s=_FETCH_S)
    except subprocess.TimeoutExpired:
        return f"smtppool could not be fetched within {_FETCH_S} s"
    except subprocess.CalledProcessError as error:
        if "checksum mismatch" in error.stderr:
            raise
        return f"smtppool cannot be fetched: {error.stderr.strip()[-200:]}"
    return ""


def _go(*words: str, folder: Path, within_s: float = _BUILD_S) -> str:
    """What Go says; never with another Go than the one that is here."""
    assert _GO is not None
    try:
        done = subprocess.run(
            [_GO, *words],
            cwd=folder,
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=within_s,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
    return done.stdout


def _folder(version: str) -> Path:
    return _SOURCES / version.replace(".", "_")


def _place(version: str) -> Path:
    """Where the program is once it is built: another place for other sources."""
    digest = hashlib.sha256()
    for path in _sources(version):
        digest.update(path.read_bytes())
    return _BUILT / f"{version}-{digest.hexdigest()[:16]}"


def _sources(version: str, suffix: str = "") -> Iterator[Path]:
    for folder in (_SOURCES / "client", _folder(version)):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        yield from (path for path in files if path.name.endswith(suffix))

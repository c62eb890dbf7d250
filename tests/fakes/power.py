"""A disk that can lose its power: what was done to it, in order, and what a cut leaves.

``Disk`` replays a record (``recorder``) up to a moment and makes images of the disk: all that
was synced is there; of the rest any part, in any order, torn at sectors. A name is there for good
once its folder was synced after it was made; a deleted one may come back until then.

What is assumed of the disk is what SQLite assumes (*documented*: sqlite.org/psow.html and
sqlite.org/atomiccommit.html): a sync does what it says, and a torn write hurts no byte beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SECTORS: Final = (512, 4096)


@dataclass(frozen=True, slots=True)
class Made:
    """A name was given to a new file."""

    path: Path
    file: int


@dataclass(frozen=True, slots=True)
class Unlinked:
    path: Path


@dataclass(frozen=True, slots=True)
class Wrote:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The file was cut or stretched."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """All steps on the file before step ``upto`` are on the disk for good."""

    file: int
    upto: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sync failed: what it was to bring to the disk never gets there.

    The system takes those pages for clean from then on, and the next sync succeeds without them;
    but whoever else has the file open then hears of the failure once, at its own next sync
    (*documented*: lwn.net/Articles/752613; since Linux 4.13, before that a commit could be lost
    to the checkpoint's failed sync).
    """

    file: int
    upto: int


@dataclass(frozen=True, slots=True)
class FolderSynced:
    """The same for the names in a folder."""

    folder: Path
    upto: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What the test itself has seen happen."""

    word: str
    number: int = 0


Step = Made | Unlinked | Wrote | Cut | Synced | Dropped | FolderSynced | Mark


@dataclass(slots=True)
class _Content:
    """One file: what is on the disk for good, and the steps since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, Wrote | Cut]] = field(default_factory=list)

    def sync(self, upto: int) -> None:
        for at, step in self.pending:
            if at < upto:
                _apply(self.durable, step, b"\0")
        self.drop(upto)

    def drop(self, upto: int) -> None:
        self.pending = [(at, step) for at, step in self.pending if at >= upto]


@dataclass(slots=True)
class _Name:
    """Which file a name stands for, for good and since."""

    durable: int | None = None
    pending: list[tuple[int, int | None]] = field(default_factory=list)

    def sync(self, upto: int) -> None:
        for at, file in self.pending:
            if at < upto:
                self.durable = file
        self.pending = [(at, file) for at, file in self.pending if at >= upto]


class Disk:
    """The disk as it is after the first ``at`` steps of a record; only goes forward."""

    def __init__(self, found: Mapping[Path, bytes], steps: Sequence[Step]) -> None:
        """``found`` was there for good before the first step; its files count from 1."""
        self._steps, self.at = steps, 0
        self._contents: dict[int, _Content] = {}
        self._names: dict[Path, _Name] = {}
        for number, (path, content) in enumerate(found.items(), 1):
            self._contents[number] = _Content(bytearray(content))
            self._names[path] = _Name(number)

    def advance(self, at: int) -> None:
        """Let the steps up to ``at`` happen."""
        while self.at < at:
            self._take(self._steps[self.at])
            self.at += 1

    def _take(self, step: Step) -> None:
        match step:
            case Made(path, file):
                self._contents[file] = _Content()
                self._names.setdefault(path, _Name()).pending.append((self.at, file))
            case Unlinked(path):
                self._names[path].pending.append((self.at, None))
            case Wrote(file) | Cut(file):
                self._contents[file].pending.append((self.at, step))
            case Synced(file, upto):
                self._contents[file].sync(upto)
            case Dropped(file, upto):
                self._contents[file].drop(upto)
            case FolderSynced(folder, upto):
                self._sync_folder(folder, upto)

    def _sync_folder(self, folder: Path, upto: int) -> None:
        for path, name in self._names.items():
            if path.parent == folder:
                name.sync(upto)

    def image(self, chance: random.Random, share: float | None = None) -> dict[str, bytes]:
        """The files of one disk that a cut now may leave, by name.

        ``share`` of what is not synced has reached it. By default one in four has lost all that it
        may lose, one in four nothing, the rest any part.
        """
        if share is None:
            share = chance.choice((0.0, 1.0, chance.random(), chance.random()))
        files = {}
        for path, name in self._names.items():
            versions = [name.durable, *(file for _, file in name.pending)]
            at = round(share) * (len(versions) - 1)
            file = versions[at if share in {0.0, 1.0} else chance.randrange(len(versions))]
            if file is not None:
                files[path.name] = self._content(file, chance, share)
        return files

    def _content(self, file: int, chance: random.Random, share: float) -> bytes:
        kept = self._contents[file]
        content, sector = bytearray(kept.durable), chance.choice(SECTORS)
        # What an unwritten block shows: zeros, or what somebody else's file once had there.
        hole = chance.choice((b"\0", chance.randbytes(1)))
        for _, step in kept.pending:
            for piece in _pieces(step, sector):
                if chance.random() < share:
                    _apply(content, piece, hole)
        return bytes(content)


def _pieces(step: Wrote | Cut, sector: int) -> Iterator[Wrote | Cut]:
    """What of a step reaches the disk as a whole or not at all."""
    if isinstance(step, Cut):
        yield step
        return
    start, end = step.offset, step.offset + len(step.data)
    while start < end:
        stop = min(end, start - start % sector + sector)
        yield Wrote(step.file, start, step.data[start - step.offset : stop - step.offset])
        start = stop


def _apply(content: bytearray, step: Wrote | Cut, hole: bytes) -> None:
    wanted = step.size if isinstance(step, Cut) else step.offset
    content.extend(hole * (wanted - len(content)))
    if isinstance(step, Cut):
        del content[step.size :]
    else:
        content[step.offset : step.offset + len(step.data)] = step.data

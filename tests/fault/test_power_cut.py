"""The power fails: what the spool has answered for is on the disk, whatever else is not.

A real spool works on a recorded disk (``fakes/power``) through every stage of its life. Then
the power is cut at many moments of that one record, and from each several disks are made that
a cut may leave. Each is opened by the real ``Spool.open`` and audited against what had been
answered by that moment. One of the disks is the ground for the next life, which is cut as well:
its opening is a recovery.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from relay.clock import SystemClock
from relay.spool import migrations, room, upkeep
from tests.fakes.life import BALLAST_BYTES, STAGES, WAL_BYTES, Life, body_of, everything, key
from tests.fakes.power import Disk, Dropped, Mark
from tests.fakes.recorder import Recorder, sqlite_library
from tests.fakes.spool_file import open_spool, query
from tests.fault import victim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.fakes.power import Step

SYNC_FAILS_SHARE: Final = 0.3
ORPHANS: Final = """
SELECT id FROM content WHERE id NOT IN (SELECT content_id FROM envelope)
UNION ALL SELECT content_id FROM envelope WHERE content_id NOT IN (SELECT id FROM content)
UNION ALL SELECT id FROM envelope WHERE id NOT IN (SELECT envelope_id FROM recipient)
UNION ALL SELECT envelope_id FROM recipient WHERE envelope_id NOT IN (SELECT id FROM envelope)
"""
"""What belongs to nothing."""
needs_a_look_inside = pytest.mark.skipif(
    sqlite_library() is None, reason="this Python hides the functions of its SQLite"
)


Answers = Mapping[str, set[int]]
Image = Mapping[str, bytes]


def answers(steps: Sequence[Step]) -> Answers:
    """What had been begun and answered by the end of ``steps``, by word."""
    said: dict[str, set[int]] = defaultdict(set)
    for step in steps:
        if isinstance(step, Mark):
            said[step.word].add(step.number)
    return said


def moments(record: Recorder, stage: str) -> tuple[list[int], list[int]]:
    """The steps before which the power may be cut in that stage, and those just after an answer.

    Of a checkpoint only what it does to the file itself: all else is commits.
    """
    steps = record.steps
    marks = {step.word: at for at, step in enumerate(steps) if isinstance(step, Mark)}
    following = [at for word, at in marks.items() if word in STAGES and at > marks[stage]]
    inside = range(marks[stage], min(following, default=len(steps)) + 1)
    if stage == "checkpoint":
        main = record.file_of("relay.db")
        copying = [at for at in inside if getattr(steps[at], "file", 0) == main]
        return copying, copying
    answered = [
        at
        for at in inside
        if isinstance(step := steps[at - 1], Mark) and step.word in {"kept", "settled", "put off"}
    ]
    return list(inside), answered or list(inside)


@dataclass
class Row:
    """What the table says of a stage."""

    cuts: int = 0
    images: int = 0
    kept: int = 0
    settled: int = 0

    def count(self, said: Answers) -> None:
        """One more image was audited."""
        self.images += 1
        self.kept += len(said["kept"])
        self.settled += len(said["settled"])


async def audit(folder: Path, said: Answers) -> None:
    """Open what the cut has left and hold it to what had been answered."""
    async with open_spool(folder, SystemClock()) as spool:
        found = [due.envelope for due in await everything(spool)]
        for one in found:
            assert await spool.read_content(one.content_id) == body_of(one.content_id)
    waiting = {key(one.id, r.n): r.attempts for one in found for r in one.recipients}
    ended = keys(folder, "SELECT envelope_id, n FROM outcome")
    there = keys(folder, "SELECT envelope_id, n FROM recipient WHERE state = 0")

    assert said["kept"] <= waiting.keys() | ended, "lost (P1)"
    assert waiting.keys() | ended <= said["began"], "never begun"
    assert not waiting.keys() & ended, "two fates (P2)"
    assert said["settled"] <= ended, "settled and waits again (P2, P3)"
    assert ended <= said["sent"], "settled by nobody (P2)"
    assert all(waiting[one] for one in said["put off"] & waiting.keys()), "an attempt forgotten"
    assert waiting.keys() == there, "on the queue and never due"
    assert query(folder, ORPHANS) == []
    assert query(folder, "PRAGMA integrity_check") == [("ok",)]


def keys(folder: Path, statement: str) -> set[int]:
    return {key(int(str(row[0])), int(str(row[1]))) for row in query(folder, statement)}


def lay_out(folder: Path, image: Image, chance: random.Random) -> None:
    """Write an image, with the litter that a crash leaves beside it."""
    folder.mkdir()
    litter = {
        "relay.db-shm": chance.choice((None, b"", bytes(32768), chance.randbytes(32768))),
        "relay.db.lock": chance.choice((None, b"1\n")),
        "relay.db.ballast": chance.choice((None, b"", bytes(BALLAST_BYTES))),
    }
    for name, content in {**litter, **image}.items():
        if content is not None:
            (folder / name).write_bytes(content)


@needs_a_look_inside
@pytest.mark.parametrize(
    ("lives", "cuts", "images"), [(2, 8, 2), pytest.param(5, 12, 10, marks=pytest.mark.slow)]
)
async def test_p1_p2_p3_a_power_cut_takes_nothing_that_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int, cuts: int, images: int
) -> None:
    """At each stage: appends that returned are there, settlements that returned stand."""
    monkeypatch.setattr(room, "WAL_MAX_BYTES", WAL_BYTES)
    chance, table = seeded(), {stage: Row() for stage in STAGES}
    ground: Image = {}
    image: Image = {}
    before: Answers = {}
    for life in range(lives):
        record = recorder(tmp_path / f"life{life}", ground, before, chance)
        with record.recording():
            await Life(record, chance).live()

        disk = Disk(record.found, record.steps)
        chosen = choose(record, STAGES, cuts, chance)
        heir = chance.choice([one for one in chosen if one[1] != "open"])
        for at, stage in chosen:
            disk.advance(at)
            said = answers(record.steps[:at])
            for _ in range(images):
                image = disk.image(chance)
                await audit_image(tmp_path / "image", image, said, chance)
                table[stage].count(said)
            table[stage].cuts += 1
            if (at, stage) == heir:
                ground, before = image, said
    print(report(table))


@needs_a_look_inside
@pytest.mark.parametrize(
    ("cuts", "images"), [(12, 2), pytest.param(60, 10, marks=pytest.mark.slow)]
)
async def test_p1_a_power_cut_in_a_migration_keeps_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int, images: int
) -> None:
    """A step that rewrites all rows is done or not, and the next start does it."""
    monkeypatch.setattr(room, "WAL_MAX_BYTES", WAL_BYTES)
    chance, row = seeded(), Row()
    record = recorder(tmp_path / "life", {}, {}, chance)
    with record.recording():
        await Life(record, chance).live(("append", "settle"))
        monkeypatch.setattr(migrations, "VERSION", victim.NEXT_VERSION)
        monkeypatch.setattr(migrations, "script", victim.next_script)
        await Life(record, chance).live(("append",))

    disk = Disk(record.found, record.steps)
    for at, _ in choose(record, ("open",), cuts, chance):
        disk.advance(at)
        said = answers(record.steps[:at])
        for _ in range(images):
            await audit_image(tmp_path / "image", disk.image(chance), said, chance, is_next=True)
            row.count(said)
        row.cuts += 1
    print(report({"migration": row}))


async def audit_image(
    folder: Path, image: Image, said: Answers, chance: random.Random, *, is_next: bool = False
) -> None:
    """Audit one disk that a cut may leave, and throw it away."""
    lay_out(folder, image, chance)
    await audit(folder, said)
    if is_next:
        assert query(folder, "PRAGMA user_version") == [(victim.NEXT_VERSION,)]
        assert query(folder, "SELECT count(DISTINCT colour) FROM envelope") == [(1,)]
    shutil.rmtree(folder)


@needs_a_look_inside
@pytest.mark.parametrize(
    ("cuts", "images"), [(12, 2), pytest.param(100, 10, marks=pytest.mark.slow)]
)
async def test_p1_p2_a_sync_that_fails_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int, images: int
) -> None:
    """A dying disk fails some syncs and forgets those bytes; nobody was answered for them."""
    monkeypatch.setattr(room, "WAL_MAX_BYTES", WAL_BYTES)
    monkeypatch.setattr(upkeep, "WATCH_S", 0.05)  # What found no disk is tried again by the watch.
    chance, row = seeded(), Row()
    record = recorder(tmp_path / "life", {}, {}, chance)
    life = Life(record, chance)
    with record.recording():
        async with open_spool(record.folder, SystemClock()) as spool:
            record.mark("checkpoint")
            record.sync_fails = lambda: chance.random() < SYNC_FAILS_SHARE
            for _ in range(3):
                await life.checkpoints(spool)
            record.sync_fails = lambda: False
            record.mark("close")

    failed = sum(isinstance(step, Dropped) for step in record.steps)
    assert failed
    disk = Disk(record.found, record.steps)
    inside = range(record.steps.index(Mark("checkpoint")), len(record.steps))
    for at in sorted(chance.choices(inside, k=cuts)):
        disk.advance(at)
        said = answers(record.steps[:at])
        for _ in range(images):
            await audit_image(tmp_path / "image", disk.image(chance), said, chance)
            row.count(said)
        row.cuts += 1
    print(f"{failed} failed syncs, {life.failures} settlements tried again")
    print(report({"sync fails": row}))


@needs_a_look_inside
async def test_the_record_holds_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses nothing is the real one, so that the recorder has missed no write."""
    monkeypatch.setattr(room, "WAL_MAX_BYTES", WAL_BYTES)
    record = recorder(tmp_path / "life", {}, {}, chance := seeded())
    with record.recording():
        async with open_spool(record.folder, SystemClock()) as spool:
            housework = asyncio.ensure_future(spool.run())
            life = Life(record, chance)
            await life.every_worker(spool, life.append)
            housework.cancel()
            await asyncio.wait([housework])
            # What was under way goes on in its threads; these come after it.
            for connection in (spool._upkeep.connection, spool._writer._connection):
                await connection.run(lambda _: None)

            disk = Disk(record.found, record.steps)
            disk.advance(len(record.steps))
            image = disk.image(chance, share=1.0)

            assert sorted(image) == ["relay.db", "relay.db-wal"]
            for name, content in image.items():
                assert content == (record.folder / name).read_bytes()


def seeded() -> random.Random:
    """Chance that can be had again: the seed is printed."""
    seed = random.randrange(1 << 32)
    print(f"\nseed {seed}")
    return random.Random(seed)


def recorder(folder: Path, ground: Image, before: Answers, chance: random.Random) -> Recorder:
    """A record of a folder that holds ``ground``, of which ``before`` was answered."""
    lay_out(folder, ground, chance)
    record = Recorder(folder)
    for word in set(before) - set(STAGES):
        for number in before[word]:
            record.mark(word, number)
    return record


def choose(
    record: Recorder, stages: Sequence[str], cuts: int, chance: random.Random
) -> list[tuple[int, str]]:
    """The moments of the cuts, in order; half of them just after an answer."""
    chosen: set[tuple[int, str]] = set()
    for stage in stages:
        anywhere, answered = moments(record, stage)
        chosen.update((at, stage) for at in chance.choices(anywhere, k=cuts - cuts // 2))
        chosen.update((at, stage) for at in chance.choices(answered, k=cuts // 2))
    return sorted(chosen)


def report(table: Mapping[str, Row]) -> str:
    lines = ["stage       cuts  images      kept  lost   settled  undone"]
    lines += [
        f"{stage:<12}{row.cuts:>4}{row.images:>8}{row.kept:>10}{0:>6}{row.settled:>10}{0:>8}"
        for stage, row in table.items()
    ]
    return "\n".join(lines)

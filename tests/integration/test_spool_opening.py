"""Where a spool may live, who owns it, who may read it, and which formats it opens."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relay.config.schema import Spool as Config
from relay.errors import SpoolBroken, SpoolBusy
from relay.spool import Spool
from relay.spool.migrations import VERSION, migrate
from relay.spool.place import NETWORK_TYPES, Lock, check, file_system
from relay.spool.statements import script, statements
from tests.fakes.clock import ManualClock
from tests.fakes.spool_file import keep, open_spool, query

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 27 0:40 / /mnt/a\\040disk rw,relatime shared:1 master:2 - nfs4 server:/x rw
32 27 0:41 / /srv rw - xfs /dev/vdb rw
33 32 0:42 / /srv/deep rw - cifs //server/x rw
34 27 0:43 / /srv rw - btrfs /dev/vdc rw
"""


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib/relay", "ext4"),
        ("/mnt/a disk/relay", "nfs4"),
        ("/mnt/a disk", "nfs4"),
        ("/mnt", "ext4"),
        ("/srv", "btrfs"),
        ("/srv/deep/er", "cifs"),
        ("/srvother", "ext4"),
    ],
)
def test_file_system_is_that_of_the_innermost_and_latest_mount(folder: str, kind: str) -> None:
    """As the kernel resolves it, with octal escapes in the names of mount points."""
    assert file_system(Path(folder), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs"])
def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A spool on one is refused with its type and the way out, before anything is created."""
    monkeypatch.setattr(
        Path, "read_text", lambda *_: f"27 1 254:0 / {tmp_path} rw - {kind} server rw\n"
    )

    with pytest.raises(SpoolBroken, match=rf"\({kind}\).*local disk"):
        check(tmp_path / "relay.db", create=True)

    assert "ext4" not in NETWORK_TYPES
    assert list(tmp_path.iterdir()) == []


async def test_command_never_creates_a_spool(tmp_path: Path) -> None:
    """Without ``create`` nothing appears, not even a lock."""
    with pytest.raises(SpoolBroken, match="relay serve"):
        await Spool.open(tmp_path / "relay.db", Config(), clock=ManualClock(), create=False)

    assert names_in(tmp_path) == set()


async def test_empty_file_is_no_spool_to_a_command_but_one_to_serve(tmp_path: Path) -> None:
    """A crash at the very first start leaves an empty file; the next start goes on from it."""
    path = tmp_path / "relay.db"
    path.touch()

    with pytest.raises(SpoolBroken, match="empty"):
        await Spool.open(path, Config(), clock=ManualClock(), create=False)
    async with open_spool(tmp_path) as spool:
        await keep(spool)

    assert query(tmp_path, "SELECT count(*) FROM envelope") == [(1,)]


async def test_missing_folder_is_named(tmp_path: Path) -> None:
    """The text says which folder to create."""
    with pytest.raises(SpoolBroken, match=r"no folder .*nowhere"):
        await Spool.open(
            tmp_path / "nowhere" / "relay.db", Config(), clock=ManualClock(), create=True
        )


async def test_second_opener_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """One process owns a spool; the text names it."""
    async with open_spool(tmp_path) as spool:
        with pytest.raises(SpoolBusy, match=rf"pid {os.getpid()}\)"):
            await Spool.open(tmp_path / "relay.db", Config(), clock=ManualClock(), create=True)

        await keep(spool)
    async with open_spool(tmp_path, create=False):
        pass


async def test_spool_that_could_not_be_opened_is_free_again(tmp_path: Path) -> None:
    """A failed opening leaves no lock and no connection behind."""
    (tmp_path / "relay.db").write_bytes(b"no database at all, just text" * 100)
    with pytest.raises(SpoolBroken, match=r"damaged.*\.recover"):
        await Spool.open(tmp_path / "relay.db", Config(), clock=ManualClock(), create=True)

    Lock.take(tmp_path / "relay.db").close()


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask: database, log, shared memory, lock and ballast have mode 0600."""
    before = os.umask(0)
    try:
        async with open_spool(tmp_path, ballast_bytes=100_000) as spool:
            await keep(spool)

            modes = modes_in(tmp_path)
        assert os.umask(0) == 0
    finally:
        os.umask(before)

    suffixes = ("", "-wal", "-shm", ".lock", ".ballast")
    assert modes == {f"relay.db{suffix}": 0o600 for suffix in suffixes}


async def test_files_that_others_could_read_are_closed_to_them(tmp_path: Path) -> None:
    """A copy that was put back with a wide mode is narrowed at the next start."""
    async with open_spool(tmp_path):
        pass
    (tmp_path / "relay.db").chmod(0o644)
    (tmp_path / "relay.db.lock").chmod(0o644)

    async with open_spool(tmp_path):
        pass

    assert set(modes_in(tmp_path).values()) == {0o600}


async def test_newer_format_is_refused_and_untouched(tmp_path: Path) -> None:
    """An older program must not write to what it does not understand."""
    async with open_spool(tmp_path) as spool:
        await keep(spool)
    query(tmp_path, f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / "relay.db").read_bytes()

    with pytest.raises(SpoolBroken, match=rf"format {VERSION + 1}.*newer relay"):
        await Spool.open(tmp_path / "relay.db", Config(), clock=ManualClock(), create=True)

    assert (tmp_path / "relay.db").read_bytes() == before


async def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """A wrong path must not turn somebody's data into a spool."""
    query(tmp_path, "CREATE TABLE theirs (x)")

    with pytest.raises(SpoolBroken, match="another program"):
        await Spool.open(tmp_path / "relay.db", Config(), clock=ManualClock(), create=True)

    assert query(tmp_path, "SELECT name FROM sqlite_master") == [("theirs",)]


def test_migration_that_stops_half_way_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is done with its number or not at all, and can be done again."""
    path = tmp_path / "relay.db"
    real = script("0001.sql")
    broken = real + "\nCREATE TABLE content (again);\n"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        monkeypatch.setattr("relay.spool.migrations.script", lambda _: broken)
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            migrate(db, path, create=True)
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        assert db.execute("PRAGMA user_version").fetchone() == (0,)

        monkeypatch.setattr("relay.spool.migrations.script", lambda _: real)
        migrate(db, path, create=True)
        migrate(db, path, create=False)

        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)


async def test_spool_is_set_up_to_keep_its_promises(tmp_path: Path) -> None:
    """P1 rests on these: a log that is synced with each commit; space that can be given back."""
    async with open_spool(tmp_path) as spool:
        pragmas = ("journal_mode", "synchronous", "wal_autocheckpoint", "auto_vacuum")
        found = [
            await spool._writer.call(
                lambda transaction, name=name: transaction.db.execute(f"PRAGMA {name}").fetchone()  # type: ignore[misc]
            )
            for name in pragmas
        ]

    assert found == [("wal",), (2,), (0,), (2,)]


@pytest.mark.parametrize("file", ["write.sql", "read.sql"])
async def test_every_statement_is_understood_by_the_current_format(
    tmp_path: Path, file: str
) -> None:
    """Statements and schema belong together; a name is used once."""
    async with open_spool(tmp_path):
        pass

    with closing(sqlite3.connect(tmp_path / "relay.db")) as db:
        for text in statements(file).values():
            names = re.findall(r":(\w+)", text)
            values: object = dict.fromkeys(names, 0) if names else (0,) * text.count("?")
            db.execute(f"EXPLAIN {text}", values)  # type: ignore[arg-type]
    assert len(statements(file)) == script(file).count("-- name: ")


@pytest.mark.parametrize(
    ("statement", "wanted", "unwanted"),
    [
        ("due", "envelope_waiting (stream_id=? AND due_at>? AND due_at<?)", "SCAN envelope"),
        ("next_due", "envelope_waiting (stream_id=? AND due_at>?)", "SCAN e"),
        ("parked_by", "envelope_parked (hold_key=?)", "SCAN envelope"),
        ("sent_by_time", "COVERING INDEX outcome_ended (ended_at>?)", "SCAN outcome"),
        ("find_ended", "MULTI-INDEX OR", "SCAN o"),
    ],
)
async def test_frequent_reads_use_their_index(
    tmp_path: Path, statement: str, wanted: str, unwanted: str
) -> None:
    """Their cost must not grow with a million envelopes or a month of outcomes."""
    async with open_spool(tmp_path):
        pass

    text = statements("read.sql")[statement]
    values = dict.fromkeys(re.findall(r":(\w+)", text), 0)
    with closing(sqlite3.connect(tmp_path / "relay.db")) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
    steps = " ".join(row[3] for row in plan)
    assert wanted in steps
    assert unwanted not in steps


async def test_closed_spool_takes_nothing(tmp_path: Path) -> None:
    """Who comes too late is told so, and does not wait for ever."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool)

    with pytest.raises(SpoolBroken, match="closed"):
        await spool.append([kept], b"x")
    with pytest.raises(SpoolBroken, match="closed"):
        await spool.quarantine(kept.id, "x")


async def test_close_writes_what_is_pending(tmp_path: Path) -> None:
    """An append that was made before the close is kept, and its caller told so."""
    async with open_spool(tmp_path) as spool:
        appends = [asyncio.ensure_future(keep(spool)) for _ in range(20)]
        await asyncio.sleep(0)

    assert len(await asyncio.gather(*appends)) == 20
    assert query(tmp_path, "SELECT count(*) FROM envelope") == [(20,)]

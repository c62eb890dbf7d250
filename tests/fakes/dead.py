"""Relays that are to die, and what a dead one leaves behind."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.envelope import id_text
from relay.mailer import Client, make_mail

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.running import RunningRelay

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
FAST = "[upstream.rate]\nstart_per_s = 150"


@dataclass(frozen=True, slots=True)
class Left:
    """What a dead relay's files say; ids as the twin and the client know them."""

    waiting: set[str]
    ended: set[str]
    sound: bool
    attempts: int

    @classmethod
    def of(cls, spool: Path, copy: Path) -> Left:
        """Read a copy: whoever opens the files themselves would repair them."""
        copy_files(spool, copy)
        with closing(sqlite3.connect(copy / spool.name)) as db:
            try:
                waiting = ids(db, "SELECT envelope_id FROM recipient WHERE state = 0")
                ended = ids(db, "SELECT envelope_id FROM outcome WHERE outcome = 'sent'")
                [(attempts,)] = db.execute("SELECT total(attempts) FROM recipient").fetchall()
            except sqlite3.OperationalError:  # Killed before there were tables.
                waiting, ended, attempts = set(), set(), 0
            sound = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return cls(waiting, ended, sound, attempts)


def copy_files(spool: Path, folder: Path) -> None:
    """A copy of the spool as it lies there; the shared memory is not copied, a reader builds it."""
    for name in (spool.name, f"{spool.name}-wal", f"{spool.name}-shm"):
        (folder / name).unlink(missing_ok=True)
    for name in (spool.name, f"{spool.name}-wal"):
        if (spool.parent / name).exists():
            shutil.copyfile(spool.parent / name, folder / name)


def ids(db: sqlite3.Connection, statement: str) -> set[str]:
    return {id_text(number) for (number,) in db.execute(statement)}


def trapped(target: str, moment: str, calls: int, delay_s: float, *more: str) -> tuple[str, ...]:
    """The words that run a relay with a trap in it."""
    return ("-m", "tests.fault.victim", target, moment, str(calls), str(delay_s), *more, "--")


async def fill(relay: RunningRelay, count: int) -> set[str]:
    """Messages that a paused relay took before it was killed, by the ids it gave them."""
    relay.words = ("--paused",)
    await relay.start()
    client, rng = Client("127.0.0.1", relay.smtp_port), random.Random(1)
    told = await client.send(make_mail(rng, n, campaign=CAMPAIGN) for n in range(count))
    await relay.kill()
    return {queue_id for _, queue_id in told.accepted}

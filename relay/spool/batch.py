"""Writing one batch: everything that was asked for meanwhile becomes one commit.

Runs in the writer's thread and knows no event loop. If the commit fails, what to do
depends on why. If the spool as a whole cannot write, settlements get the ballast and
another try, and appends wait. Otherwise one row is bad, and each job is written alone,
so that only the bad one fails.

A job that raises ``SpoolError`` must not have changed anything yet: it fails by itself
and the rest of the batch stays one commit.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from relay.errors import SpoolError
from relay.spool.failures import is_damage, is_full, is_stuck, translated
from relay.spool.place import beside
from relay.spool.room import file_bytes, measure
from relay.spool.transaction import WRITE, Streams, Transaction
from relay.spool.words import DepthKey, State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from relay.envelope import Envelope
    from relay.spool.presence import Presence
    from relay.spool.room import Ballast, Limits, Usage
    from relay.spool.stamps import Place

log = logging.getLogger(__name__)

CODEC: Final = "raw"
"""Content as it came."""


@dataclass(slots=True, eq=False)
class Append:
    """Envelopes to keep, with the content they share."""

    envelopes: Sequence[Envelope]
    content: bytes
    done: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class Call:
    """Any other change; ``work`` raises ``SpoolError`` before it changes anything.

    ``earliest_due_at`` is the first moment at which mail is made due by it; 0 stands for
    the batch's own stamp, None for no such mail.
    """

    work: Callable[[Transaction], object]
    done: asyncio.Future[object]
    earliest_due_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The jobs of one commit; calls are written first. ``measured`` asks for the usage."""

    calls: Sequence[Call]
    appends: Sequence[Append]
    stamp: int
    floor: Place
    measured: bool


@dataclass(slots=True)
class Report:
    """What became of a batch: ``results`` in the place of calls, each a value or a failure.

    ``waiting`` are appends that found no room, for the ``wall``'s reason. ``astray``: files are
    not where they were, so that no append was tried. ``damage``: SQLite met a bad page.
    ``surprised``: the batch as a whole failed though the spool can write; somebody counts that.
    """

    results: list[tuple[Call, object]] = field(default_factory=list)
    kept: list[Append] = field(default_factory=list)
    refused: list[tuple[Append, SpoolError]] = field(default_factory=list)
    waiting: list[Append] = field(default_factory=list)
    depth: Counter[DepthKey] = field(default_factory=Counter)
    wall: str = ""
    astray: str = ""
    damage: str = ""
    surprised: bool = False
    usage: Usage | None = None
    seconds: float = 0.0


class Scribe:
    """Writes batches to one connection."""

    def __init__(self, path: Path, limits: Limits, ballast: Ballast, presence: Presence) -> None:
        self._path, self._limits, self._ballast = path, limits, ballast
        self._presence = presence
        self._streams = Streams()

    def write(self, db: sqlite3.Connection, batch: Batch) -> Report:
        """Write all that can be written; raises nothing that a job could cause."""
        started = time.perf_counter()
        report = Report(astray=self._presence.trouble())
        if report.astray:
            # P1: what is written now is gone with the process.
            report.waiting += batch.appends
            batch = replace(batch, appends=())
        self._calm_log(db)
        try:
            self._commit(db, batch, batch.calls, batch.appends, report)
        except Exception as error:
            self._recover(db, batch, error, report)
        if report.astray:
            # If only the log is gone, what is copied to the file lasts all the same.
            checkpoint(db)
        if batch.measured or report.wall:
            report.usage = self._measure(db)
        report.seconds = time.perf_counter() - started
        return report

    def _commit(
        self,
        db: sqlite3.Connection,
        batch: Batch,
        calls: Sequence[Call],
        appends: Sequence[Append],
        report: Report,
    ) -> None:
        """One transaction: all of it is on disk and in the report, or nothing is."""
        transaction = Transaction(db, self._streams, batch.stamp, batch.floor)
        try:
            db.execute("BEGIN IMMEDIATE")
            results = [(call, _result(call, transaction)) for call in calls]
            _append(transaction, appends)
            db.execute("COMMIT")
        except BaseException:
            self._streams.forget()
            if db.in_transaction:  # SQLite itself rolls back on some errors.
                db.execute("ROLLBACK")
            raise
        report.results += results
        report.kept += appends
        report.depth.update(transaction.depth)

    def _recover(
        self, db: sqlite3.Connection, batch: Batch, error: Exception, report: Report
    ) -> None:
        if not is_stuck(error):
            log.warning("batch failed, writing each job alone", exc_info=error)
            report.surprised = True
            self._one_by_one(db, batch, report)
            return
        report.wall = str(self._failure(error, report))
        report.waiting += batch.appends
        if batch.calls:
            self._settle_all_the_same(db, batch, report)

    def _settle_all_the_same(self, db: sqlite3.Connection, batch: Batch, report: Report) -> None:
        """The calls without the appends, if need be with the ballast's blocks, else alone."""
        try:
            self._commit(db, batch, batch.calls, (), report)
        except Exception as error:
            if self._release_ballast(error):
                self._settle_all_the_same(db, batch, report)
            elif is_stuck(error) and not (is_full(error, self._path) or is_damage(error)):
                # Each further try may wait for a lock or a dying disk. (A bad page is not in
                # everybody's way.)
                report.results += [(call, self._failure(error, report)) for call in batch.calls]
            else:
                self._one_by_one(db, batch, report)

    def _release_ballast(self, error: Exception) -> bool:
        """Whether ``error`` is a full disk and there was ballast to give away."""
        if not is_full(error, self._path) or not self._ballast.release():
            return False
        log.error("spool ballast released", extra={"path": str(self._path)})
        return True

    def _one_by_one(self, db: sqlite3.Connection, batch: Batch, report: Report) -> None:
        for call in batch.calls:
            try:
                self._commit(db, batch, (call,), (), report)
            except Exception as error:
                report.results.append((call, self._failure(error, report)))
        for append in batch.appends if not report.wall else ():
            self._append_alone(db, batch, append, report)

    def _append_alone(
        self, db: sqlite3.Connection, batch: Batch, append: Append, report: Report
    ) -> None:
        if report.wall:
            report.waiting.append(append)
            return
        try:
            self._commit(db, batch, (), (append,), report)
        except Exception as error:
            failure = self._failure(error, report)
            if is_stuck(error):
                report.wall = str(failure)
                report.waiting.append(append)
            else:
                report.refused.append((append, failure))

    def _failure(self, error: Exception, report: Report) -> SpoolError:
        failure = translated(error, self._path)
        if is_damage(error):
            report.damage = str(failure)
        failure.__cause__ = error if failure is not error else None
        return failure

    def _calm_log(self, db: sqlite3.Connection) -> None:
        """Copy the log to the file when it is past its calm size.

        Between two batches nobody writes, so the copy is complete and the next commit
        starts the log anew, unless a reader is at work; upkeep has copied most of it.
        """
        if file_bytes(beside(self._path, "-wal")) > self._limits.wal_calm_bytes:
            checkpoint(db)

    def _measure(self, db: sqlite3.Connection) -> Usage | None:
        try:
            return measure(db, self._path)
        except (sqlite3.Error, OSError) as error:
            log.warning("spool usage unknown", exc_info=error)
            return None


def checkpoint(db: sqlite3.Connection) -> None:
    """Copy what is committed from the log to the file, as far as nobody is in the way.

    A disk without room for it is no failure: the log stays, and keeps everything.
    """
    try:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except sqlite3.Error as error:
        log.warning("spool checkpoint failed", exc_info=error)


def _result(call: Call, transaction: Transaction) -> object:
    """What the call returns, or the ``SpoolError`` it raised before changing anything."""
    try:
        return call.work(transaction)
    except SpoolError as error:
        return error


def _append(transaction: Transaction, appends: Sequence[Append]) -> None:
    db, stamp = transaction.db, transaction.stamp
    db.executemany(
        WRITE["add_content"],
        [
            (append.envelopes[0].content_id, CODEC, content_hash(append.content), append.content)
            for append in appends
        ],
    )
    envelopes = [(e, len(append.envelopes) > 1) for append in appends for e in append.envelopes]
    db.executemany(WRITE["add_envelope"], [_row(transaction, e, s) for e, s in envelopes])
    db.executemany(
        WRITE["add_recipient"],
        [
            (e.id, r.n, r.address, r.attempts, stamp, r.in_doubt)
            for e, _ in envelopes
            for r in e.recipients
        ],
    )


def _row(transaction: Transaction, envelope: Envelope, shared: bool) -> tuple[object, ...]:  # noqa: FBT001
    """The envelope's row; its recipients are counted on the way."""
    e, stream = envelope, (envelope.upstream, envelope.lane, envelope.campaign)
    transaction.depth[DepthKey(*stream, State.WAITING)] += len(e.recipients)
    return (
        e.id,
        e.content_id,
        shared,
        transaction.streams.number(transaction.db, stream),
        e.subscriber,
        e.sender,
        e.message_id,
        e.configuration_set,
        e.auth_user,
        e.size_bytes,
        e.received_at,
        transaction.stamp,
    )


def content_hash(body: bytes) -> bytes:
    """What proves a content row: SHA-256, which CPUs compute and ``sha256sum`` checks."""
    return hashlib.sha256(body).digest()

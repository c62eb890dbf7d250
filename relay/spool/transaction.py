"""What is known while a batch is being written, in the writer's thread."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from relay.spool.statements import statements

if TYPE_CHECKING:
    import sqlite3

    from relay.spool.stamps import Place
    from relay.spool.words import DepthKey

WRITE: Final = statements("write.sql")

STREAMS_CACHED_MAX: Final = 10_000
"""Stream numbers kept in memory; each campaign is one."""


class Streams:
    """The numbers of streams, remembered. Forgets all after a rollback: some may be undone."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str, str], int] = {}

    def number(self, db: sqlite3.Connection, stream: tuple[str, str, str]) -> int:
        """The number of (upstream, lane, campaign), given to it now if it has none."""
        known = self._ids.get(stream)
        if known is not None:
            return known
        if len(self._ids) >= STREAMS_CACHED_MAX:
            self.forget()
        db.execute(WRITE["add_stream"], stream)
        number: int = db.execute(WRITE["stream_id"], stream).fetchone()[0]
        self._ids[stream] = number
        return number

    def forget(self) -> None:
        """Look every number up anew."""
        self._ids.clear()


@dataclass(slots=True)
class Transaction:
    """An open transaction; ``depth`` gathers by how much each count changes if it commits.

    ``stamp`` is the due time of arrivals; ``floor`` is how far readers may have read, so
    that whatever waits again must be due beyond it (see ``stamps``).
    """

    db: sqlite3.Connection
    streams: Streams
    stamp: int
    floor: Place
    depth: Counter[DepthKey] = field(default_factory=Counter)

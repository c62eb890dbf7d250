"""What is read from the spool, each function in one short transaction of a reader's thread.

Reader connections return text as bytes: a row that is no UTF-8 must spoil itself, not
the statement that came across it. Short, because a reader at work keeps the log from
starting anew.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from relay.envelope import Envelope, Recipient, id_value
from relay.errors import ContentDamaged, SpoolError
from relay.spool.batch import CODEC
from relay.spool.failures import is_damage
from relay.spool.statements import statements
from relay.spool.words import DepthKey, Due, Found, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from relay.spool.stamps import Place

READ: Final = statements("read.sql")

FOUND_MAX: Final = 1000
"""Recipients that one search returns, the latest first."""

BAD_PAGE: Final = "it stands on a damaged page"

Row = tuple[object, ...]


class Bad(NamedTuple):
    """An envelope whose row cannot be read, and why."""

    envelope_id: int
    reason: str


class Lane(NamedTuple):
    """One stream of one upstream."""

    upstream: str
    lane: str
    campaign: str


@dataclass(frozen=True, slots=True)
class DueQuery:
    """What to read of a stream: what stands beyond a place and is due by now."""

    lane: Lane
    after: Place
    now_ms: int
    limit: int

    @property
    def values(self) -> dict[str, object]:
        """As the statements name them."""
        after_due_at, after_id = self.after
        place = {"after_due_at": after_due_at, "after_id": after_id}
        return {**self.lane._asdict(), **place, "now_ms": self.now_ms, "limit": self.limit}


def due(db: sqlite3.Connection, query: DueQuery) -> tuple[list[Due], list[Bad], Place | None]:
    """The next due envelopes, those that cannot be read, and the last place of both."""
    good: list[Due] = []
    bad: list[Bad] = []
    place: Place | None = None
    for envelope_id, due_at, rows in _grouped(db.execute(READ["due"], query.values)):
        place = (due_at, envelope_id)
        try:
            good.append(Due(_envelope(query.lane, rows), due_at))
        except ValueError as error:
            bad.append(Bad(envelope_id, str(error)))
    return good, bad, place


def due_one_by_one(
    db: sqlite3.Connection, query: DueQuery
) -> tuple[list[Due], list[Bad], Place | None]:
    """As ``due``, at the cost of a statement each, around damaged pages of the tables.

    The order comes from the index alone; if that is damaged, this fails as ``due`` does.
    """
    good: list[Due] = []
    bad: list[Bad] = []
    place: Place | None = None
    for envelope_id, due_at in db.execute(READ["due_ids"], query.values).fetchall():
        place = (due_at, envelope_id)
        try:
            rows = db.execute(READ["due_one"], (query.now_ms, envelope_id)).fetchall()
            good.append(Due(_envelope(query.lane, rows), due_at))
        except (ValueError, IndexError) as error:
            bad.append(Bad(envelope_id, str(error)))
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            bad.append(Bad(envelope_id, BAD_PAGE))
    return good, bad, place


def parked(
    db: sqlite3.Connection, upstream: str, hold_key: str, limit: int
) -> tuple[list[Envelope], list[Bad]]:
    """Envelopes that wait for a hold, the longest untried first, and those that cannot be read.

    With all their waiting recipients. Both kinds count against ``limit``.
    """
    values = {"upstream": upstream, "hold_key": hold_key, "limit": limit}
    good: list[Envelope] = []
    bad: list[Bad] = []
    for envelope_id, _, rows in _grouped(db.execute(READ["parked_by"], values)):
        try:
            lane = Lane(upstream, _text(rows[0][-2]), _text(rows[0][-1]))
            good.append(_envelope(lane, rows))
        except ValueError as error:
            bad.append(Bad(envelope_id, str(error)))
    return good, bad


def parked_keys(db: sqlite3.Connection) -> list[str]:
    """The holds that any envelope waits for, in order."""
    return [_shown(row[0]) for row in db.execute(READ["parked_keys"])]


def _grouped(rows: Iterable[Row]) -> Iterator[tuple[int, int, list[Row]]]:
    """The joined rows of each envelope, with its id and due time."""
    for (envelope_id, due_at), group in groupby(rows, key=lambda row: (row[0], row[1])):
        yield _number(envelope_id), _number(due_at), list(group)


def _envelope(lane: Lane, rows: Sequence[Row]) -> Envelope:
    """The envelope that stands in the joined ``rows``, one a recipient.

    Raises: ValueError if a value is not what was written.
    """
    row = rows[0]
    return Envelope(
        id=_number(row[0]),
        content_id=_number(row[2]),
        sender=_text(row[3]),
        recipients=tuple(
            Recipient(_number(r[10]), _text(r[11]), _number(r[12]), in_doubt=bool(_number(r[13])))
            for r in rows
        ),
        upstream=lane.upstream,
        lane=lane.lane,
        campaign=lane.campaign,
        subscriber=_text(row[4]),
        message_id=_text(row[5]),
        configuration_set=_text(row[6]),
        auth_user=_text(row[7]),
        size_bytes=_number(row[8]),
        received_at=_number(row[9]),
    )


def _number(value: object) -> int:
    if isinstance(value, int):
        return value
    raise ValueError(f"a number was expected where {type(value).__name__} stands")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()  # UnicodeDecodeError is a ValueError.
    raise ValueError(f"text was expected where {type(value).__name__} stands")


def oldest(db: sqlite3.Connection) -> dict[tuple[str, str, str], int]:
    """When the envelope at the head of each stream in which mail waits was received.

    Nearly the oldest of the stream, which only a look at each row would find: a stream is in
    the order of due times, so that arrivals stand in order of age, but a deferred envelope
    stands behind younger ones until it is due again.
    """
    return {
        (_shown(upstream), _shown(lane), _shown(campaign)): received_at
        for upstream, lane, campaign, received_at in db.execute(READ["oldest"])
    }


def next_due_at(db: sqlite3.Connection, upstream: str, now_ms: int) -> int | None:
    """The earliest moment after ``now_ms`` at which mail of the upstream is due."""
    values = {"upstream": upstream, "now_ms": now_ms}
    earliest: int | None = db.execute(READ["next_due"], values).fetchone()[0]
    return earliest


def content(db: sqlite3.Connection, content_id: int) -> bytes:
    """The bytes of a message as they were kept.

    Raises: ContentDamaged if they are not there or not the same.
    """
    try:
        row = db.execute(READ["content"], (content_id,)).fetchone()
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        raise ContentDamaged(f"content {content_id} cannot be read: {BAD_PAGE}") from error
    if row is None:
        raise ContentDamaged(f"content {content_id} is missing from the spool")
    codec, proof, body = row
    if codec != CODEC.encode():
        raise ContentDamaged(
            f"content {content_id} has the codec {_shown(codec)!r}, which this relay does not know"
        )
    if not isinstance(body, bytes) or hashlib.sha256(body).digest() != proof:
        raise ContentDamaged(
            f"content {content_id} is damaged: its hash does not match; check the disk,"
            " the message must be sent again from Listmonk"
        )
    return body


def depth(db: sqlite3.Connection) -> Counter[DepthKey]:
    """How many recipients each stream has in each state, counted row by row."""
    counted: Counter[DepthKey] = Counter()
    for upstream, lane, campaign, state, count in db.execute(READ["depth"]):
        counted[DepthKey(_shown(upstream), _shown(lane), _shown(campaign), State(state))] += count
    return counted


def last_id(db: sqlite3.Connection) -> int:
    """The highest id in use anywhere."""
    number: int = db.execute(READ["last_id"]).fetchone()[0]
    return number


def sent_by_time(
    db: sqlite3.Connection, upstream: str, since_ms: int, bucket_ms: int
) -> list[tuple[int, int]]:
    """(start of a stretch of ``bucket_ms``, recipients sent in it), in order, without zeros."""
    values = {"upstream": upstream, "since_ms": since_ms, "bucket_ms": bucket_ms}
    return db.execute(READ["sent_by_time"], values).fetchall()


def tally(db: sqlite3.Connection) -> dict[tuple[str, int], int]:
    """Ended recipients by outcome and attempts."""
    rows = db.execute(READ["tally"]).fetchall()
    return {(_text(outcome), _number(attempts)): count for outcome, attempts, count in rows}


def find(db: sqlite3.Connection, query: str) -> list[Found]:
    """Recipients, ended and queued, by address, Message-ID, SES id or envelope id."""
    text = query.strip()
    number = id_value(text)
    values = {
        "text": text,
        "bracketed": f"<{text.strip('<>')}>",  # Message-IDs are kept as they stood.
        "id": -1 if number is None else number,
        "limit": FOUND_MAX,
    }
    ended = db.execute(READ["find_ended"], values).fetchall()
    queued = db.execute(READ["find_queued"], values).fetchall()
    found = [_found(row) for row in (*ended, *queued)]
    return sorted(found, key=lambda one: (-one.envelope_id, one.n))[:FOUND_MAX]


def _found(row: Row) -> Found:
    status = State(row[3]).name.lower() if isinstance(row[3], int) else _shown(row[3])
    return Found(
        envelope_id=_number(row[0]),
        n=_number(row[1]),
        address=_shown(row[2]),
        status=status,
        at=_number(row[4]),
        upstream=_shown(row[5]),
        lane=_shown(row[6]),
        campaign=_shown(row[7]),
        subscriber=_shown(row[8]),
        sender=_shown(row[9]),
        message_id=_shown(row[10]),
        reply=_shown(row[11]),
        code=_number(row[12]),
        ses_id=_shown(row[13]),
        attempts=_number(row[14]),
        in_doubt=bool(row[15]),
        received_at=_number(row[16]),
    )


def holds(db: sqlite3.Connection) -> Iterable[tuple[str, str, str, int, int, int]]:
    """The rows of all holds, the oldest first: (key, source, reason, since, next probe, probes)."""
    rows = db.execute(READ["holds"]).fetchall()
    return [(_shown(k), _shown(s), _shown(r), *times) for k, s, r, *times in rows]


def state(db: sqlite3.Connection, key: str) -> dict[str, object] | None:
    """What was kept under ``key``.

    Raises: SpoolError if it cannot be read.
    """
    row = db.execute(READ["state"], (key,)).fetchone()
    if row is None:
        return None
    try:
        value = json.loads(row[0])
    except ValueError as error:
        raise SpoolError(f"the kept state {key!r} cannot be read: {error}") from error
    return value if isinstance(value, dict) else None


def _shown(value: object) -> str:
    """Text for people and for keys, whatever its bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

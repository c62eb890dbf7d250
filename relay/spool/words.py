"""The values that the spool hands out. Pure words, free of SQLite's ways."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from relay.envelope import Envelope


class State(IntEnum):
    """Where a recipient on the queue stands; the numbers are on disk."""

    WAITING = 0
    """In its lane, due now or later."""
    PARKED = 1
    """Out of its lane until a hold is released."""
    DEAD = 2
    """Ended by bounce, expiry or drop; kept for a while so that it can be revived."""
    QUARANTINED = 3
    """Unreadable; kept for a person to look at."""


class DepthKey(NamedTuple):
    """One stream of mail in one state: what recipients are counted by."""

    upstream: str
    lane: str
    campaign: str
    state: State


@dataclass(frozen=True, slots=True)
class Due:
    """An envelope with the recipients whose time has come.

    ``(due_at, envelope.id)`` is its place in its stream.
    """

    envelope: Envelope
    due_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much the spool may still take.

    ``free_bytes`` is what the disk can give to mail and still let the write-ahead log
    and the ballast grow to their full size, and the free pages inside the file.
    ``slack_bytes`` is what may come in before a limit is reached, negative beyond it;
    ``vacuum_bytes`` is how much of the free pages the disk needs back.
    """

    free_bytes: int
    free_min_bytes: int
    used_bytes: int
    size_max_bytes: int
    slack_bytes: int
    vacuum_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of one recipient of one envelope.

    ``status`` is an outcome's name once it ended, else its ``State``'s in lower case.
    ``at`` is when it ended, or when it is due.
    """

    envelope_id: int
    n: int
    address: str
    status: str
    at: int
    upstream: str
    lane: str
    campaign: str
    subscriber: str
    sender: str
    message_id: str
    reply: str
    code: int
    ses_id: str
    attempts: int
    in_doubt: bool
    received_at: int

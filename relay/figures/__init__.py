"""The figures people look at: what ``status``, ``/metrics`` and the dashboard all show.

Pure words, one frozen value for one moment, so that three surfaces cannot disagree.
Times are wall milliseconds since the epoch; rates are recipients a second; counts are
recipients unless named otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from relay.figures.aws import AwsFigures
from relay.figures.words import (
    PHASES,
    KnownBy,
    change_in_words,
    known_in_words,
    limit_in_words,
    per_s,
    rate_in_words,
    span,
)

__all__ = [
    "PHASES",
    "AwsFigures",
    "EventFigures",
    "Figures",
    "HoldFigures",
    "KnownBy",
    "RoomFigures",
    "StreamFigures",
    "UpstreamFigures",
    "change_in_words",
    "known_in_words",
    "limit_in_words",
    "per_s",
    "rate_in_words",
    "span",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFigures:
    """Waiting mail of one campaign (or of none), by state of its recipients.

    ``oldest_at`` is when the mail next in turn was received, nearly the oldest that waits (a
    deferred envelope stands behind younger ones); None if none waits or it is not known yet.
    """

    upstream: str
    lane: str
    campaign: str
    waiting: int
    parked: int
    quarantined: int
    oldest_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldFigures:
    """One reason why mail is kept back. ``next_probe_at`` 0: only a person lifts it."""

    key: str
    source: str
    reason: str
    since_at: int
    next_probe_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamFigures:
    """One account at SES: what it does now, in words and numbers.

    Of the limit: ``error_share`` is its likely error, ``known_by`` one of ``KnownBy``,
    ``known_at`` when it was last confirmed or told (None: not known), ``rate_words`` all of it
    in one phrase, the same wherever it is shown. ``ceiling_per_s`` 0: none. ``aws`` is None
    unless AWS could be asked. Of the quota, see ``relay.quota.QuotaState``.
    """

    name: str
    doing: str
    rate_words: str
    rate_per_s: float
    limit_per_s: float | None
    error_share: float
    known_by: str
    known_at: int | None
    burst: float | None
    noise_share: float
    phase: str
    refused_share: float
    start_per_s: float
    floor_per_s: float
    ceiling_per_s: float
    use_max: float
    session_bound: bool
    sent_per_s: float
    sessions_open: int
    sessions_busy: int
    sessions_ceiling: int
    quota_used: int
    quota_left: int | None
    quota_next_at: int | None
    quota_allowed: int | None = None
    quota_spent_at: int | None = None
    quota_room_at: int | None = None
    aws: AwsFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFigures:
    """Something that people should see later: when (``at``), to which upstream, what."""

    at: int
    upstream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomFigures:
    """Room for mail on the spool's disk, in bytes; ``stalled_s`` 0: intake flows."""

    used_bytes: int
    size_max_bytes: int
    free_bytes: int
    free_min_bytes: int
    stalled_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All of it. ``totals`` counts since the start of this process; ``events``: latest last."""

    version: str
    now: int
    started_at: int
    paused: bool
    draining: bool
    upstreams: tuple[UpstreamFigures, ...]
    streams: tuple[StreamFigures, ...]
    holds: tuple[HoldFigures, ...]
    room: RoomFigures
    events: tuple[EventFigures, ...]
    totals: dict[str, int]
    unknown_replies: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return asdict(self)

"""The figures people look at: what ``status``, ``/metrics`` and the dashboard all show.

Pure words, one frozen value for one moment, so that three surfaces cannot disagree.
Times are wall milliseconds since the epoch; rates are recipients a second; counts are
recipients unless named otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
    """One account at SES: what it does now, in words and numbers."""

    name: str
    doing: str
    rate_per_s: float
    limit_per_s: float | None
    phase: str
    refused_share: float
    sent_per_s: float
    sessions_open: int
    sessions_busy: int
    sessions_ceiling: int
    quota_used: int
    quota_left: int | None
    quota_next_at: int | None


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
    """All of it. ``totals`` counts since the start of this process."""

    version: str
    now: int
    started_at: int
    paused: bool
    draining: bool
    upstreams: tuple[UpstreamFigures, ...]
    streams: tuple[StreamFigures, ...]
    holds: tuple[HoldFigures, ...]
    room: RoomFigures
    totals: dict[str, int]
    unknown_replies: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return asdict(self)

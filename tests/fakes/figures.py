"""The figures of a relay at work, any of them set by name."""

from __future__ import annotations

from dataclasses import replace

from relay.figures import (
    EventFigures,
    Figures,
    HoldFigures,
    RoomFigures,
    StreamFigures,
    UpstreamFigures,
)

_UPSTREAM = UpstreamFigures(
    name="ses",
    doing="sending",
    rate_words="holding 14.0/s ± 0.1, confirmed 40 s ago",
    rate_per_s=12.5,
    limit_per_s=14.0,
    error_share=0.005,
    known_by="confirmed",
    known_at=-39_998,
    burst=28.0,
    noise_share=0.001,
    phase="holding",
    refused_share=0.25,
    start_per_s=10.0,
    floor_per_s=0.5,
    ceiling_per_s=0.0,
    use_max=1.0,
    session_bound=False,
    sent_per_s=11.0,
    sessions_open=7,
    sessions_busy=5,
    sessions_ceiling=200,
    quota_used=900,
    quota_left=100,
    quota_next_at=None,
)
_ROOM = RoomFigures(
    used_bytes=10, size_max_bytes=100, free_bytes=50, free_min_bytes=5, stalled_s=0.0
)
_ALL = Figures(
    version="1",
    now=2,
    started_at=1,
    paused=False,
    draining=False,
    upstreams=(_UPSTREAM,),
    streams=(),
    holds=(),
    room=_ROOM,
    events=(),
    totals={},
    unknown_replies={},
)


def upstream(**more: object) -> UpstreamFigures:
    return replace(_UPSTREAM, **more)  # type: ignore[arg-type]


def room(**more: object) -> RoomFigures:
    return replace(_ROOM, **more)  # type: ignore[arg-type]


def figures(**more: object) -> Figures:
    return replace(_ALL, **more)  # type: ignore[arg-type]


def stream(
    campaign: str,
    waiting: int,
    parked: int = 0,
    quarantined: int = 0,
    *,
    lane: str = "bulk",
    oldest_at: int | None = None,
) -> StreamFigures:
    return StreamFigures(
        upstream="ses",
        lane=lane,
        campaign=campaign,
        waiting=waiting,
        parked=parked,
        quarantined=quarantined,
        oldest_at=oldest_at,
    )


def hold(key: str, source: str = "breaker", **more: object) -> HoldFigures:
    made = HoldFigures(key=key, source=source, reason="test", since_at=1, next_probe_at=0)
    return replace(made, **more)  # type: ignore[arg-type]


def event(text: str, *, at: int = 1, upstream: str = "ses") -> EventFigures:
    return EventFigures(at=at, upstream=upstream, text=text)

"""The figures of this moment, gathered from the rooms that know them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from relay import __version__
from relay.breaker import (
    Source,
    account_key,
    campaign_key,
    in_doubt_key,
    sandbox_key,
    sender_key,
)
from relay.envelope import id_text
from relay.figures import (
    EventFigures,
    Figures,
    HoldFigures,
    RoomFigures,
    StreamFigures,
    UpstreamFigures,
    rate_in_words,
)
from relay.spool import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay import config
    from relay.breaker import Hold, Holds
    from relay.service.branch import Branch
    from relay.service.memory import Memory
    from relay.shaper import Shaper
    from relay.spool import Found, Spool

UPSTREAMS_SAID = 3
"""Upstreams whose rates stand in the one line of ``systemctl status``."""


def streams_of(spool: Spool) -> tuple[StreamFigures, ...]:
    """Waiting mail by stream, in the order of the names."""
    oldest = spool.oldest()
    by_stream: dict[tuple[str, str, str], Counter[State]] = {}
    for (upstream, lane, campaign, state), count in spool.depth().items():
        by_stream.setdefault((upstream, lane, campaign), Counter())[state] += count
    return tuple(
        StreamFigures(
            upstream=upstream,
            lane=lane,
            campaign=campaign,
            waiting=counts[State.WAITING],
            parked=counts[State.PARKED],
            quarantined=counts[State.QUARANTINED],
            # The depth is of now, the look at the oldest some seconds old.
            oldest_at=oldest.get((upstream, lane, campaign)) if counts[State.WAITING] else None,
        )
        for (upstream, lane, campaign), counts in sorted(by_stream.items())
        if counts[State.WAITING] or counts[State.PARKED] or counts[State.QUARANTINED]
    )


def holds_of(holds: Iterable[Hold]) -> tuple[HoldFigures, ...]:
    """The holds, the oldest first."""
    return tuple(
        HoldFigures(
            key=hold.key,
            source=hold.source.value,
            reason=hold.reason,
            since_at=hold.since_at,
            next_probe_at=hold.next_probe_at,
        )
        for hold in holds
    )


def room_of(spool: Spool, now: float) -> RoomFigures:
    """Room on the spool's disk; ``now`` is monotonic."""
    room, since = spool.room(), spool.stalled_since
    return RoomFigures(
        used_bytes=room.used_bytes,
        size_max_bytes=room.size_max_bytes,
        free_bytes=room.free_bytes,
        free_min_bytes=room.free_min_bytes,
        stalled_s=0.0 if since is None else max(0.0, now - since),
    )


def upstream_of(branch: Branch, now_ms: int, now: float) -> UpstreamFigures:
    """One upstream's figures."""
    pool, quota = branch.pool.snapshot(), branch.quota.snapshot(now_ms)
    resting = resting_upstream(branch.config, branch.shaper, branch.memory, now_ms)
    figures = replace(
        resting,
        doing=branch.dispatcher.doing,
        session_bound=branch.dispatcher.session_bound,
        sent_per_s=branch.dispatcher.sent_per_s(now),
        sessions_open=pool.open,
        sessions_busy=pool.busy,
        sessions_ceiling=pool.ceiling,
        quota_used=quota.used,
        quota_left=quota.left,
        quota_next_at=quota.next_at,
        quota_allowed=quota.allowed,
        quota_spent_at=quota.spent_at,
        quota_room_at=quota.room_at,
    )
    return replace(figures, rate_words=rate_in_words(figures, now_ms))


def resting_upstream(
    upstream: config.Upstream, shaper: Shaper, memory: Memory, now_ms: int
) -> UpstreamFigures:
    """The figures of an upstream to which nothing is sent: what is known of its rate."""
    state, rate = shaper.snapshot(), upstream.rate
    known_by, known_at = memory.known()
    figures = UpstreamFigures(
        name=upstream.name,
        doing="stopped: the relay is not running",
        rate_words="",
        rate_per_s=state.rate_per_s,
        limit_per_s=state.limit_per_s,
        error_share=state.error_share,
        known_by=known_by.value,
        known_at=known_at,
        burst=state.burst,
        noise_share=state.noise_share,
        phase=state.phase,
        refused_share=state.refused_share,
        start_per_s=rate.start_per_s,
        floor_per_s=rate.floor_per_s,
        ceiling_per_s=rate.ceiling_per_s,
        use_max=rate.use_max,
        session_bound=False,
        sent_per_s=0.0,
        sessions_open=0,
        sessions_busy=0,
        sessions_ceiling=0,
        quota_used=0,
        quota_left=None,
        quota_next_at=None,
    )
    return replace(figures, rate_words=rate_in_words(figures, now_ms))


def of_stopped_spool(
    spool: Spool,
    holds: list[Hold],
    events: tuple[EventFigures, ...],
    now_ms: int,
    now: float,
) -> Figures:
    """What can be said of a relay that is not running."""
    return Figures(
        version=__version__,
        now=now_ms,
        started_at=0,
        paused=False,
        draining=False,
        upstreams=(),
        streams=streams_of(spool),
        holds=holds_of(holds),
        room=room_of(spool, now),
        events=events,
        totals={},
        unknown_replies={},
    )


def is_paused(holds: Iterable[Hold], names: Iterable[str]) -> bool:
    """Whether an operator holds every account."""
    held = {hold.key for hold in holds if hold.source is Source.OPERATOR}
    return all(account_key(name) in held for name in names)


def found_as_json(found: Iterable[Found], holds: Holds) -> list[dict[str, Any]]:
    """What ``find`` found, ids as people see them, with the holds in the way of what waits."""
    return [
        {
            **asdict(one),
            "envelope_id": id_text(one.envelope_id),
            "held_by": [f"{hold.key}: {hold.reason}" for hold in _in_the_way(one, holds)],
        }
        for one in found
    ]


def _in_the_way(one: Found, holds: Holds) -> list[Hold]:
    if one.status not in {State.WAITING.name.lower(), State.PARKED.name.lower()}:
        return []
    keys = {
        account_key(one.upstream),
        campaign_key(one.campaign),
        sender_key(one.upstream, one.sender),
    }
    if one.status == State.PARKED.name.lower():
        keys |= {sandbox_key(one.upstream), in_doubt_key(one.upstream)}
    return [hold for hold in holds.all() if hold.key in keys]


def in_words(figures: Figures) -> str:
    """One line for ``systemctl status``: is mail taken, does it go out, how much waits."""
    stalled_s = figures.room.stalled_s
    taking = f"stalled for {stalled_s:.0f} s: no room in the spool" if stalled_s else "taking mail"
    rate_per_s = sum(one.sent_per_s for one in figures.upstreams)
    waiting = sum(one.waiting for one in figures.streams)
    parked = sum(one.parked for one in figures.streams)
    sending = "sending is paused" if figures.paused else f"sending {rate_per_s:.1f}/s"
    held = f", {parked} held ({', '.join(sorted({one.key for one in figures.holds}))})"
    known = "".join(f"; {one.name} {one.rate_words}" for one in figures.upstreams[:UPSTREAMS_SAID])
    return f"{taking}; {sending}; {waiting} waiting{held if parked or figures.holds else ''}{known}"

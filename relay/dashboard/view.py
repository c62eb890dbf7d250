"""What the page shows of the figures: one sentence, sums by lane, and the way out of a hold.

Made here and not in the browser, so that it is tested like the rest and a program that
listens to the events gets it, too. Bounded, however many campaigns there are: an event goes
to each viewer each second. Pure; the texts in it come from outside and are for ``textContent``.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.figures import (
        EventFigures,
        Figures,
        HoldFigures,
        StreamFigures,
        UpstreamFigures,
    )

STREAMS_MAX = 100
"""Streams in an event, those with most recipients; all of them count in the lanes."""
HOLDS_MAX = 50
REPLIES_MAX = 20
EVENTS_MAX = 10
"""The latest; ``/api/v1/status`` has all that are kept."""
TEXT_MAX = 500
"""Characters of a reason or a reply: SES's longest is below 300 (facts/ses-smtp.md)."""
_STATES = ("waiting", "parked", "quarantined")
_UNWELL = ("unreachable", "stopped", "broken", "spool")
"""How ``UpstreamFigures.doing`` begins if mail cannot go and nobody wished it so."""

Level = Literal["good", "note", "bad"]
_RESTING = ("idle", "waiting")
SHOWN_PER_S = 0.05
"""The least speed that one digit after the point shows."""


@dataclass(frozen=True, slots=True)
class Glance:
    """How it is, in one sentence. "note": somebody wished it so; "bad": look now."""

    level: Level
    text: str


def view(figures: Figures) -> dict[str, Any]:
    """The figures as the page wants them: ``as_json`` shortened, and what is said of them."""
    streams = sorted(figures.streams, key=lambda one: -(one.waiting + one.parked))
    replies = sorted(figures.unknown_replies.items(), key=lambda one: -one[1])
    return {
        "glance": asdict(glance(figures)),
        **figures.as_json(),
        "lanes": _by_lane(figures.streams),
        "streams": [asdict(one) for one in streams[:STREAMS_MAX]],
        "streams_more": len(streams[STREAMS_MAX:]),
        "holds": [_hold(one) for one in figures.holds[:HOLDS_MAX]],
        "holds_more": len(figures.holds[HOLDS_MAX:]),
        "events": [_event(one) for one in figures.events[-EVENTS_MAX:]],
        "unknown_replies": {text[:TEXT_MAX]: count for text, count in replies[:REPLIES_MAX]},
    }


def glance(figures: Figures) -> Glance:
    """The one sentence; what is worst comes first."""
    said = (rule(figures) for rule in _RULES)
    return next(one for one in said if one is not None)


def release_command(hold: HoldFigures) -> str:
    """What to type to lift ``hold``, safe to paste into a shell whatever its key holds.

    A plain release lifts the operator's hold and the breaker's, Listmonk's must be named.
    """
    named = ["--source", "listmonk"] if hold.source == "listmonk" else []
    return shlex.join(["relay", "queue", "release", hold.key, *named])


def _by_lane(streams: Iterable[StreamFigures]) -> list[dict[str, Any]]:
    lanes: dict[str, dict[str, Any]] = {}
    for stream in streams:
        empty = {"lane": stream.lane, **dict.fromkeys(_STATES, 0), "oldest_at": None}
        lane = lanes.setdefault(stream.lane, empty)
        for state in _STATES:
            lane[state] += getattr(stream, state)
        known = [at for at in (lane["oldest_at"], stream.oldest_at) if at is not None]
        lane["oldest_at"] = min(known, default=None)
    return [lanes[name] for name in sorted(lanes)]


def _hold(hold: HoldFigures) -> dict[str, Any]:
    command = release_command(hold)
    return {**asdict(hold), "reason": hold.reason[:TEXT_MAX], "release": command}


def _event(event: EventFigures) -> dict[str, Any]:
    return {**asdict(event), "text": event.text[:TEXT_MAX]}


# -- The sentence, a rule each: what it says, or None if it does not apply -----------------------


def _stopping(figures: Figures) -> Glance | None:
    return Glance("note", "stopping: finishing what is under way") if figures.draining else None


def _stalled(figures: Figures) -> Glance | None:
    if not figures.room.stalled_s:
        return None
    return Glance("bad", "stalled: no room in the spool, clients wait; make room on the disk")


def _paused(figures: Figures) -> Glance | None:
    return Glance("note", f"paused: {_waiting(figures)}") if figures.paused else None


def _unwell(figures: Figures) -> Glance | None:
    unwell = [one for one in figures.upstreams if one.doing.startswith(_UNWELL)]
    if not unwell:
        return None
    said = "; ".join(f"{one.name} {_doing(one)}" for one in unwell)
    others = f"; {_speed(figures)}" if len(unwell) < len(figures.upstreams) else ""
    return Glance("bad", said + others)


def _account_held(figures: Figures) -> Glance | None:
    accounts = {f"account:{one.name}" for one in figures.upstreams}
    held = [hold for hold in figures.holds if hold.key in accounts]
    if not held:
        return None
    others = (
        f"; {_speed(figures)}" if any(one.doing == "sending" for one in figures.upstreams) else ""
    )
    return Glance("bad", f"held: {held[0].key}: {held[0].reason[:TEXT_MAX]}{others}")


def _quota_spent(figures: Figures) -> Glance | None:
    spent = [one for one in figures.upstreams if one.doing == "quota"]
    if not spent:
        return None
    names = ", ".join(one.name for one in spent)
    return Glance("note", f"daily quota of {names} spent: {_waiting(figures)}")


def _sending(figures: Figures) -> Glance | None:
    if not any(_goes(one) for one in figures.upstreams):
        return None
    return Glance("good", _speed(figures) + _also_held(figures))


def _some_held(figures: Figures) -> Glance | None:
    if not figures.holds or not _count(figures):
        return None
    first, more = figures.holds[0], len(figures.holds) - 1
    others = f" and {more} more" if more else ""
    return Glance("bad", f"held: {first.key}{others}: {first.reason[:TEXT_MAX]}")


def _resting(figures: Figures) -> Glance:
    if not _count(figures):
        return Glance("good", f"nothing waits{_also_held(figures)}")
    doing = ", ".join(dict.fromkeys(one.doing for one in figures.upstreams))
    return Glance("note", f"{doing or 'no upstream'} ({_waiting(figures)})")


_RULES: tuple[Callable[[Figures], Glance | None], ...] = (
    _stopping,
    _stalled,
    _paused,
    _unwell,
    _account_held,
    _quota_spent,
    _sending,
    _some_held,
    _resting,
)


def _goes(upstream: UpstreamFigures) -> bool:
    """Whether mail goes now; the speed is of the last seconds and outlives the last mail."""
    if upstream.doing.startswith(_RESTING):
        return False
    return upstream.doing == "sending" or upstream.sent_per_s >= SHOWN_PER_S


def _speed(figures: Figures) -> str:
    sent = sum(one.sent_per_s for one in figures.upstreams)
    limits = [one.limit_per_s for one in figures.upstreams if one.limit_per_s]
    known = bool(limits) and len(limits) == len(figures.upstreams)
    limit = f"limit {sum(limits):.1f}".removesuffix(".0") if known else "limit not known yet"
    bound = ", session-bound" if any(one.session_bound for one in figures.upstreams) else ""
    return f"sending {sent:.1f} a second{bound}; {limit}"


def _doing(upstream: UpstreamFigures) -> str:
    state, _, why = upstream.doing[:TEXT_MAX].partition(": ")
    state = {"unreachable": "not reachable", "spool": "stopped"}.get(state, state)
    return f"{state}: {why}" if why else state


def _count(figures: Figures) -> int:
    return sum(one.waiting + one.parked for one in figures.streams)


def _waiting(figures: Figures) -> str:
    count = _count(figures)
    return f"{count:,} {'recipient waits' if count == 1 else 'recipients wait'}"


def _also_held(figures: Figures) -> str:
    count = len(figures.holds)
    return f"; {count} {'hold' if count == 1 else 'holds'}, see below" if count else ""

"""``relay status``: the figures of this moment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from relay.cli._load import config_option, load, locate
from relay.cli._running import ask
from relay.figures import per_s, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


STREAMS_MAX = 20
"""Streams shown; the rest is summed up in one line."""
EVENTS_MAX = 5
"""Events shown, the latest; the page and --json have more."""


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def status(path: Path | None, as_json: bool) -> None:
    """Show what waits, how fast it goes and what is in its way.

    Asks the running relay; if none runs, reads the spool.
    """
    figures = ask(load(locate(path)), "status")
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo("\n".join(_lines(figures)))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    now = figures["now"]
    if not figures["started_at"]:
        yield "the relay is not running"
    else:
        state = ", stopping" if figures["draining"] else ", paused" if figures["paused"] else ""
        running = span(now - figures["started_at"])
        yield f"relay {figures['version']}  running for {running}{state}"
    for upstream in figures["upstreams"]:
        yield from _upstream_lines(upstream, now)
    yield from _stream_lines(figures["streams"], now)
    yield from _hold_lines(figures["holds"], now)
    room = figures["room"]
    yield (
        f"spool  {_size(room['used_bytes'])} used, {_size(room['free_bytes'])} free on the disk"
        f" (intake stalls below {_size(room['free_min_bytes'])})"
    )
    if room["stalled_s"]:
        yield f"  STALLED for {span(room['stalled_s'] * 1000)}: clients wait; make room on the disk"
    if figures["totals"]:
        totals = figures["totals"]
        yield "since the start  " + ", ".join(f"{name} {n}" for name, n in sorted(totals.items()))
    for event in figures["events"][-EVENTS_MAX:]:
        yield f"{span(now - event['at'])} ago  {event['upstream']}  {event['text']}"
    for text, count in figures["unknown_replies"].items():
        yield f"unknown reply  {count} x {text}"


def _upstream_lines(upstream: dict[str, Any], now: int) -> Iterator[str]:
    yield f"{upstream['name']}  {upstream['doing']}"
    yield f"  {upstream['rate_words']}"
    yield (
        f"  sent {per_s(upstream['sent_per_s'])} of {per_s(upstream['rate_per_s'])},"
        f" refused {upstream['refused_share']:.2%}"
    )
    yield (
        f"  sessions {upstream['sessions_open']} open, {upstream['sessions_busy']} busy,"
        f" at most {upstream['sessions_ceiling']}"
    )
    yield from _quota_lines(upstream, now)
    if upstream["aws"]:
        yield from _aws_lines(upstream["aws"], now)


def _quota_lines(upstream: dict[str, Any], now: int) -> Iterator[str]:
    """What was used, and when there is more, if there is none."""
    left = "" if upstream["quota_left"] is None else f", {upstream['quota_left']} left"
    yield f"  quota {upstream['quota_used']} in 24 h{left}"
    next_at, room_at = upstream["quota_next_at"], upstream["quota_room_at"]
    if next_at and upstream["quota_spent_at"]:
        room = f", room expected in {span(room_at - now)}" if room_at else ""
        yield f"  quota spent, asking again in {span(next_at - now)}{room}"
    elif next_at:
        yield f"  quota used but for the priority lane's reserve, more in {span(next_at - now)}"


def _aws_lines(aws: dict[str, Any], now: int) -> Iterator[str]:
    """What AWS says beside what was learned; what it did not say is left out."""
    rate, sent, day = aws["rate_max_per_s"], aws["sent_24_h"], aws["max_24_h"]
    facts = [
        "" if rate is None else f"at most {per_s(rate)}",
        "" if sent is None else f"{sent} sent in 24 h" + ("" if day is None else f" of {day}"),
        aws["enforcement"] or "",
        f"as of {span(now - aws['said_at'])} ago",
    ]
    yield f"  AWS says  {', '.join(filter(None, facts))}"
    for trouble in aws["troubles"]:
        yield f"  AWS SAYS  {trouble}"


def _stream_lines(streams: list[dict[str, Any]], now: int) -> Iterator[str]:
    waiting = sum(stream["waiting"] + stream["parked"] for stream in streams)
    yield f"waiting  {waiting} recipients"
    for stream in streams[:STREAMS_MAX]:
        states = [f"{stream[name]} {name}" for name in ("waiting", "parked", "quarantined")]
        facts = [state for state in states if not state.startswith("0 ")]
        if stream["oldest_at"] is not None:
            facts.append(f"oldest {span(now - stream['oldest_at'])}")
        yield f"  {stream['lane']:8} {stream['campaign'] or '(no campaign)':36}  {', '.join(facts)}"
    rest = streams[STREAMS_MAX:]
    if rest:
        count = sum(stream["waiting"] + stream["parked"] for stream in rest)
        yield f"  and {len(rest)} more streams with {count} recipients"


def _hold_lines(holds: list[dict[str, Any]], now: int) -> Iterator[str]:
    for hold in holds:
        probe = hold["next_probe_at"]
        again = f"tried again in {span(probe - now)}" if probe else "until released"
        since = span(now - hold["since_at"])
        yield f"HELD  {hold['key']}  by {hold['source']} for {since}, {again}"
        yield f"  {hold['reason']}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

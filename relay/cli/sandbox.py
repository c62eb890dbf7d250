"""``relay sandbox``: the SES twin alone, to point a relay (or any SMTP client) at.

Prints where it listens and how to use it, counts once a second if somebody is watching,
and sums up when it is told to stop. Only loopback: its password and its TLS key are
public.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import click

from relay.errors import RelayError
from relay.twin import NO_LATENCY, Latency, Ledger, Twin, TwinConfig, certificate_files

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 2587
"""The higher of SES's two STARTTLS ports; the lower needs root."""

_TICK_S = 1.0
_DEFAULTS = TwinConfig()


class _Settings(TypedDict):
    """The options that are fields of ``TwinConfig`` under the same name."""

    host: str
    port: int
    rate_per_s: float
    burst: float | None
    quota: int
    session_messages: tuple[int, int]
    connections_max: int
    idle_s: float
    tls: Literal["starttls", "implicit", "none"]
    auth_required: bool
    username: str
    password: str
    seed: int | None


def _range(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, int]:
    """Both ends of ``N`` or ``LOW-HIGH``."""
    low, dash, high = value.partition("-")
    try:
        return int(low), int(high if dash else low)
    except ValueError:
        raise click.BadParameter(f"found {value!r}, wanted a number or LOW-HIGH") from None


@click.command()
@click.option("--host", default=_DEFAULTS.host, show_default=True, help="A loopback address.")
@click.option("--port", default=PORT, show_default=True, help="0: any free one.")
@click.option(
    "--limit",
    "rate_per_s",
    type=float,
    default=_DEFAULTS.rate_per_s,
    show_default=True,
    help="Maximum send rate, recipients a second.",
)
@click.option("--burst", type=float, help="Recipients at once.  [default: one second's worth]")
@click.option(
    "--quota", default=_DEFAULTS.quota, show_default=True, help="Recipients in 24 h; 0: any number."
)
@click.option(
    "--session-messages",
    metavar="N|LOW-HIGH",
    callback=_range,
    default="{}-{}".format(*_DEFAULTS.session_messages),
    show_default=True,
    help="Messages until a session is ended with 421; each draws from the range.",
)
@click.option(
    "--connections",
    "connections_max",
    default=_DEFAULTS.connections_max,
    show_default=True,
    help="Connections at the same time.",
)
@click.option(
    "--idle",
    "idle_s",
    type=float,
    default=_DEFAULTS.idle_s,
    show_default=True,
    help="Seconds of silence after which a session is cut; 0: never.",
)
@click.option(
    "--latency",
    "rtt_ms",
    type=float,
    default=_DEFAULTS.latency.rtt_s * 1000,
    show_default=True,
    help="Round trip in ms; 0 answers at once, at the final dot, too.",
)
@click.option(
    "--tls",
    type=click.Choice(["starttls", "implicit", "none"]),
    default=_DEFAULTS.tls,
    show_default=True,
)
@click.option(
    "--auth/--no-auth", "auth_required", default=True, show_default=True, help="Require a login."
)
@click.option("--user", "username", default=_DEFAULTS.username, show_default=True)
@click.option("--password", default=_DEFAULTS.password, show_default=True)
@click.option("--seed", type=int, help="Makes caps, ids and latencies repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Sum up as JSON; all else goes to stderr.")
def sandbox(rtt_ms: float, as_json: bool, **settings: Unpack[_Settings]) -> None:
    """Play Amazon SES on this machine. No mail leaves it.

    SES's dialogue and limits: 454 over the rate, a daily quota, sessions that end, the
    idle cut. Stop it with Ctrl-C or SIGTERM.
    """
    latency = Latency(rtt_s=rtt_ms / 1000) if rtt_ms > 0 else NO_LATENCY
    try:
        config = TwinConfig(**settings, latency=latency)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        ledger = runner.run(_play(config, as_json=as_json))
    click.echo(json.dumps(ledger.summary()) if as_json else _summary(ledger))


async def _play(config: TwinConfig, *, as_json: bool) -> Ledger:
    """Run the twin until a signal comes; returns what it has seen."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    twin = Twin(config)
    try:
        await twin.start()
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise RelayError(f"cannot listen on {where}: {error.strerror}") from error
    click.echo(_banner(twin), err=as_json)
    if sys.stderr.isatty():
        await _watch(stopped, lambda: _show(twin.ledger))
    await stopped.wait()
    await twin.stop()
    return twin.ledger


async def _watch(stopped: asyncio.Event, show: Callable[[], None]) -> None:
    """Call ``show`` each second until ``stopped``."""
    while not stopped.is_set():
        show()
        try:
            await asyncio.wait_for(stopped.wait(), _TICK_S)
        except TimeoutError:
            pass
    click.echo(err=True)


def _show(ledger: Ledger) -> None:
    total = ledger.total
    line = (
        f"accepted {total.accepted}  throttled {total.throttled}  over quota {total.over_quota}"
        f"  otherwise refused {total.refused.total()}  sessions {ledger.sessions_open}"
    )
    click.echo(f"\r{line:<90}", nl=False, err=True)


def _banner(twin: Twin) -> str:
    """Where it listens, what it allows, and the lines for relay.toml."""
    config = twin.config
    low, high = config.session_messages
    tls = {"starttls": "STARTTLS", "implicit": "implicit TLS", "none": "no TLS"}[config.tls]
    where = f"{config.host}:{twin.port} ({tls})"
    limits = f"{config.rate_per_s:g} recipients/s, {config.quota or 'any number'} in 24 h"
    caps = (
        f"{config.connections_max} connections of {low}-{high} messages, {config.idle_s:g} s idle"
    )
    lines = [
        f"SES twin listening on {where}; no mail leaves this machine",
        f"limits: {limits}, {caps}",
        "to send to it, in relay.toml:",
        "  [[upstream]]",
        f'  host = "{config.host}"',
        f"  port = {twin.port}",
        f'  tls = "{config.tls}"',
    ]
    if config.tls != "none":
        lines.append(f'  ca_file = "{certificate_files()[0]}"')
    if config.auth_required:
        lines.append(f'  username = "{config.username}"')
        if config.password == _DEFAULTS.password:
            lines.append(f"and RELAY_SES_PASSWORD={config.password} in the environment")
    return "\n".join(lines)


def _summary(ledger: Ledger) -> str:
    """What happened, in a few lines."""
    total = ledger.total
    peaks = ", ".join(f"{ledger.rate_peak(s):.1f}/s over {s} s" for s in (1, 10, 60))
    accepted = f"accepted {total.accepted} messages to {total.recipients} recipients"
    throttled = f"454 for the rate {total.throttled} ({ledger.refused_share():.2%})"
    lines = [
        f"{accepted} of {total.attempts} that reached the dot",
        f"{throttled}, for the quota {total.over_quota}; twice {len(ledger.twice())}",
        f"most accepted: {peaks}",
        f"sessions {ledger.sessions_opened}, at most {ledger.sessions_peak} at a time",
        *(f"{n:>7} x {text}" for text, n in total.refused.most_common()),
    ]
    return "\n".join(lines)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where it is installed, else None for Python's own."""
    try:
        import uvloop  # noqa: PLC0415  (optional: the twin runs without it, too)
    except ImportError:
        return None
    return uvloop.new_event_loop

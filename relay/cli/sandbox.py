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
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from relay.cli._twin_options import PORT, twin_config, twin_options
from relay.errors import RelayError
from relay.loops import loop_factory
from relay.twin import SCENARIOS, Ledger, Scenario, Twin, TwinConfig, certificate_files

if TYPE_CHECKING:
    from collections.abc import Callable

_TICK_S = 1.0
_DEFAULTS = TwinConfig()
_PLAIN = Scenario(words="", config=_DEFAULTS)


def _list(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Print the scenarios and leave, if that is what is wanted."""
    if wanted:
        width = max(map(len, SCENARIOS))
        for name, scenario in SCENARIOS.items():
            click.echo(f"{name:<{width}}  {scenario.words}")
        context.exit()


@click.command()
@click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS)),
    metavar="NAME",
    help="A trouble that SES makes; other options go before its own settings.",
)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="Tell what each scenario plays, and leave.",
)
@twin_options
@click.option("--json", "as_json", is_flag=True, help="Sum up as JSON; all else goes to stderr.")
@click.pass_context
def sandbox(context: click.Context, /, scenario: str | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401  (click's)
    """Play Amazon SES on this machine. No mail leaves it.

    SES's dialogue and limits: 454 over the rate, a daily quota, sessions that end, the
    idle cut. Stop it with Ctrl-C or SIGTERM.
    """
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    story = _PLAIN if scenario is None else SCENARIOS[scenario]
    try:
        config = twin_config(replace(story.config, port=PORT), given)
        twin = story.twin(config)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    tale = f"{scenario}: {story.words}" if scenario else ""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        ledger = runner.run(_play(twin, tale, as_json=as_json))
    click.echo(json.dumps(ledger.summary()) if as_json else _summary(ledger))


async def _play(twin: Twin, tale: str, *, as_json: bool) -> Ledger:
    """Run the twin until a signal comes; returns what it has seen."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        await twin.start()
    except OSError as error:
        where = f"{twin.config.host}:{twin.config.port}"
        raise RelayError(f"cannot listen on {where}: {error.strerror}") from error
    click.echo(_banner(twin, tale), err=as_json)
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


def _banner(twin: Twin, tale: str) -> str:
    """Where it listens, what it plays and allows, and the lines for relay.toml."""
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
        *([tale] if tale else []),
        f"limits: {limits}, {caps}",
        *([f"GetSendQuota and GetAccount on port {twin.api_port}"] if twin.api_port else []),
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

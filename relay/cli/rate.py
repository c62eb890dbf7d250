"""``relay rate``: what is known of the send limit, and how to correct it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from relay.cli._holding import json_option
from relay.cli._load import config_option, load, locate
from relay.cli._running import ask
from relay.cli.pause import upstream_option
from relay.figures import known_in_words, limit_in_words, per_s

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@click.group(invoke_without_command=True)
@upstream_option
@json_option
@config_option
@click.pass_context
def rate(context: click.Context, upstream: str | None, as_json: bool, path: Path | None) -> None:
    """Show the send rate of each upstream and what it has learned of the limit."""
    if context.invoked_subcommand is None:
        _show(ask(load(locate(path)), "rate", upstream=upstream), as_json)
    elif upstream or as_json or path:
        raise click.UsageError("options stand after the word: relay rate set N --upstream NAME")


@rate.command("set")
@click.argument("told", metavar="N", type=click.FloatRange(min=0, min_open=True))
@upstream_option
@json_option
@config_option
def rate_set(told: float, upstream: str | None, as_json: bool, path: Path | None) -> None:
    """Start over from N recipients a second as what is known of the limit.

    The relay goes on learning from there. To be sure that it never sends faster, set
    ceiling_per_s under [upstream.rate] in relay.toml.
    """
    _show(ask(load(locate(path)), "set_rate", upstream=upstream, per_s=told), as_json)


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer["upstreams"]))
        return
    for upstream in answer["upstreams"]:
        click.echo("\n".join(_lines(upstream, answer["now"])))


def _lines(upstream: dict[str, Any], now: int) -> Iterator[str]:
    yield f"{upstream['name']}  {upstream['rate_words']}"
    limit, known_by = upstream["limit_per_s"], upstream["known_by"]
    known = "" if limit is None else f", {known_in_words(known_by, upstream['known_at'], now)}"
    burst = "" if upstream["burst"] is None else f", bursts of {upstream['burst']:.0f}"
    yield f"  limit {limit_in_words(limit, upstream['error_share'])}{known}{burst}"
    yield (
        f"  rate {per_s(upstream['rate_per_s'])}, refused {upstream['refused_share']:.2%} of the"
        f" last 1,000 recipients, {upstream['noise_share']:.2%} by chance"
    )
    ceiling = upstream["ceiling_per_s"]
    highest = f"at most {ceiling:g}/s" if ceiling else "no ceiling"
    yield (
        f"  configured: start {upstream['start_per_s']:g}/s, at least"
        f" {upstream['floor_per_s']:g}/s, {highest}, use_max {upstream['use_max']:g}"
    )

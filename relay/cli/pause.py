"""``relay pause`` and ``relay resume``: stop sending, and go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from relay.cli._holding import json_option, reason_option
from relay.cli._load import config_option, load, locate
from relay.cli._running import ask

if TYPE_CHECKING:
    from pathlib import Path

upstream_option = click.option("--upstream", metavar="NAME", help="Only this one; default: all.")


@click.command()
@upstream_option
@reason_option
@json_option
@config_option
def pause(upstream: str | None, reason: str, as_json: bool, path: Path | None) -> None:
    """Send nothing more until relay resume.

    What is under way is finished. Mail is still taken, and kept. A restart changes nothing;
    without a running relay, the next start will be paused.
    """
    answer = ask(load(locate(path)), "pause", upstream=upstream, reason=reason)
    if as_json:
        click.echo(json.dumps(answer))
        return
    for name in answer["paused"]:
        was = "was paused already" if name in answer["already"] else "paused"
        click.echo(f"{was}: {name}; mail is taken, nothing is sent until relay resume")


@click.command()
@upstream_option
@json_option
@config_option
def resume(upstream: str | None, as_json: bool, path: Path | None) -> None:
    """Send again after relay pause or serve --paused.

    What a breaker holds stays held; it goes on by itself, or by relay queue release.
    """
    answer = ask(load(locate(path)), "resume", upstream=upstream)
    if as_json:
        click.echo(json.dumps(answer))
        return
    click.echo(
        f"resumed: {', '.join(answer['resumed'])}" if answer["resumed"] else "was not paused"
    )
    for hold in answer["still_held"]:
        click.echo(f"still held: {hold['key']}\n  {hold['reason']}")

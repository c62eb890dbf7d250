"""``relay queue`` and ``relay campaign``: keep mail back, let it go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from relay.cli._load import config_option, load, locate
from relay.cli._running import ask

if TYPE_CHECKING:
    from pathlib import Path

_REASON = click.option("--reason", default="", help="Shown beside the hold.")
_SOURCE = click.option(
    "--source",
    type=click.Choice(["operator", "breaker", "listmonk"]),
    help="Lift only this one's hold; default: the operator's and the breaker's.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group()
def queue() -> None:
    """Hold and release mail by the key that relay status shows."""


@queue.command("hold")
@click.argument("key")
@_REASON
@_JSON
@config_option
def queue_hold(key: str, reason: str, as_json: bool, path: Path | None) -> None:
    """Keep mail back: account:NAME, sender:NAME:ADDRESS, campaign:UUID."""
    _hold(path, key, reason, as_json)


@queue.command("release")
@click.argument("key")
@_SOURCE
@_JSON
@config_option
def queue_release(key: str, source: str | None, as_json: bool, path: Path | None) -> None:
    """Let held mail go: a key as relay status shows it."""
    _release(path, key, source, as_json)


@click.group()
def campaign() -> None:
    """Look at campaigns, hold and release them."""


@campaign.command("list")
@_JSON
@config_option
def campaign_list(as_json: bool, path: Path | None) -> None:
    """Show each campaign that has mail waiting."""
    figures = ask(load(locate(path)), "status")
    held = {hold["key"]: hold for hold in figures["holds"]}
    rows = [
        {**stream, "held": held.get(f"campaign:{stream['campaign']}", {}).get("reason", "")}
        for stream in figures["streams"]
        if stream["campaign"]
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("no campaign has mail waiting")
    for row in rows:
        reason = f"  HELD: {row['held']}" if row["held"] else ""
        click.echo(f"{row['campaign']}  {row['waiting'] + row['parked']} waiting{reason}")


@campaign.command("hold")
@click.argument("uuid")
@_REASON
@_JSON
@config_option
def campaign_hold(uuid: str, reason: str, as_json: bool, path: Path | None) -> None:
    """Keep a campaign's mail back; other mail goes on."""
    _hold(path, f"campaign:{uuid.lower()}", reason, as_json)


@campaign.command("release")
@click.argument("uuid")
@_SOURCE
@_JSON
@config_option
def campaign_release(uuid: str, source: str | None, as_json: bool, path: Path | None) -> None:
    """Let a held campaign go on."""
    _release(path, f"campaign:{uuid.lower()}", source, as_json)


def _hold(path: Path | None, key: str, reason: str, as_json: bool) -> None:
    answer = ask(load(locate(path)), "hold", key=key, reason=reason)
    click.echo(json.dumps(answer) if as_json else f"held: {key}")


def _release(path: Path | None, key: str, source: str | None, as_json: bool) -> None:
    named = {"source": source} if source else {}
    answer = ask(load(locate(path)), "release", key=key, **named)
    if as_json:
        click.echo(json.dumps(answer))
    elif answer["left"]:
        click.echo(f"still held by {', '.join(answer['left'])}: {key}")
    elif answer["lifted"]:
        click.echo(f"released: {key}")
    else:
        click.echo(f"was not held: {key}")

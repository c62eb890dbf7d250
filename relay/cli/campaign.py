"""``relay campaign``: what each campaign waits for; keep it back, let it go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from relay.cli._holding import hold, json_option, reason_option, release, source_option
from relay.cli._load import config_option, load, locate
from relay.cli._running import ask

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def campaign() -> None:
    """Look at campaigns, hold and release them."""


@campaign.command("list")
@json_option
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
@reason_option
@json_option
@config_option
def campaign_hold(uuid: str, reason: str, as_json: bool, path: Path | None) -> None:
    """Keep a campaign's mail back; other mail goes on."""
    hold(path, f"campaign:{uuid.lower()}", reason, as_json)


@campaign.command("release")
@click.argument("uuid")
@source_option
@json_option
@config_option
def campaign_release(uuid: str, source: str | None, as_json: bool, path: Path | None) -> None:
    """Let a held campaign go on."""
    release(path, f"campaign:{uuid.lower()}", source, as_json)

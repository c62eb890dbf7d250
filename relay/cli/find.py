"""``relay find``: what became of a mail."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from relay.cli._load import config_option, load, locate
from relay.cli._running import ask

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("query", metavar="ADDRESS|MESSAGE-ID|QUEUE-ID|SES-ID")
@config_option
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
def find(query: str, path: Path | None, as_json: bool) -> None:
    """Say what became of a mail, or what it waits for.

    Exit code 0 if anything was found, 1 if not.
    """
    found = ask(load(locate(path)), "find", query=query)["found"]
    if as_json:
        click.echo(json.dumps(found))
    elif not found:
        click.echo("nothing found")
    for one in found if not as_json else ():
        click.echo("\n".join(_lines(one)))
    raise SystemExit(0 if found else 1)


def _lines(one: dict[str, Any]) -> list[str]:
    tries = f", {one['attempts']} attempts" if one["attempts"] != 1 else ""
    doubt = ", may have arrived before (in doubt)" if one["in_doubt"] else ""
    lines = [
        f"{one['address']}  {one['status']}  {_when(one['at'])}{tries}{doubt}",
        f"  received  {_when(one['received_at'])} as {one['envelope_id']}, {one['lane']}",
        f"  message   {one['message_id'] or '(no Message-ID)'} from {one['sender']}",
    ]
    if one["campaign"]:
        lines.append(f"  campaign  {one['campaign']}, subscriber {one['subscriber'] or 'unknown'}")
    lines += [f"  held by   {reason}" for reason in one["held_by"]]
    if one["reply"]:
        lines.append(f"  reply     {one['reply']}")
    if one["ses_id"]:
        lines.append(f"  SES id    {one['ses_id']}")
    return lines


def _when(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"

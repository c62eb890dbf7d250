"""The two things that ``relay queue`` and ``relay campaign`` both do: hold and release."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from relay.cli._load import load, locate
from relay.cli._running import ask

if TYPE_CHECKING:
    from pathlib import Path

reason_option = click.option("--reason", default="", help="Shown beside the hold.")
source_option = click.option(
    "--source",
    type=click.Choice(["operator", "breaker", "listmonk"]),
    help="Lift only this one's hold; default: the operator's and the breaker's.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


def hold(path: Path | None, key: str, reason: str, as_json: bool) -> None:
    """Hold ``key`` and say so."""
    answer = ask(load(locate(path)), "hold", key=key, reason=reason)
    nothing = " (no mail of it is here now)" if answer["waiting"] == 0 else ""
    click.echo(json.dumps(answer) if as_json else f"held: {key}{nothing}")


def release(path: Path | None, key: str, source: str | None, as_json: bool) -> None:
    """Release ``key`` and say what is left."""
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

"""``relay queue``: keep mail back, let it go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay.cli._holding import hold, json_option, reason_option, release, source_option
from relay.cli._load import config_option

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def queue() -> None:
    """Hold and release mail by the key that relay status shows."""


@queue.command("hold")
@click.argument("key")
@reason_option
@json_option
@config_option
def queue_hold(key: str, reason: str, as_json: bool, path: Path | None) -> None:
    """Keep mail back: account:NAME, sender:NAME:ADDRESS, campaign:UUID."""
    hold(path, key, reason, as_json)


@queue.command("release")
@click.argument("key")
@source_option
@json_option
@config_option
def queue_release(key: str, source: str | None, as_json: bool, path: Path | None) -> None:
    """Let held mail go: a key as relay status shows it."""
    release(path, key, source, as_json)

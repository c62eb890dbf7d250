"""``relay check``: whether the configuration is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay import config
from relay.cli._load import config_option, load, locate

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
def check(path: Path | None) -> None:
    """Say everything that is wrong with the configuration, and open nothing but its file.

    Exit code 0 if it is right, 78 if not. Keys that have no effect in this version are
    named if they are set.
    """
    path = locate(path)
    found = load(path)
    idle = config.without_effect(found)
    for key, instead in idle:
        click.echo(f"{key}\n    has no effect yet: {instead}")
    click.echo(f"{path or 'no file, built-in defaults'}: ok")

"""``relay serve``: the relay itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay.cli._load import config_option, load, locate

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
@click.option("--sandbox", is_flag=True, help="Send to a double of SES inside, not to Amazon.")
@click.option(
    "--paused", is_flag=True, help="Take mail, send nothing until relay resume; kept over restarts."
)
def serve(path: Path | None, sandbox: bool, paused: bool) -> None:
    """Take mail and hand it on until stopped.

    SIGTERM or Ctrl-C finishes what is under way; a second Ctrl-C stops at once.
    """
    # Imported here: the other commands need neither SMTP nor an event loop.
    from relay import service  # noqa: PLC0415

    service.serve(load(locate(path)), with_twin=sandbox, paused=paused)

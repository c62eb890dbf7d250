"""Asking a relay: the running one, or, if none runs, the spool itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay import control
from relay.errors import RelayError

if TYPE_CHECKING:
    from relay.config import Config


def ask(config: Config, command: str, **body: object) -> dict[str, Any]:
    """The answer to a command.

    From the relay that owns the configured spool; else from one that runs with --sandbox
    (said on standard error); else from the spool, which then must not be in use.

    Raises: RelayError with the reason; SpoolBroken if there is no spool either: a command
    never creates one.
    """
    from relay.service import sandbox  # noqa: PLC0415  # brings half the program along

    real = Path(config.spool.path)
    answer = control.ask(control.socket_path(real), command, **body)
    if answer is not None:
        return answer
    inside = Path(sandbox.own_spool(config).spool.path)
    answer = control.ask(control.socket_path(inside), command, **body)
    if answer is not None:
        click.echo("(the relay that runs with --sandbox says)", err=True)
        return answer
    from relay.service import offline  # noqa: PLC0415  # opens spools; most commands need not

    if _is_there(inside) and not _is_there(real):
        click.echo("(no relay runs; this is what serve --sandbox left)", err=True)
        config = sandbox.own_spool(config)

    return asyncio.run(offline.answer(config, command, body))


def _is_there(spool: Path) -> bool:
    try:
        return spool.exists()
    except PermissionError as error:
        raise RelayError(
            f"no access to {spool.parent}: run this as root, or as the user that runs the relay"
        ) from error

"""The command ``relay``: which subcommand is where, and which exit code stands for what.

Each subcommand lives in a file of its own that is imported when the command is used, so
that ``relay check`` does not pay for SMTP, SQLite and HTTP. A new command is a row in
``COMMANDS``; a new class of failure is a row in ``EXIT_CODES``.

Nothing here decides anything about mail. A ``RelayError`` that reaches this door is
printed without a traceback, because its text says what to do; any other exception is our
bug and keeps its traceback.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from relay import __version__, errors

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Mapping[str, str] = {
    "campaign": "relay.cli.campaign:campaign",
    "check": "relay.cli.check:check",
    "demo": "relay.cli.demo:demo",
    "find": "relay.cli.find:find",
    "pause": "relay.cli.pause:pause",
    "queue": "relay.cli.queue:queue",
    "rate": "relay.cli.rate:rate",
    "resume": "relay.cli.pause:resume",
    "sandbox": "relay.cli.sandbox:sandbox",
    "serve": "relay.cli.serve:serve",
    "status": "relay.cli.status:status",
    "user": "relay.cli.user:user",
}
"""Where each subcommand is: ``module:attribute``."""

# The numbers are those of sysexits.h, which systemd and mail software know.
EXIT_CODES: Mapping[type[errors.RelayError], int] = {
    errors.RelayError: 70,
    errors.ConfigError: 78,
    errors.ConfigErrors: 78,
    errors.AddressBusy: 75,
    errors.SpoolError: 74,
    errors.SpoolFull: 73,
    errors.SpoolBusy: 75,
    errors.SpoolBroken: 74,
    errors.SpoolDamaged: 74,
    errors.ContentDamaged: 65,
    errors.UpstreamError: 69,
    errors.Unreachable: 69,
    errors.SessionLost: 69,
}
"""The exit code of each class of failure."""

_EXIT_CODES_HELP = """\b
Exit codes:
  0   done
  1   find: nothing found; serve: stopped at once; else a bug (then with a traceback)
  2   the command line is wrong
  65  a stored message is damaged
  69  the upstream cannot be reached
  70  the relay cannot do what was asked
  73  no room for the spool
  74  the spool is missing, damaged or too new
  75  the spool, or a port, belongs to another program; try again later
  78  the configuration is wrong; starting again will not help
"""


def exit_code(error: errors.RelayError) -> int:
    """The code for ``error``: that of its class, else of the nearest class above it."""
    known = (EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
    return next(known)


def failure_text(error: errors.RelayError) -> str:
    """What to print for ``error``; a block for each key if it is the configuration's."""
    if isinstance(error, errors.ConfigErrors):
        return "\n".join(map(_block, error.errors))
    return _block(error) if isinstance(error, errors.ConfigError) else f"relay: {error}"


def _block(error: errors.ConfigError) -> str:
    lines = [error.key, f"    found   {error.found}", f"    wanted  {error.wanted}"]
    if error.nearest:
        lines.append(f"    perhaps {error.nearest} was meant")
    return "\n".join(lines)


class Commands(click.Group):
    """A group whose subcommands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the alphabet."""
        return sorted(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """The command of that name, or None if there is none."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, attribute = place.split(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            msg = f"{place} is not a command"
            raise TypeError(msg)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        """Run the subcommand; a failure of ours becomes a text and an exit code."""
        try:
            return super().invoke(ctx)
        except errors.RelayError as error:
            click.echo(failure_text(error), err=True)
            ctx.exit(exit_code(error))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES_HELP,
)
@click.version_option(__version__, prog_name="relay")
def main() -> None:
    """Take mail from Listmonk at any speed, hand it to Amazon SES as fast as SES bears."""

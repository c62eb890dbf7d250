"""``relay user``: who may log in to the listener."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from relay.cli._load import config_option, load, locate
from relay.errors import ConfigError, RelayError
from relay.listener import users

_FILE_MISSING = 'a path, so that there is a file to write to: users_file = "users" under [listen]'


@click.group()
def user() -> None:
    """Who may log in: the users of listen.users_file."""


@user.command()
@click.argument("name")
@click.option(
    "--cram",
    is_flag=True,
    help="Keep the password itself, not its hash: CRAM-MD5 needs it (LOGIN and PLAIN do not).",
)
@click.option(
    "--file",
    "users_file",
    type=click.Path(path_type=Path),
    help="The file to write to; default: listen.users_file.",
)
@config_option
def add(name: str, cram: bool, users_file: Path | None, path: Path | None) -> None:
    """Add NAME, or give it a new password; a relay that reads this file knows it at once.

    The password is asked for, or read from the first line of standard input.
    """
    place = users_file or _configured(path)
    if not users.is_name(name):
        raise click.BadParameter("printable characters, no colon", param_hint="NAME")
    password = _ask_password()
    if not users.is_secret(password):
        raise click.UsageError("the password must be printable, without blanks around it")
    secret = users.Plain(password) if cram else users.scrypt(password)
    try:
        was_there = users.put(place, name, secret)
    except OSError as error:
        raise RelayError(f"{place} cannot be written: {error.strerror or error}") from error
    click.echo(f"{name}: {'new password' if was_there else 'added'} in {place}")


def _configured(path: Path | None) -> Path:
    """The users file of the configuration. Raises: ConfigError if it names none."""
    listen = load(locate(path)).listen
    if not listen.users_file:
        raise ConfigError("listen.users_file", '""', _FILE_MISSING)
    return Path(listen.users_file)


def _ask_password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")

"""Every failure has an exit code, and the help says what each code means."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

import relay
from relay import errors
from relay.cli import COMMANDS, EXIT_CODES, exit_code, failure_text, main

if TYPE_CHECKING:
    from collections.abc import Iterator


def all_failures() -> Iterator[type[errors.RelayError]]:
    """RelayError and whatever is below it, in any room."""
    for module in pkgutil.walk_packages(relay.__path__, "relay."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    waiting = [errors.RelayError]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def test_every_failure_has_an_exit_code() -> None:
    """A new class does not land without an answer to the script that called us.

    Those of ``errors`` have a row of their own; a room's own class has that of the kind of
    failure it is, which is more than "cannot do what was asked".
    """
    for kind in all_failures():
        if kind.__module__ == "relay.errors":
            assert kind in EXIT_CODES
        elif kind.__module__.startswith("relay."):
            assert any(above in EXIT_CODES for above in kind.__mro__[1:-4]), kind


def test_a_failure_below_a_known_one_has_the_code_of_the_nearest() -> None:
    """A class made elsewhere, by a later version's room, ends with a code all the same."""

    class FullOfSnow(errors.SpoolFull):
        pass

    assert exit_code(FullOfSnow("cold")) == EXIT_CODES[errors.SpoolFull]


def test_help_names_every_command_and_every_code() -> None:
    """What a script may meet is in ``relay --help``, and each command can be imported."""
    told = CliRunner().invoke(main, ["--help"])

    assert told.exit_code == 0, told.exception
    for name in COMMANDS:
        assert f"  {name} " in told.output
    for code in {0, 1, 2, *EXIT_CODES.values()}:
        assert f"  {code} " in told.output


def test_version_is_that_of_the_package() -> None:
    """``relay --version`` is what bug reports quote."""
    told = CliRunner().invoke(main, ["--version"])

    assert told.output == f"relay, version {relay.__version__}\n"


def test_an_unknown_command_is_a_wrong_command_line() -> None:
    """A slip in the name: exit code 2 and a word about help."""
    told = CliRunner().invoke(main, ["chekc"])

    assert told.exit_code == 2
    assert "chekc" in told.output


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.SpoolBusy("the spool is in use"), 75, "relay: the spool is in use\n"),
        (
            errors.ConfigError("a.b", "1", "2", "a.c"),
            78,
            "a.b\n    found   1\n    wanted  2\n    perhaps a.c was meant\n",
        ),
        (
            errors.ConfigErrors(
                [errors.ConfigError("a", "1", "2"), errors.ConfigError("b", "", "")]
            ),
            78,
            "a\n    found   1\n    wanted  2\nb\n    found   \n    wanted  \n",
        ),
    ],
)
def test_a_failure_is_told_without_a_traceback(
    error: errors.RelayError, code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text on standard error says what to do; its code tells a script what it was."""

    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(main, "get_command", lambda _ctx, _name: fails)
    told = CliRunner().invoke(main, ["fails"])

    assert (told.exit_code, told.stdout, told.stderr) == (code, "", text)
    assert failure_text(error) + "\n" == text

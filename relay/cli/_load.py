"""Finding and reading ``relay.toml``.

The one place that opens the file: ``config`` is pure. A file that cannot be read or is
not TOML is told like a wrong key, with the file's name in the key's place.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay import config
from relay.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PLACES = (Path("relay.toml"), Path("/etc/relay/relay.toml"))
"""Where the file is looked for when no ``-c`` is given, in this order."""

FILE_BYTES_MAX = 1 << 20
"""More is not a configuration; a mistaken path must not fill the memory."""

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="The configuration; default: ./relay.toml, then /etc/relay/relay.toml, then built in.",
)
"""``-c``, the same for every command; hands in ``path``."""


def locate(path: Path | None, places: Sequence[Path] = DEFAULT_PLACES) -> Path | None:
    """``path`` if given, else the first of ``places`` that exists, else None: the defaults."""
    if path is not None:
        return path
    return next((place for place in places if place.exists()), None)


def load(path: Path | None) -> config.Config:
    """The configuration in the file at ``path``, its paths made absolute; None: the defaults.

    Without a file, relative paths count from the working directory.

    Raises:
        ConfigError: the file cannot be read or is not TOML.
        ConfigErrors: its keys are wrong.
    """
    if path is None:
        return config.resolve(config.parse({}), Path.cwd())
    return config.resolve(config.parse(_read(path)), path.absolute().parent)


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        found = error.strerror or "an error"
        raise ConfigError(str(path), found, "a file that can be read") from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(str(path), "a huge file", f"at most {FILE_BYTES_MAX} bytes")
    try:
        # Editors on Windows put a byte order mark in front, which TOML does not allow.
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(path), f"a byte that is not UTF-8 in line {line}", "UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), _said(error), "TOML (https://toml.io)") from error


def _said(error: Exception) -> str:
    """What ``tomllib`` has to say; its texts name the line and never quote a value."""
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"{str(error)[:1].lower()}{str(error)[1:]}"
    return "a number or a nesting beyond all measure"

"""The named statements of ``sql/*.sql``.

A statement starts with ``-- name: NAME``, then one comment line with its purpose, then
its text. Nothing is ever put into the text: all values are bound.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADING: Final = re.compile(r"^-- name: (\w+)\n-- \S.*\n", re.MULTILINE)


def script(file: str) -> str:
    """The whole text of a file in ``sql/``."""
    return resources.files("relay.spool").joinpath("sql", file).read_text("utf-8")


def statements(file: str) -> Mapping[str, str]:
    """The statements of a file by name."""
    _, *parts = _HEADING.split(script(file))
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}

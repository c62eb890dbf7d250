"""``relay.toml`` at the top level is the reference: complete, and equal to the defaults."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections import Counter
from pathlib import Path

from relay import config
from relay.config.checks import Each
from relay.config.tables import LANE, NOT_YET, TABLES, UPSTREAM, Table

TEXT = (Path(__file__).parents[2] / "relay.toml").read_text(encoding="utf-8")
# A key whose default is chosen at start has no value in TOML: it stands behind a "# ".
FAR = 1e12
"""Bounds beyond any disk are not worth a word."""
KEY = re.compile(r"^(?:# )?([a-z_]+) = ")


def full_keys(table: Table, at: str) -> list[str]:
    inner = [full_keys(one, f"{at}.{name}") for name, one in table.tables.items()]
    return [f"{at}.{key}" for key in table.keys] + [key for keys in inner for key in keys]


def stated_keys() -> list[str]:
    at, keys = "", []
    for line in TEXT.splitlines():
        if line.startswith("["):
            at = line.strip("[] ")
        elif match := KEY.match(line):
            keys.append(f"{at}.{match[1]}")
    return keys


def known_keys() -> list[str]:
    once = [key for name, table in TABLES.items() for key in full_keys(table, name)]
    lanes = [key for name in config.Config().lanes for key in full_keys(LANE, f"lane.{name}")]
    return once + full_keys(UPSTREAM, "upstream") + lanes


def test_reference_equals_the_defaults() -> None:
    """Whoever keeps the file as it is gets what an empty file gives."""
    assert config.parse(tomllib.loads(TEXT)) == config.Config()


def test_reference_names_every_key_once() -> None:
    """No key is missing, none is there twice, none is unknown."""
    assert Counter(stated_keys()) == Counter(known_keys())


def test_only_keys_without_a_fixed_default_are_commented_out() -> None:
    """What the file states as a value is seen by the parser, and so by the test above."""
    hidden = re.findall(r"^# ([a-z_]+) = ", TEXT, re.MULTILINE)

    assert hidden == ["free_min_bytes", "size_max_bytes"]


def test_every_key_has_a_line_of_why_above_it() -> None:
    """A key follows a comment, or another key that shares its comment."""
    lines = TEXT.splitlines()
    for above, line in itertools.pairwise(lines):
        if KEY.match(line):
            assert above.startswith("#") or KEY.match(above), line


def test_ranges_are_stated_with_their_numbers() -> None:
    """The bounds in the file's words are the bounds that the parser uses."""
    for key in known_keys():
        wanted = wanted_of(key)
        numbers = re.findall(r"[\d.]+", wanted) if "number" in wanted else []
        comment = comment_above(key.replace("lane.priority", "lane.bulk"))
        for number in numbers:
            if 0 < float(number) < FAR:
                assert re.search(rf"\b{re.escape(number)}\b", comment), (key, number)


def wanted_of(key: str) -> str:
    at, _, name = key.rpartition(".")
    first, *rest = at.split(".")
    table = {**TABLES, "upstream": UPSTREAM, "lane": LANE}[first]
    for inner in rest if first == "upstream" else ():
        table = table.tables[inner]
    row = table.keys[name]
    return "" if isinstance(row, Each) else row.wanted


def comment_above(key: str) -> str:
    """The comment of ``key``: the paragraph that it stands in, or that stands over its table."""
    at, _, name = key.rpartition(".")
    table = TEXT.index(f"[{at}]")
    match = re.compile(rf"^(?:# )?{name} = ", re.MULTILINE).search(TEXT, table)
    assert match is not None
    return TEXT[TEXT.rindex("\n\n", 0, match.start()) : match.start()]


def test_keys_without_effect_are_marked() -> None:
    """``relay check`` and the file say the same about keys that change nothing yet."""
    for pattern in NOT_YET:
        table, _, key = pattern.partition(".")
        if key == "*":
            assert re.search(rf"no effect yet[^\n]*\n\[{table}\]", TEXT), pattern
        elif key != "+":
            name = key.rpartition(".")[2]
            assert re.search(rf"No effect yet\.\n{name} = ", TEXT), pattern

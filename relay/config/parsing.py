"""From what stood in the file to a ``Config``, or to everything that is wrong with it.

Pure: the mapping is what ``tomllib`` gives (or any mapping at all), no file is opened, no
name is looked up. Three steps: each key by its row in ``tables``, each table by its
``rules``, then the rules between tables. Errors are gathered through all three, so that
one run is enough to mend a file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

from relay.config import schema
from relay.config.checks import LABEL_WANTED, UNFIT, is_label, show
from relay.config.rules import broken_rules, clashes
from relay.config.tables import LANE, TABLE_NAMES, TABLES, UPSTREAM, Table
from relay.errors import ConfigError, ConfigErrors

_T = TypeVar("_T", bound="DataclassInstance")

_UPSTREAMS_MAX = 100
_LANES_MAX = 100

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,40}\Z")
_SECRET = re.compile(
    r"(?!.*_file\Z).*(passw|pass\Z|passphrase|pwd|secret|token|credential|api_?key|private_?key)",
    re.IGNORECASE,
)
_SECRET_FOUND = "a secret, not shown here"  # noqa: S105 - a text, not a secret
_SECRET_GOES = {
    "upstream": 'in a file named by password_file, in the systemd credential "ses-password", '
    "or in the environment as RELAY_SES_PASSWORD",
    "listmonk": "in a file named by token_file",
    "dashboard": "in a file named by token_file",
    "listen": 'in users_file, by "relay user add"',
}
_SECRET_GOES_ELSE = "in a file named by password_file or token_file"  # noqa: S105 - as above


def parse(mapping: Mapping[str, object]) -> schema.Config:
    """The configuration that ``mapping`` states, defaults filled in; paths stay as written.

    Raises:
        ConfigErrors: everything that is wrong with it, at once.
    """
    reading = _Reading()
    config = reading.config(mapping)
    reading.errors += clashes(config, reading.bad)
    if reading.errors:
        raise ConfigErrors(reading.errors)
    return config


@dataclass(slots=True)
class _Reading:
    """One pass over a mapping: the errors so far, and the keys whose values are unknown."""

    errors: list[ConfigError] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)

    def config(self, mapping: Mapping[str, object]) -> schema.Config:
        """All of the file; a table that cannot be read is left at its defaults."""
        self._unknown(mapping, "", TABLE_NAMES)
        once = {
            name: self._table(mapping.get(name, {}), name, table, table.becomes())
            for name, table in TABLES.items()
        }
        upstreams = self._upstreams(mapping.get("upstream", [{}]))
        lanes = self._lanes(mapping.get("lane", {}))
        return schema.Config(upstreams=upstreams, lanes=lanes, **once)

    def _upstreams(self, value: object) -> tuple[schema.Upstream, ...]:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= _UPSTREAMS_MAX:
            wanted = f"1 to {_UPSTREAMS_MAX} tables, each headed [[upstream]] in double brackets"
            self._refuse("upstream", show(value), wanted)
            return (schema.Upstream(),)
        return tuple(
            self._table(one, f"upstream[{n}]", UPSTREAM, schema.Upstream())
            for n, one in enumerate(value)
        )

    def _lanes(self, value: object) -> dict[str, schema.Lane]:
        lanes = schema.Config().lanes
        if not isinstance(value, Mapping) or len(value) > _LANES_MAX:
            wanted = f"at most {_LANES_MAX} tables, each headed [lane.NAME]"
            self._refuse("lane", show(value), wanted)
            return lanes
        for name, one in value.items():
            if isinstance(name, str) and is_label(name):
                base = lanes.get(name, schema.Lane())
                lanes[name] = self._table(one, f"lane.{name}", LANE, base)
            else:
                self._refuse("lane", show(name), LABEL_WANTED)
        return lanes

    def _table(self, value: object, at: str, table: Table, base: _T) -> _T:
        """``base`` with what the table at ``at`` says instead."""
        if not isinstance(value, Mapping):
            header = f"[[{at.partition('[')[0]}]]" if at.endswith("]") else f"[{at}]"
            self._refuse(at, show(value), f"a table, headed {header}")
            return base
        self._unknown(value, at, (*table.keys, *table.tables))
        said: dict[str, Any] = {}
        for key, check in table.keys.items():
            if key in value:
                kept = check.apply(f"{at}.{key}", value[key], self.errors)
                if kept is UNFIT:
                    self.bad.add(f"{at}.{key}")
                else:
                    said[key] = kept
        for name, inner in table.tables.items():
            said[name] = self._table(
                value.get(name, {}), f"{at}.{name}", inner, getattr(base, name)
            )
        made = replace(base, **said)
        self.errors += broken_rules(made, at, self.bad)
        return made

    def _unknown(self, mapping: Mapping[str, object], at: str, known: Collection[str]) -> None:
        """An error for each key that no row knows; its value is never shown."""
        for key in mapping:
            if key not in known:
                name = key if isinstance(key, str) and _PLAIN.match(key) else show(key)
                full = f"{at}.{name}" if at else name
                if _SECRET.match(name):
                    goes = _SECRET_GOES.get(re.split(r"[.\[]", full)[0], _SECRET_GOES_ELSE)
                    self._refuse(full, _SECRET_FOUND, f"it {goes}: no secret may stand here")
                else:
                    wanted = f"a key of [{at}]" if at else "a table of this file"
                    self._refuse(full, "an unknown key", wanted, _nearest(name, at, known))

    def _refuse(self, key: str, found: str, wanted: str, nearest: str | None = None) -> None:
        self.errors.append(ConfigError(key, found, wanted, nearest))
        self.bad.add(key)


def _nearest(name: str, at: str, known: Collection[str]) -> str | None:
    """The full key that ``name`` was probably meant to be: here, else anywhere in the file."""
    here = difflib.get_close_matches(name, known, n=1)
    if here and name not in _ANYWHERE:
        return f"{at}.{here[0]}" if at else here[0]
    anywhere = difflib.get_close_matches(name, _ANYWHERE, n=1, cutoff=0.8)
    return _ANYWHERE[anywhere[0]] if anywhere else None


def _leaves(table: Table, at: str) -> Iterator[tuple[str, str]]:
    """Each key of ``table`` and of the tables in it, with its full name."""
    for key in table.keys:
        yield key, f"{at}.{key}"
    for name, inner in table.tables.items():
        yield name, f"{at}.{name}"
        yield from _leaves(inner, f"{at}.{name}")


_ALL_TABLES = {**TABLES, "upstream": UPSTREAM, "lane.NAME": LANE}
_ANYWHERE = {
    leaf: full for at, table in reversed(_ALL_TABLES.items()) for leaf, full in _leaves(table, at)
}
"""Where a key of that name is; the first table wins."""

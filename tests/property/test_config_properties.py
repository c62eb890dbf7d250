"""Whatever stands in the file, ``parse`` gives a configuration or says what is wrong."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.config.tables import LANE, TABLES, UPSTREAM, Table
from relay.errors import ConfigErrors

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=1 << 63, max_value=1 << 200),
    st.floats(),
    st.text(),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(["none", "127.0.0.1", "::", "a.example", "required", 0, 1, 2525, 0.1, True]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def filled(table: Table) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping that has the table's keys with any values, and some unknown ones."""
    inner = {name: filled(one) | anything for name, one in table.tables.items()}
    known = st.fixed_dictionaries({}, optional={**dict.fromkeys(table.keys, anything), **inner})
    return st.builds(dict, known, zz=anything) | known


files = st.fixed_dictionaries(
    {},
    optional={
        **{name: filled(table) | anything for name, table in TABLES.items()},
        "upstream": st.lists(filled(UPSTREAM), max_size=3) | anything,
        "lane": st.dictionaries(st.text(max_size=5) | st.just("bulk"), filled(LANE), max_size=3),
    },
)


def outcome(mapping: dict[str, Any]) -> config.Config | ConfigErrors:
    try:
        return config.parse(mapping)
    except ConfigErrors as errors:
        return errors


@given(files | st.dictionaries(st.text(), anything))
def test_parse_never_fails_in_any_other_way(mapping: dict[str, Any]) -> None:
    """A configuration, or errors that each say key, found and wanted in one line."""
    result = outcome(mapping)

    if isinstance(result, ConfigErrors):
        assert result.errors
        for error in result.errors:
            assert error.key
            assert error.found
            assert error.wanted
            assert len(str(error).splitlines()) == 1
            assert len(error.found) < 200


@given(st.dictionaries(st.integers() | st.none() | st.booleans(), anything, min_size=1))
def test_keys_that_are_no_texts_are_unknown(mapping: dict[Any, Any]) -> None:
    """``parse`` is handed what some program made, not only what TOML can say."""
    assert isinstance(outcome(mapping), ConfigErrors)


@given(files, anything)
def test_an_unknown_key_is_always_an_error(mapping: dict[str, Any], value: object) -> None:
    """However right the rest is, a misspelt table does not go unnoticed."""
    result = outcome({**mapping, "lissten": value})

    assert isinstance(result, ConfigErrors)
    assert ("lissten", "listen") in {(error.key, error.nearest) for error in result.errors}


def rows(table: Table, at: tuple[str, ...]) -> list[tuple[tuple[str, ...], str, type]]:
    own = [(at, key, table.becomes) for key in table.keys]
    return own + [row for name, one in table.tables.items() for row in rows(one, (*at, name))]


ROWS = [row for name, table in TABLES.items() for row in rows(table, (name,))]
ROWS += rows(UPSTREAM, ("upstream",)) + rows(LANE, ("lane", "bulk"))


@given(st.sampled_from(ROWS), scalars)
def test_a_kept_value_has_the_type_of_its_default(
    row: tuple[tuple[str, ...], str, type], value: object
) -> None:
    """Rooms need not look twice: no bool for an int, no int for a float, no NaN at all."""
    (first, *inner), key, _ = row
    said: Any = {key: value}
    for name in reversed(inner):
        said = {name: said}
    result = outcome({first: [said] if first == "upstream" else said})

    if isinstance(result, config.Config):
        kept = result.upstreams[0] if first == "upstream" else getattr(result, first, None)
        kept = result.lanes["bulk"] if first == "lane" else kept
        default: Any = (
            config.Upstream() if first == "upstream" else getattr(config.Config(), first, None)
        )
        default = config.Lane() if first == "lane" else default
        for name in inner if first == "upstream" else ():
            kept, default = getattr(kept, name), getattr(default, name)
        got, usual = getattr(kept, key), getattr(default, key)
        wanted = int if usual is None else type(usual)
        assert type(got) is wanted or (wanted is int and type(got) is float) or got is None
        assert not (isinstance(got, float) and math.isnan(got))


@given(files)
def test_what_was_parsed_parses_again_to_the_same(mapping: dict[str, Any]) -> None:
    """Values are given back in canonical form: saying them again changes nothing."""
    result = outcome(mapping)

    if isinstance(result, config.Config):
        said = {
            name: {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(getattr(result, name)).items()
                if value is not None
            }
            for name in TABLES
        }
        said["lane"] = {name: dataclasses.asdict(lane) for name, lane in result.lanes.items()}
        said["upstream"] = [dataclasses.asdict(one) for one in result.upstreams]  # type: ignore[assignment]
        assert config.parse(said) == result

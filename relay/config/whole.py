"""What is asked of a finished configuration: where its files are, which keys change nothing yet.

Both walk a finished ``Config`` by its dataclasses; neither opens a file.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import PurePath

    from _typeshed import DataclassInstance

from relay.config import schema
from relay.config.tables import NOT_YET


def resolve(config: schema.Config, folder: PurePath) -> schema.Config:
    """``config`` with each relative path taken from ``folder``, that of the file; "" stays ""."""

    def at(path: str) -> str:
        return str(folder / path) if path else ""

    listen = replace(
        config.listen,
        users_file=at(config.listen.users_file),
        tls_cert_file=at(config.listen.tls_cert_file),
        tls_key_file=at(config.listen.tls_key_file),
    )
    upstreams = tuple(
        replace(one, password_file=at(one.password_file), ca_file=at(one.ca_file))
        for one in config.upstreams
    )
    return replace(
        config,
        listen=listen,
        spool=replace(config.spool, path=at(config.spool.path)),
        upstreams=upstreams,
        listmonk=replace(config.listmonk, token_file=at(config.listmonk.token_file)),
        dashboard=replace(config.dashboard, token_file=at(config.dashboard.token_file)),
    )


def without_effect(config: schema.Config) -> list[tuple[str, str]]:
    """Each key that differs from its default and changes nothing yet, with what happens instead."""
    default = schema.Config()
    said: dict[str, str] = {}
    for key, value in _flat(config, default, ""):
        for pattern, instead in NOT_YET.items():
            if value and fnmatchcase(key, pattern):
                said[key] = instead
    for name in config.lanes.keys() - default.lanes.keys():
        said[f"lane.{name}"] = NOT_YET["lane.+"]
    return sorted(said.items())


def _flat(
    one: DataclassInstance, default: DataclassInstance, at: str
) -> Iterator[tuple[str, bool]]:
    """Each full key of the tables that stand once and of the lanes; whether it differs."""
    for each in fields(one):
        value, usual = getattr(one, each.name), getattr(default, each.name)
        key = f"{at}{each.name}"
        if is_dataclass(value) and not isinstance(value, type):
            yield from _flat(value, usual, f"{key}.")
        elif isinstance(value, dict):
            for name in value.keys() & usual.keys():
                yield from _flat(value[name], usual[name], f"lane.{name}.")
        else:
            yield key, value != usual

"""The configuration: ``parse`` turns what stood in ``relay.toml`` into frozen values.

Pure: files are opened by ``cli``, secrets are read by the room that uses them.

``schema`` has the values and their defaults, ``tables`` a row for each key, ``checks``
what a row may ask for, ``rules`` what keys ask of one another, ``parsing`` puts them
together, ``whole`` answers questions about the result.
"""

from relay.config.parsing import parse
from relay.config.rules import is_loopback
from relay.config.schema import (
    Alert,
    Breaker,
    Config,
    Dashboard,
    Lane,
    Listen,
    Listmonk,
    Log,
    Quota,
    Rate,
    Retry,
    Spool,
    Upstream,
)
from relay.config.tables import NOT_YET
from relay.config.whole import resolve, without_effect

__all__ = [
    "NOT_YET",
    "Alert",
    "Breaker",
    "Config",
    "Dashboard",
    "Lane",
    "Listen",
    "Listmonk",
    "Log",
    "Quota",
    "Rate",
    "Retry",
    "Spool",
    "Upstream",
    "is_loopback",
    "parse",
    "resolve",
    "without_effect",
]

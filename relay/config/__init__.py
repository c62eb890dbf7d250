"""The configuration: what ``relay.toml`` may say, checked and frozen."""

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

__all__ = [
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
]

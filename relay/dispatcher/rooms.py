"""The rooms that a dispatcher works with, handed in by the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.ageing import Ageing
    from relay.breaker import Breaker, Holds
    from relay.clock import Clock
    from relay.metrics import Metrics
    from relay.quota import Quota
    from relay.shaper import Shaper
    from relay.spool import Spool
    from relay.upstream import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """One upstream's own rooms, then those that all dispatchers share."""

    upstream: Upstream
    shaper: Shaper
    quota: Quota
    breaker: Breaker
    spool: Spool
    holds: Holds
    ageing: Ageing
    metrics: Metrics
    clock: Clock
    chance: Callable[[], float]
    """A number in 0..1, for jitter."""
    on_lift: Callable[[], None]
    """Called when a hold was lifted: other upstreams may have mail of the same campaign."""

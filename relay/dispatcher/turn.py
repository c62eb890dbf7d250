"""What to do next, decided before anything is done.

Reads the policy rooms, changes none of them, waits for nothing. The order of the questions is
the order of what must not happen: never send against a hold, never against the quota, never
give the last session to bulk, unless it is the only one there may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from relay.breaker import account_key
from relay.envelope import BULK, PRIORITY

if TYPE_CHECKING:
    from relay.breaker import Breaker, Holds
    from relay.lanes import Lanes
    from relay.quota import Quota
    from relay.upstream import PoolState


class Why(StrEnum):
    """Why nothing goes just now."""

    IDLE = "idle"
    """Nothing waits that is due and free to go."""
    HELD = "held"
    """The account is held."""
    QUOTA = "quota"
    """The quota is spent, and the next probe is not due."""
    SESSIONS = "session-bound"
    """Mail waits, but the last free session is kept for priority."""
    CONNECTING = "connecting"
    """Mail may go, and no session is open yet."""
    BROKEN = "broken"
    """The upstream ends sessions rather than answer."""
    SPOOL = "spool"
    """What was sent cannot be noted down, so nothing more may be."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing may go. ``until_ms``: ask again then (wall time); None: when something changes."""

    why: Why
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Go:
    """Book a moment. ``only``: for this lane alone; ``probe``: to see if this key may go."""

    only: str | None = None
    probe: str = ""


Turn = Rest | Go


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rooms that decide for one upstream."""

    upstream: str
    lanes: Lanes
    quota: Quota
    breaker: Breaker
    holds: Holds


def next_turn(policy: Policy, sessions: PoolState, now_ms: int) -> Turn:
    """What the dispatcher does now; ``sessions`` as they are without the one to be used."""
    key = policy.breaker.probe_due(now_ms)
    probe_at = policy.breaker.next_probe_at(now_ms)
    is_held = policy.holds.account_held(policy.upstream)
    if is_held and key != account_key(policy.upstream):
        return Rest(Why.HELD, probe_at)
    if not policy.quota.allows(PRIORITY, now_ms):
        # Of a breaker's probe the quota would be all that we hear, too.
        return Rest(Why.QUOTA, policy.quota.next_at(now_ms, PRIORITY))
    if key is not None:
        return Go(probe=key)
    only, quota_at = None, None
    if not policy.quota.allows(BULK, now_ms):
        only, quota_at = PRIORITY, policy.quota.next_at(now_ms)
    is_last = sessions.ceiling > 1 and sessions.ceiling - sessions.busy <= 1
    if is_last:
        only = PRIORITY
    if policy.lanes.ready(only=only):
        return Go(only=only)
    if not policy.lanes.ready():
        return Rest(Why.IDLE, probe_at)
    return Rest(Why.SESSIONS if quota_at is None else Why.QUOTA, _earlier(quota_at, probe_at))


def _earlier(one: int | None, other: int | None) -> int | None:
    return min((at for at in (one, other) if at is not None), default=None)

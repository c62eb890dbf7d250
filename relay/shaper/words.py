"""What the shaper tells people: its state, and each change of what it has learned.

Pure. ``Cause`` is what made the learned limit move; its values are the words of logs,
events and ``status``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why the learned limit is another than before."""

    FOUND = "found by search"
    MEASURED = "measured between two refusals"
    RAISED = "more was accepted than the limit explains"
    LOWERED = "more was refused than the limit explains"
    NOISE = "a correction did not stop the refusals: taken back"
    REMEMBERED = "remembered from an earlier run"
    OPERATOR = "set by an operator"
    AWS = "told by AWS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One move of the learned limit at ``at`` (monotonic seconds).

    ``before_per_s`` is None if no limit was known, ``after_per_s`` None if it is no longer.
    """

    at: float
    before_per_s: float | None
    after_per_s: float | None
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class ShaperState:
    """What the shaper knows, for people and metrics.

    ``phase``: "idle" (nothing booked or under way), "searching", "settling", "holding" or
    "probing". ``error_share`` is the likely error of the limit as a share of it (1: a guess),
    ``confirmed_at`` the monotonic moment at which a reading last confirmed or set it (None: in
    this run not yet), ``refused_share`` that of the last 1,000 recipients tried,
    ``noise_share`` the part of refusals that no limit explains, ``burst`` what the bucket
    holds, if that was seen; ``has_backlog`` is False while demand or sessions, not the rate,
    hold sending back; ``under_way`` counts bookings not yet answered.
    """

    rate_per_s: float
    limit_per_s: float | None
    phase: str
    refused_share: float
    error_share: float
    confirmed_at: float | None
    noise_share: float
    burst: float | None
    has_backlog: bool
    under_way: int

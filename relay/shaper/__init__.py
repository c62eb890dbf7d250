"""THEORY"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from relay.shaper.control import BUSY_IDLE_MAX, Controller
from relay.shaper.order import Kind, SendOrder
from relay.shaper.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.config.schema import Rate

__all__ = ["Shaper", "ShaperState"]

REFUSED_SPAN = 1000.0
"""Recipients over which the refused share is shown."""

RESTORED_WEIGHT_MAX = 200.0
"""Evidence that a limit of an earlier run counts for at most: it may be days old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShaperState:
    """What the shaper knows, for people and metrics.

    ``phase``: "idle" (nothing booked or under way), "searching", "settling", "holding" or
    "probing". ``error_share`` is the likely error of the limit as a share of it (1: a guess),
    ``refused_share`` that of the last 1,000 recipients tried, ``noise_share`` the part of
    refusals that no limit explains, ``burst`` what the bucket holds, if that was seen;
    ``has_backlog`` is False while demand or sessions, not the rate, hold sending back.
    """

    rate_per_s: float
    limit_per_s: float | None
    phase: str
    refused_share: float
    error_share: float
    noise_share: float
    burst: float | None
    has_backlog: bool
    under_way: int


class Shaper:
    """Says when the next recipients may go, and learns from what became of them.

    ``now`` and ``sent_at`` are monotonic seconds. Each booking of ``reserve`` is closed by
    exactly one call of ``accepted``, ``throttled``, ``ignored`` or ``cancelled``.
    """

    def __init__(self, config: Rate) -> None:
        start_per_s = max(config.floor_per_s, config.start_per_s)
        if config.ceiling_per_s > 0:
            start_per_s = min(config.ceiling_per_s, start_per_s)
        self._pacer = Pacer(start_per_s)
        self._order = SendOrder()
        self._controller = Controller(config, self._pacer)
        self._refused_share = 0.0
        self._tried = 0.0

    def reserve(self, now: float, recipients: int) -> float:
        """Book the next moment for ``recipients``: not before ``now`` or an earlier booking's.

        Called later than the booking before allows, it shows that there was no backlog.
        """
        self._judge(now)
        return self._pacer.book(now, max(1, recipients))

    def accepted(self, now: float, recipients: int, sent_at: float) -> None:
        """The upstream took what was sent at ``sent_at``."""
        self._answered(now, Kind.ACCEPTED, recipients, sent_at)

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        """The upstream found it too fast. A spent daily quota is ``ignored``, not this."""
        self._answered(now, Kind.THROTTLED, recipients, sent_at)

    def ignored(self, now: float, recipients: int, sent_at: float) -> None:
        """It was answered, or lost, in a way that proves nothing about the rate."""
        self._answered(now, Kind.IGNORED, recipients, sent_at)

    def cancelled(self, now: float, recipients: int) -> None:
        """A booking that was not used gives its time back."""
        self._pacer.cancel(now, max(1, recipients))
        self._judge(now)

    def snapshot(self) -> ShaperState:
        """Return what is known now."""
        controller = self._controller
        return ShaperState(
            rate_per_s=self._pacer.rate_per_s,
            limit_per_s=controller.estimate.limit_per_s,
            phase=controller.phase.value if self._pacer.open_count else "idle",
            refused_share=self._refused_share,
            error_share=controller.estimate.error_share,
            noise_share=controller.suspicion.noise_share,
            burst=controller.burst,
            has_backlog=controller.idle_share <= BUSY_IDLE_MAX,
            under_way=self._pacer.open_count,
        )

    def learned(self) -> dict[str, float | None]:
        """Return what is worth keeping over a restart, as JSON can hold it."""
        estimate = self._controller.estimate
        return {
            "limit_per_s": estimate.limit_per_s,
            "burst": self._controller.burst,
            "confidence": 1 - estimate.error_share,
        }

    def restore(self, now: float, learned: Mapping[str, object]) -> None:
        """Start from what ``learned`` once returned; anything unusable in it is left out."""
        limit_per_s = _positive(learned.get("limit_per_s"))
        if limit_per_s is None:
            return
        error_share = 1 - min(1.0, _positive(learned.get("confidence")) or 0.0)
        weight = min(RESTORED_WEIGHT_MAX, 1.5 / max(error_share, 1e-9))
        self._controller.burst = _positive(learned.get("burst"))
        self._controller.start_from(now, limit_per_s, weight)

    def _answered(self, now: float, kind: Kind, recipients: int, sent_at: float) -> None:
        recipients = max(1, recipients)
        self._pacer.close()
        self._order.add(now, kind, recipients, sent_at)
        if kind is not Kind.IGNORED:
            self._tried = min(REFUSED_SPAN, self._tried + recipients)
            refused = 1.0 if kind is Kind.THROTTLED else 0.0
            step = min(1.0, recipients / self._tried)
            self._refused_share += (refused - self._refused_share) * step
        self._judge(now)

    def _judge(self, now: float) -> None:
        """Judge every outcome that no older one can follow any more."""
        self._controller.spread_s = self._order.spread_s
        complete = self._pacer.under_way(now) == 0
        while (outcome := self._order.next_due(now, complete=complete)) is not None:
            idle_s = self._pacer.idle_until(outcome.sent_at)
            self._controller.judge(now, outcome, idle_s)


def _positive(value: object) -> float | None:
    """Return ``value`` if it is a finite number above 0."""
    if isinstance(value, int | float) and isfinite(value) and value > 0:
        return float(value)
    return None

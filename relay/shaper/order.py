"""Replies put back into the order in which their messages were sent.

Latencies differ, so a refusal may overtake the accept of a message sent before it; judged
in that order it would prove an empty bucket at the wrong place. Replies wait here until no
older one can be expected: nothing is under way, or they are older than almost any latency
seen lately. A straggler is judged when it comes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import StrEnum

WAITING_MAX = 4096
"""Replies kept back at most; the oldest is judged when one more comes."""

WAIT_MAX_S = 1.0
"""No reply waits longer than this, else one slow reply would blind the shaper."""

FORGET = 1 / 128
"""How fast the longest latency seen is forgotten, a reply."""


class Kind(StrEnum):
    """What a reply said about the rate."""

    ACCEPTED = "accepted"
    THROTTLED = "throttled"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True, order=True)
class Outcome:
    """One reply; ``number`` keeps those of one moment in the order they came."""

    sent_at: float
    number: int
    recipients: int
    kind: Kind


@dataclass(slots=True)
class SendOrder:
    """Takes replies as they come, gives them out by ``sent_at``."""

    latency_s: float = field(default=0.0, init=False)
    spread_s: float = field(default=0.0, init=False)
    _longest_s: float = field(default=0.0, init=False)
    _waiting: list[Outcome] = field(default_factory=list, init=False)
    _count: int = field(default=0, init=False)

    def add(self, now: float, kind: Kind, recipients: int, sent_at: float) -> None:
        """Keep a reply that came ``now``; a ``sent_at`` in the future counts as now."""
        sent_at = min(sent_at, now)
        self._measure(min(now - sent_at, WAIT_MAX_S))
        heapq.heappush(self._waiting, Outcome(sent_at, self._count, recipients, kind))
        self._count += 1

    def next_due(self, now: float, *, complete: bool) -> Outcome | None:
        """Take the oldest reply out, if none older can be expected; ``complete``: none can."""
        if not self._waiting:
            return None
        age_s = now - self._waiting[0].sent_at
        if complete or age_s >= self._longest_s or len(self._waiting) > WAITING_MAX:
            return heapq.heappop(self._waiting)
        return None

    def _measure(self, latency_s: float) -> None:
        """Follow mean, mean deviation and recent maximum of the latency, as RFC 6298 does."""
        if self._count == 0:
            self.latency_s = latency_s
        self.spread_s += (abs(latency_s - self.latency_s) - self.spread_s) / 32
        self.latency_s += (latency_s - self.latency_s) / 32
        faded_s = self._longest_s + (self.latency_s - self._longest_s) * FORGET
        self._longest_s = max(latency_s, faded_s)

"""What the twin has seen: every accepted message, and counts of all that was refused.

Tests compare it with what a client was told: that nothing was lost, nothing came twice
but where the link died after the dot, and that the rate held over every window.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.twin import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

SECONDS_MAX = 100_000
"""Seconds with traffic whose counts are kept, a bit more than a day."""

LIMITS_MAX = 100_000
"""Changes of the limit that are kept."""

# Crockford's base 32, as relay ids are written; not imported, the twin shares no code.
_RELAY_ID = re.compile(r"\bid ([0-9a-hjkmnp-tv-z]{13})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A message that got (or would have got) its 250.

    ``wall_ms`` is in the id, too; ``at`` is monotonic seconds. Header values are raw and
    empty where the field is missing; ``received`` is the topmost ``Received:``.
    """

    id: str
    wall_ms: int
    at: float
    session: int
    sender: str
    recipients: tuple[str, ...]
    size_bytes: int
    sha256: str
    """Of the message as it came, dots unstuffed."""
    sha256_bare: str
    """The same without the topmost ``Received:`` field: what the relay was given."""
    received: str
    message_id: str
    campaign: str
    subscriber: str
    content: bytes | None = field(default=None, repr=False)

    @property
    def relay_id(self) -> str:
        """The envelope id that our relay wrote into its ``Received:``, or nothing."""
        match = _RELAY_ID.search(self.received)
        return match[1] if match else ""


@dataclass(slots=True)
class Counts:
    """Messages that reached the dot, and how they fared; ``recipients`` are accepted ones.

    ``refused`` holds every other 4xx and 5xx by its text, whatever the stage.
    """

    attempts: int = 0
    accepted: int = 0
    recipients: int = 0
    throttled: int = 0
    over_quota: int = 0
    foreign: int = 0
    """Recipients of somebody else on the same account."""
    refused: Counter[str] = field(default_factory=Counter)

    def add_refusal(self, text: str) -> None:
        """Count one reply that said no."""
        if text in texts.THROTTLES:
            self.throttled += 1
        elif text == texts.QUOTA:
            self.over_quota += 1
        else:
            self.refused[text] += 1


def by_message(record: Accepted) -> Hashable:
    """What makes two messages the same to their author; without Message-ID none are."""
    return record.message_id or record.id


def by_relay_id(record: Accepted) -> Hashable:
    """What makes two messages the same to the relay: tells a client's own re-sends apart."""
    return record.relay_id or record.id


class Ledger:
    """The twin's memory. ``at`` is monotonic seconds throughout."""

    def __init__(self, records_max: int) -> None:
        self.records: deque[Accepted] = deque(maxlen=records_max)
        self.total = Counts()
        self.seconds: dict[int, Counts] = {}
        """Counts by monotonic second, in order of time."""
        self.unanswered: set[str] = set()
        """Ids of accepted messages whose 250 never left: only these may come twice."""
        self.limits: deque[tuple[float, float]] = deque(maxlen=LIMITS_MAX)
        """(since when, recipients a second that are really accepted), in order of time."""
        self.foreign: deque[tuple[float, int]] = deque(maxlen=records_max)
        """(when, recipients) that somebody else on the account got in, in order of time."""
        self.sessions_opened = 0
        self.sessions_open = 0
        self.sessions_peak = 0
        self.tls_failures = 0
        self.broken = 0
        """Sessions that a bug of the twin or of a test's fault has ended."""

    # What the sessions write.

    def opened(self) -> int:
        """Count a connection in; returns its number, from 1."""
        self.sessions_opened += 1
        self.sessions_open += 1
        self.sessions_peak = max(self.sessions_peak, self.sessions_open)
        return self.sessions_opened

    def closed(self) -> None:
        """Count a connection out."""
        self.sessions_open -= 1

    def attempted(self, at: float) -> None:
        """A message has reached the dot."""
        self.total.attempts += 1
        self._second(at).attempts += 1

    def accepted(self, record: Accepted) -> None:
        """It was accepted."""
        cost = len(record.recipients)
        for counts in (self.total, self._second(record.at)):
            counts.accepted += 1
            counts.recipients += cost
        self.records.append(record)

    def refused(self, text: str, at: float) -> None:
        """A reply of any stage said no."""
        self.total.add_refusal(text)
        self._second(at).add_refusal(text)

    def limited(self, rate_per_s: float, at: float) -> None:
        """From now on this is what the account accepts."""
        self.limits.append((at, rate_per_s))

    def taken(self, recipients: int, at: float) -> None:
        """Somebody else on the account got that many recipients in."""
        self.foreign.append((at, recipients))
        for counts in (self.total, self._second(at)):
            counts.foreign += recipients

    def _second(self, at: float) -> Counts:
        counts = self.seconds.get(int(at))
        if counts is None:
            counts = self.seconds[int(at)] = Counts()
            if len(self.seconds) > SECONDS_MAX:
                del self.seconds[next(iter(self.seconds))]
        return counts

    # What the audits read.

    def copies(
        self, key: Callable[[Accepted], Hashable] = by_message
    ) -> Counter[tuple[Hashable, str]]:
        """How often each (key, recipient) was accepted."""
        return Counter(
            (key(record), recipient) for record in self.records for recipient in record.recipients
        )

    def twice(
        self, key: Callable[[Accepted], Hashable] = by_message
    ) -> dict[tuple[Hashable, str], int]:
        """The (key, recipient) pairs accepted more than once, with how often."""
        return {pair: n for pair, n in self.copies(key).items() if n > 1}

    def rates(self, window_s: float) -> list[float]:
        """Accepted recipients a second over consecutive windows from the first to the last."""
        if not self.records:
            return []
        start = self.records[0].at
        sums = Counter[int]()
        for record in self.records:
            sums[int((record.at - start) // window_s)] += len(record.recipients)
        return [sums[window] / window_s for window in range(max(sums) + 1)]

    def rate_peak(self, window_s: float) -> float:
        """The most accepted recipients a second in any window of that length."""
        peak = inside = 0
        oldest = iter(self.records)
        tail = next(oldest, None)
        for record in self.records:
            inside += len(record.recipients)
            while tail is not None and tail.at <= record.at - window_s:
                inside -= len(tail.recipients)
                tail = next(oldest, None)
            peak = max(peak, inside)
        return peak / window_s

    def refused_share(self) -> float:
        """The share of messages that were refused for their rate."""
        return self.total.throttled / self.total.attempts if self.total.attempts else 0.0

    def summary(self) -> dict[str, object]:
        """The figures of a whole run, ready for JSON."""
        total = self.total
        return {
            "attempts": total.attempts,
            "accepted": total.accepted,
            "recipients": total.recipients,
            "throttled": total.throttled,
            "over_quota": total.over_quota,
            "foreign": total.foreign,
            "refused": dict(total.refused),
            "refused_share": round(self.refused_share(), 6),
            "twice": len(self.twice()),
            "unanswered": len(self.unanswered),
            "rate_peak_per_s": {str(s): round(self.rate_peak(s), 3) for s in (1, 10, 60)},
            "duration_s": round(self._duration_s(), 3),
            "sessions": {
                "opened": self.sessions_opened,
                "open": self.sessions_open,
                "peak": self.sessions_peak,
            },
            "tls_failures": self.tls_failures,
            "broken": self.broken,
        }

    def _duration_s(self) -> float:
        return self.records[-1].at - self.records[0].at if self.records else 0.0

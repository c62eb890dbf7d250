"""SES's rate limit and a sender in virtual time: what the shaper is tried against.

A token bucket with debt (facts/ses-smtp.md 3 and 7.2): a message passes if one unit is
left and takes all its recipients. ``Course`` drives a real ``Shaper`` through its face
exactly as the dispatcher does: book one ahead, wait, send, book again; the reply comes a
latency later, out of order when latencies differ. No sockets, no clocks, chance only from
a seed, so a course is the same in every run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.shaper import Shaper


@dataclass(slots=True)
class Bucket:
    """``rate`` tokens a second, at most ``depth`` of them, starting full."""

    rate: float
    depth: float
    _tokens: float = field(init=False)
    _at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._tokens = self.depth

    def admit(self, now: float, recipients: int) -> bool:
        self._refill(now)
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= recipients
        return True

    def change(self, now: float, rate: float, depth: float) -> None:
        self._refill(now)
        self.rate, self.depth = rate, depth
        self._tokens = min(self._tokens, depth)

    def _refill(self, now: float) -> None:
        self._tokens = min(self.depth, self._tokens + self.rate * (now - self._at))
        self._at = now


@dataclass(slots=True, kw_only=True)
class Course:
    """One run of a sender with ``shaper`` against ``bucket``; all times are virtual seconds.

    ``latency_s`` is the round trip, ``spread`` its share of random deviation, ``noise`` the
    share of lone refusals that the bucket did not ask for. ``gaps`` are stretches without
    mail; ``demand_per_s`` is how fast mail comes (None: always more than can be sent);
    ``sessions`` how many attempts may be under way; ``lateness_s`` how late timers fire.
    """

    shaper: Shaper
    bucket: Bucket
    latency_s: float = 0.03
    spread: float = 0.3
    noise: float = 0.0
    seed: int = 1
    recipients: Callable[[random.Random], int] = lambda _: 1
    gaps: tuple[tuple[float, float], ...] = ()
    demand_per_s: float | None = None
    sessions: int | None = None
    lateness_s: float = 0.001
    start_at: float = 100.0
    accepted: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    refused: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    under_way: int = 0
    rates: dict[int, float] = field(default_factory=dict)
    _events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _chance: random.Random = field(init=False)
    _waiting: int = 0
    _next_demand_at: float = 0.0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self.bucket._at = self.start_at
        self._next_demand_at = self.start_at
        self._at(self.start_at, self._book)

    def change_at(self, second: float, rate: float, depth: float) -> None:
        """The limit moves ``second`` seconds into the course."""
        self._at(self.start_at + second, lambda now: self.bucket.change(now, rate, depth))

    def run(self, seconds: float) -> Course:
        """Play until ``seconds`` into the course; may be called again to go on."""
        end = self.start_at + seconds
        while self._events and self._events[0][0] <= end:
            now, _, event = heapq.heappop(self._events)
            event(now)
        return self

    def use(self, first: float, last: float, limit: float) -> float:
        """Accepted share of what ``limit`` allows in the seconds ``first`` to ``last``."""
        return self._total(self.accepted, first, last) / (limit * (last - first))

    def refused_share(self, first: float, last: float) -> float:
        """Refused share of what was tried in the seconds ``first`` to ``last``."""
        refused = self._total(self.refused, first, last)
        return refused / max(1, refused + self._total(self.accepted, first, last))

    def reached(self, share: float, limit: float, after: float, window: int = 3) -> float:
        """Seconds from ``after`` until ``window`` whole seconds together reach the share."""
        for second in range(int(after), max(self.accepted, default=0) + 1):
            if self.use(second, second + window, limit) >= share:
                return second + window - after
        return float("inf")

    @staticmethod
    def _total(counts: dict[int, int], first: float, last: float) -> int:
        return sum(counts.get(second, 0) for second in range(int(first), int(last)))

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _book(self, now: float) -> None:
        """Ask for the next moment as soon as there is mail."""
        ready_at = self._mail_at(now)
        if ready_at > now:
            self._at(ready_at, self._book)
            return
        recipients = self.recipients(self._chance)
        moment = self.shaper.reserve(now, recipients)
        late_s = self._chance.uniform(0, self.lateness_s)
        self._at(moment + late_s, lambda at: self._go(at, recipients))

    def _mail_at(self, now: float) -> float:
        for first, last in self.gaps:
            if first <= now - self.start_at < last:
                return self.start_at + last
        if self.demand_per_s is None:
            return now
        return max(now, self._next_demand_at)

    def _go(self, now: float, recipients: int) -> None:
        if self.sessions is not None and self.under_way >= self.sessions:
            self._waiting = recipients
            return
        if self.demand_per_s is not None:
            self._next_demand_at += recipients / self.demand_per_s
        self.under_way += 1
        self._send(now, recipients)
        self._book(now)

    def _send(self, now: float, recipients: int) -> None:
        latency_s = self.latency_s * self._chance.uniform(1 - self.spread, 1 + self.spread)

        def arrive(at: float) -> None:
            lone = self._chance.random() < self.noise
            passes = not lone and self.bucket.admit(at, recipients)
            self._at(now + latency_s, lambda end: self._answer(end, recipients, now, passes=passes))

        self._at(now + latency_s / 2, arrive)

    def _answer(self, now: float, recipients: int, sent_at: float, *, passes: bool) -> None:
        self.under_way -= 1
        second = int(sent_at - self.start_at)
        (self.accepted if passes else self.refused)[second] += recipients
        (self.shaper.accepted if passes else self.shaper.throttled)(now, recipients, sent_at)
        self.rates[int(now - self.start_at)] = self.shaper.snapshot().rate_per_s
        if self._waiting:
            recipients, self._waiting = self._waiting, 0
            self._go(now, recipients)

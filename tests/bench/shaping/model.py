"""SES's rate limit and senders in virtual time: what shapers are tried against.

``Course`` drives a controller through the shaper's normative face (design 7) exactly as the
dispatcher does: book one ahead, wait, send, book again; the reply comes a latency later, out
of order when latencies differ. No sockets, no clocks, chance only from a seed, so a course
is the same in every run. What SES does is taken from facts/ses-smtp.md 3 and 7.2:

- ``Bucket``: a message passes if one unit is left and takes all its recipients (debt);
- ``Window``: so many recipients in each second of the clock, as some accounts seem to be kept;
- ``Foreign``: somebody else who sends on the same account, evenly or by chance (Poisson), and
  who suffers refusals, too; he does not come back with what was refused;
- noise: a share of messages refused by chance, whatever the limit says;
- a quota: from a number of recipients on all is refused, in words that say so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

START_AT = 100.0
"""The first moment of a course; monotonic clocks do not begin at nought either."""


class Controller(Protocol):
    """The shaper's normative face; the reference controllers have it, too."""

    def reserve(self, now: float, recipients: int) -> float: ...
    def accepted(self, now: float, recipients: int, sent_at: float) -> None: ...
    def throttled(self, now: float, recipients: int, sent_at: float) -> None: ...
    def ignored(self, now: float, recipients: int, sent_at: float) -> None: ...
    def cancelled(self, now: float, recipients: int) -> None: ...


class Limit(Protocol):
    """What the server admits."""

    rate: float

    def admit(self, now: float, recipients: int) -> bool: ...
    def change(self, now: float, rate: float, depth: float) -> None: ...


@dataclass(slots=True)
class Bucket:
    """``rate`` tokens a second, at most ``depth`` of them, starting full."""

    rate: float
    depth: float
    rejected_cost: float = 0.0
    tokens: float = field(init=False)
    _at: float = field(default=START_AT, init=False)

    def __post_init__(self) -> None:
        self.tokens = self.depth

    def admit(self, now: float, recipients: int) -> bool:
        tokens = min(self.depth, self.tokens + self.rate * (now - self._at))
        self._at = now
        passes = tokens >= 1 - 1e-9
        self.tokens = tokens - (recipients if passes else self.rejected_cost)
        return passes

    def change(self, now: float, rate: float, depth: float) -> None:
        self.tokens = min(depth, self.tokens + self.rate * (now - self._at))
        self._at, self.rate, self.depth = now, rate, depth


@dataclass(slots=True)
class Window:
    """``rate`` recipients in each second of the clock, which ticks ``phase`` after ours."""

    rate: float
    phase: float = 0.37
    _second: int = field(default=-1, init=False)
    _used: float = field(default=0.0, init=False)

    def admit(self, now: float, recipients: int) -> bool:
        second = int(now + self.phase)
        if second != self._second:
            self._second, self._used = second, 0.0
        if self._used + 1 > self.rate + 1e-9:
            return False
        self._used += recipients
        return True

    def change(self, now: float, rate: float, depth: float) -> None:
        del now, depth
        self.rate = rate


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody else: ``share`` of the limit, one recipient at a time."""

    share: float
    poisson: bool = False


GO, ARRIVE, ANSWER, BOOK, FOREIGN, CHANGE = range(6)


@dataclass(slots=True, kw_only=True)
class Course:
    """One run of ``shaper`` against ``limit``; all times are virtual seconds.

    ``latency_s`` is the round trip, ``spread`` its share of even deviation, ``tail_s`` the mean
    of an exponential part beside it; ``noise`` the share of lone refusals. ``gaps`` are
    stretches without mail; ``demand_per_s`` is how fast mail comes (None: always more than can
    be sent); ``sessions`` how many attempts may be under way; ``lateness_s`` how late timers
    fire; ``quota`` the recipients after which all is refused for it.

    Counts are by second of the course, by the moment of *sending*.
    """

    shaper: Controller
    limit: Limit
    latency_s: float = 0.03
    spread: float = 0.3
    tail_s: float = 0.0
    noise: float = 0.0
    seed: int = 1
    recipients: Callable[[random.Random], int] | None = None
    gaps: tuple[tuple[float, float], ...] = ()
    demand_per_s: float | None = None
    sessions: int | None = None
    lateness_s: float = 0.001
    foreign: Foreign | None = None
    quota: float | None = None
    accepted: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    foreign_accepted: list[int] = field(default_factory=list)
    foreign_refused: list[int] = field(default_factory=list)
    on_second: Callable[[int], None] | None = None
    under_way: int = 0
    _events: list[tuple[float, int, int, object]] = field(default_factory=list)
    _number: int = 0
    _chance: random.Random = field(init=False)
    _others: random.Random = field(init=False)
    _waiting: int = 0
    _mail_at: float = START_AT

    def __post_init__(self) -> None:
        self._chance, self._others = random.Random(self.seed), random.Random(self.seed + 7919)
        self._push(START_AT, BOOK, None)
        if self.foreign is not None:
            self._push(START_AT, FOREIGN, None)

    def change_at(self, second: float, rate: float, depth: float) -> None:
        """The limit moves ``second`` seconds into the course."""
        self._push(START_AT + second, CHANGE, (rate, depth))

    def run(self, seconds: float) -> Course:
        """Play until ``seconds`` into the course; may be called again to go on."""
        end = START_AT + seconds
        size = int(seconds) + 2
        for counts in (self.accepted, self.refused, self.foreign_accepted, self.foreign_refused):
            counts.extend([0] * (size - len(counts)))
        events = self._events
        while events and events[0][0] <= end:
            now, _, kind, what = heappop(events)
            if kind == GO:
                self._go(now, what)  # type: ignore[arg-type]
            elif kind == ARRIVE:
                self._arrive(now, what)  # type: ignore[arg-type]
            elif kind == ANSWER:
                self._answer(now, what)  # type: ignore[arg-type]
            elif kind == BOOK:
                self._book(now)
            elif kind == FOREIGN:
                self._foreign(now)
            else:
                self.limit.change(now, *what)  # type: ignore[misc]
        return self

    # ---- what came of it

    def use(self, first: float, last: float, limit: float) -> float:
        """Accepted share of what ``limit`` allows in the seconds ``first`` to ``last``."""
        return sum(self.accepted[int(first) : int(last)]) / (limit * (int(last) - int(first)))

    def use_of_rest(self, first: float, last: float) -> float:
        """Accepted share of what the other sender's accepted mail left."""
        whole = self.limit.rate * (int(last) - int(first))
        theirs = sum(self.foreign_accepted[int(first) : int(last)])
        return sum(self.accepted[int(first) : int(last)]) / (whole - theirs)

    def refused_share(self, first: float, last: float) -> float:
        """Refused share of what was tried in the seconds ``first`` to ``last``."""
        refused = sum(self.refused[int(first) : int(last)])
        return refused / max(1, refused + sum(self.accepted[int(first) : int(last)]))

    def reached(self, share: float, limit: float, after: float, window: int = 2) -> float:
        """Seconds from ``after`` until ``window`` whole seconds together reach the share."""
        for second in range(int(after), len(self.accepted) - window):
            if self.use(second, second + window, limit) >= share:
                return second + window - after
        return float("inf")

    def calm_after(self, after: float) -> float:
        """Seconds from ``after`` to the end of the last second with more than max(2, 5 %)."""
        last = after
        for second in range(int(after), len(self.accepted)):
            tried = self.accepted[second] + self.refused[second]
            if self.refused[second] > max(2, 0.05 * tried):
                last = second + 1
        return last - after

    # ---- the events

    def _push(self, at: float, kind: int, what: object) -> None:
        self._number += 1
        heappush(self._events, (at, self._number, kind, what))

    def _book(self, now: float) -> None:
        """Ask for the next moment as soon as there is mail."""
        ready_at = self._ready_at(now)
        if ready_at > now:
            self._push(ready_at, BOOK, None)
            return
        recipients = 1 if self.recipients is None else self.recipients(self._chance)
        moment = self.shaper.reserve(now, recipients)
        late_s = self._chance.random() * self.lateness_s
        self._push(max(now, moment) + late_s, GO, recipients)

    def _ready_at(self, now: float) -> float:
        for first, last in self.gaps:
            if first <= now - START_AT < last:
                return START_AT + last
        return now if self.demand_per_s is None else max(now, self._mail_at)

    def _go(self, now: float, recipients: int) -> None:
        if self.sessions is not None and self.under_way >= self.sessions:
            self._waiting = recipients
            return
        if self.demand_per_s is not None:
            self._mail_at += recipients / self.demand_per_s
        self.under_way += 1
        latency_s = self.latency_s * (1 - self.spread + 2 * self.spread * self._chance.random())
        if self.tail_s:
            latency_s += self._chance.expovariate(1 / self.tail_s)
        self._push(now + latency_s / 2, ARRIVE, (now, recipients, latency_s / 2))
        self._book(now)

    def _arrive(self, now: float, what: tuple[float, int, float]) -> None:
        sent_at, recipients, back_s = what
        if self.quota is not None and self.quota <= 0:
            verdict = "quota"
        elif self.noise and self._chance.random() < self.noise:
            verdict = "refused"
        elif self.limit.admit(now, recipients):
            verdict = "accepted"
            if self.quota is not None:
                self.quota -= recipients
        else:
            verdict = "refused"
        self._push(now + back_s, ANSWER, (sent_at, recipients, verdict))

    def _answer(self, now: float, what: tuple[float, int, str]) -> None:
        sent_at, recipients, verdict = what
        self.under_way -= 1
        second = int(sent_at - START_AT)
        if verdict == "accepted":
            self.accepted[second] += recipients
            self.shaper.accepted(now, recipients, sent_at)
        elif verdict == "refused":
            self.refused[second] += recipients
            self.shaper.throttled(now, recipients, sent_at)
        else:
            self.shaper.ignored(now, recipients, sent_at)
        if self._waiting:
            recipients, self._waiting = self._waiting, 0
            self._go(now, recipients)

    def _foreign(self, now: float) -> None:
        assert self.foreign is not None
        second = int(now - START_AT)
        if second < len(self.foreign_accepted):
            passes = self.limit.admit(now, 1)
            (self.foreign_accepted if passes else self.foreign_refused)[second] += 1
        mean_s = 1 / (self.foreign.share * self.limit.rate)
        wait_s = self._others.expovariate(1 / mean_s) if self.foreign.poisson else mean_s
        self._push(now + wait_s, FOREIGN, None)

"""When the next recipients may go: even spacing at the current rate.

Pure arithmetic on one moment, ``_due``, as in the generic cell rate algorithm (ITU-T I.371
annex A): a booking goes at ``_due`` and moves it by ``recipients / rate``. A booking asked
for later than that was held up by demand, sessions or the timer; up to ``catch_up_s`` of it
is made good at once (real timers fire late), the rest is *idle* and lost. Idle stretches are
kept until the replies of that time are judged, because the estimate must not count them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

LOW_PER_S = 3.0
"""Below this rate a bucket may be one token deep, and catching up would overdraw it."""

GUARD_MIN_S, GUARD_MAX_S = 0.005, 0.08
"""Added to the spacing at low rates: a message that comes early finds a one-token bucket empty."""

TIMER_LATE_S = 0.005
"""How late an event loop's timer may be without that being lost; *assumed*, a busy loop."""

CATCH_UP_MAX_S = 0.25
"""At low rates one message is a long time; no timer is that late."""

GAPS_MAX = 256
"""Idle stretches kept apart; more than that melt into the newest."""

AHEAD_MAX = 4096
"""Bookings remembered as still to come; the dispatcher makes one."""


@dataclass(slots=True)
class Pacer:
    """Spaces bookings at ``rate_per_s`` recipients a second."""

    rate_per_s: float
    guard_s: float = field(default=0.0, init=False)
    open_count: int = field(default=0, init=False)
    _due: float = field(default=-inf, init=False)
    _latest: float = field(default=-inf, init=False)
    _gaps: deque[tuple[float, float]] = field(default_factory=deque, init=False)
    _ahead: deque[float] = field(default_factory=lambda: deque(maxlen=AHEAD_MAX), init=False)

    @property
    def catch_up_s(self) -> float:
        """How much lateness is made good: one recipient's time, none at low rates."""
        if self.rate_per_s < LOW_PER_S:
            return 0.0
        return max(TIMER_LATE_S, min(1 / self.rate_per_s, CATCH_UP_MAX_S))

    def book(self, now: float, recipients: int) -> float:
        """Return the moment for ``recipients``, never before ``now`` or an earlier booking's."""
        start = now if self._due == -inf else max(self._due, now - self.catch_up_s)
        self._note_idle(now, start)
        moment = max(now, start, self._latest)
        self._due = start + recipients / self.rate_per_s + self.guard_s
        self._latest = moment
        self.open_count += 1
        self._ahead.append(moment)
        return moment

    def cancel(self, now: float, recipients: int) -> None:
        """Give the latest booking's time back, but never more than may be caught up."""
        earliest = min(self._due, now - self.catch_up_s)
        self._due = max(self._due - recipients / self.rate_per_s - self.guard_s, earliest)
        if self._ahead:
            self._ahead.pop()
        self.close()

    def close(self) -> None:
        """One booking less is open: it was answered or cancelled."""
        self.open_count = max(0, self.open_count - 1)

    def under_way(self, now: float) -> int:
        """How many bookings whose moment has come wait for their reply."""
        while self._ahead and self._ahead[0] <= now:
            self._ahead.popleft()
        return max(0, self.open_count - len(self._ahead))

    def change_rate(self, now: float, rate_per_s: float, spread_s: float) -> None:
        """Pace at ``rate_per_s``; what is left of the current spacing stretches with it.

        At low rates the latency's ``spread_s`` becomes a guard beside the spacing.
        """
        is_low = rate_per_s < LOW_PER_S
        self.guard_s = GUARD_MIN_S + min(GUARD_MAX_S, 1.5 * spread_s) if is_low else 0.0
        if self._due > now:
            self._due = now + (self._due - now) * self.rate_per_s / rate_per_s
        self.rate_per_s = rate_per_s

    def pause(self, now: float, seconds: float) -> None:
        """Let nobody go for ``seconds`` more than the spacing asks; this is not idleness."""
        self._due = max(self._due, now) + seconds

    def idle_until(self, moment: float) -> float:
        """Seconds of idleness that ended by ``moment`` and were not yet reported."""
        idle_s = 0.0
        while self._gaps and self._gaps[0][0] <= moment:
            idle_s += self._gaps.popleft()[1]
        return idle_s

    def _note_idle(self, now: float, start: float) -> None:
        idle_s = start - self._due
        if self._due == -inf or idle_s <= 0:
            return
        if len(self._gaps) == GAPS_MAX:
            idle_s += self._gaps.pop()[1]
        self._gaps.append((now, idle_s))

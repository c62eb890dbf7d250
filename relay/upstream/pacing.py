"""How fast and how far the pool may open sessions. Pure: ``now`` is monotonic seconds.

Three small rules, none of which knows of sockets: ``Backoff`` after failures, ``Width``
for openings under way at once, ``Ceiling`` for what the peer bears. In each of them the
failures of one burst are one signal: an opening that began before the last failure was
noted says nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

FIRST_S = 1.0
LONGEST_S = 60.0
"""A dead upstream is tried once a minute: soon enough after it returns, too rare to hurt it."""

WIDTH_MAX = 10
"""Openings under way at once. A TLS handshake costs us a few ms of CPU and a login costs SES
a look-up; ten at a time fill a pool of 200 in a few seconds (assumed; no figure published)."""

CUT = 0.9
CLIMB_EVERY_S = 60.0
DOUBLINGS_MAX = 16
"""Of what a ceiling has climbed: 65,535 more sessions, beyond any ``sessions_max``."""


@dataclass(slots=True)
class Backoff:
    """When opening may be tried again: 1 s after a failure, doubling up to 60 s."""

    retry_at: float = -inf
    _delay_s: float = field(default=0.0, init=False)
    _failed_at: float = field(default=-inf, init=False)

    def on_failed(self, now: float, begun_at: float) -> None:
        """Wait longer than after the last failure, once a burst."""
        if begun_at <= self._failed_at:
            return
        self._delay_s = min(LONGEST_S, max(FIRST_S, self._delay_s * 2))
        self._failed_at = now
        self.retry_at = now + self._delay_s

    def on_opened(self) -> None:
        """Forget all failures: the peer takes sessions."""
        self._delay_s = 0.0
        self.retry_at = -inf


@dataclass(slots=True)
class Width:
    """How many sessions may be in the making at once: 1, 2, 4, 8, ``WIDTH_MAX`` by rounds.

    One more for each that opens, which is a doubling a round (TCP's slow start, RFC 5681).
    """

    at_once: int = 1

    def on_opened(self) -> None:
        """One more, up to ``WIDTH_MAX``."""
        self.at_once = min(WIDTH_MAX, self.at_once + 1)

    def on_narrowed(self) -> None:
        """Start again with one: an opening failed, or no session is left to prove the way."""
        self.at_once = 1


@dataclass(slots=True)
class Ceiling:
    """The most sessions that may be open: cut by a tenth when refused, then higher each minute.

    SES publishes no number for ``421 Too many concurrent SMTP connections`` and may count
    other clients of the account, so the edge is found and tried again. The steps double: 1 more
    after a minute, then 3, 7, 15. An edge that is real is met again after a few minutes, which
    costs one refused opening and no mail; one that was a moment's trouble is soon far behind.
    (With one more a minute, a refusal while few sessions were open kept the relay below its
    intake for the better part of an hour: *observed* in ``tests/fault/test_soak.py``.)
    """

    sessions_max: int
    _base: int = field(init=False)
    _cut_at: float = field(default=-inf, init=False)

    def __post_init__(self) -> None:
        self._base = self.sessions_max

    def at(self, now: float) -> int:
        """The ceiling at ``now``, in 1..``sessions_max``."""
        if self._base >= self.sessions_max:
            return self.sessions_max
        return min(self.sessions_max, self._base + self._climbed(now))

    def climbs_at(self, now: float) -> float:
        """The moment after ``now`` at which it will be higher; ``inf`` if it is at its top."""
        if self.at(now) >= self.sessions_max:
            return inf
        return self._cut_at + (self._steps(now) + 1) * CLIMB_EVERY_S

    def _climbed(self, now: float) -> int:
        return int(2 ** min(self._steps(now), DOUBLINGS_MAX)) - 1

    def _steps(self, now: float) -> int:
        # A loop woken at the very moment may see it a rounding error early.
        return int((now - self._cut_at + 1e-6) / CLIMB_EVERY_S)

    def on_refused(self, now: float, begun_at: float, open_count: int) -> None:
        """Fall below the ``open_count`` that the peer bore, once a burst."""
        if begun_at <= self._cut_at:
            return
        self._base = max(1, min(self.at(now), int(open_count * CUT)))
        self._cut_at = now

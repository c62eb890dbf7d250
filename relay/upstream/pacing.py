"""How fast the pool may open sessions. Pure: ``now`` is monotonic seconds.

Small rules, none of which knows of sockets: ``Backoff`` after failures, ``Width`` for openings
under way at once, ``Pace`` for openings a second, ``share_of_life`` for how long a session is
used. How many may be open is ``ceiling``'s to say. The failures of one burst are one signal: an
opening that began before the last failure was noted says nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

FIRST_S = 1.0
LONGEST_S = 60.0
"""A dead upstream is tried once a minute: soon enough after it returns, too rare to hurt it."""

WIDTH_MAX = 128
"""Openings under way at once: at ``PER_S`` this bears a handshake of 1.3 s (trans-Pacific, facts
ses-smtp.md 7.4)."""
WIDENING = 2
"""Further openings for each that succeeds."""

PER_S = 100.0
"""Openings a second. A handshake costs us a millisecond or two of CPU and SES the look-up of a
login (*assumed* to be borne; no figure is published). At 250 ms a round trip 500/s take 600
sessions; with 50 a second they held a rate back that rose from 10/s to 500/s in ten seconds."""
AT_ONCE = 10
"""Openings that may begin together when none began for a while."""

SHORTEST_LIFE = 0.5
"""Share of its messages and its age after which a session goes at the earliest."""
_GOLDEN = 0.6180339887498949


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
    """How many sessions may be in the making at once: 1, 3, 9, 27, 81, ``WIDTH_MAX`` by rounds.

    Two more for each that opens, faster than TCP's slow start (RFC 5681), which would take
    eight handshakes for a hundred sessions; ``Pace`` bounds the rest.
    """

    at_once: int = 1

    def on_opened(self) -> None:
        """Wider, up to ``WIDTH_MAX``."""
        self.at_once = min(WIDTH_MAX, self.at_once + WIDENING)

    def on_narrowed(self) -> None:
        """Start again with one: an opening failed, or no session is left to prove the way."""
        self.at_once = 1


@dataclass(slots=True)
class Pace:
    """How many openings may begin: ``PER_S`` a second, ``AT_ONCE`` of them together."""

    _free: float = field(default=AT_ONCE, init=False)
    _at: float = field(default=-inf, init=False)

    def room(self, now: float) -> int:
        """How many may begin now."""
        if now > self._at:
            self._free = min(AT_ONCE, self._free + (now - self._at) * PER_S)
            self._at = now
        # A loop woken at the very moment may see it a rounding error early.
        return int(self._free + 1e-6)

    def room_at(self, now: float) -> float:
        """The moment from which one may begin, ``now`` or later."""
        return now if self.room(now) else now + (1 - self._free) / PER_S

    def on_begun(self) -> None:
        """One has begun."""
        self._free -= 1


def share_of_life(number: int) -> float:
    """The share of its messages and its age that session ``number`` is used for.

    Sessions opened together wear out together, and a pool that lost half of its sessions within
    two seconds could not replace them in time (a handshake takes 1.4 s across the Pacific). So
    their lives differ: by multiples of the golden ratio, which are even whatever the count.
    """
    return 1 - (1 - SHORTEST_LIFE) * (number * _GOLDEN % 1)

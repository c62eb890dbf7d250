"""The due times of arrivals, such that no mail ever lands behind a reader.

A stream is read in the order of ``(due_at, id)``, which is to be the order of arrival. So a
stamp is never smaller than the one before, whatever the clock does, and it is never at or
before a place that a reader has reached or may reach at this moment: mail that came to stand
there would overtake what was read before it, and a read that goes on behind rows it could not
read (``Spool.read_due``) would pass it by. (A read first waits for the batch that was stamped
before it began: see ``Writer.caught_up``.)

Pure: no clock, no I/O. Ids break ties in most cases, so that a stamp differs from the
wall clock only where it must, and by one millisecond.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

ID_MAX: Final = (1 << 63) - 1
"""The largest integer SQLite holds; larger than any envelope's id."""

Place = tuple[int, int]
"""Where an envelope stands in its stream: (due_at, envelope id)."""


@dataclass(slots=True)
class Stamps:
    """Hands out due times, and remembers how far has been read."""

    _last: int = 0
    _reached: Place = (0, 0)
    _reading: Counter[int] = field(default_factory=Counter)

    def floor(self) -> Place:
        """The furthest place that a reader has reached or may reach at this moment."""
        return max([self._reached, *((now_ms, ID_MAX) for now_ms in self._reading)])

    def give(self, now_ms: int, first_id: int) -> int:
        """The due time of a batch of arrivals whose smallest id is ``first_id``."""
        self._last = beyond(self.floor(), max(self._last, now_ms), first_id)
        return self._last

    def begin_read(self, now_ms: int) -> None:
        """A read of mail due up to ``now_ms`` begins; ``end_read`` must follow."""
        self._reading[now_ms] += 1

    def end_read(self, now_ms: int, reached: Place | None) -> None:
        """That read came to ``reached`` (None: it found nothing, or failed).

        Only the way up to ``now_ms`` counts: arrivals must not be put off because somebody
        looked into the future.
        """
        self._reading[now_ms] -= 1
        if not self._reading[now_ms]:
            del self._reading[now_ms]
        if reached is not None:
            self._reached = max(self._reached, min(reached, (now_ms, ID_MAX)))

    def reset(self) -> None:
        """The clock was set back: follow it, whatever was read."""
        self._last, self._reached = 0, (0, 0)


def beyond(floor: Place, due_at: int, envelope_id: int) -> int:
    """``due_at``, or just later if the envelope would otherwise lie behind ``floor``."""
    return due_at if (due_at, envelope_id) > floor else floor[0] + 1

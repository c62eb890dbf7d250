"""Whether mail may come in: the spool's latest look at its room, and who waits for it.

New mail is invited while a margin is left (``has_room``); mail that was invited is let
in until the limit itself (``admits``). When room comes back it must be ``RETURN_FACTOR``
margins before mail is invited again, so that a full spool does not blink with each mail
that leaves. If SQLite hit the wall although there seemed to be room, what waits is tried
again one by one (``open_trial``) until one passes.

A *bar* is another matter than room: the files are not where they were, or one is damaged.
While there is one nothing is let in, nor tried.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from relay.clock import Clock
    from relay.spool.room import Limits
    from relay.spool.words import Room

log = logging.getLogger(__name__)

WRITE_FACTOR: Final = 2
"""A byte of mail is written twice: to the log, then to the file."""


RETURN_FACTOR: Final = 4
"""A quarter of ``free_min``: at some hundred mails a second that is seconds, not blinks."""


class Bar(Enum):
    """Why nothing may be written for good, whatever room there is."""

    FILES = "the files are not where they were"
    """Until they are again."""
    DAMAGE = "a file is damaged"
    """Until the next start, which reads it anew."""


class Gate:
    """Open while there is room. Used on the event loop only."""

    def __init__(self, limits: Limits, room: Room, clock: Clock) -> None:
        self.room = room
        self.stalled_since: float | None = None
        self._limits, self._clock = limits, clock
        self._walled = self._trial = False
        self._bars: dict[Bar, str] = {}
        self._open = asyncio.Event()
        self._open.set()
        self.measured(room)

    @property
    def has_room(self) -> bool:
        """Whether new mail is invited."""
        return self._open.is_set()

    @property
    def is_trying(self) -> bool:
        """Whether one append is to be tried against the wall."""
        return self._trial and self.room.slack_bytes >= 0

    def admits(self, size_bytes: int) -> bool:
        """Whether an append of that size may be written now."""
        slack = self.room.slack_bytes
        fits = slack > 0 and WRITE_FACTOR * size_bytes <= self.room.free_bytes
        return fits and not self._bars and (not self._walled or self._trial)

    async def wait(self) -> None:
        """Return once there is room."""
        await self._open.wait()

    def measured(self, room: Room) -> None:
        """Take a new look at the room for the truth."""
        self.room = room
        needed = self._limits.margin_bytes * (1 if self.has_room else RETURN_FACTOR)
        is_free = not self._walled and not self._bars
        self._turn(is_open=room.slack_bytes > needed and is_free)

    def hit_wall(self, reason: str) -> None:
        """A write failed for want of room, or because the file cannot be written at all."""
        if not self._walled:
            log.error("spool cannot be written", extra={"reason": reason})
        self._walled, self._trial = True, False
        self._turn(is_open=False)

    def bar(self, bar: Bar, reason: str) -> None:
        """Let nothing in for this reason; "" takes the bar away."""
        if reason and bar not in self._bars:
            log.error("spool takes no mail", extra={"reason": reason})
        if not reason and self._bars.pop(bar, ""):
            log.warning("spool may take mail again", extra={"mended": bar.value})
        if reason:
            self._bars[bar] = reason
        self.measured(self.room)

    @property
    def barred(self) -> str:
        """Why nothing is let in whatever room there is, "" if nothing of the kind."""
        return next(iter(self._bars.values()), "")

    def open_trial(self, *, anyone_waits: bool) -> None:
        """Let one append try its luck, or forget the wall if nobody is there to try."""
        self._walled = self._walled and anyone_waits
        self._trial = self._walled
        self.measured(self.room)

    def passed(self) -> None:
        """An append was written: there is no wall."""
        self._walled = self._trial = False
        self.measured(self.room)

    def _turn(self, *, is_open: bool) -> None:
        if is_open == self.has_room:
            return
        if is_open:
            log.info("spool has room again", extra=self._facts())
            self.stalled_since = None
            self._open.set()
        else:
            log.warning("spool has no room", extra=self._facts())
            self.stalled_since = self._clock.monotonic()
            self._open.clear()

    def _facts(self) -> dict[str, int]:
        room = self.room
        return {
            "free_bytes": room.free_bytes,
            "free_min_bytes": room.free_min_bytes,
            "used_bytes": room.used_bytes,
            "size_max_bytes": room.size_max_bytes,
        }

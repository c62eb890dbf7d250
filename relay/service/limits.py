"""Each change of a learned limit is said once: a log line, an event, a count; and kept soon.

Events are for people who look later. They are few and bounded, so that they go along with the
figures, and are kept in the spool, so that the change of the night is there after an update in
the morning.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING

from relay.errors import SpoolError
from relay.figures import EventFigures, change_in_words
from relay.service.kept import recalled
from relay.shaper import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.clock import Clock
    from relay.metrics import Metrics
    from relay.service.memory import Memory
    from relay.shaper import Change
    from relay.spool import Spool

_log = logging.getLogger(__name__)

EVENTS_MAX = 100
"""Events kept; a limit that moves each minute fills them in an hour and a half."""
TEXT_MAX = 500
"""Characters of an event that is brought back; those written here are far shorter."""
AT_MAX_MS = 2**53
"""Moments from here on are none: no float holds them, and people's clocks show none of them."""
LOOK_S = 1.0
"""How often the shapers are asked what has changed."""
SAVE_S = 10.0
"""A changed limit is written down no later than this, and no more often: a search in its first
seconds changes it each second."""
_KEY = "events"


class Limits:
    """Watches the limits of all upstreams, by name."""

    def __init__(
        self, memories: Mapping[str, Memory], spool: Spool, clock: Clock, metrics: Metrics
    ) -> None:
        self._memories, self._spool, self._clock, self._metrics = memories, spool, clock, metrics
        self._events: deque[EventFigures] = deque(maxlen=EVENTS_MAX)
        self._unsaved = False
        for name in memories:
            metrics.watch_limit(name, [cause.name.lower() for cause in Cause])

    @property
    def events(self) -> tuple[EventFigures, ...]:
        """The latest events, oldest first."""
        return tuple(self._events)

    async def recall(self) -> None:
        """Bring back the events of earlier runs."""
        events = (await recalled(self._spool, _KEY)).get("events")
        found = [_event(one) for one in events] if isinstance(events, list) else []
        self._events.extend(one for one in found if one is not None)

    async def run(self) -> None:
        """Look each second, until cancelled."""
        saved_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                self.note()
                if self._unsaved and self._clock.monotonic() - saved_at >= SAVE_S:
                    saved_at = self._clock.monotonic()
                    await self.save()
            except SpoolError as error:
                _log.warning("learned limit not written", extra={"error": str(error)})
            except Exception:
                _log.exception("limits not watched")
                self._metrics.failed("service")

    def note(self) -> None:
        """Say what has changed since the last look."""
        for name, memory in self._memories.items():
            for change in memory.changes():
                self._say(name, change, memory.wall_ms(change.at))

    async def save(self) -> None:
        """Write down what is not yet. Raises: SpoolError."""
        for memory in self._memories.values():
            await memory.save()
        if not self._unsaved:
            return
        self._unsaved = False  # Before the write: one that comes meanwhile is not lost.
        try:
            await self._spool.put_state(_KEY, {"events": [asdict(one) for one in self._events]})
        except SpoolError:
            self._unsaved = True
            raise

    def _say(self, upstream: str, change: Change, at_ms: int) -> None:
        facts = {
            "upstream": upstream,
            "before_per_s": change.before_per_s,
            "after_per_s": change.after_per_s,
            "cause": change.cause.value,
        }
        _log.info("limit changed", extra=facts)
        self._metrics.limit_changed(upstream, change.cause.name.lower())
        text = change_in_words(change.before_per_s, change.after_per_s, change.cause.value)
        self._events.append(EventFigures(at=at_ms, upstream=upstream, text=text))
        self._unsaved = True


def _event(found: object) -> EventFigures | None:
    """An event as it was kept, if it is one."""
    match found:
        case {"at": int(at), "upstream": str(upstream), "text": str(text)} if 0 < at < AT_MAX_MS:
            return EventFigures(at=at, upstream=upstream[:TEXT_MAX], text=text[:TEXT_MAX])
        case _:
            return None

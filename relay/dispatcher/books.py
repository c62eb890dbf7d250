"""Writing down what happened, come what may.

A mail that was sent and not noted down will be sent again after a crash. So a settlement
that the spool refuses is tried until it succeeds; meanwhile ``is_stuck`` keeps the dispatcher
from sending anything more. The number of settlements under way is bounded for the same
reason (``UNSETTLED_MAX``).

Holds are written here, too. A lost hold costs one refused probe, so that a failure there is
logged and not tried again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay.breaker import account_key, campaign_key
from relay.errors import SpoolBroken, SpoolBusy, SpoolError, SpoolFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.breaker import Decision
    from relay.dispatcher.rooms import Rooms
    from relay.spool import Settlement

_log = logging.getLogger(__name__)

UNSETTLED_MAX = 200
"""Settlements under way before dispatch waits for the disk: one batch of the spool (P3)."""
RETRY_S = 1.0
"""Between tries to write down what must be written down."""


class Books:
    """The spool as one dispatcher writes to it; ``on_change`` is called when it can go on."""

    def __init__(self, rooms: Rooms, on_change: Callable[[], None]) -> None:
        self._rooms = rooms
        self._on_change = on_change
        self._unsettled = 0
        self._failing = 0

    @property
    def is_stuck(self) -> bool:
        """Whether so much is unwritten that nothing more may be sent."""
        return self._failing > 0 or self._unsettled >= UNSETTLED_MAX

    async def settle(self, settlement: Settlement) -> None:
        """Return once it is on disk, however long that takes."""
        self._unsettled += 1
        failures = 0
        try:
            while not await self._written(settlement):
                failures += 1
                self._failing += failures == 1
                await self._rooms.clock.sleep(RETRY_S)
        finally:
            self._unsettled -= 1
            self._failing -= failures > 0
            self._on_change()

    async def _written(self, settlement: Settlement) -> bool:
        labels = {"envelope": settlement.envelope.name, "lane": settlement.envelope.lane}
        try:
            await self._rooms.spool.settle(settlement)
        except (SpoolFull, SpoolBusy, SpoolBroken) as error:
            _log.error(
                "settlement not written, dispatch stopped", extra={**labels, "error": str(error)}
            )
            return False
        except SpoolError:
            # It contradicts what is on disk: our bug, and no better the next time.
            _log.exception("settlement refused", extra=labels)
            self._rooms.metrics.failed("spool")
        return True

    async def keep_holds(self, decision: Decision) -> bool:
        """Write a decision's holds down; True if parked mail went back to its lanes."""
        freed = False
        for hold in decision.add:
            self._rooms.ageing.stop(hold.key, hold.since_at)
            _log.warning("mail held", extra={"key": hold.key, "reason": hold.reason})
        for key, source in decision.lift:
            if not self._rooms.holds.held(key):
                self._rooms.ageing.go(key, self._rooms.clock.wall_ms())
            _log.warning("hold lifted", extra={"key": key, "source": source.value})
        try:
            for hold in decision.add:
                await self._rooms.spool.put_hold(hold)
            for key, source in decision.lift:
                await self._rooms.spool.drop_hold(key, source)
                freed = await self.free(key) or freed
        except SpoolError as error:
            _log.error("hold not written", extra={"error": str(error)})
        return freed

    async def free(self, key: str) -> bool:
        """Bring mail parked under ``key`` back, if nobody holds it any more."""
        if self._rooms.holds.held(key) or not parks(key):
            return False
        return await self._rooms.spool.release(key) > 0


def parks(key: str) -> bool:
    """Whether mail held by ``key`` leaves its lane; a held account or campaign keeps its lane."""
    return not key.startswith((account_key(""), campaign_key("")))

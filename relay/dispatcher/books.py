"""Writing down what happened, come what may.

A mail that was sent and not noted down will be sent again after a crash. So a settlement
that the spool refuses is tried until it succeeds; meanwhile ``is_stuck`` keeps the dispatcher
from sending anything more. The number of settlements under way is bounded for the same
reason (``UNSETTLED_MAX``).

A settlement that contradicts the spool is our bug. It is tried again a few times, since a
batch may fail for another's fault; then the mail's lease is kept, so that it is not sent again
before the next start.

Holds are written here, too. A hold that is lost costs a few refusals, parked mail that is not
released waits for the next start; so these are tried for a while, and not for ever.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay.breaker import account_key, campaign_key
from relay.envelope import redact_all
from relay.errors import SpoolBroken, SpoolBusy, SpoolError, SpoolFull

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.breaker import Decision, Hold
    from relay.dispatcher.rooms import Rooms
    from relay.spool import Settlement

_log = logging.getLogger(__name__)

UNSETTLED_MAX = 200
"""Settlements under way before dispatch waits for the disk: fewer than one batch of the spool
(500), which is the bound of P3."""
RETRY_S = 1.0
"""Between tries to write down what must be written down."""
REFUSED_TRIES = 3
"""Tries of a settlement that the spool calls a contradiction."""
HOLD_TRIES = 30
"""Tries to write down a hold, or to release what was parked under it."""


class Books:
    """The spool as one dispatcher writes to it; ``on_change`` is called when it can go on."""

    def __init__(self, rooms: Rooms, on_change: Callable[[], None]) -> None:
        self._rooms = rooms
        self._on_change = on_change
        self._unsettled = 0
        self._failing = 0
        self._announced: dict[str, int] = {}

    @property
    def is_stuck(self) -> bool:
        """Whether so much is unwritten that nothing more may be sent."""
        return self._failing > 0 or self._unsettled >= UNSETTLED_MAX

    async def settle(self, settlement: Settlement) -> bool:
        """Return True once it is on disk, however long that takes; False if it is refused."""
        self._unsettled += 1
        failures = refusals = 0
        try:
            while (error := await self._write(settlement)) is not None:
                is_refused = not isinstance(error, SpoolFull | SpoolBusy | SpoolBroken)
                refusals += is_refused
                if refusals == REFUSED_TRIES:
                    return False
                failures += not is_refused
                self._failing += failures == 1 and not is_refused
                await self._rooms.clock.sleep(RETRY_S)
            return True
        finally:
            self._unsettled -= 1
            self._failing -= failures > 0
            self._on_change()

    async def _write(self, settlement: Settlement) -> SpoolError | None:
        """Why it could not be written; None if it was."""
        labels = {"envelope": settlement.envelope.name, "lane": settlement.envelope.lane}
        try:
            await self._rooms.spool.settle(settlement)
        except (SpoolFull, SpoolBusy, SpoolBroken) as error:
            labels["error"] = str(error)
            _log.error("settlement not written, dispatch stopped", extra=labels)
            return error
        except SpoolError as error:
            _log.exception("settlement refused", extra=labels)
            self._rooms.metrics.failed("spool")
            return error
        return None

    async def keep_holds(self, decision: Decision) -> None:
        """Write a decision's holds down; mail parked under those lifted goes back to its lanes."""
        for hold in decision.add:
            self._rooms.ageing.stop(hold.key, hold.since_at)
            self._announce(hold)
        for key, source in decision.lift:
            if not self._rooms.holds.held(key):
                self._rooms.ageing.go(key, self._rooms.clock.wall_ms())
            self._announced.pop(key, None)
            _log.warning("hold lifted", extra={"key": redact_all(key), "source": source.value})
        await self._insist(lambda: self._keep_holds(decision))

    def _announce(self, hold: Hold) -> None:
        """Log a hold once; what a probe changes in it is no news."""
        if self._announced.get(hold.key) != hold.since_at:
            self._announced[hold.key] = hold.since_at
            facts = {"key": redact_all(hold.key), "reason": redact_all(hold.reason)}
            _log.warning("mail held", extra=facts)

    async def _keep_holds(self, decision: Decision) -> None:
        for hold in decision.add:
            await self._rooms.spool.put_hold(hold)
        for key, source in decision.lift:
            await self._rooms.spool.drop_hold(key, source)
            await self._free(key)

    async def free(self, key: str) -> None:
        """Bring mail parked under ``key`` back, if nobody holds it any more."""
        await self._insist(lambda: self._free(key))

    async def _free(self, key: str) -> None:
        if parks(key) and not self._rooms.holds.held(key):
            await self._rooms.spool.release(key)

    async def _insist(self, change: Callable[[], Awaitable[None]]) -> None:
        """Try ``change``, which may be repeated, until it succeeds or there is little hope."""
        for left in reversed(range(HOLD_TRIES)):
            try:
                await change()
            except SpoolError as error:
                _log.error("hold not written", extra={"error": str(error), "tries_left": left})
                await self._rooms.clock.sleep(RETRY_S)
            else:
                return


def parks(key: str) -> bool:
    """Whether mail held by ``key`` leaves its lane; a held account or campaign keeps its lane."""
    return not key.startswith((account_key(""), campaign_key("")))

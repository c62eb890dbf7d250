"""Writing down what happened, come what may.

A mail that was sent and not noted down will be sent again after a crash. So a settlement
that the spool refuses is tried until it succeeds; meanwhile ``is_stuck`` keeps the dispatcher
from sending anything more. The number of settlements under way is bounded for the same
reason (``UNSETTLED_MAX``).

A settlement that contradicts the spool is our bug. It is tried again a few times, since a
batch may fail for another's fault; then the mail's lease is kept, so that it is not sent again
before the next start. So is one that would stand on a damaged page of the spool: the rest need
not wait for it. What may come twice after that start is bounded all the same: after
``UNWRITABLE_MAX`` of these nothing more is sent.

Holds are written here, too. A hold that is lost costs a few refusals, so that is tried for a
while, and not for ever. Parked mail that is not released would wait for the next start, held
by nobody: a hold that was lifted is tried until it is gone, ever less often.
"""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from relay.breaker import account_key, campaign_key
from relay.envelope import redact_all
from relay.errors import SpoolBroken, SpoolBusy, SpoolDamaged, SpoolError, SpoolFull

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from relay.breaker import Decision, Hold, Source
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
UNWRITABLE_MAX = 100
"""Settlements given up for damage: half a batch (P3), the other half may be under way."""
RETRY_MAX_S = 60.0
"""The pause between tries that have failed for long, so that the log stays readable."""
HOLD_TRIES = 10
"""Tries to write down a new hold: about five minutes."""


class Settled(NamedTuple):
    """What became of a settlement: whether it is on disk, and when its envelope is due then.

    ``due_at`` (wall ms, perhaps past) goes by every recipient that waits, also those that were
    not tried now; None if the envelope waits in no lane.
    """

    written: bool
    due_at: int | None


class Books:
    """The spool as one dispatcher writes to it; ``on_change`` is called when it can go on."""

    def __init__(self, rooms: Rooms, on_change: Callable[[], None]) -> None:
        self._rooms = rooms
        self._on_change = on_change
        self._unsettled = 0
        self._failing = 0
        self._unwritable = 0
        self._announced: dict[str, int] = {}

    @property
    def is_stuck(self) -> bool:
        """Whether so much is unwritten that nothing more may be sent."""
        if self._failing > 0 or self._unsettled >= UNSETTLED_MAX:
            return True
        return self._unwritable >= UNWRITABLE_MAX

    async def settle(self, settlement: Settlement) -> Settled:
        """Return once it is on disk, however long that takes, or refused."""
        self._unsettled += 1
        failures = refusals = 0
        try:
            while isinstance(found := await self._write(settlement), SpoolError):
                is_refused = _is_its_own(found)
                refusals += is_refused
                if refusals == REFUSED_TRIES:
                    self._unwritable += isinstance(found, SpoolDamaged)
                    return Settled(written=False, due_at=None)
                failures += not is_refused
                self._failing += failures == 1 and not is_refused
                await self._rooms.clock.sleep(RETRY_S)
            return Settled(written=True, due_at=found)
        finally:
            self._unsettled -= 1
            self._failing -= failures > 0
            self._on_change()

    async def _write(self, settlement: Settlement) -> SpoolError | int | None:
        """Why it could not be written; if it was, when its envelope is due (None: never)."""
        labels = {"envelope": settlement.envelope.name, "lane": settlement.envelope.lane}
        try:
            return await self._rooms.spool.settle(settlement)
        except SpoolDamaged as error:
            _log.error("settlement not written", extra={**labels, "error": str(error)})
            return error
        except (SpoolFull, SpoolBusy, SpoolBroken) as error:
            labels["error"] = str(error)
            _log.error("settlement not written, dispatch stopped", extra=labels)
            return error
        except SpoolError as error:
            _log.exception("settlement refused", extra=labels)
            self._rooms.metrics.failed("spool")
            return error

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
        if decision.add:
            await self._insist(lambda: self._put(decision.add), tries=HOLD_TRIES)
        if decision.lift:
            await self._insist(lambda: self._drop(decision.lift))

    def _announce(self, hold: Hold) -> None:
        """Log a hold once; what a probe changes in it is no news."""
        if self._announced.get(hold.key) != hold.since_at:
            self._announced[hold.key] = hold.since_at
            facts = {"key": redact_all(hold.key), "reason": redact_all(hold.reason)}
            _log.warning("mail held", extra=facts)

    async def _put(self, holds: Iterable[Hold]) -> None:
        for hold in holds:
            # Between two tries it may have been lifted.
            if self._rooms.holds.get(hold.key, hold.source) is not None:
                await self._rooms.spool.put_hold(hold)

    async def _drop(self, lifted: Iterable[tuple[str, Source]]) -> None:
        for key, source in lifted:
            # Between two tries it may have been set again.
            if source not in self._rooms.holds.sources(key):
                await self._rooms.spool.drop_hold(key, source)
            await self._free(key)

    async def free(self, key: str) -> None:
        """Bring mail parked under ``key`` back, if nobody holds it any more."""
        await self._insist(lambda: self._free(key))

    async def _free(self, key: str) -> None:
        if parks(key) and not self._rooms.holds.held(key):
            await self._rooms.spool.release(key)

    async def _insist(
        self, change: Callable[[], Awaitable[None]], *, tries: int | None = None
    ) -> None:
        """Try ``change``, which may be repeated, until it succeeds or ``tries`` have failed."""
        pause_s = RETRY_S
        for tried in count(1):
            try:
                await change()
            except SpoolError as error:
                _log.error("hold not written", extra={"error": str(error), "tries": tried})
            else:
                return
            if tried == tries:
                return
            await self._rooms.clock.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)


def _is_its_own(failure: SpoolError) -> bool:
    """Whether this settlement alone cannot be written, as opposed to any."""
    if isinstance(failure, SpoolDamaged):
        return True
    return not isinstance(failure, SpoolFull | SpoolBusy | SpoolBroken)


def parks(key: str) -> bool:
    """Whether mail held by ``key`` leaves its lane; a held account or campaign keeps its lane."""
    return not key.startswith((account_key(""), campaign_key("")))

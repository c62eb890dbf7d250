"""What outlives a restart of the relay beside its mail, and what a wrong clock may not do to it.

Holds, the time that mail has spent under them, and the wall clock as it was seen last. Due times
and ages are wall time, because they are kept on disk; a clock that jumps (a person, NTP after a
boot without a battery) would expire mail or let it wait for months. So the wall clock is held
against the monotonic one while the relay runs, and against what was seen last at the start.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from relay import deferral
from relay.ageing import BACK_MS, STEP_MS
from relay.breaker import Hold, Source, in_doubt_key
from relay.dispatcher import IN_DOUBT_REASON
from relay.errors import SpoolError
from relay.service.kept import recalled

if TYPE_CHECKING:
    from relay import config
    from relay.service.branch import Shared
    from relay.service.branches import Branches

_log = logging.getLogger(__name__)

SAVE_S = 60.0
"""How often what was learned is written down; a crash forgets at most this much."""
CLOCK_S = 10.0
"""How often the wall clock is compared with the monotonic one."""


class Upkeep:
    """Restores at the start, saves at the end and often, and watches the clock between."""

    def __init__(self, retry: config.Retry, shared: Shared, branches: Branches) -> None:
        self._retry, self._shared, self._branches = retry, shared, branches
        self._spool, self._clock = shared.spool, shared.clock

    async def restore(self) -> None:
        """Bring back what was known before the last stop.

        Raises: SpoolError: the holds cannot be read, and without them nothing may be sent.
        """
        now_ms = self._clock.wall_ms()
        ageing = self._shared.ageing
        ageing.went_on(now_ms, self._clock.monotonic())
        ageing.load(await recalled(self._spool, "ageing"))
        await self._restore_holds(now_ms)
        await self._follow_clock(now_ms)
        await self._branches.restore()

    async def run(self) -> None:
        """Save often and watch the clock, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._save_often())
            tasks.create_task(self._watch_clock())

    async def save(self) -> None:
        """Write down what was learned; a failure costs a slower start, no mail."""
        try:
            await self._branches.save()
            now_ms = self._clock.wall_ms()
            await self._spool.put_state("ageing", self._shared.ageing.saved(now_ms))
            await self._spool.put_state("clock", {"wall_ms": now_ms})
        except SpoolError as error:
            _log.warning("learned state not written", extra={"error": str(error)})

    async def _restore_holds(self, now_ms: int) -> None:
        holds = self._shared.holds
        for hold in await self._spool.holds():
            holds.add(hold)
            self._shared.ageing.stop(hold.key, hold.since_at)
        in_doubt = {in_doubt_key(name) for name in self._branches}
        for key in await self._spool.parked_keys():
            # A crash between the two writes can leave mail parked under a hold that is gone, or,
            # if it is in doubt, is not there yet: then the operator's wish stands.
            if key in in_doubt and not holds.held(key):
                holds.add(Hold(key, Source.BREAKER, IN_DOUBT_REASON, now_ms))
            if not holds.held(key):
                await self._spool.release(key)

    async def _follow_clock(self, now_ms: int) -> None:
        """Let mail that was put off by a clock that ran ahead follow the one that is right now."""
        seen = await recalled(self._spool, "clock")
        seen_ms = seen.get("wall_ms")
        back_ms = seen_ms - now_ms if isinstance(seen_ms, int) else 0
        latest_ms = now_ms + self._wait_max_ms
        await self._spool.clamp_due(latest_ms, back_ms if back_ms >= BACK_MS else 0)

    @property
    def _wait_max_ms(self) -> int:
        """The longest that mail is ever put off for; what is due later comes of a wrong clock."""
        longest_s = self._retry.max_s * (1 + self._retry.jitter)
        return max(deferral.IN_DOUBT_MS, round(longest_s * 1000))

    async def _save_often(self) -> None:
        while True:
            await self._clock.sleep(SAVE_S)
            await self.save()

    async def _watch_clock(self) -> None:
        """Notice when the wall clock was set, by a person or by NTP after boot."""
        offset = self._clock.wall_ms() - self._clock.monotonic() * 1000
        while True:
            await self._clock.sleep(CLOCK_S)
            now_ms = self._clock.wall_ms()
            step_ms = now_ms - self._clock.monotonic() * 1000 - offset
            offset += step_ms
            if step_ms <= -BACK_MS:
                await self._clamp(now_ms, round(-step_ms))
                self._branches.reread()
            if abs(step_ms) < STEP_MS:
                self._shared.ageing.went_on(now_ms, self._clock.monotonic())
                continue
            _log.warning("wall clock was set", extra={"seconds": round(step_ms / 1000)})
            self._shared.ageing.stepped(round(step_ms), now_ms)
            self._branches.reread()

    async def _clamp(self, now_ms: int, back_ms: int) -> None:
        try:
            await self._spool.clamp_due(now_ms + self._wait_max_ms, back_ms)
        except SpoolError as error:
            _log.error("due times not set back, mail may wait", extra={"error": str(error)})

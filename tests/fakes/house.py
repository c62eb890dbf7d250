"""A dispatcher with all its rooms, the clock turned by hand.

Policy and spool are the real ones, the upstream is in memory.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from relay import config
from relay.ageing import Ageing
from relay.breaker import Breaker, Holds
from relay.dispatcher import Dispatcher, Rooms
from relay.metrics import Metrics
from relay.quota import Quota
from relay.shaper import Shaper
from tests.fakes.clock import ManualClock
from tests.fakes.mail import envelope
from tests.fakes.spool_file import PATIENCE_S, open_spool
from tests.fakes.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from relay.envelope import Envelope
    from relay.spool import Found, Spool

STEP_S = 0.05
"""Virtual time that passes at each look at a condition."""


@dataclass
class House:
    """Everything a test may want to look at."""

    clock: ManualClock
    spool: Spool
    upstream: FakeUpstream
    holds: Holds
    rooms: Rooms
    dispatcher: Dispatcher
    kept: list[Envelope] = field(default_factory=list)

    async def keep(
        self, count: int = 1, *, content: bytes = b"Subject: x\r\n\r\nx\r\n", **kind: object
    ) -> list[Envelope]:
        """Spool ``count`` envelopes as the listener would."""
        made = []
        for _ in range(count):
            new_id = self.spool.new_id()
            one = envelope(new_id, **kind)  # type: ignore[arg-type]
            one = replace(one, received_at=self.clock.wall_ms())
            await self.spool.append([one], content)
            made.append(one)
        self.kept += made
        return made

    async def until(
        self, condition: Callable[[], bool], *, within_s: float = 7200, step_s: float = STEP_S
    ) -> float:
        """Let virtual time pass until ``condition`` holds; the seconds it took."""
        begun = self.clock.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert self.clock.monotonic() - begun < within_s, "it never came to be"
                await self.clock.advance(step_s, rounds=5)
                await asyncio.sleep(0.0005)  # The spool works in threads, in real time.
        return self.clock.monotonic() - begun

    async def pass_time(self, seconds: float) -> None:
        """Let virtual time pass, whatever happens."""
        end = self.clock.monotonic() + seconds
        step_s = max(STEP_S, seconds / 200)
        await self.until(lambda: self.clock.monotonic() >= end, step_s=step_s)

    async def fates(self) -> dict[str, Found]:
        """What is known of each recipient that was kept, by address."""
        found: dict[str, Found] = {}
        for one in self.kept:
            for recipient in one.recipients:
                [fate] = await self.spool.find(recipient.address)
                found[recipient.address] = fate
        return found

    async def statuses(self) -> list[str]:
        """The status of each recipient, in order of arrival."""
        return [fate.status for fate in (await self.fates()).values()]


@asynccontextmanager
async def open_house(
    folder: Path,
    *,
    upstream: config.Upstream | None = None,
    rate: config.Rate | None = None,
    latency_s: float = 0.1,
    sessions_max: int = 200,
    wrap: Callable[[Spool], Spool] = lambda spool: spool,
) -> AsyncIterator[House]:
    """A running house; at the end the dispatcher is drained."""
    settings = upstream or config.Upstream()
    whole, clock, holds = config.Config(), ManualClock(), Holds()
    async with open_spool(folder, clock) as opened:
        spool = wrap(opened)
        outside = FakeUpstream(clock, latency_s=latency_s, sessions_max=sessions_max)
        rooms = Rooms(
            upstream=outside,
            shaper=Shaper(rate or settings.rate),
            quota=Quota(settings.quota),
            breaker=Breaker(settings.breaker, settings.name, holds),
            spool=spool,
            holds=holds,
            ageing=Ageing(clock.wall_ms()),
            metrics=Metrics(),
            clock=clock,
            chance=lambda: 0.5,
            on_lift=lambda: dispatcher.reread(),  # noqa: PLW0108  # made below
        )
        dispatcher = Dispatcher(settings, whole.retry, whole.lanes, rooms)
        opened.on_arrival = dispatcher.arrived
        running = asyncio.ensure_future(dispatcher.run())
        house = House(clock, spool, outside, holds, rooms, dispatcher)
        try:
            yield house
        finally:
            dispatcher.drain()
            if not running.done():
                await house.until(running.done)
            await running

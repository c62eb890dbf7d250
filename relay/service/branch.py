"""One upstream's rooms together: pool, shaper, quota, breaker and dispatcher.

What an upstream has taught is kept in the spool and brought back at the start: the learned
rate under ``shaper:<name>``, the quota's ledger from the outcomes themselves.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.breaker import Breaker
from relay.dispatcher import Dispatcher, Rooms
from relay.quota import BUCKET_MS, WINDOW_MS, Quota
from relay.shaper import Shaper
from relay.upstream import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay import config
    from relay.ageing import Ageing
    from relay.breaker import Holds
    from relay.clock import Clock
    from relay.metrics import Metrics
    from relay.spool import Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The rooms that all upstreams have in common."""

    spool: Spool
    holds: Holds
    ageing: Ageing
    metrics: Metrics
    clock: Clock


async def recall(shaper: Shaper, upstream: str, spool: Spool, clock: Clock) -> None:
    """Bring back to ``shaper`` what the spool keeps of an upstream's rate."""
    learned = await spool.state(f"shaper:{upstream}")
    if learned:
        shaper.restore(clock.monotonic(), learned)


class Branch:
    """The rooms of one upstream."""

    def __init__(
        self,
        whole: config.Config,
        upstream: config.Upstream,
        password: str,
        shared: Shared,
        on_lift: Callable[[], None],
    ) -> None:
        """Raises: ConfigError: ``ca_file`` cannot be used."""
        self.name = upstream.name
        self._whole, self._upstream, self._shared = whole, upstream, shared
        self._on_lift = on_lift
        self.pool = Pool(
            upstream,
            password,
            clock=shared.clock,
            helo=whole.listen.hostname,
            on_failure=shared.metrics.failed,
        )
        self.shaper = Shaper(upstream.rate)
        self.quota = Quota(upstream.quota)
        self.dispatcher: Dispatcher

    async def restore(self) -> None:
        """Bring back what was learned before, and make the dispatcher."""
        spool, clock = self._shared.spool, self._shared.clock
        await recall(self.shaper, self.name, spool, clock)
        since_ms = clock.wall_ms() - WINDOW_MS
        buckets = await spool.sent_by_time(self.name, since_ms, BUCKET_MS)
        self.quota = Quota(self._upstream.quota, buckets)
        rooms = Rooms(
            upstream=self.pool,
            shaper=self.shaper,
            quota=self.quota,
            breaker=Breaker(self._upstream.breaker, self.name, self._shared.holds),
            spool=spool,
            holds=self._shared.holds,
            ageing=self._shared.ageing,
            metrics=self._shared.metrics,
            clock=clock,
            chance=random.random,
            on_lift=self._on_lift,
        )
        self.dispatcher = Dispatcher(self._upstream, self._whole.retry, self._whole.lanes, rooms)

    async def save(self) -> None:
        """Write down what was learned. Raises: SpoolError."""
        await self._shared.spool.put_state(f"shaper:{self.name}", self.shaper.learned())

    async def run(self) -> None:
        """Send until the dispatcher is drained, then close the sessions."""
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(self.pool.run())
            try:
                await self.dispatcher.run()
            finally:
                opening.cancel()
                await self.pool.aclose()

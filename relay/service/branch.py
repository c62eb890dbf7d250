"""One upstream's rooms together: pool, shaper, quota, breaker and dispatcher.

What an upstream has taught is kept in the spool and brought back at the start: the learned
rate by ``memory``, the quota's ledger from the outcomes themselves, what the upstream said of the
quota under ``quota:<name>``.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.breaker import Breaker
from relay.dispatcher import Dispatcher, Rooms
from relay.quota import BUCKET_MS, WINDOW_MS, Quota
from relay.service.memory import Memory, account_of
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
        self.name, self.config = upstream.name, upstream
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
        self.memory = Memory(upstream, self.shaper, shared.spool, shared.clock)
        self.quota = Quota(upstream.quota)
        self._saved: dict[str, object] = {}
        self.dispatcher: Dispatcher

    async def restore(self) -> None:
        """Bring back what was learned before, and make the dispatcher."""
        spool, clock = self._shared.spool, self._shared.clock
        await self.memory.recall()
        since_ms = clock.wall_ms() - WINDOW_MS
        buckets = await spool.sent_by_time(self.name, since_ms, BUCKET_MS)
        self.quota = Quota(self._upstream.quota, buckets)
        kept = await spool.state(self._quota_key) or {}
        if kept.get("account") == account_of(self._upstream):
            self.quota.restore(kept)
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
        """Write down what the upstream said of its quota, if that is news. Raises: SpoolError."""
        account = account_of(self._upstream)
        record: dict[str, object] = {**self.quota.learned(), "account": account}
        if record != self._saved:
            await self._shared.spool.put_state(self._quota_key, record)
            self._saved = record

    @property
    def _quota_key(self) -> str:
        return f"quota:{self.name}"

    async def run(self) -> None:
        """Send until the dispatcher is drained, then close the sessions."""
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(self.pool.run())
            try:
                await self.dispatcher.run()
            finally:
                opening.cancel()
                await self.pool.aclose()

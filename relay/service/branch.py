"""One upstream's rooms together: pool, shaper, quota, breaker and dispatcher.

What an upstream has taught is kept in the spool and brought back at the start: the learned
rate by ``memory``, the quota's ledger from the outcomes themselves, what the upstream said of the
quota under ``quota:<name>``, with the moment from which on the outcomes are this account's: the
next account under the same name has a day of its own.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.breaker import Breaker
from relay.dispatcher import Dispatcher, Rooms
from relay.quota import BUCKET_MS, WINDOW_MS, Quota
from relay.service.kept import recalled
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
        self._account, self._since_ms = account_of(upstream), 0
        """What was sent before ``_since_ms`` was another account's."""
        self.dispatcher: Dispatcher

    async def restore(self) -> None:
        """Bring back what was learned before, and make the dispatcher."""
        spool, clock = self._shared.spool, self._shared.clock
        await self.memory.recall()
        await self._restore_quota(clock.wall_ms())
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

    async def _restore_quota(self, now_ms: int) -> None:
        """The ledger of what this account has sent, and what the upstream said of its quota."""
        found = await recalled(self._shared.spool, self._quota_key)
        owner, since_ms = found.get("account", self._account), found.get("since_ms")
        is_ours = owner == self._account
        if not is_ours:
            self._since_ms = now_ms
        elif isinstance(since_ms, int):
            self._since_ms = min(since_ms, now_ms)
        since_ms = max(self._since_ms, now_ms - WINDOW_MS)
        buckets = await self._shared.spool.sent_by_time(self.name, since_ms, BUCKET_MS)
        self.quota = Quota(self._upstream.quota, buckets)
        if is_ours:
            self.quota.restore(found)

    async def save(self) -> None:
        """Write down what the upstream said of its quota, if that is news. Raises: SpoolError."""
        owner = {"account": self._account, "since_ms": self._since_ms}
        record: dict[str, object] = {**self.quota.learned(), **owner}
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

"""A real dispatcher with a real pool, in real time, and a spool full of mail to send.

Only the listener is left out: the mail is put into the spool beforehand. ``WatchedShaper`` is
the real one and notes how late it was asked for the next moment.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from relay import config
from relay.ageing import Ageing
from relay.breaker import Breaker, Holds
from relay.clock import SystemClock
from relay.dispatcher import Dispatcher, Rooms
from relay.metrics import Metrics
from relay.quota import Quota
from relay.shaper import Shaper
from relay.spool import Spool
from relay.twin import certificate_files
from relay.upstream import Pool
from tests.fakes.mail import envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONTENT = (
    b"Message-ID: <%d@lists.example.com>\r\nSubject: x\r\n\r\n" + b"Dear Reader, hello.\r\n" * 40
)
LATE_S = 0.005
"""Later than this is not made good by the shaper above 200/s."""


class WatchedShaper(Shaper):
    """The real one; notes each booking that came later than the rate allows."""

    def __init__(self, rate: config.Rate) -> None:
        super().__init__(rate)
        self.booked = self.sent = self.refused = self.cut_off = self.unproven = 0
        self.late: list[float] = []
        self._due = float("inf")

    def reserve(self, now: float, recipients: int) -> float:
        moment = super().reserve(now, recipients)
        self.booked += 1
        if now > self._due + LATE_S:
            self.late.append(now - self._due)
        self._due = moment + recipients / self.snapshot().rate_per_s
        return moment

    def accepted(self, now: float, recipients: int, sent_at: float) -> None:
        self.sent += recipients
        super().accepted(now, recipients, sent_at)

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        self.refused += recipients
        super().throttled(now, recipients, sent_at)

    def ignored(self, now: float, recipients: int, sent_at: float) -> None:
        self.unproven += 1
        super().ignored(now, recipients, sent_at)

    def cancelled(self, now: float, recipients: int) -> None:
        self.cut_off += 1
        super().cancelled(now, recipients)

    @property
    def late_share(self) -> float:
        return len(self.late) / max(1, self.booked)


@dataclass
class Sending:
    """What a test may look at."""

    spool: Spool
    pool: Pool
    shaper: WatchedShaper
    dispatcher: Dispatcher
    kept: list[str] = field(default_factory=list)
    """The address of each mail."""

    async def fill(self, count: int, *, campaign: str = "a") -> None:
        """Put mail into the spool."""
        now_ms = SystemClock().wall_ms()
        for first in range(0, count, 100):
            some = range(min(100, count - first))
            await asyncio.gather(*(self._append(campaign, now_ms) for _ in some))

    async def _append(self, campaign: str, now_ms: int) -> None:
        one = envelope(self.spool.new_id(), campaign=campaign, received_at=now_ms)
        await self.spool.append([one], CONTENT % one.id)
        self.kept.append(one.recipients[0].address)


@asynccontextmanager
async def sending(
    folder: Path, port: int, upstream: config.Upstream, *, mails: int
) -> AsyncIterator[Sending]:
    """A dispatcher that sends ``mails`` to the twin at ``port``; its rate is ``upstream.rate``."""
    whole, clock, holds = config.Config(), SystemClock(), Holds()
    settings = replace(
        upstream,
        host="127.0.0.1",
        port=port,
        username="sandbox",
        ca_file=str(certificate_files()[0]),
    )
    spool = await Spool.open(
        folder / "relay.db",
        config.Spool(free_min_bytes=0),
        clock=clock,
        create=True,
        ballast_bytes=0,
    )
    shaper, pool = WatchedShaper(settings.rate), Pool(settings, "sandbox", clock=clock)
    rooms = Rooms(
        upstream=pool,
        shaper=shaper,
        quota=Quota(settings.quota),
        breaker=Breaker(settings.breaker, settings.name, holds),
        spool=spool,
        holds=holds,
        ageing=Ageing(clock.wall_ms()),
        metrics=Metrics(),
        clock=clock,
        chance=lambda: 0.5,
        on_lift=lambda: None,
    )
    dispatcher = Dispatcher(settings, whole.retry, whole.lanes, rooms)
    house = Sending(spool, pool, shaper, dispatcher)
    try:
        await house.fill(mails)
        spool.on_arrival = dispatcher.arrived
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(pool.run())
            running = tasks.create_task(dispatcher.run())
            try:
                yield house
            finally:
                dispatcher.drain()
                await running
                opening.cancel()
                await pool.aclose()
    finally:
        await spool.close()

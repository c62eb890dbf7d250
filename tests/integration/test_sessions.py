"""Sessions as the bottleneck: a real dispatcher and a real pool against the twin."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.twin import NO_LATENCY, Latency, Twin, TwinConfig
from tests.fakes.sending import sending
from tests.fakes.spool_file import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.sending import Sending

SLOW = Latency(rtt_s=0.02, accept_median_s=0.15, accept_p99_s=0.15)
ROOMY = TwinConfig(rate_per_s=1e6, quota=0, latency=NO_LATENCY, seed=1)


@asynccontextmanager
async def sending_to(
    folder: Path, twin: Twin, rate: config.Rate, *, mails: int
) -> AsyncIterator[Sending]:
    port = await twin.start()
    try:
        async with sending(folder, port, config.Upstream(rate=rate), mails=mails) as one:
            yield one
    finally:
        await twin.stop()


@pytest.mark.parametrize(("connections", "mails"), [(3, 20), (1, 8)])
async def test_scarce_sessions_are_said_and_do_not_touch_the_rate(
    tmp_path: Path, connections: int, mails: int
) -> None:
    """0.2 s a message, 100/s allowed: "session-bound", with the numbers.

    421s lower the ceiling and nothing else; and it is unsaid once mail runs out.
    """
    rate = config.Rate(start_per_s=100, ceiling_per_s=100)
    twin = Twin(replace(ROOMY, connections_max=connections, latency=SLOW))
    async with sending_to(tmp_path, twin, rate, mails=mails) as one:
        assert not one.dispatcher.session_bound

        await until(lambda: one.dispatcher.session_bound)
        await until(lambda: one.shaper.sent >= 5)
        bound, doing = one.shaper.snapshot(), one.dispatcher.doing

        assert one.pool.snapshot().ceiling <= connections + 1
        assert doing.startswith("session-bound: ")
        assert "0.2 s a message: " in doing
        assert (bound.rate_per_s, bound.limit_per_s, bound.has_backlog) == (100, None, False)
        assert (one.shaper.refused, one.shaper.unproven) == (0, 0)

        await until(lambda: one.shaper.sent == mails)
        await until(lambda: not one.dispatcher.session_bound)
        assert one.dispatcher.doing == "idle"


async def test_enough_sessions_are_opened_ahead_of_need(tmp_path: Path) -> None:
    """0.23 s a message at 200/s: fifty sessions and more, and hardly a booking is late."""
    rate = config.Rate(start_per_s=200, ceiling_per_s=200)
    twin = Twin(replace(ROOMY, latency=SLOW))
    async with sending_to(tmp_path, twin, rate, mails=600) as one:
        await until(lambda: one.shaper.sent >= 300)
        sessions = one.pool.snapshot().open

        await until(lambda: one.shaper.sent == 600)

        assert 40 <= sessions <= 100
        assert not one.dispatcher.session_bound
        assert twin.ledger.sessions_opened <= 110


async def test_session_caps_cost_no_attempt_and_are_no_failure(tmp_path: Path) -> None:
    """Each session ends after 5 to 9 messages: all mail goes once, charged once, nothing proven."""
    rate = config.Rate(start_per_s=200, ceiling_per_s=200)
    twin = Twin(replace(ROOMY, session_messages=(5, 9), rate_per_s=1e6))
    async with sending_to(tmp_path, twin, rate, mails=300) as one:
        await until(lambda: one.shaper.sent == 300)

        assert twin.ledger.total.accepted == 300
        assert len({record.message_id for record in twin.ledger.records}) == 300
        assert one.shaper.cut_off >= 30
        assert (one.shaper.refused, one.shaper.unproven) == (0, 0)
        assert one.shaper.snapshot().rate_per_s == 200
        await until(lambda: not one.spool.depth())
        fates = [await one.spool.find(address) for address in one.kept]
        assert {(fate.status, fate.attempts) for [fate] in fates} == {("sent", 1)}

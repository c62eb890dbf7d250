"""A spent quota over a restart, with a real relay and the twin."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from relay.mailer import Client, make_mail
from relay.quota import PROBE_FIRST_MS
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import PATIENCE_S, query, until

if TYPE_CHECKING:
    from pathlib import Path

QUOTA = 5
MAILS = 30


async def test_spent_quota_costs_no_refusal_after_a_restart(tmp_path: Path) -> None:
    """The next try is the probe that was planned before; nothing is bounced, nothing charged."""
    twin_config = TwinConfig(rate_per_s=200, latency=NO_LATENCY, quota=QUOTA)
    async with relay_and_twin(tmp_path, twin_config) as (relay, twin):
        rng, total = random.Random(1), twin.ledger.total
        await Client("127.0.0.1", relay.smtp_port).send(
            make_mail(rng, n, body_bytes=100) for n in range(MAILS)
        )
        await until(lambda: total.over_quota > 0, PATIENCE_S)
        assert await relay.stop() == 0
        attempts = total.attempts

        await relay.start()
        ses = (await relay.status())["upstreams"][0]
        figures = await relay.status()

        assert ses["doing"] == "quota"
        assert ses["quota_spent_at"]
        assert 0 < ses["quota_next_at"] - figures["now"] <= PROBE_FIRST_MS
        assert sum(stream["waiting"] for stream in figures["streams"]) == MAILS - QUOTA
        assert await relay.stop() == 0
        assert total.attempts == attempts
        assert query(tmp_path, "SELECT outcome, attempts FROM outcome") == [("sent", 1)] * QUOTA
        assert query(tmp_path, "SELECT DISTINCT attempts FROM recipient") == [(0,)]

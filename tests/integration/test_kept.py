"""Rows of what was learned that a disk, a crash or another program has spoilt: the relay starts."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from relay.mailer import Client, make_mail
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import query

if TYPE_CHECKING:
    from pathlib import Path

KEYS = ("shaper:ses", "quota:ses", "aws:ses", "events", "ageing", "clock")
HUGE = 10**400
"""An integer that no float and no column holds; JSON does."""
ABSURD = {
    "limit_per_s": HUGE,
    "confidence": HUGE,
    "burst": HUGE,
    "at_ms": HUGE,
    "spent_at": HUGE,
    "probe_at": HUGE,
    "wait_ms": HUGE,
    "allowed": HUGE,
    "allowed_at": HUGE,
    "rate_max_per_s": HUGE,
    "wall_ms": HUGE,
    "events": [{"at": HUGE, "upstream": "ses", "text": "x"}, 7],
    "quota:ses": [[HUGE, HUGE], "x"],
    "account:ses": 7,
}


@pytest.mark.parametrize("row", ["{", json.dumps(ABSURD)], ids=["cut", "absurd"])
async def test_spoilt_memory_costs_what_it_held_and_not_the_start(tmp_path: Path, row: str) -> None:
    """Mail is taken and sent, the figures can be asked for, and the rows are written anew."""
    twin_config = TwinConfig(rate_per_s=200, latency=NO_LATENCY)
    async with relay_and_twin(tmp_path, twin_config) as (relay, twin):
        assert await relay.stop() == 0
        [[quota]] = query(tmp_path, "SELECT value FROM state WHERE key = 'quota:ses'")
        account = {"account": json.loads(str(quota))["account"]}
        for key in KEYS:
            value = json.dumps({**json.loads(row), **account}) if row.endswith("}") else row
            query(tmp_path, "REPLACE INTO state (key, value) VALUES (?, ?)", (key, value))

        await relay.start()
        await relay.command("status")
        await relay.command("rate")
        await Client("127.0.0.1", relay.smtp_port).send(
            make_mail(random.Random(1), n, body_bytes=100) for n in range(3)
        )
        await relay.until_sent(twin, 3)

        assert await relay.stop() == 0
        assert await relay.command("status")

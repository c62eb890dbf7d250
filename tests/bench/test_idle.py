"""What a relay with nothing to do costs: CPU and memory, read from /proc."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from relay.mailer import Client, make_mail
from tests.fakes.process import cpu_s, rss_bytes
from tests.fakes.running import relay_and_twin

if TYPE_CHECKING:
    from pathlib import Path

IDLE_S = float(os.environ.get("BENCH_IDLE_S", "30"))
MESSAGES = 20
CPU_SHARE_MAX = 0.005
RSS_BYTES_MAX = 80_000_000


@pytest.mark.bench
async def test_idle_relay_costs_next_to_nothing(tmp_path: Path) -> None:
    """After its last mail, through the closing of its sessions and on: below both bars."""
    rng = random.Random(1)
    async with relay_and_twin(tmp_path) as (relay, twin):
        await Client("127.0.0.1", relay.smtp_port).send(
            [make_mail(rng, n) for n in range(MESSAGES)]
        )
        await relay.until_sent(twin, MESSAGES)
        await relay.until_empty()

        used_s, started = cpu_s(relay.pid), time.perf_counter()
        await asyncio.sleep(IDLE_S)
        share = (cpu_s(relay.pid) - used_s) / (time.perf_counter() - started)
        rss = rss_bytes(relay.pid)

        print(f"\n\n| idle for {IDLE_S:.0f} s | found | bar |\n|---|---|---|")
        print(f"| CPU | {share:.2%} | {CPU_SHARE_MAX:.1%} |")
        print(f"| RSS | {rss / 1e6:.1f} MB | {RSS_BYTES_MAX / 1e6:.0f} MB |")
        assert share < CPU_SHARE_MAX
        assert rss < RSS_BYTES_MAX

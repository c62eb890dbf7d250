"""The twin alone, against Postfix's own sink in the same run.

The twin must never be what a test waits for: 3,000 messages of 4 kB a second and more. The
sink looks at nothing and keeps nothing; the twin parses, judges, hashes and records.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.fakes.running import PATIENCE_S, free_ports
from tests.fakes.smtp_source import CONNECTIONS, needs_source, smtp_source

if TYPE_CHECKING:
    from collections.abc import Sequence

SINK = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
MESSAGES = int(os.environ.get("BENCH_MESSAGES", "10000"))
WARM_UP = 500
LIMIT = "1000000"


async def listening(words: Sequence[str], port: int) -> asyncio.subprocess.Process:
    """The process, once somebody answers on its port."""
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.DEVNULL)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return process


@pytest.mark.bench
@needs_source
@pytest.mark.skipif(SINK is None, reason="smtp-sink comes with Debian's package postfix")
async def test_twin_beside_smtp_sink() -> None:
    """4 kB over 10 connections, rounds in turn; the table says how fast."""
    assert SINK is not None
    twin_port, sink_port = free_ports(2)
    twin = [sys.executable, "-m", "relay", "sandbox", "--port", str(twin_port), "--tls", "none"]
    twin += ["--no-auth", "--limit", LIMIT, "--quota", "0", "--latency", "0"]
    twin += ["--session-messages", LIMIT]
    sink = [SINK, "-u", "nobody", f"127.0.0.1:{sink_port}", "1024"]
    peers = {
        "twin": (twin_port, await listening(twin, twin_port)),
        "smtp-sink": (sink_port, await listening(sink, sink_port)),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    try:
        for port, _ in peers.values():
            assert await smtp_source(port, WARM_UP) == 0
        for _ in range(ROUNDS):
            for name, (port, _) in peers.items():
                started = time.perf_counter()
                assert await smtp_source(port, MESSAGES) == 0
                rates[name].append(MESSAGES / (time.perf_counter() - started))
    finally:
        for _, process in peers.values():
            process.terminate()
            await process.wait()
    base = statistics.median(rates["smtp-sink"])
    print(f"\n{MESSAGES} messages of 4 kB over {CONNECTIONS} connections, {ROUNDS} rounds")
    print("| peer | msgs/s median | min | max | ratio to smtp-sink |\n|---|---|---|---|---|")
    for name, found in rates.items():
        middle = statistics.median(found)
        cells = f"{middle:.0f} | {min(found):.0f} | {max(found):.0f} | {middle / base:.2f}"
        print(f"| {name} | {cells} |")

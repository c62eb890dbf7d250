"""Sessions at work, in real time and through real sockets; prints a table of shares.

The rate is held fixed by ``ceiling_per_s``, so that what is missing is missing for want of
sessions (or of CPU). *late*: bookings that came later than the rate allowed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from relay import config
from tests.bench.test_twin import listening
from tests.fakes.running import free_ports
from tests.fakes.sending import sending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = float(os.environ.get("BENCH_SESSION_S", "20"))


@dataclass(frozen=True)
class Case:
    rate_per_s: float
    words: str
    warm_up_s: float
    """Until the handshakes of all sessions are over."""
    use_min: float = 0.97


CASES = (
    Case(14, "", 3),
    Case(50, "", 5),
    Case(200, "", 8),
    Case(1000, "", 10, use_min=0.8),  # the CPU of two cores, shared with the twin
    Case(200, "--session-messages 20-40", 8),
    Case(50, "--latency 500", 20),
)


@asynccontextmanager
async def twin_process(words: str) -> AsyncIterator[int]:
    [port] = free_ports(1)
    command = ["-m", "relay", "sandbox", "--port", str(port), "--json", "--quota", "0"]
    command += ["--limit", "1000000", "--connections", "2000", *words.split()]
    process = await listening([sys.executable, *command], port)
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.bench
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_sessions_do_not_hold_the_rate_back(case: Case, tmp_path: Path) -> None:
    """The whole rate is used from the warm-up on, whatever a message takes."""
    rate = config.Rate(start_per_s=case.rate_per_s, ceiling_per_s=case.rate_per_s)
    upstream = replace(config.Upstream(), rate=rate, sessions_max=1000)
    mails = round(case.rate_per_s * (case.warm_up_s + SECONDS + 2))
    async with (
        twin_process(case.words) as port,
        sending(tmp_path, port, upstream, mails=mails) as one,
    ):
        await asyncio.sleep(case.warm_up_s)
        shaper, began = one.shaper, time.perf_counter()
        sent, booked, late, cpu_s = (
            shaper.sent,
            shaper.booked,
            len(shaper.late),
            time.process_time(),
        )
        await asyncio.sleep(SECONDS)
        took_s, state = time.perf_counter() - began, one.pool.snapshot()
        sent, booked = shaper.sent - sent, shaper.booked - booked
        use, late_share = sent / took_s / case.rate_per_s, (len(shaper.late) - late) / booked
        cpu_ms = (time.process_time() - cpu_s) / sent * 1000

    print(
        f"\n| {case.rate_per_s:g}/s {case.words} | use {use:.3f} | late {late_share:.2%}"
        f" | {state.open} sessions, {state.idle} idle | {cpu_ms:.2f} ms of CPU a message |"
    )
    assert use > case.use_min

"""Listmonk's own client over restarts under systemd: not one version notices anything.

Under systemd the listening socket and the pool's idle connections outlive the relay, so that even
v1.1.0, which retries nothing, and v2.0.0, which says nil for mail it could not send, lose none.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.running import free_ports
from tests.fakes.service_manager import ServiceManager
from tests.fakes.smtppool import SHIPPED, VERSIONS, Pool
from tests.interop.audit import arrived, audits, each, fast_relay, open_pools

if TYPE_CHECKING:
    from pathlib import Path

RESTARTS = 2
PATIENT = replace(SHIPPED, wait_timeout_ms=30_000)
"""As shipped, but for how long a worker waits for a connection of its pool: a busy test machine
takes longer to start a relay than the 5 s that are shipped."""


@pytest.mark.parametrize(
    ("versions", "rate_per_s", "seconds"),
    [
        pytest.param(VERSIONS, 50, 4, id="all, 50/s each"),
        *(pytest.param((one,), 500, 30, id=one, marks=pytest.mark.slow) for one in VERSIONS),
    ],
)
async def test_p1_no_version_notices_a_restart_under_systemd(
    tmp_path: Path, versions: tuple[str, ...], rate_per_s: int, seconds: int
) -> None:
    """A pool that is busy through SIGTERM and start: no error, no dead connection, no loss."""
    count = rate_per_s * seconds
    pools = {f"{one} shipped": replace(PATIENT, rate_per_s=rate_per_s) for one in versions}
    with ServiceManager.running(tmp_path) as manager:
        [http_port] = free_ports(1)
        under: dict[str, Any] = {
            "program": manager.program,
            "smtp_port": manager.port,
            "http_port": http_port,
        }
        async with (
            fast_relay(tmp_path, **under) as (relay, twin),
            open_pools(manager.port, pools) as opened,
        ):
            await each(opened.values(), lambda pool: pool.queue(count))
            for n in range(RESTARTS):
                due = count * (n + 1) // (RESTARTS + 1)
                await asyncio.gather(*(pool.until_told(due) for pool in opened.values()))
                before = [pool.ports() for pool in opened.values()]
                assert await relay.stop() == 0
                await relay.start()
                after = [pool.ports() for pool in opened.values()]
                assert all(map(frozenset.issubset, before, after))
            await asyncio.wait_for(each(opened.values(), Pool.until_idle), 120)
            await relay.until_empty()

            for one in audits("systemd restart", opened, twin).values():
                assert one.told.failed == {}
                assert len(one.told.sent) == count
                assert one.lost == []
            assert twin.ledger.twice() == {}
            assert len(arrived(twin)) == count * len(pools)

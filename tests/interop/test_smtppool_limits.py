"""Listmonk's own client at the relay's limits: no room, too many connections, mail too large."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.fakes.running import PATIENCE_S
from tests.fakes.smtppool import HTML, SHIPPED, Pool
from tests.interop.audit import (
    WAITED,
    arrived,
    audits,
    each,
    fast_relay,
    of_each_version,
    open_pools,
    taken,
    until_all_sent,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.running import RunningRelay


@pytest.mark.parametrize("stall_s", [1.5, pytest.param(30, marks=pytest.mark.slow)])
async def test_relay_stalls_for_want_of_room(tmp_path: Path, stall_s: float) -> None:
    """A stall that ends costs nothing, as long as there are as many connections as workers.

    With fewer, whoever waits for a connection longer than the wait timeout fails, by each version.
    """
    even = replace(SHIPPED, html=HTML + "x" * 30_000, wait_timeout_ms=1000)
    pools = of_each_version(even=even, scarce=replace(even, conns=4))
    # Written where the fake has a field: the next key of the same table.
    room = f"1\nsize_max_bytes = {1 << 20}"

    async with (
        fast_relay(tmp_path, free_min=room) as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await relay.command("pause")
        await each(opened.values(), lambda pool: pool.queue(30))
        await until_stalled(relay, stall_s)
        told = {name: pool.told.count for name, pool in opened.items()}
        await relay.command("resume")
        await each(opened.values(), Pool.until_idle)
        await until_all_sent(tmp_path)

        for name, one in audits(f"stalled, {stall_s:g} s", opened, twin).items():
            assert one.told.count == 30
            assert one.lost == one.in_spite == [], name
            if name.endswith("even"):
                assert one.told.failed == {}, name
                assert one.told.longest_s > stall_s
                assert told[name] < 30
            else:
                assert set(one.kinds) == {WAITED}, name
        assert twin.ledger.twice() == {}
        assert taken(tmp_path) == arrived(twin)


async def until_stalled(relay: RunningRelay, seconds: float) -> None:
    """Return once clients have waited for room for so long."""
    async with asyncio.timeout(PATIENCE_S + seconds):
        while (await relay.status())["room"]["stalled_s"] < seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.5)


@pytest.mark.parametrize("idle_s", [1, pytest.param(15, marks=pytest.mark.slow)])
async def test_pools_are_larger_than_the_relay_allows(tmp_path: Path, idle_s: int) -> None:
    """Connections beyond ``connections_max`` wait in the backlog until others are idle.

    Nothing fails; the last messages take as long as Listmonk's idle timeout.
    """
    few = replace(SHIPPED, conns=6, workers=6, idle_timeout_ms=idle_s * 1000)
    pools = of_each_version(large=few)

    async with (
        fast_relay(tmp_path, "connections_max = 9") as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await each(opened.values(), lambda pool: pool.send(60))
        await until_all_sent(tmp_path)

        found = audits("too large a pool", opened, twin)
        for name, one in found.items():
            assert (len(one.told.sent), one.told.failed, one.lost) == (60, {}, []), name
        assert max(one.told.longest_s for one in found.values()) >= idle_s
        assert twin.ledger.twice() == {}
        assert taken(tmp_path) == arrived(twin)


async def test_refused_mail_costs_itself_and_not_its_connection(tmp_path: Path) -> None:
    """The stray dot that follows a refusal gets the one answer that keeps the client in step."""
    pools = of_each_version(single=replace(SHIPPED, conns=2, workers=1))

    async with (
        fast_relay(tmp_path, "size_max_bytes = 65536") as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await each(opened.values(), lambda pool: pool.send(1))
        before = [pool.ports() for pool in opened.values()]
        for _ in range(5):
            await each(opened.values(), lambda pool: pool.send(1, pad_bytes=100_000))
            await each(opened.values(), lambda pool: pool.send(1))
        await until_all_sent(tmp_path)

        for name, one in audits("too large a mail", opened, twin).items():
            assert len(one.told.sent) == 6, name
            assert len(one.told.failed) == 5, name
            assert all(error.startswith("552 ") for error in one.kinds), name
            assert one.lost == one.in_spite == [], name
        assert all(len(ports) == 1 for ports in before)
        assert [pool.ports() for pool in opened.values()] == before
        assert twin.ledger.twice() == {}

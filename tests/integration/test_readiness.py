"""When sessions are opened ahead of need, and when it is their number that holds sending back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.breaker import Hold, Source, account_key
from relay.dispatcher.sessions import Sessions
from relay.dispatcher.staffing import Occupancy
from relay.errors import Unreachable
from relay.upstream import PoolState
from tests.fakes.house import open_house

if TYPE_CHECKING:
    from pathlib import Path


async def test_nothing_is_opened_ahead_while_the_upstream_cannot_be_reached(
    tmp_path: Path,
) -> None:
    """A pile of mail would have a dozen handshakes fail where one tells as much."""
    async with open_house(tmp_path) as house:
        sessions = Sessions(config.Upstream(), house.rooms, asyncio.Event())
        sessions.failed(Unreachable("no route"), probe="")

        sessions.want(Occupancy(), piles_up=True)
        assert not house.upstream.readies[-1]

        assert await sessions.acquire(house.clock.monotonic()) is not None
        sessions.want(Occupancy(), piles_up=True)
        assert house.upstream.readies[-1]


async def test_nothing_is_opened_ahead_for_an_account_that_is_held(tmp_path: Path) -> None:
    """A login to a paused account is for the probe alone."""
    async with open_house(tmp_path) as house:
        sessions = Sessions(config.Upstream(), house.rooms, asyncio.Event())
        now_ms = house.clock.wall_ms()
        house.holds.add(Hold(account_key("ses"), Source.BREAKER, "paused", now_ms))

        sessions.want(Occupancy(), piles_up=True)

        assert not house.upstream.readies[-1]


@pytest.mark.parametrize(
    ("pool", "is_bound"),
    [
        (PoolState(open=3, idle=0, busy=3, opening=0, ceiling=3), True),
        (PoolState(open=2, idle=0, busy=2, opening=1, ceiling=3), True),
        (PoolState(open=0, idle=0, busy=0, opening=3, ceiling=3), False),
        (PoolState(open=2, idle=0, busy=2, opening=0, ceiling=3), False),
    ],
)
async def test_sessions_are_scarce_once_most_that_may_be_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: PoolState, is_bound: bool
) -> None:
    """At the start all are still being opened: that is no shortage, nor is room for one more."""
    async with open_house(tmp_path) as house:
        house.upstream.sessions_max = 0  # whoever asks waits
        monkeypatch.setattr(house.upstream, "snapshot", lambda: pool)
        sessions = Sessions(config.Upstream(), house.rooms, asyncio.Event())
        waiting = asyncio.ensure_future(sessions.acquire(house.clock.monotonic()))

        await house.clock.advance(3)

        assert sessions.bound.is_bound(house.clock.monotonic()) is is_bound
        waiting.cancel()
        await asyncio.wait([waiting])

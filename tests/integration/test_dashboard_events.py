"""Figures once a second for whoever watches, and for nobody else."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from relay.config import Dashboard
from relay.dashboard import DashboardServer
from relay.dashboard.events import SLOW_S, VIEWERS_MAX
from relay.metrics import Metrics
from tests.fakes.clock import ManualClock
from tests.fakes.figures import figures, hold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from relay.figures import Figures

PATIENCE_S = 30
EVENTS_UNTIL_FULL_MAX = 500
"""Of 25 kB each: more than the buffers of both ends of a connection to this machine hold."""


class Watched:
    """A server on a clock turned by hand, whose figures count how often they were gathered."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.gathered = 0
        self.reason = "held"
        self.server = DashboardServer(
            Dashboard(port=0),
            Metrics(),
            token="",
            figures=self._gather,
            not_ready=lambda: None,
            clock=self.clock,
        )

    def _gather(self) -> Figures:
        self.gathered += 1
        holds = [hold(f"campaign:{n}", reason=self.reason) for n in range(50)]
        return figures(now=self.gathered, holds=tuple(holds))

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[aiohttp.ClientResponse]:
        base = f"http://127.0.0.1:{self.server.port}"
        async with (
            aiohttp.ClientSession(base, read_bufsize=2**20) as session,
            session.get("/api/v1/events") as response,
        ):
            yield response

    async def until_viewers(self, count: int) -> None:
        """Seconds pass until so many watch: who has gone is noticed by the next event."""
        async with asyncio.timeout(PATIENCE_S):
            while self.server.viewers != count:
                await self.clock.advance(1)


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    await watched.server.start()
    yield watched
    await watched.server.stop()


async def next_figures(response: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while not (line := await response.content.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
    found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return found


async def stuck_viewer(watched: Watched) -> socket.socket:
    """A viewer that asks and then reads nothing; returns once an event waits for it in vain."""
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(end, ("127.0.0.1", watched.server.port))
    await loop.sock_sendall(end, b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        while not watched.server.viewers:
            await asyncio.sleep(0)
    return end


async def test_events_are_what_a_browser_expects(watched: Watched) -> None:
    """The type, a time to come back, and no proxy that keeps them."""
    async with watched.viewer() as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.content.readline() == b"retry: 3000\n"
        assert await response.content.readline() == b"\n"
        assert (await response.content.readline()).startswith(b'data: {"glance":')
        assert await response.content.readline() == b"\n"


async def test_first_event_comes_at_once_and_then_one_a_second(watched: Watched) -> None:
    """Each with the figures of its own second."""
    async with watched.viewer() as response:
        seen = [(await next_figures(response))["now"]]
        for _ in range(3):
            await watched.clock.advance(1)
            seen.append((await next_figures(response))["now"])

    assert seen == [1, 2, 3, 4]


async def test_figures_are_gathered_once_for_all_viewers(watched: Watched) -> None:
    """Ten viewers cost what one costs."""
    async with AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(watched.viewer()) for _ in range(10)]
        for second in range(1, 4):
            seen = [(await next_figures(viewer))["now"] for viewer in viewers]
            assert seen == [second] * 10
            await watched.clock.advance(1)
    assert watched.gathered <= 4


async def test_without_viewers_nothing_is_gathered(watched: Watched) -> None:
    """Neither before the first has come nor after the last has gone."""
    await watched.clock.advance(100)
    before = watched.gathered
    async with watched.viewer() as response:
        await next_figures(response)
    await watched.until_viewers(0)
    left_at = watched.gathered
    await watched.clock.advance(100)

    assert before == 0
    assert watched.gathered == left_at


async def test_one_viewer_too_many_is_told_to_come_later(watched: Watched) -> None:
    """And finds a place once another has gone."""
    async with AsyncExitStack() as stack:
        for _ in range(VIEWERS_MAX):
            await next_figures(await stack.enter_async_context(watched.viewer()))
        async with watched.viewer() as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert f"at most {VIEWERS_MAX} viewers" in await response.text()

    await watched.until_viewers(0)
    async with watched.viewer() as response:
        assert response.status == 200


async def test_head_takes_no_place(watched: Watched) -> None:
    """It says what a GET would, and is over."""
    base = f"http://127.0.0.1:{watched.server.port}"
    async with aiohttp.ClientSession(base) as session, session.head("/api/v1/events") as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
    assert (watched.server.viewers, watched.gathered) == (0, 0)


async def test_viewer_that_reads_nothing_is_let_go(watched: Watched) -> None:
    """After ten seconds with an event untaken; one that reads stays and misses nothing."""
    watched.reason = "x" * 500
    end = await stuck_viewer(watched)
    async with watched.viewer() as response:
        seconds = 0
        seen = [(await next_figures(response))["now"]]
        while watched.server.viewers == 2:
            await watched.clock.advance(1)
            seen.append((await next_figures(response))["now"])
            seconds += 1
            assert seconds < EVENTS_UNTIL_FULL_MAX

        assert watched.server.viewers == 1
    end.close()
    assert seconds >= SLOW_S
    assert seen == list(range(seen[0], seen[0] + len(seen)))


@pytest.mark.parametrize("seconds", [0, 3, 15])
async def test_streams_do_not_hold_up_the_stop(watched: Watched, seconds: int) -> None:
    """Neither one that reads nor one that is stuck; the reader sees a proper end."""
    watched.reason = "x" * 500
    end = await stuck_viewer(watched)
    async with watched.viewer() as response:
        await next_figures(response)
        for _ in range(seconds):
            await watched.clock.advance(1)
            await next_figures(response)
        begun = asyncio.get_running_loop().time()

        await watched.server.stop()

        assert asyncio.get_running_loop().time() - begun < 1
        assert await response.content.read() == b"" or response.content.at_eof()
    end.close()
    assert watched.server.viewers == 0

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
SECONDS_UNTIL_STUCK = 9
"""Events of 37 kB until one is left over in the server, and not yet so many that it lets go."""
EVENTS_UNTIL_FULL_MAX = 60
"""Such events, 2 MB, are far more than the two ends' buffers may hold."""


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
        """Moments pass until so many watch: who has gone is noticed by the next event."""
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


@asynccontextmanager
async def stuck_viewer(watched: Watched) -> AsyncIterator[socket.socket]:
    """One that asks for the events and then reads nothing."""
    loop = asyncio.get_running_loop()
    with socket.socket() as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.setblocking(False)
        await loop.sock_connect(end, ("127.0.0.1", watched.server.port))
        await loop.sock_sendall(end, b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        yield end


async def was_cut(end: socket.socket) -> bool:
    """Whether the answer stops in its middle, rather than with the last chunk (RFC 9112 §7.1)."""
    loop = asyncio.get_running_loop()
    answer = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while got := await loop.sock_recv(end, 65_536):
                answer += got
    except ConnectionResetError:
        return True
    return not answer.endswith(b"\r\n0\r\n\r\n")


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
    async with watched.viewer() as response, stuck_viewer(watched) as stuck:
        seen = [(await next_figures(response))["now"]]
        await watched.until_viewers(2)
        async with asyncio.timeout(PATIENCE_S):
            while watched.server.viewers == 2:
                await watched.clock.advance(1)
                seen.append((await next_figures(response))["now"])

        assert watched.server.viewers == 1
        assert await was_cut(stuck)
    assert SLOW_S < len(seen) < EVENTS_UNTIL_FULL_MAX
    assert seen == list(range(1, len(seen) + 1))


async def test_streams_do_not_hold_up_the_stop(watched: Watched) -> None:
    """Neither one that reads, which sees a proper end, nor one that is stuck with an event."""
    watched.reason = "x" * 500
    async with watched.viewer() as response, stuck_viewer(watched) as stuck:
        await next_figures(response)
        await watched.until_viewers(2)
        for _ in range(SECONDS_UNTIL_STUCK):
            await watched.clock.advance(1)
        begun = asyncio.get_running_loop().time()

        await watched.server.stop()

        assert asyncio.get_running_loop().time() - begun < 1
        while await response.content.readline():
            pass
        assert await was_cut(stuck)
    assert watched.server.viewers == 0

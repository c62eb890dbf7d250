"""The dashboard when many connect, ask for nothing, or do not read what they asked for."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from relay.dashboard import DashboardServer, connection
from relay.dashboard.connection import CONNECTIONS_MAX
from relay.dashboard.events import VIEWERS_MAX
from relay.figures import StreamFigures
from tests.fakes.clock import ManualClock
from tests.fakes.dashboard import PATIENCE_S, WANTED, ask, idle, reached_end, request, serving
from tests.fakes.figures import figures


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_five_hundred_idle_connections_keep_nobody_out(begin: bytes) -> None:
    """Each new one pushes out the oldest that asks for nothing.

    So few descriptors are taken, a watching viewer stays, and the next request is answered.
    """
    clock = ManualClock()
    async with serving(clock=clock) as server:
        viewer = await idle(server, request("/api/v1/events"))
        async with asyncio.timeout(PATIENCE_S):
            await viewer[0].readuntil(b"data: ")
        crowd = [await idle(server, begin) for _ in range(500)]

        answer = await ask(server, request("/healthz"))

        open_now = [one for one in server._runner.server.connections if one.transport]  # type: ignore[union-attr]
        assert answer.status == 200
        assert len(open_now) <= CONNECTIONS_MAX
        async with asyncio.timeout(PATIENCE_S):
            for reader, _ in crowd[: 500 - CONNECTIONS_MAX]:
                assert await reached_end(reader)
            await clock.advance(1)
            await viewer[0].readuntil(b"data: ")  # the next second's
        for _, writer in [viewer, *crowd]:
            writer.close()


async def test_viewers_are_bounded_and_told_so() -> None:
    """503 with all the headers, and when to come again."""
    async with serving() as server:
        viewers = [await idle(server, request("/api/v1/events")) for _ in range(VIEWERS_MAX)]
        async with asyncio.timeout(PATIENCE_S):
            for reader, _ in viewers:
                await reader.readuntil(b"\r\n\r\n")
        answer = await ask(server, request("/api/v1/events"))
        for _, writer in viewers:
            writer.close()

    assert answer.status == 503
    assert WANTED.items() <= answer.headers.items()


async def test_slow_request_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers that come drop by drop have so long, and no longer."""
    monkeypatch.setattr(connection, "IDLE_MAX_S", 0.2)
    async with serving() as server:
        reader, writer = await idle(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n")

        async with asyncio.timeout(PATIENCE_S):
            for _ in range(1000):
                writer.write(b"X: y\r\n")
                if await drop_by_drop(reader):
                    break
        writer.close()

    assert reader.at_eof() or reader.exception() is not None


def stalled_reader(server: DashboardServer) -> socket.socket:
    """One that asks for much and takes next to nothing."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", server.port))
    link.sendall(request("/api/v1/status"))
    return link


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_readers_that_stall_are_pushed_out_with_what_they_have_not_read() -> None:
    """Their descriptors are free at once: closing would wait for them, for ever."""
    stream = StreamFigures(
        upstream="ses",
        lane="bulk",
        campaign="c" * 36,
        waiting=1,
        parked=0,
        quarantined=0,
        oldest_at=1,
    )
    many = replace(figures(), streams=(stream,) * 1_000)
    too_many = 20
    async with serving(figures=lambda: many) as server:
        assert server._door is not None
        # What is accepted has this, too: so that the system does not take all of the answer.
        server._door.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        before = open_files()
        crowd = []
        for _ in range(CONNECTIONS_MAX + too_many):
            crowd.append(stalled_reader(server))
            assert (await ask(server, request("/healthz"))).status == 200

        taken = open_files() - before - len(crowd)
        for link in crowd:
            link.close()

    assert taken <= CONNECTIONS_MAX


async def drop_by_drop(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed by now."""
    try:
        async with asyncio.timeout(0.02):
            return await reached_end(reader)
    except TimeoutError:
        return False


async def test_body_without_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes at once, and the connection ends although the body goes on."""
    monkeypatch.setattr(connection, "LINGER_MAX_S", 0.1)
    async with serving() as server:
        raw = request("/", "Content-Length: 1000000000", method="POST")
        reader, writer = await idle(server, raw)

        async with asyncio.timeout(PATIENCE_S):
            assert b" 405 " in await reader.readline()
            await reader.readuntil(b"\r\n\r\n")
            try:
                await reader.read()  # to the end
            except ConnectionResetError:
                pass
        writer.close()

"""A dashboard to ask, byte by byte if need be, and what must stand on each of its answers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from relay.config import Dashboard
from relay.dashboard import DashboardServer
from relay.metrics import Metrics
from tests.fakes.clock import ManualClock
from tests.fakes.figures import figures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.clock import Clock
    from relay.figures import Figures

PATIENCE_S = 15.0

WANTED = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "server": "relay",
}


@asynccontextmanager
async def serving(
    host: str = "127.0.0.1",
    *,
    token: str = "",
    clock: Clock | None = None,
    figures: Callable[[], Figures] = figures,
    metrics: Metrics | None = None,
) -> AsyncIterator[DashboardServer]:
    server = DashboardServer(
        Dashboard(host=host, port=0),
        metrics or Metrics(),
        token=token,
        figures=figures,
        not_ready=lambda: None,
        clock=clock or ManualClock(),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Answer:
    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)
        }
        self.raw = raw


async def ask(server: DashboardServer, raw: bytes) -> Answer:
    """The first answer to these bytes; of a stream, its beginning."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            answer = Answer(head)
            length = int(answer.headers.get("content-length", 0))
            if length and not raw.startswith(b"HEAD"):
                answer = Answer(head + await reader.readexactly(length))
            return answer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # the server may have cut off what it would not read


def request(path: str, *fields: str, method: str = "GET", host: str = "localhost") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def idle(
    server: DashboardServer, begin: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which so much was sent, and no answer is waited for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(begin)
    return reader, writer


async def reached_end(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed; waits for it, or for one byte."""
    try:
        return await reader.read(1) == b""
    except ConnectionResetError:
        return True

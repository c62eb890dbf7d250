"""The dashboard against those who mean it no good: odd requests, many of them, and none at all."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from relay.config import Dashboard
from relay.dashboard import DashboardServer, connection
from relay.dashboard.access import TOKENS
from relay.dashboard.connection import CONNECTIONS_MAX, FIELD_MAX_BYTES, FIELDS_MAX, LINE_MAX_BYTES
from relay.dashboard.events import VIEWERS_MAX
from relay.figures import StreamFigures
from relay.metrics import Metrics
from tests.fakes.clock import ManualClock
from tests.fakes.figures import figures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.clock import Clock
    from relay.figures import Figures

PATIENCE_S = 15.0
TOKEN = "a-token-of-some-length"
CANARY = "canary-7c1f"
OPEN_ENDED = ("/api/v1/events",)

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


def basic(password: str) -> str:
    return f"Authorization: Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"


BROKEN = {
    "no method": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "another language": f"EHLO {CANARY}\r\n\r\n".encode(),
    "another version": f"GET /{CANARY} HTTP/9.9\r\nHost: localhost\r\n\r\n".encode(),
    "a header that is none": f"GET / HTTP/1.1\r\nHost: localhost\r\n{CANARY}\r\n\r\n".encode(),
    "a NUL in a header": request("/", f"Authorization: Bearer {CANARY}\0"),
    "a folded header": request("/", f"X: y\r\n\t{CANARY}\0"),
    "two lengths": request("/", "Content-Length: 1", f"Content-Length: {CANARY}"),
    "length and chunks": request("/", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "a long line": request(f"/{CANARY}{'x' * LINE_MAX_BYTES}"),
    "a long header": request("/", f"X: {CANARY}{'x' * FIELD_MAX_BYTES}"),
    "many headers": request("/", *(f"X{n}: {CANARY}" for n in range(FIELDS_MAX + 1))),
}
"""Requests that aiohttp itself answers, before any handler."""


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_request_is_answered_without_a_word_of_it(
    raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """400 with all our headers; nothing of it is repeated, to the client or in the log."""
    with caplog.at_level(logging.DEBUG):
        async with serving() as server:
            answer = await ask(server, raw)

    assert answer.status == 400
    assert WANTED.items() <= answer.headers.items()
    assert answer.headers["content-type"].startswith("text/plain")
    assert CANARY.encode() not in answer.raw
    assert b"aiohttp" not in answer.raw.lower()
    assert CANARY not in caplog.text
    assert not [one for one in caplog.records if one.levelno > logging.DEBUG]


async def test_connect_to_nothing_is_hung_up_on(caplog: pytest.LogCaptureFixture) -> None:
    """It ends aiohttp's own loop: then at least the connection with it, and no noise in the log."""
    async with serving() as server:
        reader, writer = await idle(server, b"CONNECT  \r\n\r\n")

        async with asyncio.timeout(PATIENCE_S):
            assert await reached_end(reader)
        writer.close()

    assert not [one for one in caplog.records if one.levelno > logging.DEBUG]


ANSWERED = {
    "/": 200,
    "/page.js": 200,
    "/page.css": 200,
    "/icon.svg": 200,
    "/metrics": 200,
    "/healthz": 200,
    "/readyz": 200,
    "/api/v1/status": 200,
    "/api/v1/events": 200,
    "/nothing": 404,
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("path", "status"), ANSWERED.items())
async def test_every_answer_has_the_headers(path: str, status: int, method: str) -> None:
    """Pages, streams, and what is not there."""
    async with serving() as server:
        answer = await ask(server, request(path, method=method))

    assert answer.status == status
    assert WANTED.items() <= answer.headers.items()


@pytest.mark.parametrize(
    ("fields", "host", "status"),
    [
        ([], "evil.example", 401),
        ([basic("wrong")], "evil.example", 401),
        (["Sec-Fetch-Site: cross-site"], "localhost", 403),
    ],
)
async def test_refusals_have_the_headers(fields: list[str], host: str, status: int) -> None:
    """Those of the door as well."""
    async with serving(token=TOKEN) as server:
        answer = await ask(server, request("/api/v1/status", *fields, host=host))

    assert answer.status == status
    assert WANTED.items() <= answer.headers.items()


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]
)
@pytest.mark.parametrize("path", ["/", "/api/v1/status", "/api/v1/events", "/nothing"])
async def test_nothing_can_be_done_only_read(method: str, path: str) -> None:
    """So no page of another site can make a browser do anything: there is nothing to forge."""
    async with serving() as server:
        fields = ["Origin: https://evil.example", "Content-Length: 2"]
        answer = await ask(server, request(path, *fields, method=method) + b"{}")

    assert answer.status in {400, 404, 405}
    assert WANTED.items() <= answer.headers.items()
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/../../../../etc/passwd",
        "/page.js/../server.py",
        "/./server.py",
        "/%2e%2e/server.py",
        "/%2e%2e%2f%2e%2e%2fetc/passwd",
        "/..%2fserver.py",
        "/..%5cserver.py",
        "/..\\server.py",
        "//etc/passwd",
        "/server.py",
        "/page.js%00.html",
        "/page.js%0d%0aX-Evil:1",
        "/%252e%252e/server.py",
        "/page.html",
        "/__init__.py",
        "/static/../server.py",
        "http://evil.example/server.py",
        "*",
        "page.js",
    ],
)
async def test_no_path_leads_out(path: str) -> None:
    """There is no folder behind the paths: four files, known by name, read at the start."""
    async with serving() as server:
        answer = await ask(server, request(path))

    assert answer.status in {400, 404}
    assert b"import" not in answer.body
    assert b"root:" not in answer.body
    assert WANTED.items() <= answer.headers.items()
    assert "x-evil" not in answer.headers


async def test_surprise_is_counted_and_kept_from_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """500 without the exception's text, also to a browser; the log has it."""
    metrics = Metrics()

    def fail() -> Figures:
        raise KeyError(CANARY)

    async with serving(figures=fail, metrics=metrics) as server:
        answer = await ask(server, request("/api/v1/status", "Accept: text/html"))

    assert answer.status == 500
    assert WANTED.items() <= answer.headers.items()
    assert CANARY.encode() not in answer.raw
    [record] = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert (record.message, record.exc_info is not None) == ("dashboard request failed", True)
    assert metrics.totals["failures"] == 1


async def test_wrong_tokens_are_logged_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A line with the peer for each, never with what was given; then 429 for a while."""
    clock = ManualClock()
    async with serving("0.0.0.0", token=TOKEN, clock=clock) as server:
        for _ in range(TOKENS.free + 1):
            assert (await ask(server, request("/", basic(CANARY)))).status == 401
        too_soon = await ask(server, request("/", basic(TOKEN)))
        await clock.advance(1)
        in_time = await ask(server, request("/", basic(TOKEN)))

    assert (too_soon.status, too_soon.headers["retry-after"]) == (429, "1")
    assert WANTED.items() <= too_soon.headers.items()
    assert in_time.status == 200
    told = [one for one in caplog.records if one.message == "wrong dashboard token"]
    assert [getattr(one, "peer", "") for one in told] == ["127.0.0.1"] * (TOKENS.free + 1)
    assert CANARY not in caplog.text + str([one.__dict__ for one in told])


async def idle(
    server: DashboardServer, begin: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(begin)
    return reader, writer


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


async def reached_end(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionResetError:
        return True


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

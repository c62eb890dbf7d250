"""The dashboard against those who mean it no good: odd requests, and what is said to them."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING

import pytest

from relay.dashboard.access import TOKENS
from relay.dashboard.connection import FIELD_MAX_BYTES, FIELDS_MAX, LINE_MAX_BYTES
from relay.metrics import Metrics
from tests.fakes.clock import ManualClock
from tests.fakes.dashboard import PATIENCE_S, WANTED, ask, idle, reached_end, request, serving

if TYPE_CHECKING:
    from relay.figures import Figures

TOKEN = "a-token-of-some-length"
CANARY = "canary-7c1f"
OPEN_ENDED = ("/api/v1/events",)


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

"""The dashboard under requests that nobody would send, and under more of them than it can bear."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.config import Dashboard
from relay.dashboard import DashboardServer, connection
from relay.dashboard.connection import CONNECTIONS_MAX, ON_EVERY_ANSWER
from relay.dashboard.server import BACKLOG
from relay.metrics import Metrics
from tests.fakes.clock import ManualClock
from tests.fakes.dialogue import MESSAGE, Talk
from tests.fakes.figures import figures
from tests.fakes.running import relay_and_twin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 15.0
SECRET = b"canary-in-the-request"

METHODS = ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "get", "PRI", "", "\x16\x03"]
TARGETS = [
    *("/", "/metrics", "/healthz", "/readyz", "/api/v1/status", "/page.js", "/nothing", "*"),
    *("//", "/..", "/%2e%2e/%2e%2e", "/%00", "/%", "/?a=%", "/#x", "http://h/metrics", "h:1", "\\"),
]
VERSIONS = ["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", "", "HTTP/0"]
FIELDS = [
    *("Host: localhost", "Host: evil.example", "Host:", "Host: a, b", "Host : localhost"),
    *("Content-Length: 3", "Content-Length: -1", "Content-Length: 99999999999999999999"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Expect: 100-continue"),
    *("Connection: close", "Connection: upgrade", "Upgrade: websocket", "Upgrade: h2c"),
    *("Authorization: Basic !", "Authorization: Bearer \xff", "Sec-Fetch-Site: cross-site"),
    *("Content-Encoding: gzip", "Range: bytes=0-1", "Cookie: a=b; a", "X", ": x", " folded", "\0"),
    *("X-Forwarded-Host: localhost", "Accept: text/html", "Sec-WebSocket-Key: x"),
]

ODD_TEXT = st.text(st.characters(max_codepoint=255), max_size=20)
BODIES = [b"", SECRET, b"3\r\nabc\r\n0\r\n\r\n", b"zz\r\n"]


def request(
    method: str, target: str, version: str, fields: list[str], end: bytes, body: bytes
) -> bytes:
    head = "\r\n".join([f"{method} {target} {version}", *fields])
    return head.encode("latin-1") + end + body


mostly_right = st.builds(
    request,
    st.sampled_from(["GET"] * 30 + METHODS),
    st.sampled_from(TARGETS),
    st.just("HTTP/1.1"),
    st.tuples(
        st.sampled_from(["Host: localhost", "Host: evil.example"]),
        st.sampled_from([*["X: y"] * 30, *FIELDS]),
        st.just("Connection: close"),
    ).map(list),
    st.just(b"\r\n\r\n"),
    st.sampled_from([b""] * 20 + BODIES),
)
wrong = st.builds(
    request,
    st.sampled_from(METHODS) | ODD_TEXT,
    st.sampled_from(TARGETS) | ODD_TEXT,
    st.sampled_from(VERSIONS),
    st.lists(st.sampled_from(FIELDS) | ODD_TEXT, max_size=6),
    st.sampled_from([b"\r\n\r\n", b"\n\n", b"\r\n", b"\r\n\r\n\r\n"]),
    st.sampled_from(BODIES) | st.binary(max_size=30),
)
KINDS = pytest.mark.parametrize("kind", [mostly_right, wrong], ids=["mostly right", "wrong"])


CUTS = st.lists(st.integers(0, 500), max_size=3)
"""Where the bytes are parted on their way."""


@dataclass
class Running:
    """A dashboard in a loop of its own, and how often it gave which answer."""

    runner: asyncio.Runner
    dashboard: DashboardServer
    answers: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        # What waits for more is closed soon, so that each example ends by itself.
        patch.setattr(connection, "IDLE_MAX_S", 0.01)
        patch.setattr(connection, "LINGER_MAX_S", 0.01)
        made = DashboardServer(
            Dashboard(port=0),
            Metrics(),
            token="",
            figures=figures,
            not_ready=lambda: None,
            clock=ManualClock(),
        )
        runner.run(made.start())
        running = Running(runner, made)
        yield running
        runner.run(made.stop())
    print(f"\nanswers: {dict(sorted(running.answers.items()))}")


async def answers(port: int, raw: bytes, cuts: list[int]) -> bytes:
    """All that the server says to these bytes, sent in pieces, until it has enough of them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            at = 0
            for cut in [*sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]:
                writer.write(raw[at:cut])
                await asyncio.sleep(0)
                at = cut
            heard = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return heard


def check(server: Running, raw: bytes, cuts: list[int]) -> None:
    dashboard = server.dashboard
    failures = dashboard._metrics.totals["failures"]

    heard = server.runner.run(answers(dashboard.port, raw, cuts))

    assert dashboard._metrics.totals["failures"] == failures
    assert SECRET not in heard
    head = heard.partition(b"\r\n\r\n")[0]
    if head.startswith(b"HTTP/1.1 100 "):
        head = heard.split(b"\r\n\r\n")[1]
    server.answers["none"] += not head
    if head:
        assert head.startswith(b"HTTP/"), head
        status = head.split()[1].decode()
        server.answers[status] += 1
        assert status in {"200", "400", "403", "404", "405", "417", "421", "503"}
        for name, value in ON_EVERY_ANSWER.items():
            assert f"\r\n{name}: {value}".encode() in head


QUICK = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = settings(QUICK, max_examples=10_000)


@KINDS
@QUICK
@given(data=st.data())
def test_whatever_is_sent_the_answer_is_one_of_ours(
    server: Running,
    caplog: pytest.LogCaptureFixture,
    kind: st.SearchStrategy[bytes],
    data: st.DataObject,
) -> None:
    """No surprise, nothing repeated, every header there, and nothing in the log."""
    check(server, data.draw(kind), data.draw(CUTS))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.slow
@KINDS
@LONG
@given(data=st.data())
def test_twenty_thousand_requests_are_answered(
    server: Running,
    caplog: pytest.LogCaptureFixture,
    kind: st.SearchStrategy[bytes],
    data: st.DataObject,
) -> None:
    """The long form."""
    check(server, data.draw(kind), data.draw(CUTS))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


async def test_p1_mail_is_taken_while_the_dashboard_is_crowded(tmp_path: Path) -> None:
    """Five hundred connections that say nothing cost only what the dashboard may have.

    Listmonk finds its place, even where few descriptors are left.
    """
    async with relay_and_twin(tmp_path) as (relay, twin):
        before = open_files(relay.pid)
        room = before + CONNECTIONS_MAX + BACKLOG + 20
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (room, room))
        crowd = [await asyncio.open_connection("127.0.0.1", relay.http_port) for _ in range(500)]

        talk = await Talk.to(relay.smtp_port)
        await talk.say(f"S: 220 *\n{MESSAGE}")
        await relay.until_sent(twin, 1)

        assert open_files(relay.pid) <= room
        await talk.close()
        for _, writer in crowd:
            writer.transport.abort()
    assert "not accepted" not in relay.log

"""The page, its figures as JSON, and what stands around every answer."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import aiohttp
import pytest

from relay.config import Dashboard
from relay.dashboard import DashboardServer
from relay.metrics import Metrics
from tests.fakes.figures import figures, hold, stream
from tests.integration.test_dashboard import TOKEN, serving

if TYPE_CHECKING:
    from collections.abc import Mapping

    from multidict import CIMultiDictProxy

FILES = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}
SIZE_MAX_BYTES = 30_000


async def test_page_comes_with_its_files() -> None:
    """Each under its type, small enough for the worst line; whatever they name is among them."""
    texts = {}
    async with serving() as server:
        for path, kind in FILES.items():
            status, headers, texts[path] = await ask(server, path)
            assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")

    named = re.findall(r'(?:src|href)="([^"]*)"', texts["/"])
    assert {f"/{name}" for name in named} == set(FILES) - {"/"}
    assert sum(len(text.encode()) for text in texts.values()) < SIZE_MAX_BYTES


async def test_page_asks_no_other_host_and_makes_no_html() -> None:
    """It works offline, and a campaign's name cannot become a tag."""
    async with serving() as server:
        whole = "".join([(await ask(server, path))[2] for path in FILES])

    # The one address is the name of SVG's language, which nobody asks for.
    assert set(re.findall(r"\w+://[^\"' ]+", whole)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(| style=", whole
    )


async def test_status_is_the_figures() -> None:
    """All of them, as ``relay status --json`` has them."""
    given = figures(streams=(stream("a", 1),), holds=(hold("campaign:a"),), totals={"sent": 2})
    server = DashboardServer(
        Dashboard(port=0), Metrics(), token="", figures=lambda: given, not_ready=lambda: None
    )
    await server.start()

    _, _, text = await ask(server, "/api/v1/status")

    await server.stop()
    assert json.loads(text) == json.loads(json.dumps(given.as_json()))


@pytest.mark.parametrize("path", [*FILES, "/healthz", "/metrics", "/api/v1/status", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_every_answer_is_fenced_in(path: str, method: str, host: str) -> None:
    """Refusals, too: no foreign script, frame, guess at the type, or copy in a cache."""
    token = "" if host == "127.0.0.1" else TOKEN
    async with serving(host, token=token) as server:
        _, headers, _ = await ask(server, path, method)

    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/api/v1/status", "/api/v1/events", "/nothing"])
async def test_nothing_can_be_changed(method: str, path: str) -> None:
    """Every method but the two that read is refused, wherever it goes."""
    async with serving() as server:
        status, headers, _ = await ask(server, path, method)

    assert (status, headers["Allow"]) == (405, "GET,HEAD")


@pytest.mark.parametrize(
    ("path", "status"), [("/", 421), ("/api/v1/status", 421), ("/metrics", 421), ("/healthz", 200)]
)
async def test_rebound_name_is_refused_with_the_reason(path: str, status: int) -> None:
    """A foreign page whose name now points to this machine; a load balancer's probe is not hurt."""
    async with serving() as server:
        found, _, text = await ask(server, path, headers={"Host": "evil.example"})

    assert found == status
    assert ("DNS rebinding" in text) == (status == 421)


async def test_browser_is_asked_for_the_token_as_a_password() -> None:
    """Off loopback: both ways in are offered, and the password opens page and figures."""
    password = {"Authorization": aiohttp.encode_basic_auth("me", TOKEN, "utf-8")}
    async with serving("0.0.0.0", token=TOKEN) as server:
        refused, headers, _ = await ask(server, "/")
        opened = [
            (await ask(server, path, headers=password))[0] for path in ("/", "/api/v1/status")
        ]

    assert refused == 401
    assert headers.getall("WWW-Authenticate") == ["Bearer", 'Basic realm="relay", charset="UTF-8"']
    assert opened == [200, 200]


async def ask(
    server: DashboardServer,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, CIMultiDictProxy[str], str]:
    """Status, headers and text of the answer."""
    url = f"http://127.0.0.1:{server.port}{path}"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers) as response,
    ):
        return response.status, response.headers, await response.text()

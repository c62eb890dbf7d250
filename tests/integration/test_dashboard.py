"""What Prometheus and a load balancer see, and who may see it."""

from __future__ import annotations

import asyncio
import hmac
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from relay.config import Dashboard
from relay.dashboard import DashboardServer, read_token
from relay.errors import AddressBusy, ConfigError
from relay.metrics import Metrics
from tests.fakes.figures import figures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

TOKEN = "s3cret-tökén"


@asynccontextmanager
async def serving(
    host: str = "127.0.0.1", *, token: str = "", not_ready: str | None = None
) -> AsyncIterator[DashboardServer]:
    server = DashboardServer(
        Dashboard(host=host, port=0),
        Metrics(),
        token=token,
        figures=figures,
        not_ready=lambda: not_ready,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def get(
    server: DashboardServer, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}{path}", headers=headers) as response,
    ):
        return response.status, await response.text(), response.headers["Content-Type"]


async def test_healthz_says_that_it_lives() -> None:
    """Even if no mail is taken."""
    async with serving(not_ready="draining") as server:
        status, text, _ = await get(server, "/healthz")

    assert (status, text) == (200, "ok\n")


async def test_readyz_is_200_while_mail_is_taken() -> None:
    """What a load balancer or a deployment waits for."""
    async with serving() as server:
        status, text, _ = await get(server, "/readyz")

    assert (status, text) == (200, "ready\n")


@pytest.mark.parametrize("reason", ["starting", "draining", "stalled: no room in the spool"])
async def test_readyz_is_503_with_the_reason(reason: str) -> None:
    """Why not, in the answer."""
    async with serving(not_ready=reason) as server:
        status, text, _ = await get(server, "/readyz")

    assert (status, text) == (503, f"{reason}\n")


async def test_metrics_are_in_prometheus_format() -> None:
    """Under the type by which Prometheus knows it."""
    async with serving() as server:
        status, text, kind = await get(server, "/metrics")

    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert "relay_shaper_rate_per_second" in text


async def test_nothing_else_is_there() -> None:
    """And nothing can be changed."""
    async with serving() as server:
        assert (await get(server, "/nothing"))[0] == 404
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{server.port}/metrics") as response,
        ):
            assert response.status == 405


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "relay.example.com", ""])
def test_open_to_a_network_it_wants_a_token(host: str) -> None:
    """Without one it does not start, and says which key is missing."""
    with pytest.raises(ConfigError) as told:
        DashboardServer(
            Dashboard(host=host), Metrics(), token="", figures=figures, not_ready=lambda: None
        )

    assert told.value.key == "dashboard.token_file"
    assert repr(host) in told.value.wanted


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_it_needs_none(host: str) -> None:
    """Only this machine can ask."""
    DashboardServer(
        Dashboard(host=host), Metrics(), token="", figures=figures, not_ready=lambda: None
    )


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/nothing"])
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"bearer: {TOKEN}",
        "Bearer \udcff",
    ],
)
async def test_off_loopback_a_wrong_token_is_401(path: str, given: str | None) -> None:
    """Whatever it is, also bytes that are no text; nor does it say which pages there are."""
    headers = {} if given is None else {"Authorization": given}
    async with serving("0.0.0.0", token=TOKEN) as server:
        status = await raw_status(server.port, path, headers)

    assert status == 401


async def raw_status(port: int, path: str, headers: Mapping[str, str]) -> int:
    """The status of a request sent byte for byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", "Host: relay", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode(errors="surrogateescape"))
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


async def test_off_loopback_the_token_opens_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is compared in constant time."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with serving("0.0.0.0", token=TOKEN) as server:
        status = await raw_status(server.port, "/metrics", {"Authorization": f"Bearer {TOKEN}"})

    assert status == 200
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


async def test_healthz_is_open_to_all() -> None:
    """A load balancer has no token."""
    async with serving("0.0.0.0", token=TOKEN) as server:
        assert (await get(server, "/healthz"))[0] == 200


def test_token_is_read_from_a_private_file(tmp_path: Path) -> None:
    """One line; the line end is not part of it."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)

    assert read_token(path) == TOKEN


@pytest.mark.parametrize(
    ("content", "mode", "wanted"),
    [
        (b"token\n", 0o640, "mode 0600: run chmod 600 {}"),
        (b"token\n", 0o604, "mode 0600: run chmod 600 {}"),
        (b" \n", 0o600, "a token on one line"),
        (b"\xff\n", 0o600, "a token on one line"),
        (b"x" * 5000, 0o600, "a shorter file"),
        (None, 0, "a file that the relay can read"),
    ],
)
def test_token_file_that_will_not_do_is_told(
    tmp_path: Path, content: bytes | None, mode: int, wanted: str
) -> None:
    """Readable by others, empty, no text, missing; never with the token in the text."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)

    with pytest.raises(ConfigError) as told:
        read_token(path)

    assert (told.value.key, told.value.wanted) == ("dashboard.token_file", wanted.format(path))
    assert "token\n" not in str(told.value)
    assert told.value.__cause__ is None or isinstance(told.value.__cause__, OSError)


async def test_port_in_use_is_told_with_its_key() -> None:
    """Whoever reads it knows what to change."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = DashboardServer(
            Dashboard(port=port), Metrics(), token="", figures=figures, not_ready=lambda: None
        )

        with pytest.raises(AddressBusy, match=f"dashboard.port {port} on 127.0.0.1 is taken"):
            await server.start()
        await server.stop()


async def test_client_that_stays_connected_does_not_delay_the_stop() -> None:
    """Prometheus keeps its connection open between scrapes."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
        await reader.readuntil(b"ok\n")
        begun = asyncio.get_running_loop().time()

        await server.stop()

        assert asyncio.get_running_loop().time() - begun < 1
        writer.close()
        await writer.wait_closed()

"""The control socket: who may use it, and what it answers to nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from relay.control import Commands, ControlServer, ask, socket_path
from relay.control.server import BODY_MAX_BYTES, SOCKET_PATH_MAX
from relay.errors import RelayError, SpoolBusy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"got": request}


async def refuse(_: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("'x' is no key of a hold")


async def cannot(_: dict[str, Any]) -> dict[str, Any]:
    raise SpoolBusy("another process owns the spool")


async def surprise(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("secret of alice@example.com")


COMMANDS = Commands(
    status=echo,
    find=refuse,
    hold=cannot,
    release=surprise,
    pause=echo,
    resume=echo,
    rate=echo,
    set_rate=echo,
)


@asynccontextmanager
async def serving(
    folder: Path, on_failure: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Path]:
    path = socket_path(folder / "relay.db")
    server = ControlServer(path, COMMANDS, on_failure=on_failure)
    await server.start()
    try:
        yield path
    finally:
        await server.stop()


async def post(path: Path, command: str, body: bytes) -> tuple[int, dict[str, Any]]:
    connector = aiohttp.UnixConnector(path=str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"http://relay/v1/{command}", data=body) as response,
    ):
        return response.status, json.loads(await response.text())


async def test_request_and_answer_are_objects(tmp_path: Path) -> None:
    """What goes in comes to the command, what it returns comes back."""
    async with serving(tmp_path) as path:
        answer = await asyncio.to_thread(ask, path, "status", query="é", count=2)

    assert answer == {"got": {"query": "é", "count": 2}}


async def test_request_without_body_is_an_empty_object(tmp_path: Path) -> None:
    """``curl -X POST`` is enough for status."""
    async with serving(tmp_path) as path:
        assert await post(path, "status", b"") == (200, {"got": {}})


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    """Mode 0600, whatever the umask was; and the umask is as it was before."""
    before = os.umask(0)
    try:
        async with serving(tmp_path) as path:
            mode = path.stat().st_mode

        after = os.umask(0)
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert after == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
async def test_other_users_are_refused_though_the_socket_was_opened_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """403 by the peer's user, whatever the mode of the socket says by now; root may always."""
    another = 65_534
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let nobody else in
        Path(name).chmod(0o777)  # noqa: ASYNC240
        await ask_as(another, Path(name), caplog)


async def ask_as(another: int, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(folder) as path:
        path.chmod(0o666)
        link = socket.socket(socket.AF_UNIX)
        os.seteuid(another)
        try:
            link.connect(str(path))
        finally:
            os.seteuid(0)
        reader, writer = await asyncio.open_connection(sock=link)
        writer.write(b"POST /v1/pause HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()

        as_root = await post(path, "status", b"{}")

    assert answer.startswith(b"HTTP/1.0 403 ")
    assert b"only root and user 0 may steer this relay" in answer
    assert as_root == (200, {"got": {}})
    [record] = [one for one in caplog.records if "another user" in one.message]
    assert getattr(record, "user", None) == another


async def test_mode_is_right_from_the_first_moment(tmp_path: Path) -> None:
    """The file never exists with any other: bound under a narrow umask, not changed later."""
    modes: list[int] = []
    really_bind = asyncio.get_running_loop().create_unix_server

    async def watch(*args: Any, **more: Any) -> Any:  # noqa: ANN401
        started = await really_bind(*args, **more)
        modes.append(stat.S_IMODE(socket_path(tmp_path / "relay.db").stat().st_mode))
        return started

    before = os.umask(0)
    try:
        asyncio.get_running_loop().create_unix_server = watch  # type: ignore[method-assign]
        async with serving(tmp_path):
            pass
    finally:
        os.umask(before)

    assert modes == [0o600]


async def test_socket_of_a_dead_relay_is_replaced(tmp_path: Path) -> None:
    """A kill -9 leaves the file; the next start must not need a hand."""
    path = socket_path(tmp_path / "relay.db")
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    assert path.exists()

    async with serving(tmp_path):
        assert await post(path, "status", b"{}") == (200, {"got": {}})

    assert not path.exists()


async def test_link_in_the_sockets_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """What it leads to is left alone."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("dear to somebody")
    socket_path(tmp_path / "relay.db").symlink_to(elsewhere)

    async with serving(tmp_path) as path:
        assert not path.is_symlink()
        assert await post(path, "status", b"{}") == (200, {"got": {}})

    assert elsewhere.read_text() == "dear to somebody"


async def test_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    """107 bytes are Linux's limit; the text says which key to change."""
    path = tmp_path / ("x" * SOCKET_PATH_MAX)

    with pytest.raises(RelayError, match=r"longer than 107 bytes: choose a shorter spool\.path"):
        await ControlServer(path, COMMANDS).start()


async def test_path_that_cannot_be_bound_is_told(tmp_path: Path) -> None:
    """The system's reason, with the path."""
    with pytest.raises(RelayError, match="cannot open the control socket"):
        await ControlServer(tmp_path / "missing" / "relay.sock", COMMANDS).start()


async def test_unknown_command_is_told(tmp_path: Path) -> None:
    """An older relay behind a newer command says so."""
    async with serving(tmp_path) as path:
        assert await post(path, "explode", b"{}") == (404, {"error": "no such command"})

        with pytest.raises(RelayError, match="no such command"):
            await asyncio.to_thread(ask, path, "explode")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "the request is not JSON"),
        (b"\xff", "the request is not JSON"),
        (b"[" * 60_000, "the request is not JSON"),
        (b"[1]", "the request must be a JSON object"),
        (b"null", "the request must be a JSON object"),
    ],
)
async def test_request_that_is_no_object_is_told(tmp_path: Path, body: bytes, text: str) -> None:
    """400, and the command never sees it."""
    async with serving(tmp_path) as path:
        assert await post(path, "status", body) == (400, {"error": text})


async def test_request_too_long_is_told(tmp_path: Path) -> None:
    """413 in JSON, like every other answer; one byte less is taken."""
    fits = b'{"a": "' + b"x" * (BODY_MAX_BYTES - 9) + b'"}'
    async with serving(tmp_path) as path:
        status, answer = await post(path, "status", fits + b" ")
        fit_status, _ = await post(path, "status", fits)

    assert (status, answer) == (413, {"error": "the request is longer than 65536 bytes"})
    assert fit_status == 200


async def test_nonsense_and_the_impossible_are_told_in_the_relays_words(tmp_path: Path) -> None:
    """400 for a request that makes no sense, 409 for one that cannot be fulfilled now."""
    async with serving(tmp_path) as path:
        assert await post(path, "find", b"{}") == (400, {"error": "'x' is no key of a hold"})
        assert await post(path, "hold", b"{}") == (409, {"error": "another process owns the spool"})

        with pytest.raises(RelayError, match="another process owns the spool"):
            await asyncio.to_thread(ask, path, "hold")


async def test_surprise_is_logged_and_kept_from_the_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without the exception's text; logged, counted; the next one is answered."""
    failures: list[str] = []
    async with serving(tmp_path, failures.append) as path:
        status, answer = await post(path, "release", b"{}")
        again, _ = await post(path, "status", b"{}")

    assert (status, again) == (500, 200)
    assert answer == {"error": "surprise inside the relay, see its log"}
    [record] = [one for one in caplog.records if one.message == "control request failed"]
    assert record.exc_info is not None
    assert failures == ["control"]


def test_ask_is_none_if_nobody_listens(tmp_path: Path) -> None:
    """No file, or one that a dead relay left."""
    path = socket_path(tmp_path / "relay.db")
    assert ask(path, "status") is None

    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    assert ask(path, "status") is None


def test_ask_is_none_if_no_relay_can_be_there(tmp_path: Path) -> None:
    """A path longer than any socket's."""
    assert ask(tmp_path / ("x" * 200), "status") is None


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{]", b"nonsense\r\n\r\n"]
)
async def test_answer_that_breaks_off_is_told(tmp_path: Path, said: bytes) -> None:
    """A relay that dies in mid-answer, or something else behind the socket."""
    path = tmp_path / "relay.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, path):
        with pytest.raises(RelayError, match="broke off"):
            await asyncio.to_thread(ask, path, "status")


async def test_stop_removes_the_socket_and_can_be_said_without_a_start(tmp_path: Path) -> None:
    """A start that failed half-way is cleaned up the same way."""
    server = ControlServer(tmp_path / "relay.sock", COMMANDS)

    await server.stop()

    assert not (tmp_path / "relay.sock").exists()

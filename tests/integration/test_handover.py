"""Connections given to a service manager and taken back, with where each of them stands."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import config, systemd
from relay.clock import SystemClock
from relay.listener import Listener, handover
from relay.listener.handover import CLIENT_NAME, STANDINGS_NAME, Resting, Standing
from tests.fakes.running import PATIENCE_S
from tests.fakes.service_manager import ServiceManager
from tests.fakes.spool import FakeSpool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STANDINGS = st.builds(
    Standing,
    is_greeted=st.booleans(),
    is_extended=st.booleans(),
    was_refused=st.booleans(),
    auth_user=st.text(),
    auth_proof=st.text(),
    unread=st.binary().map(handover.encoded),
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_connections_come_back_with_their_standing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which the service manager gives them."""
    standings = [
        Standing(auth_user=f"user {n}", unread=handover.encoded(b"MAIL F\xe9")) for n in range(5)
    ]
    pairs = [socket.socketpair() for _ in standings]
    with ServiceManager.running(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        ours = [one for one, _ in pairs]
        resting = [*map(Resting, ours, standings)]

        assert await asyncio.to_thread(handover.store, resting)
        kept = [systemd.Inherited(os.dup(fd), name) for name, fd in reversed(manager.stored)]
        found = handover.take_back(kept)
        assert await handover.forgotten(SystemClock())
        while manager.stored:  # noqa: ASYNC110  # it hears by its own reader
            await asyncio.sleep(0)

    assert all(one.fileno() == -1 for one, _ in pairs)
    assert [one.standing for one in reversed(found)] == standings
    for one, (_, client) in zip(reversed(found), pairs, strict=True):
        one.socket.sendall(b"220")
        assert client.recv(10) == b"220"
        one.socket.close()
        assert client.recv(10) == b""
        client.close()


@given(STANDINGS)
def test_any_standing_survives_the_file(standing: Standing) -> None:
    """Names and bytes that no client has any business to send, too."""
    ours, theirs = socket.socketpair()
    with theirs:
        file = handover._write([Resting(ours, standing)])

        [found] = handover.take_back(
            [systemd.Inherited(ours.detach(), CLIENT_NAME), systemd.Inherited(file, STANDINGS_NAME)]
        )

        assert found.standing == standing
        found.socket.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        json.dumps({"format": handover.FORMAT + 1, "standings": {}}).encode(),
        json.dumps({"format": handover.FORMAT, "standings": {}}).encode(),
        json.dumps({"format": handover.FORMAT, "standings": {"x": {}}}).encode(),
        json.dumps({"format": handover.FORMAT, "standings": [1]}).encode(),
    ],
)
def test_connection_of_unknown_standing_is_closed(
    pair: tuple[socket.socket, socket.socket], content: bytes
) -> None:
    """A file of another relay's format, a damaged one, or none: never a guess."""
    ours, client = pair
    file = os.memfd_create("test")
    os.write(file, content)

    found = handover.take_back(
        [systemd.Inherited(ours.detach(), CLIENT_NAME), systemd.Inherited(file, STANDINGS_NAME)]
    )

    assert found == []
    assert client.recv(10) == b""


def test_without_a_service_manager_nothing_is_kept(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed all the same, so that its client knows."""
    ours, client = pair
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    assert not handover.store([Resting(ours, Standing())])
    assert client.recv(10) == b""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The server's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname(), timeout=PATIENCE_S)
        ours, _ = door.accept()
    return ours, client


async def test_nothing_is_obeyed_before_the_service_manager_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash could hand a connection that stands within a letter to the next relay."""
    ours, client = tcp_pair()
    with client, ServiceManager.running(tmp_path) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        listener = Listener(
            config.Listen(port=0, hostname="relay.test"),
            FakeSpool(),
            None,
            clock=SystemClock(),
            resting=[Resting(ours, Standing(unread=handover.encoded(b"NOOP\r\n")))],
        )
        with manager.deaf():
            starting = asyncio.ensure_future(listener.start())
            await manager.spoken_to()
            assert listener.connections == 0
            assert not starting.done()

        await starting

        assert listener.connections == 1
        assert await asyncio.to_thread(client.recv, 100) == b"250 2.0.0 Ok\r\n"
        await listener.drain()

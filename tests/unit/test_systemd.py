"""What systemd is told, what it hands over, and whether it takes our unit."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from relay import systemd
from relay.config import Listen
from relay.listener.listener import BACKLOG, DRAIN_GRACE_S
from relay.service.relay import ANSWER_MARGIN_S

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.fixture(params=["abstract", "file"])
def listening(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[socket.socket, str]]:
    """A socket that hears what systemd would, and what NOTIFY_SOCKET says then."""
    name = f"@relay-{uuid.uuid4()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name[1:]}" if request.param == "abstract" else name)
        heard.settimeout(10)
        yield heard, name


def test_notify_sends_all_fields_in_one_datagram(listening: tuple[socket.socket, str]) -> None:
    """A state and its text arrive together; a line break cannot smuggle in a field."""
    heard, name = listening

    sent = systemd.notify(environment={"NOTIFY_SOCKET": name}, READY="1", STATUS="a\nREADY=0 ☂")

    assert sent
    assert heard.recv(1000) == "READY=1\nSTATUS=a READY=0 ☂".encode()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@" * 200])
def test_notify_is_silent_where_nobody_listens(address: str) -> None:
    """Outside systemd, and with a socket that cannot be reached, mail goes on."""
    assert not systemd.notify(environment={"NOTIFY_SOCKET": address}, READY="1")
    assert not systemd.notify(environment={}, READY="1")


def test_notify_reads_the_real_environment(
    listening: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an argument, the variable that systemd has set counts, read at each call."""
    heard, name = listening
    monkeypatch.setenv("NOTIFY_SOCKET", name)

    assert systemd.notify(STOPPING="1")
    assert heard.recv(1000) == b"STOPPING=1"


def test_notify_gives_up_on_a_full_socket(
    listening: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A systemd that reads nothing costs a moment, not the event loop."""
    _, name = listening
    monkeypatch.setattr(systemd, "_SEND_TIMEOUT_S", 0.01)

    tries = (systemd.notify(environment={"NOTIFY_SOCKET": name}, A="x") for _ in range(100_000))

    assert not all(tries)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "one"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "²"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9" * 5000},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ],
)
def test_nothing_is_inherited_unless_meant_for_us(environment: dict[str, str]) -> None:
    """Another process's, none, or a count that makes no sense."""
    assert systemd.inherited(environment=environment) == ()


def test_inherited_begin_at_three_and_do_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sockets passed are two descriptors, closed in programs that the relay starts."""
    with socket.socket() as first, socket.socket() as second:
        low, high = sorted((first.fileno(), second.fileno()))
        fds = (low, low + 1) if high == low + 1 else (low,)
        monkeypatch.setattr(systemd, "FIRST_FD", low)
        for fd in fds:
            os.set_inheritable(fd, True)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
        named = environment | {"LISTEN_FDNAMES": "relay.socket:client"}

        assert [one.fd for one in systemd.inherited(environment=environment)] == [*fds]
        assert {one.name for one in systemd.inherited(environment=environment)} == {""}
        assert systemd.inherited(environment=named)[0] == systemd.Inherited(low, "relay.socket")
        assert not any(map(os.get_inheritable, fds))


def test_store_sends_the_descriptors_themselves(listening: tuple[socket.socket, str]) -> None:
    """What was kept is the same open socket, whatever becomes of ours; too many go in parts."""
    heard, name = listening
    ours, theirs = socket.socketpair()

    with ours, theirs:
        told = systemd.store([theirs.fileno()] * 250, "client", environment={"NOTIFY_SOCKET": name})

        assert told
        parts = [socket.recv_fds(heard, 1000, 253) for _ in range(2)]
        assert [part[0] for part in parts] == [b"FDSTORE=1\nFDNAME=client"] * 2
        fds = [fd for part in parts for fd in part[1]]
        theirs.close()
        with socket.socket(fileno=fds[0]) as kept:
            kept.sendall(b"still there")
            assert ours.recv(100) == b"still there"
    for fd in fds[1:]:
        os.close(fd)
    assert len(fds) == 250


def test_settle_returns_once_systemd_has_come_to_it(listening: tuple[socket.socket, str]) -> None:
    """The barrier's descriptor is closed only after all that was sent before was read."""
    heard, name = listening
    read: list[bytes] = []

    def systemds_side() -> None:
        read.append(heard.recv(1000))
        message, fds, _, _ = socket.recv_fds(heard, 1000, 1)
        read.append(message)
        os.close(fds[0])

    environment = {"NOTIFY_SOCKET": name}
    reader = threading.Thread(target=systemds_side)
    systemd.forget("client", environment=environment)
    reader.start()

    assert systemd.barrier(environment=environment)
    assert read == [b"FDSTOREREMOVE=1\nFDNAME=client", b"BARRIER=1"]
    reader.join()


def test_barrier_gives_up_on_a_systemd_that_stands_still(
    listening: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the relay does not hang on it; nor on one that is not there."""
    _, name = listening
    monkeypatch.setattr(systemd, "BARRIER_MAX_S", 0.01)

    assert not systemd.barrier(environment={"NOTIFY_SOCKET": name})
    assert not systemd.barrier(environment={})


def directives(name: str = "relay.service") -> dict[str, list[str]]:
    """Each directive of the unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", (UNITS / name).read_text(), re.M):
        found.setdefault(key, []).append(value)
    return found


def test_unit_says_what_the_relay_relies_on() -> None:
    """Readiness, restart, the exit code of a wrong configuration, and time for the last reply."""
    unit = directives()

    assert unit["Type"] == ["notify"]
    assert unit["Restart"] == ["always"]
    assert unit["RestartPreventExitStatus"] == ["78"]
    assert unit["DynamicUser"] == ["yes"]
    assert unit["StateDirectory"] == ["relay"]
    assert unit["LoadCredential"] == ["ses-password"]
    assert unit["ExecStart"] == ["/opt/relay/bin/relay serve -c /etc/relay/relay.toml"]
    assert int(unit["TimeoutStopSec"][0]) >= 600 + ANSWER_MARGIN_S + DRAIN_GRACE_S + 10


def test_socket_unit_never_gives_up_and_listens_where_the_defaults_do() -> None:
    """The socket outlives every failure; the store has a place for each connection."""
    unit, listen = directives("relay.socket"), Listen()

    assert unit["ListenStream"] == [f"{listen.host[0]}:{listen.port}"]
    assert unit["Backlog"] == [str(BACKLOG)]
    assert unit["TriggerLimitIntervalSec"] == ["0"]
    assert int(directives()["FileDescriptorStoreMax"][0]) > listen.connections_max
    assert directives()["Sockets"] == ["relay.socket"]


analyze = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(analyze is None, reason="systemd-analyze is not installed here")


def run_analyze(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze on a copy of the unit whose program exists on this machine."""
    text = (UNITS / "relay.service").read_text()
    shutil.copy(UNITS / "relay.socket", tmp_path)
    copy = tmp_path / "relay.service"
    copy.write_text(text.replace("/opt/relay/bin/relay", shutil.which("true") or "/bin/true"))
    return subprocess.run(
        [str(analyze), *arguments, str(copy)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say: no unknown directive, no bad value."""
    done = run_analyze(tmp_path, "verify", "--man=no")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_unit_is_hardened(tmp_path: Path) -> None:
    """The exposure that systemd computes stays low; each point left is needed for mail."""
    done = run_analyze(tmp_path, "security", "--offline=true", "--threshold=15")

    assert done.returncode == 0, done.stdout

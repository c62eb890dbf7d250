"""A real ``relay serve`` in a process of its own, in front of a twin in this one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.twin import NO_LATENCY, Twin, TwinConfig, certificate_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
"""How long a test waits for something that must come, on a machine that is busy."""

_TOML = """
[listen]
port = {smtp}
{listen}
[spool]
path = "{spool}"
free_min_bytes = {free_min}
[dashboard]
port = {http}
[[upstream]]
host = "{host}"
port = {twin}
tls = "starttls"
ca_file = "{ca}"
username = "sandbox"
{upstream}
[log]
level = "{log_level}"
"""


@dataclass
class RunningRelay:
    """One relay and where to reach it; ``start`` and ``stop`` as often as wanted."""

    folder: Path
    twin_port: int
    spool: Path
    listen: str = ""
    upstream: str = ""
    free_min: int = 1
    log_level: str = "info"
    words: tuple[str, ...] = ()
    """Further words on the command line of ``relay serve``."""
    program: tuple[str, ...] = ("-m", "relay")
    """What Python is to run; a test may put a module of its own in front."""
    host: str = "127.0.0.1"
    """Where the relay looks for the twin."""
    smtp_port: int = 0
    http_port: int = 0
    _running: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def log(self) -> str:
        return (self.folder / "relay.log").read_text()

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    async def start(self) -> None:
        """Return once it takes mail. The ports stay the same from one start to the next."""
        await self.spawn()
        await self._until_started()

    async def spawn(self) -> None:
        """Start it, and wait for nothing."""
        if not self.smtp_port:
            self.smtp_port, self.http_port = free_ports(2)
        ca, _ = certificate_files()
        toml = _TOML.format(
            smtp=self.smtp_port,
            http=self.http_port,
            spool=self.spool,
            free_min=self.free_min,
            host=self.host,
            twin=self.twin_port,
            ca=ca,
            listen=self.listen,
            upstream=self.upstream,
            log_level=self.log_level,
        )
        (self.folder / "relay.toml").write_text(toml)
        with (self.folder / "relay.log").open("ab") as log:
            self._running = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.program,
                "serve",
                "-c",
                str(self.folder / "relay.toml"),
                *self.words,
                stdin=asyncio.subprocess.DEVNULL,  # as a service, wherever the test is run
                stdout=log,
                stderr=log,
                env={**os.environ, "RELAY_SES_PASSWORD": "sandbox"},
                cwd=ROOT,
            )

    async def _until_started(self) -> None:
        assert self._running is not None
        async with asyncio.timeout(PATIENCE_S):
            while not await self._is_ready():
                assert self._running.returncode is None, self.log[-3000:]
                await asyncio.sleep(0.02)

    async def _is_ready(self) -> bool:
        """Whether it says so itself; the log does not at every level."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
            writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
        except OSError:
            return False
        return b" 200 " in answer

    async def kill(self) -> None:
        """SIGKILL, as the kernel does it."""
        assert self._running is not None
        self._running.kill()
        await self._running.wait()
        self._running = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for nothing."""
        assert self._running is not None
        self._running.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait until it ends by itself; the exit code, or the signal below zero."""
        assert self._running is not None
        async with asyncio.timeout(PATIENCE_S):
            code = await self._running.wait()
        self._running = None
        return code

    async def command(self, *words: str) -> str:
        """What ``relay WORDS`` prints; it must succeed."""
        place = ("-c", str(self.folder / "relay.toml"))
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *words, *place),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await command.communicate()
        assert command.returncode == 0, err.decode()
        return out.decode()

    async def status(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(await self.command("status", "--json"))
        return figures

    async def until_sent(self, twin: Twin, messages: int) -> None:
        """Return once the twin has accepted so many messages."""
        async with asyncio.timeout(PATIENCE_S + messages / twin.config.rate_per_s * 3):
            while twin.ledger.total.accepted < messages:  # noqa: ASYNC110  # two processes
                await asyncio.sleep(0.05)

    async def until_empty(self) -> dict[str, Any]:
        """Return the figures once nothing waits any more."""
        async with asyncio.timeout(PATIENCE_S * 3):
            while True:
                figures = await self.status()
                if not sum(stream["waiting"] for stream in figures["streams"]):
                    return figures
                await asyncio.sleep(0.5)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@asynccontextmanager
async def relay_and_twin(
    folder: Path,
    twin_config: TwinConfig | None = None,
    **settings: Any,  # noqa: ANN401  # RunningRelay's fields
) -> AsyncIterator[tuple[RunningRelay, Twin]]:
    """A relay that takes mail, in front of a twin; both are gone afterwards."""
    twin = Twin(twin_config or TwinConfig(rate_per_s=200, latency=NO_LATENCY))
    spool = settings.pop("spool", folder / "relay.db")
    relay = RunningRelay(folder, await twin.start(), spool, **settings)
    try:
        await relay.start()
        yield relay, twin
    finally:
        if relay._running is not None:
            await relay.stop()
        await twin.stop()

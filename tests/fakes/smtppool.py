"""Listmonk's own SMTP client: a pool of smtppool's connections in a process of its own.

Each version of the library is a small Go program under ``tests/interop``; see there for how it
is spoken to.
"""

from __future__ import annotations

import asyncio
import json
import re
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.running import PATIENCE_S
from tests.fakes.smtppool_programs import program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

VERSIONS = ("v1.1.0", "v2.0.0", "v2.1.2", "v2.2.0")
"""In Listmonk 3.0 to 4.1, 5.0.0 to 5.0.2 and 6.2; the last is the newest that the module proxy
had on 2026-11-24."""

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
HTML = "<html><body><h1>Notes № {n} — café</h1>\n<p>Dear Reader {n},</p>\n.\n..dots</body></html>"

_ESTABLISHED = "01"
"""In the kernel's table of TCP sockets."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An SMTP entry of Listmonk's; the defaults are those that it ships."""

    conns: int = 10
    retries: int = 2
    retry_delay_ms: int = 10
    idle_timeout_ms: int = 15_000
    wait_timeout_ms: int = 5_000
    workers: int = 10
    """Listmonk's *concurrency*."""
    tls: str = "none"
    auth: str = "none"
    username: str = ""
    password: str = field(default="", repr=False)
    host: str = "127.0.0.1"
    rate_per_s: float = 0
    """Of all workers together; 0: as fast as it goes."""
    campaign: str = CAMPAIGN
    html: str = HTML
    """Of each message; ``{n}`` stands for its number."""


SHIPPED = Settings()
ADVISED = Settings(conns=15, retries=30, retry_delay_ms=1000, wait_timeout_ms=60_000)
"""What the README asks for: connections are the workers and five more."""


@dataclass
class Told:
    """What each ``Send`` returned, by Message-Id, in the order of their ends."""

    sent: list[str] = field(default_factory=list)
    """``nil``: Listmonk counts these as sent."""
    failed: dict[str, str] = field(default_factory=dict)
    """The text of the error."""
    longest_s: float = 0

    @property
    def count(self) -> int:
        return len(self.sent) + len(self.failed)

    def take(self, line: dict[str, Any]) -> None:
        """Note one report."""
        if line["error"]:
            self.failed[line["id"]] = line["error"]
        else:
            self.sent.append(line["id"])
        self.longest_s = max(self.longest_s, line["ms"] / 1000)


class Pool:
    """A pool and its workers, and what they have told so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.told = Told()
        self._process = process
        self._commands = self._idle_after = 0
        self._ended = False
        self._news = asyncio.Condition()

    async def start(self, settings: dict[str, Any]) -> None:
        """Hand in the settings, which come before any command."""
        await self._write(settings)

    async def send(self, messages: int, *, pad_bytes: int = 0) -> None:
        """Return once so many more messages, longer by ``pad_bytes``, have been sent, or failed."""
        await self.until_idle(await self.queue(messages, pad_bytes=pad_bytes))

    async def queue(self, messages: int, *, pad_bytes: int = 0) -> int:
        """Give the workers so many more messages; the number of this command."""
        return await self._command(send=messages, pad_bytes=pad_bytes)

    async def pause(self) -> None:
        """Return once no message is under way: all connections lie idle in the pool."""
        await self.until_idle(await self._command(pause=True))

    async def resume(self) -> None:
        """Go on with what is queued."""
        await self._command(pause=False)

    async def until_told(self, messages: int) -> None:
        """Return once the fate of so many messages in all is known."""
        await self._until(lambda: self.told.count >= messages)

    async def until_idle(self, command: int | None = None) -> None:
        """Return once nothing is under way nor, unless paused, queued; after that command."""
        wanted = self._commands if command is None else command
        await self._until(lambda: self._idle_after >= wanted)

    def ports(self) -> frozenset[int]:
        """The local ports of its connections, as Linux knows them: which ones live on."""
        links = (entry.readlink().name for entry in Path(f"/proc/{self._process.pid}/fd").iterdir())
        inodes = {found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link))}
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return frozenset(
            int(row[1].rpartition(":")[2], 16)
            for row in rows
            if row[9] in inodes and row[3] == _ESTABLISHED
        )

    def kill(self) -> None:
        """End it at once, whatever is under way; what it has told by then can still be read."""
        self._process.kill()

    async def until_ended(self) -> None:
        """Return once it has ended, and all that it told has been read."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: self._ended)

    async def read(self) -> None:
        """Take in reports until the program's end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            report = json.loads(line)
            async with self._news:
                if report.get("idle"):
                    self._idle_after = report["commands"]
                else:
                    self.told.take(report)
                self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                await self._news.wait_for(lambda: condition() or self._ended)
        except TimeoutError:
            pass
        assert condition(), self._standing()

    def _standing(self) -> str:
        """For whoever waits in vain: what the pool has told, and whether it lives."""
        state = "has ended" if self._ended else f"waits, on connections from {set(self.ports())}"
        sent, failed = len(self.told.sent), self.told.failed
        return f"the pool {state}; sent {sent}, failed {failed}; idle after {self._idle_after}"

    async def _command(self, **command: object) -> int:
        self._commands += 1
        number = self._commands
        await self._write(command)
        return number

    async def _write(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def open_pool(
    version: str, port: int, settings: Settings = SHIPPED, *, name: str = "m"
) -> AsyncIterator[Pool]:
    """A pool of that version of smtppool; at the end it is killed, as a Listmonk may be.

    ``name`` begins each Message-Id: pools whose mail meets in one twin need different ones.
    """
    process = await asyncio.create_subprocess_exec(program(version), stdin=PIPE, stdout=PIPE)
    pool = Pool(process)
    reading = asyncio.ensure_future(pool.read())
    try:
        await pool.start({**asdict(settings), "port": port, "name": name})
        yield pool
    finally:
        if process.returncode is None:
            process.kill()
        await reading
        await process.wait()

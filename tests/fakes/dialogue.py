r"""SMTP dialogues as text, spoken with a real listener on a loopback socket.

A dialogue is lines of four kinds (blank lines and ``#`` lines part them)::

    C: MAIL FROM:<a@example.com>        we send this line and CRLF
    C~ Hello\r\n.\r\n                   we send these bytes, with Python's escapes, nothing added
    S: 250 2.1.0 Ok                     the next line must be this; * stands for anything
    S: <closed>                         the server must have closed
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from relay import config
from relay.clock import SystemClock
from relay.listener import Listener
from tests.fakes.spool import FakeSpool

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from relay.clock import Clock
    from relay.envelope import Envelope
    from relay.listener import Users
    from relay.listener.intake import Spool

PATIENCE_S = 10.0

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"

BEGIN = """
    C: MAIL FROM:<news@lists.example.com> BODY=8BITMIME
    S: 250 2.1.0 Ok
    C: RCPT TO:<reader1@example.com>
    S: 250 2.1.5 Ok
    C: DATA
    S: 354 *
"""

MESSAGE = rf"""
    {BEGIN}
    C~ Subject: Weekly notes\r\nX-Listmonk-Campaign: {CAMPAIGN}\r\n\r\nDear reader\r\n.\r\n
    S: 250 2.0.0 Ok: queued as *
"""


def content_of(spool: FakeSpool, n: int = 0) -> bytes:
    """The content of the nth message kept, without the field that the relay added."""
    received, _, content = spool.kept[n].content.partition(b"\r\n id ")
    assert received.startswith(b"Received: by relay.test ")
    return content.partition(b"\r\n")[2]


@dataclass
class Counts:
    """An observer that remembers."""

    envelopes: list[Envelope] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    stalls: list[bool] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def received(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)

    def refused(self, code: int) -> None:
        self.refusals.append(code)

    def stalled(self, begins: bool, /) -> None:
        self.stalls.append(begins)

    def connection(self, change: int) -> None:
        self.connections.append(change)

    def accept_seconds(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def failed(self, room: str) -> None:
        self.failures.append(room)


@dataclass
class Talk:
    """One client's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, port: int) -> Talk:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def say(self, script: str, *, chunk_bytes: int = 0) -> list[str]:
        """Speak the dialogue; the server's lines, in order. Chunks are sent one by one."""
        heard: list[str] = []
        for number, line in enumerate(script.splitlines(), 1):
            kind, text = line.strip()[:2], line.strip()[3:]
            if kind == "S:":
                heard.append(await self.hear())
                assert fnmatchcase(_literal(heard[-1]), _literal(text)), (
                    f"line {number}: wanted {text!r}, heard {heard[-1]!r}"
                )
            elif kind in {"C:", "C~"}:
                await self.send(_bytes(kind, text), chunk_bytes)
            else:
                assert kind in {"", "#"} or kind.startswith("#"), f"line {number}: {line!r}"
        return heard

    async def send(self, data: bytes, chunk_bytes: int = 0) -> None:
        step = chunk_bytes or len(data) or 1
        for at in range(0, len(data), step):
            self.writer.write(data[at : at + step])
            await self.writer.drain()
            if chunk_bytes:
                await asyncio.sleep(0)

    async def hear(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            line = await self.reader.readline()
        return line.decode().removesuffix("\r\n") if line else "<closed>"

    async def in_sync(self) -> None:
        """Nothing unasked has been said: the next answer is the one to this."""
        await self.say("C: NOOP\nS: 250 2.0.0 Ok")

    async def encrypt(self, context: ssl.SSLContext) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.start_tls(context, server_hostname="relay.test")

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


@dataclass
class House:
    """A listener that runs, and what it is built from."""

    listener: Listener
    spool: FakeSpool
    counts: Counts
    talks: list[Talk] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.listener.sockets[0].getsockname()[1]
        return port

    async def connect(self, *, greeted: bool = True) -> Talk:
        talk = await Talk.to(self.port)
        self.talks.append(talk)
        if greeted:
            await talk.say("S: 220 relay.test ESMTP *")
        return talk

    async def say(self, script: str, *, chunk_bytes: int = 0) -> list[str]:
        """Speak it on a connection of its own, and prove that it ends in step."""
        talk = await self.connect()
        heard = await talk.say(script, chunk_bytes=chunk_bytes)
        if heard[-1] != "<closed>":
            await talk.in_sync()
        await talk.close()
        return heard


@asynccontextmanager
async def listening(
    spool: FakeSpool | None = None,
    users: Users | None = None,
    clock: Clock | None = None,
    **listen: Any,  # noqa: ANN401 - any key of [listen]
) -> AsyncIterator[House]:
    """A listener on a free port; ``listen`` are keys of ``[listen]``."""
    counts, spool = Counts(), spool or FakeSpool()
    table = config.Listen(**{"port": 0, "hostname": "relay.test", **listen})
    listener = Listener(table, spool, users, clock=clock or SystemClock(), observer=counts)
    await listener.start()
    house = House(listener, spool, counts)
    try:
        yield house
    finally:
        for talk in house.talks:
            await talk.close()
        spool.free()
        spool.let_commits_go()
        await listener.drain(grace_s=PATIENCE_S)


@asynccontextmanager
async def listening_on(spool: Spool) -> AsyncIterator[Listener]:
    """A listener on a free port, into this spool."""
    table = config.Listen(port=0, hostname="relay.test")
    listener = Listener(table, spool, None, clock=SystemClock())
    await listener.start()
    try:
        yield listener
    finally:
        await listener.drain(grace_s=PATIENCE_S)


def _bytes(kind: str, text: str) -> bytes:
    if kind == "C:":
        return text.encode() + b"\r\n"
    return text.encode("latin-1", "backslashreplace").decode("unicode-escape").encode("latin-1")


def _literal(text: str) -> str:
    """Brackets as themselves: only * is a wildcard here."""
    return text.replace("[", "(").replace("]", ")").replace("?", "!")

"""An SMTP server that says what a table tells it to, right or wrong; for tests of ``upstream``.

Each command line is looked up by its longest prefix in the queues set with ``script``; a
queue that is used up, or absent, leaves the ordinary answer of ``ORDINARY``. Everything
said is kept in ``dialogue``, everything sent after 354 in ``messages`` (unstuffed).
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import struct
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import trustme

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 10.0


@dataclass(frozen=True)
class Say:
    """A reply, then ``end``: "" go on, "close" (FIN) or "cut" (RST)."""

    text: str = ""
    end: str = ""


@dataclass(frozen=True)
class Bytewise:
    """A reply, one TCP segment a byte."""

    text: str


@dataclass(frozen=True)
class Raw:
    """Bytes as they are, no line end added."""

    data: bytes


@dataclass(frozen=True)
class After:
    """A reply that waits for ``event``."""

    event: asyncio.Event
    text: str


@dataclass(frozen=True)
class Stall:
    """No reply, ever."""


Action = str | Say | Bytewise | Raw | After | Stall
Close = functools.partial(Say, end="close")
Cut = functools.partial(Say, end="cut")

ORDINARY: dict[str, str] = {
    "GREETING": "220 script.example ESMTP",
    "EHLO": "250-script.example\n250-8BITMIME\n250-STARTTLS\n250-AUTH PLAIN LOGIN\n250 Ok",
    "STARTTLS": "220 Ready to start TLS",
    "AUTH": "235 Authentication successful.",
    "AUTH LOGIN": "334 VXNlcm5hbWU6",
    "MAIL": "250 Ok",
    "RCPT": "250 Ok",
    "DATA": "354 End data with <CR><LF>.<CR><LF>",
    ".": "250 Ok 0100-id",
    "RSET": "250 Ok",
    "QUIT": "221 Bye",
}


@dataclass
class ScriptServer:
    """The server; ``tls`` serves STARTTLS, or from the first byte if ``implicit``."""

    tls: ssl.SSLContext | None = None
    implicit: bool = False
    port: int = field(default=0, init=False)
    dialogue: list[str] = field(default_factory=list, init=False)
    messages: list[bytes] = field(default_factory=list, init=False)
    tls_versions: list[str | None] = field(default_factory=list, init=False)
    writers: list[asyncio.StreamWriter] = field(default_factory=list, init=False)
    connections: int = field(default=0, init=False)
    open_now: int = field(default=0, init=False)
    open_max: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._queues: dict[str, deque[Action]] = defaultdict(deque)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._always: dict[str, Action] = dict(ORDINARY)

    def script(self, prefix: str, *actions: Action) -> None:
        """The next answers to commands that begin with ``prefix``.

        "GREETING" is said first; "BODY" acts once the first line of a content is there.
        """
        self._queues[prefix].extend(actions)

    def always(self, prefix: str, action: Action) -> None:
        self._always[prefix] = action

    def count(self, prefix: str) -> int:
        return sum(line.startswith(prefix) for line in self.dialogue)

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until ``claim`` holds; it is looked at after each thing that happens here."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(claim)

    async def __aenter__(self) -> Self:
        context = self.tls if self.implicit else None
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, limit=1 << 26, ssl=context
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The connection is counted here, before its task first runs.
        self.connections += 1
        self.writers.append(writer)
        self.open_now += 1
        self.open_max = max(self.open_max, self.open_now)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_now -= 1
            writer.transport.abort()
            await asyncio.sleep(0)
            await self._notify()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._notify()
        key = "GREETING"
        while True:
            action = self._next(key)
            said = await self._act(action, reader, writer)
            if key == "QUIT":
                return
            if key.startswith("STARTTLS") and said.startswith("220"):
                assert self.tls is not None
                await writer.start_tls(self.tls)
                version = writer.get_extra_info("ssl_object").version()
                self.tls_versions.append(version)
            if said.startswith("354"):
                await self._take(reader, writer)
                key = "."
                continue
            line = (await reader.readuntil(b"\r\n")).decode("latin-1").removesuffix("\r\n")
            self.dialogue.append(line)
            await self._notify()
            key = self._challenged(said, line)

    def _challenged(self, said: str, line: str) -> str:
        """After a 334 a line is no command; the first is the name, the second the password."""
        if not said.startswith("334"):
            return line
        return "334 name" if self.dialogue[-2].startswith("AUTH LOGIN") else "334 password"

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = []
        while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line.removeprefix(b"."))
            if self._queues["BODY"]:
                await self._act(self._queues["BODY"].popleft(), reader, writer)
        self.messages.append(b"".join(lines))
        self.dialogue.append(".")
        await self._notify()

    def _next(self, line: str) -> Action:
        prefixes = [prefix for prefix in self._queues if line.startswith(prefix)]
        for prefix in sorted(prefixes, key=len, reverse=True):
            if self._queues[prefix]:
                return self._queues[prefix].popleft()
        if line == "334 name":
            return "334 UGFzc3dvcmQ6"
        if line == "334 password":
            return "235 Authentication successful."
        known = [prefix for prefix in self._always if line.startswith(prefix)]
        return self._always[max(known, key=len)] if known else "500 script: unknown"

    async def _act(
        self, action: Action, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        """Do it; returns what was said, raises ConnectionResetError where that was the end."""
        match action:
            case Stall():
                while await reader.read(1 << 16):
                    pass
                raise ConnectionResetError
            case Bytewise(text):
                for byte in _wire(text):
                    await _write(writer, bytes([byte]))
                    await asyncio.sleep(0.001)  # else the segments would be joined
                return text
            case Raw(data):
                await _write(writer, data)
                return data.decode("latin-1")
            case After(event, text):
                await event.wait()
                await _write(writer, _wire(text))
                return text
        action = Say(action) if isinstance(action, str) else action
        await _write(writer, _wire(action.text))
        if action.end:
            await _end(action.end, writer)
            raise ConnectionResetError
        return action.text

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _wire(text: str) -> bytes:
    return b"".join(line.encode("latin-1") + b"\r\n" for line in text.split("\n") if line)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _end(how: str, writer: asyncio.StreamWriter) -> None:
    if how == "cut":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Certificates:
    """An authority of the test's own, and server contexts signed by it."""

    authority: trustme.CA

    def server(self, *names: str) -> ssl.SSLContext:
        """The context of a server that is called ``names``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(context)
        return context

    def ca_file(self, folder: Path) -> str:
        path = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(path))
        return str(path)


@functools.cache
def certificates() -> Certificates:
    return Certificates(trustme.CA())

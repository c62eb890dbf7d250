"""A hand that types SMTP at a server, byte by byte if need be, and knows nothing of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from relay.twin import NO_LATENCY, Twin, TwinConfig

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from relay.clock import Clock
    from relay.twin import Fault

PATIENCE_S = 15.0
"""A test that waits longer than this has failed."""

OPEN = TwinConfig(tls="none", auth_required=False, latency=NO_LATENCY, idle_s=0, seed=1)
"""A twin that asks for nothing and answers at once."""

MESSAGE = b"From: a@example.com\r\nSubject: x\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n"


@asynccontextmanager
async def playing(
    config: TwinConfig = OPEN, *, clock: Clock | None = None, fault: Fault | None = None
) -> AsyncIterator[Twin]:
    """A twin that listens inside the block."""
    twin = Twin(config, clock=clock, fault=fault)
    await twin.start()
    try:
        yield twin
    finally:
        await twin.stop()


class RawSmtp:
    """One connection; replies are whole, lines joined by a newline, "" is the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.reader.readline()
        assert raw.endswith(b"\r\n") or not raw
        return raw[:-2].decode("utf-8", "surrogateescape")

    async def reply(self) -> str:
        lines = [await self.line()]
        while lines[-1][3:4] == "-":
            lines.append(await self.line())
        return "\n".join(lines)

    async def is_closed(self) -> bool:
        """True once the peer has closed, in whatever way; fails if it says something."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True

    async def is_reset(self) -> bool:
        """True if the peer ended with RST, False if with FIN."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                assert await self.reader.read(1) == b""
            except ConnectionResetError:
                return True
        return False

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def ask(self, command: str) -> str:
        self.send(command.encode("utf-8", "surrogateescape") + b"\r\n")
        return await self.reply()

    async def envelope(self, *recipients: str, sender: str = "a@example.com") -> str:
        """MAIL, RCPTs and DATA; returns the reply to DATA."""
        assert await self.ask(f"MAIL FROM:<{sender}>") == "250 Ok"
        for recipient in recipients or ("b@example.org",):
            assert await self.ask(f"RCPT TO:<{recipient}>") == "250 Ok"
        return await self.ask("DATA")

    async def message(self, *recipients: str, content: bytes = MESSAGE) -> str:
        """A whole transaction; returns the reply to the dot. ``content`` is sent as it is."""
        assert (await self.envelope(*recipients)).startswith("354 ")
        self.send(content + b".\r\n")
        return await self.reply()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the peer was faster, or rude


@asynccontextmanager
async def dialled(
    port: int, *, tls: ssl.SSLContext | None = None, greeted: bool = True
) -> AsyncIterator[RawSmtp]:
    """A connection to 127.0.0.1, its greeting read unless ``greeted`` is False."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    client = RawSmtp(reader, writer)
    try:
        if greeted:
            assert (await client.reply()).startswith("220 ")
        yield client
    finally:
        await client.close()

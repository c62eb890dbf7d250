"""What a client has sent and we have not used yet.

aiosmtpd reads through ``asyncio.StreamReader``, which knows lines but cannot give back
what a chunk held beyond the end of a message; this buffer can, and it tells its owner of
the client's end without cancelling what is under way.

Limits: a command line of ``LINE_MAX_BYTES``; above ``HIGH_WATER_BYTES`` the socket is read
no further until the buffer is used up (TCP then holds the client).
"""

from __future__ import annotations

import asyncio

LINE_MAX_BYTES = 16_384
"""RFC 5321 §4.5.3.1.4 asks for 512; an AUTH response may have 12,288 (RFC 4954 §4)."""

HIGH_WATER_BYTES = 65_536
"""An ordinary campaign message (37-60 kB, facts: listmonk.md 2) or some 800 piped RCPTs; times
``listen.connections_max`` it is what strangers may fill of our memory."""


class ClientGone(Exception):
    """The client has closed its side and all that it sent before has been read."""


class LineTooLong(Exception):
    """A command line over the limit; it has been read to its end and thrown away."""


class Inflow:
    """Bytes of one connection, in order, between ``feed`` and the next ``line`` or ``take``."""

    __slots__ = ("_buffer", "_overlong", "_paused", "_transport", "_waiter", "ended")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.ReadTransport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._overlong = self._paused = False
        self.ended = False
        """The client has closed its side, or the connection is lost."""

    def attach(self, transport: asyncio.ReadTransport | None) -> None:
        """From now on it is ``transport`` that feeds; None: one that may not be paused."""
        self._transport, self._paused = transport, False

    def clear(self) -> None:
        """Forget what came and was not used."""
        self._buffer.clear()
        self._overlong = False

    def feed(self, data: bytes) -> None:
        """The client sent ``data``."""
        self._buffer += data
        if len(self._buffer) > HIGH_WATER_BYTES and not self._paused and self._transport:
            self._transport.pause_reading()
            self._paused = True
        self.wake()

    def end(self) -> None:
        """The client will send no more."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Let ``more`` return, though there may be nothing new."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_empty(self) -> bool:
        """Nothing is left to read."""
        return not self._buffer

    def line(self) -> bytes | None:
        """The next line without its end, None if it is not all there yet.

        A bare LF ends it, too: people type into telnet, and no content passes here.

        Raises:
            LineTooLong: once, for a line over the limit, when its end has come.
        """
        at = self._buffer.find(b"\n")
        if at < 0:
            if len(self._buffer) > LINE_MAX_BYTES:
                self._overlong = True
                self._buffer.clear()
                self._resume()
            return None
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        self._resume()
        if self._overlong or at > LINE_MAX_BYTES:
            self._overlong = False
            raise LineTooLong
        return line.removesuffix(b"\r")

    def take(self, bytes_max: int) -> bytes:
        """All that is there, perhaps nothing; of more than ``bytes_max`` the first of it."""
        buffer = self._buffer
        data = bytes(buffer) if len(buffer) <= bytes_max else bytes(buffer[:bytes_max])
        del buffer[: len(data)]
        self._resume()
        return data

    def unread(self) -> bytes | None:
        """What is there, left in place; None while a line over the limit is thrown away."""
        return None if self._overlong else bytes(self._buffer)

    def put_back(self, data: bytes) -> None:
        """``data`` was taken and not used; it comes first again."""
        self._buffer[:0] = data

    async def more(self) -> None:
        """Return when the client has sent something, or has been woken.

        Raises:
            ClientGone: nothing more will come.
        """
        if self.ended:
            raise ClientGone
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _resume(self) -> None:
        if self._paused and len(self._buffer) <= HIGH_WATER_BYTES and self._transport:
            self._paused = False
            self._transport.resume_reading()

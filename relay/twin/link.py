"""One TCP link of the twin: plain at first, perhaps in TLS later, and its ways to end.

The transport from before TLS is kept, so that FIN and RST can be sent beneath TLS, without
its goodbye: clients of SES have seen links end in all these ways (facts 1, QUIT).
Nothing that comes before asyncio's TLS has taken the link over may be lost: uvloop reads
as soon as a link is there, and a fast client's ClientHello is then ours to pass on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, assert_never, cast

from relay.twin.alert import KeyLog
from relay.twin.certificate import server_context
from relay.twin.parameters import Farewell

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from relay.twin.shared import Shared

OUTPUT_MAX = 64 * 1024
"""Bytes of replies a client may leave unread before it is cut."""

TLS_HANDSHAKE_S = 10.0
TLS_SHUTDOWN_S = 1.0

_LINGER_NONE = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: closing sends RST."""

_WAYS = tuple(way for way in Farewell if way is not Farewell.ANY)


def wire(text: str) -> bytes:
    """A reply as it goes over the link."""
    return (text + "\r\n").encode("utf-8", "surrogateescape")


class Link:
    """A link that ends, when its session is over, by ``farewell``.

    ``write``, ``pause_reading`` and ``resume_reading`` are those of the transport that is
    in force.
    """

    __slots__ = ("_farewell", "_keys", "_raw", "_records", "_shared", "_top")

    def __init__(self, transport: asyncio.Transport, shared: Shared) -> None:
        self._raw = self._top = transport
        self._shared = shared
        self._records = 0
        """Sent since the handshake: TLS makes one of each ``write``."""
        self._keys: KeyLog | None = None
        farewell = shared.config.session_end
        self._farewell = shared.chance.choice(_WAYS) if farewell is Farewell.ANY else farewell
        transport.set_write_buffer_limits(high=OUTPUT_MAX)

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        self._records += 1
        self._top.write(data)

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        self._top.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._top.resume_reading()

    def start_tls(
        self,
        session: asyncio.Protocol,
        early: Callable[[], bytes],
        then: Callable[[bool], None],
    ) -> None:
        """Begin the handshake as a task of ``shared.handshakes``.

        ``early`` gives what was read of it before; ``then`` is called with whether TLS is
        there, with False after cancellation, too.
        """
        handshakes = self._shared.handshakes
        task = asyncio.get_running_loop().create_task(self._upgrade(session, early, then))
        handshakes.add(task)
        task.add_done_callback(handshakes.discard)

    def garble(self, session: asyncio.Protocol, text: str) -> None:
        """Answer the ClientHello with ``text`` and close."""
        self._raw.set_protocol(_Garbler(self._raw, session, wire(text)))
        self._raw.resume_reading()

    def end(self) -> None:
        """End when what was written is out, in the way that this link drew."""
        match self._farewell:
            case Farewell.CLOSE_NOTIFY:
                self._top.close()
            case Farewell.USER_CANCELED:
                self._raw.write(self._user_canceled())
                self._raw.close()
            case Farewell.FIN | Farewell.ANY:
                self._raw.close()
            case Farewell.RESET:
                self._forget_politeness()
                self._raw.close()
            case farewell:
                assert_never(farewell)

    def cut(self, *, reset: bool) -> None:
        """End without a word, by RST or by FIN."""
        if reset:
            self._forget_politeness()
            self._raw.abort()
        else:
            self._raw.close()

    def abort(self) -> None:
        """Drop the link and whatever waits to be sent."""
        self._raw.abort()

    def forget(self) -> None:
        """The link has gone."""
        if self._keys is not None:
            self._keys.close()

    def _user_canceled(self) -> bytes:
        """The alert, or nothing where there is no TLS."""
        if self._keys is None or self._top is self._raw:
            return b""
        suite, _, _ = self._top.get_extra_info("cipher")
        return self._keys.user_canceled(suite, self._records)

    def _forget_politeness(self) -> None:
        link = self._raw.get_extra_info("socket")
        if link is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)

    async def _upgrade(
        self,
        session: asyncio.Protocol,
        early: Callable[[], bytes],
        then: Callable[[bool], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        upgraded = None
        try:
            loop.call_soon(
                self._pass_on, session, early()
            )  # runs when TLS has the link, but not begun
            upgraded = await loop.start_tls(
                self._raw,
                session,
                self._context(),
                server_side=True,
                ssl_handshake_timeout=TLS_HANDSHAKE_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
        except OSError:
            pass  # ssl.SSLError and the loss of the link are kinds of it
        finally:
            if upgraded is not None:
                self._top, self._records = upgraded, 0
            then(upgraded is not None)

    def _pass_on(self, session: asyncio.Protocol, early: bytes) -> None:
        """Give TLS what was read before its time."""
        if early and self._raw.get_protocol() is not session:
            # uvloop's protocol has asyncio.BufferedProtocol's methods without being one.
            tls = cast("asyncio.BufferedProtocol", self._raw.get_protocol())
            memoryview(tls.get_buffer(len(early)))[: len(early)] = early
            tls.buffer_updated(len(early))

    def _context(self) -> ssl.SSLContext:
        """The context of all sessions; one of its own for a session whose keys are wanted."""
        if self._farewell is not Farewell.USER_CANCELED:
            assert self._shared.tls is not None
            return self._shared.tls
        context = server_context(self._shared.config.cert_file, self._shared.config.key_file)
        self._keys = KeyLog(context)
        return context


class _Garbler(asyncio.Protocol):
    """Whatever comes first is answered with ``answer``, and that was that."""

    def __init__(self, raw: asyncio.Transport, session: asyncio.Protocol, answer: bytes) -> None:
        self._raw, self._session, self._answer = raw, session, answer

    def data_received(self, data: bytes) -> None:  # noqa: ARG002  (asyncio's)
        """Say it once, and close."""
        self._raw.write(self._answer)
        self._raw.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the session know, which has no other way to hear of it."""
        self._session.connection_lost(exc)

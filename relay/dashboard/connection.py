"""One HTTP connection of the dashboard: its limits, and what is said to a request that is none.

aiohttp takes as many connections as come. Here a new one beyond ``CONNECTIONS_MAX`` pushes out
the oldest that waits for a request (else the oldest of all), so that whoever opens hundreds and
says nothing neither eats the descriptors that the listener needs nor keeps anybody out. And
whoever is slow to say what he wants has ``IDLE_MAX_S`` for it.

aiohttp's own answers to a broken request repeat parts of it, lack our headers, and log it with a
traceback; ours do not: an ``Authorization`` may be in it.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
"""Three times the viewers that may watch, a scraper or two, and probes."""
IDLE_MAX_S = 75.0
"""From the connect, or the last answer, to the end of the next request's headers. Longer than a
scrape interval, so that Prometheus can keep its connection."""
LINE_MAX_BYTES = 4_096
"""Of the request line; our paths have some twenty."""
FIELD_MAX_BYTES = 8_190
"""Of one header; browsers send the cookies of all that runs on this machine to each of them."""
FIELDS_MAX = 128
"""Headers of one request; browsers send some twenty."""
LINGER_MAX_S = 2.0
"""For the rest of a body that nobody wanted, so that the answer is read before the end."""

ON_EVERY_ANSWER = {
    # Nothing but our own files, nothing inline, nowhere to send anything, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # Else aiohttp tells its version, and Python's.
    "Server": "relay",
}


class Crowd:
    """The connections of one server; ``is_busy`` says of a transport that a request is answered."""

    def __init__(
        self, is_busy: Callable[[asyncio.BaseTransport], bool], on_failure: Callable[[str], None]
    ) -> None:
        self._is_busy, self.on_failure = is_busy, on_failure

    def make_room(self, server: web.Server, newest: web.RequestHandler) -> None:
        """Cut one connection if ``newest`` is one too many."""
        there = [one for one in server.connections if one.transport is not None]
        if len(there) <= CONNECTIONS_MAX:
            return
        others = [one for one in there if one is not newest]
        victim = min(
            others, key=lambda one: self._is_busy(cast("asyncio.Transport", one.transport))
        )
        victim.force_close()


class HttpConnection(web.RequestHandler):
    """aiohttp's, with our limits."""

    __slots__ = ("_crowd", "_server")

    def __init__(self, server: web.Server, crowd: Crowd) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # AppRunner's own way to have none
            keepalive_timeout=IDLE_MAX_S,
            max_line_size=LINE_MAX_BYTES,
            max_field_size=FIELD_MAX_BYTES,
            max_headers=FIELDS_MAX,
            lingering_time=LINGER_MAX_S,
        )
        self._server, self._crowd = server, crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As aiohttp; and somebody else may have to go."""
        super().connection_made(transport)
        self._crowd.make_room(self._server, self)

    def force_close(self) -> None:
        """As aiohttp, and now: its own way waits for whoever does not read, for ever."""
        wire = self.transport
        super().force_close()
        if wire is not None and wire.get_write_buffer_size():
            wire.abort()

    async def start(self) -> None:
        """As aiohttp, until the connection's end; closed if a request is too much for it.

        A ``CONNECT`` of nothing ends aiohttp's own loop with an ``AttributeError``, before any
        handler (*observed*, 3.14.5): the connection would stay open for ever, unread.
        """
        try:
            await super().start()
        except Exception as error:  # the one of this loop; handlers' own surprises end in a 500
            _log.debug("request that is none", extra={"error": type(error).__name__})
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it repeats what was sent
    ) -> web.StreamResponse:
        """The answer to what is no request (4xx), or to a surprise of ours (500, logged)."""
        if status >= 500:
            _log.error("dashboard request failed", exc_info=exc, extra={"path": request.path})
            self._crowd.on_failure("dashboard")
        else:
            _log.debug("request that is none", extra={"peer": request.remote, "status": status})
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        text = f"{HTTPStatus(status).phrase.lower()}\n"
        answer = web.Response(status=status, text=text, headers=ON_EVERY_ANSWER)
        answer.force_close()
        return answer

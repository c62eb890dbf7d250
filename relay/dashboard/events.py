"""The figures as server-sent events, one a second (HTML Standard, §9.2).

All viewers share one look at the figures a second: whoever's second comes first takes it,
the others find it taken. So there is no task that gathers, and without viewers nothing is
gathered. Nothing is kept for a viewer that is slow: it gets the next event only once the
system has taken the one before, and is let go if that lasts. Each event holds everything, so
that none is missed who misses some.

A slow viewer's bytes lie in three places: aiohttp's transport (at most one event, by the rule
above), our system's send buffer (``SEND_BUFFER_BYTES``) and the viewer's own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import web

from relay.dashboard.view import view

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from relay.clock import Clock
    from relay.figures import Figures

_log = logging.getLogger(__name__)

VIEWERS_MAX = 20
"""Streams at a time: more people than look after one relay, each with a tab or two."""
TICK_S = 1.0
SLOW_S = 10.0
"""How long a viewer may leave an event untaken: a phone between two cells takes seconds."""
RETRY_MS = 3_000
"""When a browser comes back by itself after the stream broke."""
RETRY_AFTER_S = 10
SEND_BUFFER_BYTES = 65_536
"""Linux grows a send buffer to megabytes by itself (tcp(7), ``tcp_wmem``): many minutes of
events that nobody reads."""
WRITE_BUFFER_BYTES = 1_048_576
"""More than one event, so that writing one never waits for the viewer: ``stop`` and the rule for
slow viewers would wait with it."""
_KIND = "text/event-stream"
# Proxies are asked not to keep events back: nginx waits for a full buffer otherwise
# (*documented*: nginx, proxy_buffering).
_HEADERS = {"Content-Type": _KIND, "X-Accel-Buffering": "no"}


class Events:
    """Streams to viewers until ``stop``."""

    def __init__(self, figures: Callable[[], Figures], clock: Clock) -> None:
        self._figures, self._clock = figures, clock
        self._viewers: set[asyncio.Transport] = set()
        self._stopping = asyncio.Event()
        self._taken_in, self._event = -1.0, b""

    @property
    def viewers(self) -> int:
        """How many watch now."""
        return len(self._viewers)

    def stop(self) -> None:
        """End all streams at once, those that are stuck as well."""
        self._stopping.set()
        for transport in self._viewers:
            if transport.get_write_buffer_size():
                transport.abort()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with events until the viewer goes, is too slow, or ``stop``."""
        if self._stopping.is_set() or len(self._viewers) >= VIEWERS_MAX:
            text = f"at most {VIEWERS_MAX} viewers at a time: try again later\n"
            return web.Response(status=503, text=text, headers={"Retry-After": f"{RETRY_AFTER_S}"})
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        transport = request.transport
        if transport is None or transport.is_closing():
            return web.Response()  # The viewer has gone already.
        _set_buffers(transport)
        self._viewers.add(transport)
        try:
            return await self._show(request, transport)
        finally:
            self._viewers.discard(transport)

    async def _show(self, request: web.Request, transport: asyncio.Transport) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        took_at = self._clock.monotonic()
        try:
            await response.prepare(request)
            await response.write(f"retry: {RETRY_MS}\n\n".encode())
            async with aclosing(self._events()) as events:
                async for event in events:
                    now = self._clock.monotonic()
                    if not transport.get_write_buffer_size():
                        took_at = now
                        await response.write(event)
                    elif now - took_at >= SLOW_S:
                        _log.info("slow viewer let go")
                        transport.abort()
                        break
        except ConnectionError:
            pass  # The viewer has gone.
        return response

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """An event now and one in each second that follows, until ``stop``."""
        shown = -1.0
        while not self._stopping.is_set():
            second, left_s = divmod(self._clock.monotonic(), TICK_S)
            # A timer may wake a little early, in the second that was shown already.
            if second != shown:
                shown = second
                yield self._gathered(second)
            await self._rest(TICK_S - left_s)

    def _gathered(self, second: float) -> bytes:
        """This second's event, gathered by the first who asks."""
        if self._taken_in != second:
            data = json.dumps(view(self._figures()), separators=(",", ":"))
            self._taken_in, self._event = second, f"data: {data}\n\n".encode()
        return self._event

    async def _rest(self, seconds: float) -> None:
        """Return after ``seconds`` or at ``stop``."""
        waits = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()


def _set_buffers(transport: asyncio.Transport) -> None:
    transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
    end = transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

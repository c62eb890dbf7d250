"""The HTTP server of ``[dashboard]``."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from relay.clock import SystemClock
from relay.config import is_loopback
from relay.dashboard.access import Access, Asked, Refusal
from relay.dashboard.connection import ON_EVERY_ANSWER, Crowd, HttpConnection
from relay.dashboard.events import Events
from relay.errors import AddressBusy, ConfigError
from relay.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.clock import Clock
    from relay.config import Dashboard
    from relay.figures import Figures

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)

BODY_MAX_BYTES = 1_024
"""Nobody has anything to send here."""
BACKLOG = 32
"""Connections that the kernel may hand over in one go, before the limit is looked at."""
GOODBYE_S = 2.0
"""How long requests under way may take at the stop."""
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_READS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_SYSTEM_CLOCK = SystemClock()


class DashboardServer:
    """Listens from ``start`` to ``stop``; ``not_ready`` says why no mail is taken, if so."""

    def __init__(
        self,
        config: Dashboard,
        metrics: Metrics,
        *,
        token: str,
        figures: Callable[[], Figures],
        not_ready: Callable[[], str | None],
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        if not is_loopback(config.host) and not token:
            raise ConfigError(
                "dashboard.token_file",
                "none",
                f"a file with a token, since dashboard.host = {config.host!r} is open to a network",
            )
        self._config, self._metrics = config, metrics
        self._access, self._clock = Access(config.host, token), clock
        self._figures, self._not_ready = figures, not_ready
        self._events = Events(figures, clock)
        self._runner = web.AppRunner(
            self._app(), access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_S
        )
        self._busy: set[asyncio.BaseTransport | None] = set()
        self._crowd = Crowd(self._busy.__contains__, metrics.failed)
        self._door: asyncio.Server | None = None
        self.port = config.port

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_MAX_BYTES)
        app.on_response_prepare.append(_protect)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_page)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/events", self._events.stream)
        folder = resources.files("relay.dashboard")
        for path, (name, kind) in _FILES.items():
            app.router.add_get(path, partial(_file, folder.joinpath(name).read_bytes(), kind))
        return app

    @property
    def viewers(self) -> int:
        """How many watch the events now."""
        return self._events.viewers

    async def start(self) -> None:
        """Bind the port.

        Raises: AddressBusy if another program has it; ConfigError if it cannot be bound at all.
        """
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # set up
        connected = partial(HttpConnection, server, self._crowd)
        loop, host, port = asyncio.get_running_loop(), self._config.host, self._config.port
        try:
            self._door = await loop.create_server(connected, host, port, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressBusy(
                    f"dashboard.port {self._config.port} on {self._config.host} is taken by "
                    "another program: stop it, or choose another port"
                ) from error
            found = f"{self._config.port} on {self._config.host}: {_said(error)}"
            raise ConfigError("dashboard.port", found, "an address of this machine") from error
        self.port = self._door.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End the streams, finish other requests under way and close."""
        if self._door is not None:
            self._door.close()
        self._events.stop()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        self._busy.add(transport)
        try:
            refusal = self._access.refusal(self._clock.monotonic(), _asked(request))
            if refusal is not None:
                return _refuse(request, refusal)
            if request.method not in _READS:
                raise web.HTTPMethodNotAllowed(request.method, sorted(_READS))
            return await handler(request)
        finally:
            self._busy.discard(transport)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._not_ready()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ready'}\n")

    async def _metrics_page(self, _: web.Request) -> web.Response:
        text = self._metrics.exposition(self._figures())
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self._figures().as_json())


def _asked(request: web.Request) -> Asked:
    return Asked(
        path=request.path,
        peer=request.remote or "unknown",
        hosts=request.headers.getall(hdrs.HOST, ()),
        authorization=request.headers.get(hdrs.AUTHORIZATION, ""),
        fetch_site=request.headers.get("Sec-Fetch-Site", ""),
    )


def _refuse(request: web.Request, refusal: Refusal) -> web.Response:
    if refusal.is_wrong_guess:
        _log.warning("wrong dashboard token", extra={"peer": request.remote})
    response = web.Response(status=refusal.status, text=refusal.text)
    for challenge in refusal.challenges:
        response.headers.add(hdrs.WWW_AUTHENTICATE, challenge)
    if refusal.retry_after_s:
        response.headers[hdrs.RETRY_AFTER] = str(refusal.retry_after_s)
    return response


async def _file(content: bytes, kind: str, _: web.Request) -> web.Response:
    return web.Response(body=content, content_type=kind, charset="utf-8")


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(ON_EVERY_ANSWER)


def _said(error: OSError) -> str:
    """The system's words; asyncio puts the whole address around them."""
    return os.strerror(error.errno).lower() if error.errno else str(error)

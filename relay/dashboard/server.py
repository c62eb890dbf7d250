"""The HTTP server of ``[dashboard]``."""

from __future__ import annotations

import errno
import os
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from relay.clock import SystemClock
from relay.dashboard.access import Access, is_loopback
from relay.dashboard.events import Events
from relay.errors import AddressBusy, ConfigError
from relay.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from relay.clock import Clock
    from relay.config import Dashboard
    from relay.figures import Figures

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GOODBYE_S = 2.0
"""How long requests under way may take at the stop."""
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_READS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_ON_EVERY_ANSWER = {
    # Nothing but our own files, nothing inline, nowhere to send anything, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
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
        self._access = Access(config.host, token)
        self._figures, self._not_ready = figures, not_ready
        self._events = Events(figures, clock)
        self._runner = web.AppRunner(
            self._app(), access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_S
        )
        self.port = config.port

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
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
        site = web.TCPSite(self._runner, self._config.host, self._config.port)
        try:
            await site.start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressBusy(
                    f"dashboard.port {self._config.port} on {self._config.host} is taken by "
                    "another program: stop it, or choose another port"
                ) from error
            found = f"{self._config.port} on {self._config.host}: {_said(error)}"
            raise ConfigError("dashboard.port", found, "an address of this machine") from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End the streams, finish other requests under way and close."""
        self._events.stop()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = self._access.refusal(
            request.path,
            request.headers.getall(hdrs.HOST, ()),
            request.headers.get(hdrs.AUTHORIZATION, ""),
            request.headers.get("Sec-Fetch-Site", ""),
        )
        if refusal is None:
            if request.method not in _READS:
                raise web.HTTPMethodNotAllowed(request.method, sorted(_READS))
            return await handler(request)
        response = web.Response(status=refusal.status, text=refusal.text)
        for challenge in refusal.challenges:
            response.headers.add(hdrs.WWW_AUTHENTICATE, challenge)
        return response

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


async def _file(content: bytes, kind: str, _: web.Request) -> web.Response:
    return web.Response(body=content, content_type=kind, charset="utf-8")


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_ON_EVERY_ANSWER)


def _said(error: OSError) -> str:
    """The system's words; asyncio puts the whole address around them."""
    return os.strerror(error.errno).lower() if error.errno else str(error)

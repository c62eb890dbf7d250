"""The HTTP server of ``[dashboard]``."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import os
from typing import TYPE_CHECKING

from aiohttp import web

from relay.errors import AddressBusy, ConfigError
from relay.metrics import CONTENT_TYPE, Metrics
from relay.systemd import is_private

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from relay.config import Dashboard
    from relay.figures import Figures

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GOODBYE_S = 2.0
"""How long requests under way may take at the stop."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """The token in a file that only its owner may read.

    Raises: ConfigError if the file is missing, readable by others, or empty.
    """
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("dashboard.token_file", str(error), "a readable text file") from error
    if not is_private(path, mode):
        raise ConfigError("dashboard.token_file", f"mode {mode & 0o777:o}", "mode 0600: chmod it")
    if not token:
        raise ConfigError("dashboard.token_file", "an empty file", "a token on one line")
    return token


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
    ) -> None:
        if not is_loopback(config.host) and not token:
            raise ConfigError(
                "dashboard.token_file",
                "none",
                f"a file with a token, since dashboard.host = {config.host!r} is open to a network",
            )
        self._config, self._metrics, self._token = config, metrics, token
        self._figures, self._not_ready = figures, not_ready
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_page)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_S
        )
        self.port = config.port

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
        """Finish requests under way and close."""
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        is_open = is_loopback(self._config.host) or request.path == "/healthz"
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # aiohttp hands in bytes that are not UTF-8 as surrogates.
        raw = given.encode(errors="surrogateescape")
        if is_open or hmac.compare_digest(raw, self._token.encode()):
            return await handler(request)
        return web.Response(
            status=401, text="a token is needed\n", headers={"WWW-Authenticate": "Bearer"}
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._not_ready()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ready'}\n")

    async def _metrics_page(self, _: web.Request) -> web.Response:
        text = self._metrics.exposition(self._figures())
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def _said(error: OSError) -> str:
    """The system's words; asyncio puts the whole address around them."""
    return os.strerror(error.errno).lower() if error.errno else str(error)

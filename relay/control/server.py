"""The answering side of the control socket.

The socket's mode lets in its owner and root alone. The peer's user is asked for as well
(``SO_PEERCRED``, unix(7)): somebody may have opened up the socket or its folder by hand, and
what the control socket can do is more than a group should be given by accident.

Requests are ``POST /v1/<command>`` with a JSON object, answers JSON objects: 200 with what
was asked for, 400 ``{"error": …}`` for a request that makes no sense (403: of another user;
404: no such command; 413: too long), 409 for one the relay cannot fulfil now, 500 for a
surprise (logged, its text kept from the client).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from aiohttp import web

from relay.errors import RelayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)

BODY_MAX_BYTES = 65_536
"""A command is a few words; more is a mistake."""
GOODBYE_S = 2.0
"""How long requests under way may take at the stop."""
_CREDENTIALS = struct.Struct("=iII")
"""``struct ucred``: process, user, group (unix(7))."""
SOCKET_PATH_MAX = 107
"""Bytes in ``sun_path`` on Linux, less the final NUL (unix(7))."""


def socket_path(spool_path: Path) -> Path:
    """Where the control socket of the relay that owns this spool is."""
    return spool_path.with_name(spool_path.name + ".sock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What can be asked for, by name; each takes the request's object and returns the answer's.

    A ``ValueError`` says that the request makes no sense.
    """

    status: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    find: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    hold: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    release: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    pause: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    resume: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    rate: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    set_rate: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlServer:
    """Listens on the socket from ``start`` to ``stop``.

    ``on_failure`` is told the room of each surprise that was logged and survived.
    """

    def __init__(
        self, path: Path, commands: Commands, *, on_failure: Callable[[str], None] = lambda _: None
    ) -> None:
        self._path, self._on_failure = path, on_failure
        self._commands = {field.name: getattr(commands, field.name) for field in fields(commands)}
        app = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[_guard])
        app.router.add_post("/v1/{command}", self._answer)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_S
        )

    async def start(self) -> None:
        """Bind the socket, replacing one that a dead relay left (the spool's lock is ours).

        Raises: RelayError if the path is too long for a Unix socket or cannot be bound.
        """
        if len(os.fsencode(self._path)) > SOCKET_PATH_MAX:
            raise RelayError(
                f"the control socket's path {self._path} is longer than {SOCKET_PATH_MAX} bytes: "
                "choose a shorter spool.path"
            )
        await self._runner.setup()
        await asyncio.to_thread(self._path.unlink, missing_ok=True)
        umask = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(self._path)).start()
        except OSError as error:
            raise RelayError(f"cannot open the control socket {self._path}: {error}") from error
        finally:
            os.umask(umask)

    async def stop(self) -> None:
        """Finish requests under way, close and remove the socket."""
        await self._runner.cleanup()
        await asyncio.to_thread(self._path.unlink, missing_ok=True)

    async def _answer(self, request: web.Request) -> web.Response:
        command = self._commands.get(request.match_info["command"])
        if command is None:
            return web.json_response({"error": "no such command"}, status=404)
        try:
            return web.json_response(await command(await _object_in(request)))
        except web.HTTPRequestEntityTooLarge:
            text = f"the request is longer than {BODY_MAX_BYTES} bytes"
            return web.json_response({"error": text}, status=413)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        except RelayError as error:
            return web.json_response({"error": str(error)}, status=409)
        except Exception:
            _log.exception("control request failed", extra={"command": request.path})
            self._on_failure("control")
            return web.json_response(
                {"error": "surprise inside the relay, see its log"}, status=500
            )


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    user = _user_of(request.transport)
    if user in {0, os.geteuid()}:
        return await handler(request)
    _log.warning("control request of another user refused", extra={"user": user})
    text = f"only root and user {os.geteuid()} may steer this relay"
    return web.json_response({"error": text}, status=403)


def _user_of(transport: asyncio.Transport | None) -> int | None:
    """Who opened the connection, as the kernel saw it; None if it cannot be told any more."""
    end = None if transport is None else transport.get_extra_info("socket")
    if end is None:
        return None
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


async def _object_in(request: web.Request) -> dict[str, Any]:
    """The JSON object that came with the request. Raises: ValueError if it is not one."""
    text = await request.read()
    try:
        body = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(body, dict):
        raise ValueError("the request must be a JSON object")  # noqa: TRY004  # one answer: 400
    return body

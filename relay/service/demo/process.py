"""The relay of the demo: its configuration, and its process."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from relay.twin import TwinConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

STOP_MAX_S = 60.0
"""A relay with nothing to do stops at once; one that does not is killed."""

TOML = """
[listen]
port = {smtp}
[spool]
path = "relay.db"
free_min_bytes = 33554432
[dashboard]
port = {http}
[[upstream]]
name = "ses"
host = "127.0.0.1"
port = {twin}
ca_file = "{ca}"
username = "{user}"
sessions_max = {sessions}
[log]
level = "warning"
"""


@asynccontextmanager
async def relay_process(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """``relay serve`` on the configuration at ``path``, ended on the way out.

    In a session of its own: Ctrl-C is for us, and we tell it.
    """
    with (path.parent / "relay.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve", "-c", str(path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "RELAY_SES_PASSWORD": TwinConfig().password},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_MAX_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; the relay takes them a moment later."""
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for one in with_sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in with_sockets]
    finally:
        for one in with_sockets:
            one.close()

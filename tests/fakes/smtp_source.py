"""Postfix's load generator: many messages over a few connections, as fast as they are taken."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest

SOURCE = shutil.which("smtp-source", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_source = pytest.mark.skipif(
    SOURCE is None, reason="smtp-source comes with Debian's package postfix, which is not here"
)
CONNECTIONS = 10


async def smtp_source(port: int, count: int) -> int:
    """Send ``count`` messages of 4 kB over 10 connections; its exit code, 0 if all were taken.

    -d: a connection is kept for further messages, as Listmonk does; -N: numbered recipients.
    """
    assert SOURCE is not None
    words = ["-s", str(CONNECTIONS), "-m", str(count), "-l", "4096", "-d", "-N"]
    words += ["-f", "load@example.com", "-t", "load@example.org", f"127.0.0.1:{port}"]
    running = await asyncio.create_subprocess_exec(SOURCE, *words)
    return await running.wait()

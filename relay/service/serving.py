"""The relay as a process: its loop, its signals, and who opens and closes what."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from relay.clock import SystemClock
from relay.loops import loop_factory
from relay.service import descriptors, inheritance, logs, sandbox
from relay.service.relay import Relay
from relay.spool import Spool
from relay.upstream import find_password

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.config import Config

_log = logging.getLogger(__name__)

SAME_KEY_S = 0.5
"""Two interrupts within this are one."""


def serve(config: Config, *, with_twin: bool = False, paused: bool = False) -> None:
    """Run until SIGTERM or SIGINT has been obeyed; with ``with_twin``, into the double of SES.

    With ``paused``, mail is taken and nothing sent until an operator resumes.

    Raises: RelayError, with a text that says what to do; KeyboardInterrupt after a second
    Ctrl-C.
    """
    logs.setup(config.log)
    # Its default is to end the process: not while the spool is opened, either.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            if with_twin:
                runner.run(_serve_sandbox(config, paused=paused))
            else:
                runner.run(_serve(config, _passwords(config), paused=paused))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def _passwords(config: Config) -> dict[str, str]:
    return {upstream.name: find_password(upstream, os.environ) for upstream in config.upstreams}


async def _serve_sandbox(config: Config, *, paused: bool) -> None:
    twin = sandbox.make_twin()
    port = await twin.start()
    _log.warning(
        "sandbox: mail goes to a double of SES inside, not to Amazon",
        extra={"twin": f"127.0.0.1:{port}", "limit_per_s": twin.config.rate_per_s},
    )
    try:
        own = sandbox.redirect(sandbox.own_spool(config), port)
        passwords = {upstream.name: twin.config.password for upstream in own.upstreams}
        await _serve(own, passwords, paused=paused)
    finally:
        await twin.stop()
        _log.warning("sandbox ended", extra=sandbox.tally(twin))


async def _serve(config: Config, passwords: Mapping[str, str], *, paused: bool) -> None:
    """Open the spool, run a relay over it, close the spool."""
    config = descriptors.fit(config)
    clock = SystemClock()
    spool = await Spool.open(Path(config.spool.path), config.spool, clock=clock, create=True)
    try:
        relay = Relay(
            config, spool, clock, passwords, paused=paused, inheritance=inheritance.claim()
        )
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(relay.run())
        loop.add_signal_handler(signal.SIGTERM, relay.drain)
        # A terminal that is closed sends it, too: nobody would see the relay again.
        hung_up = relay.drain if sys.stdin is not None and sys.stdin.isatty() else relay.reload
        loop.add_signal_handler(signal.SIGHUP, hung_up)
        loop.add_signal_handler(signal.SIGINT, _on_interrupt, relay, running, clock)
        try:
            await running
        except asyncio.CancelledError:
            _log.warning("stopped at once: what was under way may be sent again")
            raise
        except BaseExceptionGroup as group:
            raise _first(group) from group
    finally:
        await spool.close()
        _log.info("relay stopped")


def _on_interrupt(relay: Relay, running: asyncio.Future[None], clock: SystemClock) -> None:
    """The first Ctrl-C drains, as SIGTERM always does; a later one stops at once.

    One that comes in the same moment is the same key press, told twice by a shell and its
    child.
    """
    since = relay.draining_since
    if since is not None and clock.monotonic() - since > SAME_KEY_S:
        running.cancel()
    relay.drain()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure in a group of groups: what a person wants to read."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""The relay as one running thing: every room built once, started, drained, stopped.

Order of life: spool, then dispatchers, then the doors to the outside, then ``READY=1``. At the
end first the dispatchers: they send nothing new and wait for the answers to what is under way,
which can take minutes, and for all that time mail is still taken, since Listmonk loses what
nobody takes. Then the listener: what is past DATA is committed and answered, and connections
between messages go to systemd for the next relay (``listener.handover``), so that Listmonk
waits for no more than a start. Last the spool. A failure of any task ends the whole: systemd
starts it again, and nothing that was answered with 250 depends on what was in memory.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from relay import __version__, systemd
from relay.ageing import Ageing
from relay.breaker import Holds
from relay.control import ControlServer, socket_path
from relay.dashboard import DashboardServer, read_token
from relay.errors import ConfigError
from relay.figures import Figures
from relay.listener import DRAIN_GRACE_S, Listener, Resting, by_domain, store, users_of
from relay.metrics import Metrics
from relay.service.branch import Shared
from relay.service.branches import Branches
from relay.service.figures import holds_of, in_words, is_paused, room_of, streams_of
from relay.service.inheritance import NOTHING, Inheritance
from relay.service.steering import Steering
from relay.service.upkeep import Upkeep
from relay.spool import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.clock import Clock
    from relay.config import Config
    from relay.spool import Spool

_log = logging.getLogger(__name__)

ANSWER_MARGIN_S = 10.0
"""For an answer that comes in the last moment to be written down. With ``dot_timeout_s`` and the
listener's ``DRAIN_GRACE_S`` it must fit into systemd's TimeoutStopSec."""
TELL_S = 10.0
"""How often the line of ``systemctl status`` is made anew."""
_STILL_TO_GO = frozenset({State.WAITING, State.PARKED})


class Relay:
    """A relay over an open spool. ``run`` it; ``drain`` makes ``run`` return.

    Raises: ConfigError: a file that the configuration names cannot be used.
    """

    def __init__(
        self,
        config: Config,
        spool: Spool,
        clock: Clock,
        passwords: Mapping[str, str],
        *,
        paused: bool = False,
        inheritance: Inheritance = NOTHING,
    ) -> None:
        """With ``paused``, nothing leaves until an operator resumes."""
        self._paused = paused
        self._config, self._spool, self._clock = config, spool, clock
        self._started_at = clock.wall_ms()
        self.metrics = Metrics()
        self._shared = Shared(
            spool=spool,
            holds=Holds(),
            ageing=Ageing(self._started_at),
            metrics=self.metrics,
            clock=clock,
        )
        self._branches = Branches(config, passwords, self._shared)
        self._upkeep = Upkeep(config.retry, self._shared, self._branches)
        self.listener = self._make_listener(inheritance)
        self.dashboard = self._make_dashboard()
        self._steering = self._make_steering()
        self._control = ControlServer(
            socket_path(Path(config.spool.path)),
            self._steering.commands,
            on_failure=self.metrics.failed,
        )
        self._draining = asyncio.Event()
        self._draining_since: float | None = None
        self._told = ""
        self.ready = asyncio.Event()
        """Set once mail is taken."""

    def _make_listener(self, inheritance: Inheritance) -> Listener:
        rules = self._config.listen
        return Listener(
            rules,
            self._spool,
            users_of(rules),
            clock=self._clock,
            upstream_of=by_domain(self._config.upstreams),
            observer=self.metrics,
            sockets=inheritance.doors,
            resting=inheritance.resting,
        )

    def _make_dashboard(self) -> DashboardServer:
        token_file = self._config.dashboard.token_file
        return DashboardServer(
            self._config.dashboard,
            self.metrics,
            token=read_token(Path(token_file)) if token_file else "",
            figures=self.figures,
            not_ready=self._not_ready,
        )

    def _make_steering(self) -> Steering:
        return Steering(
            self._shared,
            self._branches,
            self._branches.rates,
            figures=self.figures,
            on_change=self._steered,
        )

    @property
    def draining_since(self) -> float | None:
        """When the end began (monotonic), None before that."""
        return self._draining_since

    def drain(self) -> None:
        """Send nothing more, settle what is under way, take no more; ``run`` returns then."""
        if self._draining_since is None:
            self._draining_since = self._clock.monotonic()
        self._draining.set()

    def reload(self) -> None:
        """Take users and certificate from their files again; the rest needs a restart.

        SIGHUP: a certificate that was renewed comes into use without one connection lost.
        """
        if not self.ready.is_set() or self._draining.is_set():
            return
        microseconds = str(int(self._clock.monotonic() * 1_000_000))
        systemd.notify(RELOADING="1", MONOTONIC_USEC=microseconds, STATUS="reading files again")
        try:
            self.listener.reread()
        except ConfigError as error:
            _log.error("certificate not reloaded, the old one stays", extra={"error": str(error)})
        else:
            _log.info("users and certificate reloaded; other changes need a restart")
        systemd.notify(READY="1", STATUS=self._doing())

    async def run(self) -> None:
        """Take mail and hand it on until drained.

        Raises: ConfigError, RelayError: a door cannot be opened; SpoolError.
        """
        await self._restore()
        self._spool.on_arrival = self._branches.arrived
        self._spool.on_commit = self.metrics.committed
        self._spool.on_failure = self.metrics.failed
        async with asyncio.TaskGroup() as tasks:
            lasting = [
                tasks.create_task(self._spool.run()),
                tasks.create_task(self._upkeep.run()),
                tasks.create_task(self._branches.watch()),
                tasks.create_task(self._tell_often()),
            ]
            sending = tasks.create_task(self._branches.send())
            try:
                await self._open_doors()
                await self._draining.wait()
                await self._finish(sending)
            finally:
                await self._close_doors()
            for task in lasting:
                task.cancel()
        self._branches.note()
        await self._upkeep.save()

    def figures(self) -> Figures:
        """The figures of this moment."""
        now_ms, now = self._clock.wall_ms(), self._clock.monotonic()
        holds = self._shared.holds.all()
        return Figures(
            version=__version__,
            now=now_ms,
            started_at=self._started_at,
            paused=is_paused(holds, self._branches),
            draining=self._draining.is_set(),
            upstreams=self._branches.figures(),
            streams=streams_of(self._spool),
            holds=holds_of(holds),
            room=room_of(self._spool, now),
            events=self._branches.events,
            totals=dict(self.metrics.totals),
            unknown_replies=dict(self.metrics.unknown),
        )

    def _not_ready(self) -> str | None:
        if self._draining.is_set():
            return "draining"
        if not self.ready.is_set():
            return "starting"
        if self._spool.barred:
            return "stalled: the spool's files are damaged or not where they were, see the log"
        if self._spool.stalled_since is not None:
            return "stalled: no room in the spool, clients wait"
        return None

    # -- Start and end -----------------------------------------------------------------------

    async def _restore(self) -> None:
        """Bring back what was known before the last stop."""
        await self._upkeep.restore()
        if self._paused:
            # Before any dispatcher runs: not even the first message may leave.
            await self._steering.pause({})
        waiting = {key.upstream for key in self._spool.depth() if key.state in _STILL_TO_GO}
        for name in sorted(waiting - set(self._branches)):
            _log.error(
                "mail waits for an upstream that is not configured: give one this name again",
                extra={"upstream": name},
            )

    async def _open_doors(self) -> None:
        await self._control.start()
        await self.dashboard.start()
        await self.listener.start()
        self.ready.set()
        systemd.notify(READY="1", STATUS=self._doing())
        if self.figures().paused:
            _log.warning("paused: nothing is sent until relay resume")
        _log.info(
            "relay started",
            extra={
                "version": __version__,
                "spool": str(self._spool.path),
                "dashboard": f"http://{self._config.dashboard.host}:{self.dashboard.port}",
            },
        )

    async def _finish(self, sending: asyncio.Task[None]) -> None:
        """Settle what was sent and send nothing more; then take nothing more."""
        systemd.notify(STOPPING="1", STATUS="waiting for the answers to what is under way")
        _log.info("relay stopping")
        self._branches.drain()
        await asyncio.wait([sending], timeout=self._answers_max_s)
        await self._end_intake(DRAIN_GRACE_S)
        await asyncio.wait([sending])

    @property
    def _answers_max_s(self) -> float:
        """After it no answer can be expected: something else, such as the spool, is in the way."""
        return max(one.dot_timeout_s for one in self._config.upstreams) + ANSWER_MARGIN_S

    async def _end_intake(self, grace_s: float) -> None:
        """Take no more, and give idle connections to the next relay."""
        resting: list[Resting] = []
        await self.listener.drain(grace_s, resting.append if systemd.is_present() else None)
        if resting:
            told = await asyncio.to_thread(store, resting)
            _log.info("connections handed over", extra={"clients": len(resting), "told": told})

    async def _close_doors(self) -> None:
        """Close what is still open: at once if the end was wished for, politely after a failure."""
        await self._end_intake(0.0 if self._draining.is_set() else DRAIN_GRACE_S)
        await self.dashboard.stop()
        await self._control.stop()

    def _doing(self) -> str:
        return in_words(self.figures())

    def _tell_doing(self) -> None:
        """Keep the line of ``systemctl status`` up to date."""
        if self.ready.is_set() and not self._draining.is_set():
            doing = self._doing()
            if doing != self._told:
                systemd.notify(STATUS=doing)
            self._told = doing

    async def _tell_often(self) -> None:
        while True:
            await self._clock.sleep(TELL_S)
            self._tell_doing()

    def _steered(self) -> None:
        """An operator has held or released something."""
        self._tell_doing()
        self._branches.reread()

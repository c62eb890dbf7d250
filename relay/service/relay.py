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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from relay import __version__, deferral, systemd
from relay.ageing import BACK_MS, STEP_MS, Ageing
from relay.breaker import Hold, Holds, Source, in_doubt_key
from relay.control import ControlServer, socket_path
from relay.dashboard import DashboardServer, read_token
from relay.dispatcher import IN_DOUBT_REASON
from relay.errors import ConfigError, SpoolError
from relay.figures import Figures
from relay.listener import DRAIN_GRACE_S, Listener, Resting, by_domain, store, users_of
from relay.metrics import Metrics
from relay.service.accounts import Accounts
from relay.service.branch import Branch, Shared
from relay.service.figures import holds_of, in_words, is_paused, room_of, streams_of, upstream_of
from relay.service.inheritance import NOTHING, Inheritance
from relay.service.limits import Limits
from relay.service.rates import Rates
from relay.service.steering import Steering
from relay.spool import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from relay.clock import Clock
    from relay.config import Config
    from relay.figures import UpstreamFigures
    from relay.spool import Due, Spool

_log = logging.getLogger(__name__)

SAVE_S = 60.0
"""How often what was learned is written down; a crash forgets at most this much."""
ANSWER_MARGIN_S = 10.0
"""For an answer that comes in the last moment to be written down. With ``dot_timeout_s`` and the
listener's ``DRAIN_GRACE_S`` it must fit into systemd's TimeoutStopSec."""
CLOCK_S = 10.0
"""How often the wall clock is compared with the monotonic one."""
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
        self._branches = {
            upstream.name: Branch(
                config, upstream, passwords[upstream.name], self._shared, self._reread
            )
            for upstream in config.upstreams
        }
        self._memories = {name: branch.memory for name, branch in self._branches.items()}
        self._limits = Limits(self._memories, spool, clock, self.metrics)
        shapers = {name: branch.shaper for name, branch in self._branches.items()}
        self._accounts = Accounts(config.upstreams, shapers, spool, clock, self.metrics.failed)
        self.listener = Listener(
            config.listen,
            spool,
            users_of(config.listen),
            clock=clock,
            upstream_of=by_domain(config.upstreams),
            observer=self.metrics,
            sockets=inheritance.doors,
            resting=inheritance.resting,
        )
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
            Rates(
                self._config.upstreams, self._memories, self._limits, self._upstream, self._clock
            ),
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
        self._spool.on_arrival = self._on_arrival
        self._spool.on_commit = self.metrics.committed
        self._spool.on_failure = self.metrics.failed
        async with asyncio.TaskGroup() as tasks:
            upkeep = [
                tasks.create_task(self._spool.run()),
                tasks.create_task(self._save_often()),
                tasks.create_task(self._limits.run()),
                tasks.create_task(self._accounts.run()),
                tasks.create_task(self._watch_clock()),
            ]
            branches = [tasks.create_task(one.run()) for one in self._branches.values()]
            try:
                await self._open_doors()
                await self._draining.wait()
                await self._finish(branches)
            finally:
                await self._close_doors()
            for task in upkeep:
                task.cancel()
        self._limits.note()
        await self._save()

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
            upstreams=tuple(map(self._upstream, self._branches)),
            streams=streams_of(self._spool),
            holds=holds_of(holds),
            room=room_of(self._spool, now),
            events=self._limits.events,
            totals=dict(self.metrics.totals),
            unknown_replies=dict(self.metrics.unknown),
        )

    def _upstream(self, name: str) -> UpstreamFigures:
        now_ms, now = self._clock.wall_ms(), self._clock.monotonic()
        figures = upstream_of(self._branches[name], now_ms, now)
        return replace(figures, aws=self._accounts.figures_of(name))

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
        now_ms = self._clock.wall_ms()
        self._shared.ageing.went_on(now_ms, self._clock.monotonic())
        self._shared.ageing.load(await self._spool.state("ageing") or {})
        for hold in await self._spool.holds():
            self._shared.holds.add(hold)
            self._shared.ageing.stop(hold.key, hold.since_at)
        in_doubt = {in_doubt_key(name) for name in self._branches}
        for key in await self._spool.parked_keys():
            # A crash between the two writes can leave mail parked under a hold that is gone, or,
            # if it is in doubt, is not there yet: then the operator's wish stands.
            if key in in_doubt and not self._shared.holds.held(key):
                self._shared.holds.add(Hold(key, Source.BREAKER, IN_DOUBT_REASON, now_ms))
            if not self._shared.holds.held(key):
                await self._spool.release(key)
        await self._follow_clock(now_ms)
        await self._limits.recall()
        await self._accounts.restore()
        for branch in self._branches.values():
            await branch.restore()
        self._limits.note()
        if self._paused:
            # Before any dispatcher runs: not even the first message may leave.
            await self._steering.pause({})
        waiting = {key.upstream for key in self._spool.depth() if key.state in _STILL_TO_GO}
        for name in sorted(waiting - set(self._branches)):
            _log.error(
                "mail waits for an upstream that is not configured: give one this name again",
                extra={"upstream": name},
            )

    async def _follow_clock(self, now_ms: int) -> None:
        """Let mail that was put off by a clock that ran ahead follow the one that is right now."""
        seen = await self._spool.state("clock") or {}
        seen_ms = seen.get("wall_ms")
        back_ms = seen_ms - now_ms if isinstance(seen_ms, int) else 0
        latest_ms = now_ms + self._wait_max_ms
        await self._spool.clamp_due(latest_ms, back_ms if back_ms >= BACK_MS else 0)

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

    async def _finish(self, branches: Iterable[asyncio.Task[None]]) -> None:
        """Settle what was sent and send nothing more; then take nothing more."""
        systemd.notify(STOPPING="1", STATUS="waiting for the answers to what is under way")
        _log.info("relay stopping")
        for branch in self._branches.values():
            branch.dispatcher.drain()
        await asyncio.wait(branches, timeout=self._answers_max_s)
        await self._end_intake(DRAIN_GRACE_S)
        await asyncio.wait(branches)

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

    def _on_arrival(self, arrivals: Sequence[Due]) -> None:
        """Hand what was committed to the dispatchers of its upstreams."""
        for name, branch in self._branches.items():
            mine = [due for due in arrivals if due.envelope.upstream == name]
            if mine:
                branch.dispatcher.arrived(mine)

    def _doing(self) -> str:
        return in_words(self.figures())

    def _tell_doing(self) -> None:
        """Keep the line of ``systemctl status`` up to date."""
        if self.ready.is_set() and not self._draining.is_set():
            doing = self._doing()
            if doing != self._told:
                systemd.notify(STATUS=doing)
            self._told = doing

    def _steered(self) -> None:
        """An operator has held or released something."""
        self._tell_doing()
        self._reread()

    def _reread(self) -> None:
        for branch in self._branches.values():
            branch.dispatcher.reread()

    # -- Upkeep ------------------------------------------------------------------------------

    @property
    def _wait_max_ms(self) -> int:
        """The longest that mail is ever put off for; what is due later comes of a wrong clock."""
        retry = self._config.retry
        longest_s = retry.max_s * (1 + retry.jitter)
        return max(deferral.IN_DOUBT_MS, round(longest_s * 1000))

    async def _save_often(self) -> None:
        while True:
            await self._clock.sleep(SAVE_S)
            await self._save()

    async def _save(self) -> None:
        """Write down what was learned; a failure costs a slower start, no mail."""
        try:
            await self._limits.save()
            await self._accounts.save()
            for branch in self._branches.values():
                await branch.save()
            now_ms = self._clock.wall_ms()
            await self._spool.put_state("ageing", self._shared.ageing.saved(now_ms))
            await self._spool.put_state("clock", {"wall_ms": now_ms})
        except SpoolError as error:
            _log.warning("learned state not written", extra={"error": str(error)})

    async def _watch_clock(self) -> None:
        """Notice when the wall clock was set, by a person or by NTP after boot."""
        offset = self._clock.wall_ms() - self._clock.monotonic() * 1000
        while True:
            await self._clock.sleep(CLOCK_S)
            self._tell_doing()
            now_ms = self._clock.wall_ms()
            step_ms = now_ms - self._clock.monotonic() * 1000 - offset
            offset += step_ms
            if step_ms <= -BACK_MS:
                await self._clamp(now_ms, round(-step_ms))
                self._reread()
            if abs(step_ms) < STEP_MS:
                self._shared.ageing.went_on(now_ms, self._clock.monotonic())
                continue
            _log.warning("wall clock was set", extra={"seconds": round(step_ms / 1000)})
            self._shared.ageing.stepped(round(step_ms), now_ms)
            self._reread()

    async def _clamp(self, now_ms: int, back_ms: int) -> None:
        try:
            await self._spool.clamp_due(now_ms + self._wait_max_ms, back_ms)
        except SpoolError as error:
            _log.error("due times not set back, mail may wait", extra={"error": str(error)})

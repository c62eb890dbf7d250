"""Getting a session, having enough of them, and what it means when none is to be had.

A failed opening says nothing about any mail (P4). If the peer said no, or could not prove who
it is, the breaker holds the account; if it could not be reached, the pool backs off and the
mail waits, its age clock stopped.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from relay.dispatcher.bound import Bound
from relay.dispatcher.pause import first_of
from relay.dispatcher.staffing import SPARE, Trend, needed
from relay.errors import Unreachable, UpstreamError
from relay.upstream import Refused
from relay.verdict import SessionEnded, judge, judge_unreachable, kind_of

if TYPE_CHECKING:
    from relay import config
    from relay.breaker import Decision
    from relay.dispatcher.rooms import Rooms
    from relay.dispatcher.staffing import Occupancy
    from relay.upstream import Session
    from relay.verdict import Verdict

_log = logging.getLogger(__name__)


class Sessions:
    """The pool as one dispatcher uses it."""

    def __init__(self, upstream: config.Upstream, rooms: Rooms, stop: asyncio.Event) -> None:
        self._name, self._rooms, self._stop = upstream.name, rooms, stop
        self._address = f"{upstream.host}:{upstream.port}"
        self._trend = Trend()
        self.bound = Bound()
        self.unreachable = ""
        """Why no session could be opened the last time, "" if one could or a hold says why."""

    @property
    def scope(self) -> str:
        """Under which name the age clock stops while the upstream cannot be reached."""
        return f"unreachable:{self._name}"

    async def acquire(self, due_at: float) -> Session | None:
        """A session for the message that may go from ``due_at`` on; None once ``stop`` is set.

        Raises: UpstreamError: an opening failed.
        """
        state, now = self._rooms.upstream.snapshot(), self._rooms.clock.monotonic()
        if state.open >= state.opening and state.open + state.opening >= state.ceiling:
            self.bound.short(max(now, due_at))
        try:
            return await self._acquire()
        finally:
            self.bound.served(self._rooms.clock.monotonic())

    async def _acquire(self) -> Session | None:
        acquiring = asyncio.ensure_future(self._rooms.upstream.acquire())
        try:
            await first_of(acquiring, self._stop.wait())
        except asyncio.CancelledError:
            if acquiring.done() and not acquiring.cancelled() and not acquiring.exception():
                self._rooms.upstream.release(acquiring.result())
            raise
        if not acquiring.done():
            return None  # Cancelled by ``first_of``; the pool keeps the session.
        session = acquiring.result()
        if self.unreachable:
            _log.warning("upstream reachable again", extra={"upstream": self._name})
            self.unreachable = ""
            self._rooms.ageing.go(self.scope, self._rooms.clock.wall_ms())
        return session

    def want(self, occupancy: Occupancy, *, piles_up: bool) -> None:
        """Have as many sessions as it takes, each taken by a message for its ``occupancy``.

        If mail ``piles_up``, that is what the rate needs, opened ahead of need: a rise of the
        rate would else wait for one handshake after the other. If not, what comes is soon gone,
        and a few more than are busy will do.
        """
        state = self._rooms.upstream.snapshot()
        wanted = state.busy + SPARE
        if piles_up:
            now, opening_s = self._rooms.clock.monotonic(), state.opening_s
            rate_per_s = self._trend.ahead(now, self._rooms.shaper.snapshot().rate_per_s, opening_s)
            wanted = max(wanted, needed(rate_per_s, occupancy.mean_s(opening_s), opening_s))
        is_well = not self.unreachable and not self._rooms.holds.account_held(self._name)
        # Beyond the ceiling, too: the pool then knows to try it when its time has come.
        self._rooms.upstream.want(wanted, ready=is_well)

    def rest(self) -> None:
        """Nothing is to be sent just now: open no more than are waited for."""
        self._rooms.upstream.want(self._rooms.upstream.snapshot().busy + SPARE)

    def failed(self, error: UpstreamError, probe: str) -> Decision:
        """What a failed opening means; ``probe`` is the held key it was to test, or ""."""
        verdict = self._judge(error)
        now_ms = self._rooms.clock.wall_ms()
        if isinstance(verdict, SessionEnded):
            if not self.unreachable:
                facts = {"upstream": self._name, "at": self._address, "error": str(error)}
                _log.warning("upstream unreachable", extra=facts)
            self.unreachable = f"{self._address}: {error}"
            self._rooms.ageing.stop(self.scope, now_ms)
        return self._rooms.breaker.opening_failed(verdict, now_ms, probe_of=probe)

    def _judge(self, error: UpstreamError) -> Verdict:
        match error:
            case Refused():
                judgement = judge(error.reply)
                self._rooms.metrics.judged(
                    kind_of(judgement.verdict).value,
                    error.reply.stage,
                    str(error.reply),
                    known=judgement.known,
                )
                return judgement.verdict
            case Unreachable():
                return judge_unreachable(error)
            case _:
                raise error

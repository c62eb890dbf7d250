"""Getting a session, and what it means when none is to be had.

A failed opening says nothing about any mail (P4). If the peer said no, or could not prove who
it is, the breaker holds the account; if it could not be reached, the pool backs off and the
mail waits, its age clock stopped.
"""

from __future__ import annotations

import asyncio
import logging
from math import ceil
from typing import TYPE_CHECKING

from relay.dispatcher.pause import first_of
from relay.errors import Unreachable, UpstreamError
from relay.upstream import Refused
from relay.verdict import SessionEnded, judge, judge_unreachable, kind_of

if TYPE_CHECKING:
    from relay import config
    from relay.breaker import Decision
    from relay.dispatcher.rooms import Rooms
    from relay.upstream import Session
    from relay.verdict import Verdict

_log = logging.getLogger(__name__)

SPARE = 2
"""Beyond what rate x latency needs: one for the next message, one for a slow reply."""
WARMING_MAX = 8
"""Sessions opened ahead of their first message at one time."""


class Sessions:
    """The pool as one dispatcher uses it."""

    def __init__(self, upstream: config.Upstream, rooms: Rooms, stop: asyncio.Event) -> None:
        self._name, self._rooms, self._stop = upstream.name, rooms, stop
        self._address = f"{upstream.host}:{upstream.port}"
        self._warming = 0
        self.unreachable = ""
        """Why no session could be opened the last time, "" if one could or a hold says why."""

    @property
    def scope(self) -> str:
        """Under which name the age clock stops while the upstream cannot be reached."""
        return f"unreachable:{self._name}"

    async def acquire(self) -> Session | None:
        """A session, or None once ``stop`` is set. Raises: UpstreamError: an opening failed."""
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

    def want(self, occupancy_s: float, tasks: asyncio.TaskGroup) -> None:
        """Have as many sessions as the rate needs, each taken ``occupancy_s`` by a message.

        The pool opens one for each that waits; those missing are opened ahead of need, or
        a rise of the rate would wait for one handshake after the other.
        """
        state = self._rooms.upstream.snapshot()
        needed = ceil(self._rooms.shaper.snapshot().rate_per_s * occupancy_s) + SPARE
        needed = min(max(needed, state.busy + SPARE), state.ceiling)
        self._rooms.upstream.want(needed)
        missing = needed - state.open - state.opening - self._warming
        if self.unreachable or self._rooms.holds.account_held(self._name):
            return
        for _ in range(min(missing, WARMING_MAX - self._warming)):
            self._warming += 1
            tasks.create_task(self._warm())

    async def _warm(self) -> None:
        """Open a session and leave it idle."""
        try:
            session = await self.acquire()
            if session is not None:
                self._rooms.upstream.release(session)
        except UpstreamError as error:
            # Not judged here: who needs a session next will meet the same, and judge it.
            _log.info("session not opened ahead", extra={"error": str(error)})
        finally:
            self._warming -= 1

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

"""The loop of one upstream: a session, a moment, an envelope.

The order is the point. First a session, since without one nothing can go. Then the shaper
is asked for a moment, and the loop sleeps until it has come. Only then do the lanes choose: a
password reset that arrived during that sleep goes first, and at most one booking is ever
made ahead. The attempt itself (``attempts``) runs in a task of its own, so that the next
moment can be booked while this one waits for its replies.

Invariants
- An envelope is leased from ``Lanes.choose`` until it is settled or given back.
- Every booking with the shaper, one for each message, is closed once: accepted, throttled,
  ignored or cancelled.
- What a crash can double is bounded (P3): attempts by the sessions, settlements by ``books``.
- Nothing polls: the loop waits for ``wake`` or for a moment that policy named.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.breaker import Source, account_key, campaign_key, in_doubt_key, sandbox_key
from relay.config import Lane
from relay.dispatcher.attempts import Attempts
from relay.dispatcher.books import Books, parks
from relay.dispatcher.conclusion import Rules, expired, set_aside
from relay.dispatcher.feed import Feed
from relay.dispatcher.pause import first_of
from relay.dispatcher.sessions import Sessions
from relay.dispatcher.turn import Go, Policy, Rest, Turn, Why, next_turn
from relay.envelope import redact_all
from relay.errors import SpoolError, UpstreamError
from relay.lanes import Lanes
from relay.spool import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay import config
    from relay.dispatcher.rooms import Rooms
    from relay.envelope import Envelope
    from relay.spool import Due, Settlement

_log = logging.getLogger(__name__)

SURPRISE_S = 1.0
"""Pause after a surprise in the loop, so that a lasting one does not fill the log."""

BRIEF_S = 0.1
"""A drain waits for so short a sleep: to watch for it costs two tasks a message."""


class Dispatcher:
    """Sends what waits for one upstream until told to drain."""

    def __init__(
        self,
        upstream: config.Upstream,
        retry: config.Retry,
        lanes: Mapping[str, config.Lane],
        rooms: Rooms,
    ) -> None:
        self.name = upstream.name
        self._rooms, self._lane_config = rooms, lanes
        self._lanes = Lanes(lanes, is_held=rooms.holds.campaign_held)
        self._policy = Policy(
            upstream=upstream.name,
            lanes=self._lanes,
            quota=rooms.quota,
            breaker=rooms.breaker,
            holds=rooms.holds,
        )
        self._feed = Feed(
            upstream.name,
            rooms.spool,
            self._lanes,
            rooms.clock,
            self.wake,
            on_failure=rooms.metrics.failed,
        )
        self._books = Books(rooms, self.wake)
        self._attempts = Attempts(
            upstream.name,
            rooms,
            feed=self._feed,
            books=self._books,
            rules=Rules(retry=retry, in_doubt=upstream.in_doubt),
            on_end=self.wake,
        )
        self._woken, self._draining = asyncio.Event(), asyncio.Event()
        self._sessions = Sessions(upstream, rooms, self._draining)
        self._why: Why | None = Why.IDLE
        self._due_at = float("-inf")
        """When the rate lets the next message go, for all that is known before it is booked."""
        self._piles_up = False
        """Whether more was waiting when the last message went."""

    # -- What others tell it ---------------------------------------------------------------

    def arrived(self, arrivals: Iterable[Due]) -> None:
        """Envelopes of this upstream are on disk."""
        for due in arrivals:
            self._lanes.arrived(due.envelope)
        self.wake()

    def wake(self) -> None:
        """Something changed that may let mail go."""
        self._woken.set()

    def reread(self) -> None:
        """Mail may wait again that was out of its lane: a hold was lifted, the clock was set."""
        self._feed.reread()
        self.wake()

    def drain(self) -> None:
        """Lease nothing more; ``run`` returns once what is under way is settled."""
        self._draining.set()

    @property
    def doing(self) -> str:
        """What it does now, in words for people."""
        if self._books.is_stuck:
            return "stopped: what was sent cannot be noted down, see the log"
        if self._sessions.unreachable:
            return f"unreachable: {self._sessions.unreachable}"
        if self._attempts.endings.is_broken:
            return f"unreachable: sessions end: {self._attempts.endings.text}"
        if self._why is Why.IDLE and self._has_mail():
            return "waiting: all mail is held or not due yet"
        if self._why in {None, Why.SESSIONS}:
            return self._session_words() if self.session_bound else "sending"
        return self._why.value

    @property
    def session_bound(self) -> bool:
        """Whether sessions, not the rate and not the demand, hold sending back, of late."""
        return self._sessions.bound.is_bound(self._rooms.clock.monotonic())

    def _session_words(self) -> str:
        pool = self._rooms.upstream.snapshot()
        count, taken_s = pool.ceiling, self._attempts.occupancy.mean_s(pool.opening_s)
        named = f"{count} sessions (one kept for priority mail)" if count > 1 else "1 session"
        carried = max(1, count - 1) / max(taken_s, 1e-3)
        return f"{Why.SESSIONS}: {named}, {taken_s:.1f} s a message: {carried:.1f}/s"

    def _has_mail(self) -> bool:
        return any(
            key.upstream == self.name and key.state in {State.WAITING, State.PARKED}
            for key in self._rooms.spool.depth()
        )

    def sent_per_s(self, now: float) -> float:
        """Recipients accepted a second, of late (``now`` is monotonic)."""
        return self._attempts.speed.per_s(now)

    # -- The loop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until drained."""
        async with asyncio.TaskGroup() as tasks:
            feed = tasks.create_task(self._feed.run())
            while not self._draining.is_set():
                try:
                    await self._step(tasks)
                except Exception:
                    _log.exception("dispatch failed", extra={"upstream": self.name})
                    self._rooms.metrics.failed("dispatcher")
                    await first_of(self._draining.wait(), self._rooms.clock.sleep(SURPRISE_S))
            self._sessions.rest()
            feed.cancel()

    async def _step(self, tasks: asyncio.TaskGroup) -> None:
        """One turn: send one envelope, or rest."""
        self._woken.clear()
        turn = self._turn(own_sessions=0)
        if isinstance(turn, Rest):
            self._note(turn.why)
            await self._rest(turn)
            return
        self._sessions.want(self._attempts.occupancy, piles_up=self._piles_up)
        if not self._rooms.upstream.snapshot().open:
            self._why = Why.CONNECTING
        try:
            session = await self._sessions.acquire(self._due_at)
        except UpstreamError as error:
            await self._not_opened(error, turn.probe)
            return
        if session is None:
            return
        envelope: Envelope | None = None
        try:
            envelope = await self._at_its_moment(turn, tasks)
        finally:
            self._feed.poke()  # Even if none may go: those that were put away left room.
            if envelope is None:
                self._rooms.upstream.release(session)
        if envelope is not None:
            self._note(None)
            tasks.create_task(self._attempts.run(envelope, session, turn.probe))

    async def _not_opened(self, error: UpstreamError, probe: str) -> None:
        """Draw the conclusions of a failed opening; it was the probe, if one was due."""
        if probe:
            self._rooms.breaker.probe_started(probe, self._rooms.clock.wall_ms())
        await self._attempts.apply(self._sessions.failed(error, probe))

    def _turn(self, *, own_sessions: int) -> Turn:
        if self._books.is_stuck:
            return Rest(Why.SPOOL)
        now_ms, endings = self._rooms.clock.wall_ms(), self._attempts.endings
        state = self._rooms.upstream.snapshot()
        free_of_own = replace(state, busy=state.busy - own_sessions)
        wait_s = endings.wait_s(self._rooms.clock.monotonic())
        if wait_s:
            return Rest(Why.BROKEN, now_ms + round(wait_s * 1000))
        if endings.is_broken and free_of_own.busy:
            return Rest(Why.BROKEN)  # One at a time: its end wakes the loop.
        return next_turn(self._policy, free_of_own, now_ms)

    async def _rest(self, rest: Rest) -> None:
        """Wait until woken, drained, or the moment that policy named."""
        waits = [self._woken.wait(), self._draining.wait()]
        if rest.until_ms is not None:
            wait_s = (rest.until_ms - self._rooms.clock.wall_ms()) / 1000
            waits.append(self._rooms.clock.sleep(max(wait_s, 0.01)))  # type: ignore[arg-type]
        await first_of(*waits)

    def _note(self, why: Why | None) -> None:
        """Keep why nothing goes, and stop the age clock for what is not the mail's fault."""
        self._why = why
        now = self._rooms.clock.monotonic()
        if why is Why.SESSIONS:
            self._sessions.bound.short(max(now, self._due_at))
        elif why is not None:
            self._sessions.bound.served(now)
            self._sessions.rest()
        now_ms = self._rooms.clock.wall_ms()
        for stops, scope in ((Why.QUOTA, self._quota_scope), (Why.BROKEN, self._broken_scope)):
            if why is stops:
                self._rooms.ageing.stop(scope, now_ms)
            elif why is None and not self._attempts.endings.is_broken:
                self._rooms.ageing.go(scope, now_ms)

    # -- A moment and an envelope ------------------------------------------------------------

    async def _at_its_moment(self, go: Go, tasks: asyncio.TaskGroup) -> Envelope | None:
        """The envelope that may go now, booked with the shaper; None if there is none any more."""
        clock, shaper = self._rooms.clock, self._rooms.shaper
        now = clock.monotonic()
        moment = shaper.reserve(now, 1)
        envelope: Envelope | None = None
        try:
            if moment - now < BRIEF_S:
                await clock.sleep(moment - now)
            else:
                await first_of(clock.sleep(moment - now), self._draining.wait())
            turn = self._turn(own_sessions=1)
            if not self._draining.is_set() and isinstance(turn, Go) and turn.probe == go.probe:
                envelope = await self._pick(turn, tasks)
        finally:
            if envelope is None:
                shaper.cancelled(clock.monotonic(), 1)
        if envelope is None:
            return None
        if envelope.cost > 1:
            # SES lets a message go into debt; the pause that pays it off comes after it. One
            # booking takes the other's place, since the attempt is reported once.
            shaper.cancelled(clock.monotonic(), 1)
            shaper.reserve(clock.monotonic(), envelope.cost)
        self._rooms.quota.probe_started(self._rooms.clock.wall_ms())
        self._due_at = moment + envelope.cost / shaper.snapshot().rate_per_s
        self._piles_up = self._lanes.ready()
        return envelope

    async def _pick(self, go: Go, tasks: asyncio.TaskGroup) -> Envelope | None:
        """Lease the next envelope that is neither too old nor held in its own right."""
        now_ms = self._rooms.clock.wall_ms()
        if go.probe:
            return await self._pick_probe(go.probe, now_ms, tasks)
        return self._first_free(go.only, now_ms, tasks)

    def _first_free(
        self, only: str | None, now_ms: int, tasks: asyncio.TaskGroup, *, probe: str = ""
    ) -> Envelope | None:
        """Lease in the order of the lanes; what may not go leaves them on the way."""
        while (envelope := self._lanes.choose(only=only)) is not None:
            try:
                settlement = self._put_away(envelope, probe, now_ms)
            except BaseException:
                self._feed.end_lease(envelope, envelope.recipients)
                raise
            if settlement is None:
                return envelope
            tasks.create_task(self._settle(settlement))
        return None

    async def _pick_probe(self, key: str, now_ms: int, tasks: asyncio.TaskGroup) -> Envelope | None:
        """Lease an envelope that shows whether ``key`` may go."""
        breaker = self._rooms.breaker
        try:
            envelope = await self._candidate(key, now_ms, tasks)
        except SpoolError as error:
            _log.error("parked mail cannot be read", extra={"error": str(error)})
            envelope = None
        if envelope is not None and breaker.may_probe(envelope, key, through_breakers=True):
            breaker.probe_started(key, now_ms)
            return envelope
        if envelope is not None:
            self._feed.end_lease(envelope, envelope.recipients)
        breaker.probe_missed(key, now_ms)
        return None

    async def _candidate(self, key: str, now_ms: int, tasks: asyncio.TaskGroup) -> Envelope | None:
        """Lease an envelope that ``key`` holds; the best there is, not always good enough."""
        if key == account_key(self.name):
            envelope = self._first_free(None, now_ms, tasks, probe=key)
            return (
                envelope or self._lanes.any_head(self._may_go_through) or await self._any_parked()
            )
        if key.startswith(campaign_key("")):
            return self._lanes.first_of(key.removeprefix(campaign_key("")))
        return await self._feed.lease_parked([key], self._rooms.holds.held)

    def _may_go_through(self, envelope: Envelope) -> bool:
        """Whether only breakers hold it: the account's probe may pass those, and nobody else's."""
        account = account_key(self.name)
        return self._rooms.breaker.may_probe(envelope, account, through_breakers=True)

    async def _any_parked(self) -> Envelope | None:
        """Lease any envelope that was put away, but for mail in doubt: that may be out already."""
        keys = await self._rooms.spool.parked_keys()
        usable = [
            key
            for key in keys
            if key != in_doubt_key(self.name) and self._rooms.holds.sources(key) <= {Source.BREAKER}
        ]
        return await self._feed.lease_parked(usable, self._rooms.holds.held)

    def _put_away(self, envelope: Envelope, probe: str, now_ms: int) -> Settlement | None:
        """What takes a leased envelope off its lane without a try, if anything does."""
        breaker = self._rooms.breaker
        labels = {"envelope": envelope.name, "lane": envelope.lane}
        lane = self._lane_config.get(envelope.lane) or Lane()  # It may have left the config.
        # An envelope does not say how long it was parked, so all of a sandbox's time counts as
        # stopped for all of its mail: some lives longer than it should, none shorter.
        scopes = (
            *breaker.keys(envelope),
            sandbox_key(self.name),
            in_doubt_key(self.name),
            self._quota_scope,
            self._broken_scope,
            self._sessions.scope,
        )
        ageing = self._rooms.ageing
        is_steady = ageing.is_steady(now_ms, self._rooms.clock.monotonic())
        if is_steady and ageing.expired(envelope.received_at, lane.age_max_h, scopes, now_ms):
            _log.warning("envelope expired", extra=labels)
            self._rooms.metrics.expired(self.name, envelope.cost)
            return expired(envelope, now_ms)
        if probe and breaker.may_probe(envelope, probe):
            return None
        key = breaker.blocking(envelope)
        if key is None or not parks(key):
            return None
        _log.info("envelope held", extra={**labels, "key": redact_all(key)})
        return set_aside(envelope, key, now_ms)

    async def _settle(self, settlement: Settlement) -> None:
        """Write down what was put away without a try; its hold may have been lifted meanwhile."""
        settled = await self._books.settle(settlement)
        if not settled.written:
            return
        self._feed.end_lease(settlement.envelope)
        if settled.due_at is not None:
            self._feed.falls_due(settled.due_at)
        if settlement.parked is not None:
            await self._attempts.see_to_parked(settlement.parked.hold_key)

    @property
    def _quota_scope(self) -> str:
        return f"quota:{self.name}"

    @property
    def _broken_scope(self) -> str:
        return f"broken:{self.name}"

"""The sessions to one upstream: opened when waited for, reused, and closed in good time.

- A session is opened for somebody who waits, or because ``want`` has them kept ready, and never
  beyond the least of ``sessions_max``, the ceiling and what ``want`` asked for (but one, when
  anybody waits).
- The session that came back last is handed out first, so that those in excess idle out;
  at ``idle_close_s``, before SES cuts them at about 10 s.
- A failed opening is told to one waiter. The next try waits for the back-off, and so does
  everybody else: a dead upstream sees one connection a minute, not one a message.
- ``421 Too many concurrent SMTP connections`` lowers the ceiling (``ceiling``). As long as a
  session is open it is no failure, and there is no back-off: whoever waits gets that session
  sooner or later. With none open it is a failure and no more: somebody else holds what there
  is, perhaps the relay that was killed just now, and how many we may have it does not tell.
- Of as many as are wanted none idles out: one that has rested for half of its time goes next.
  Else those kept ready for a burst would be closed and opened again every few seconds.

Invariants: a session is in exactly one of ``_idle``, ``_busy``, ``_leaving`` (QUIT is to be
said) and ``_quitting`` (it is being said), and counts against the limits until it has left.
All state changes are free of awaits, hence atomic; only ``run`` opens, and only ``run`` and
``aclose`` say QUIT.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Self

from relay.envelope import redact_all
from relay.errors import Unreachable, UpstreamError
from relay.reply import Stage
from relay.verdict import Ending, SessionEnded, judge

from .ceiling import Ceiling
from .face import PoolState, Refused, Session
from .opening import Access
from .pacing import Backoff, Pace, Width, share_of_life
from .session import SmtpSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from relay import config
    from relay.clock import Clock
    from relay.reply import Reply

log = logging.getLogger(__name__)

OPENINGS_MEANT = 20
"""Of so many the mean duration is known."""
GOODBYE_S = 2.0
"""How long a QUIT may take, and ``aclose`` as a whole: politeness, nothing hangs on it."""


class Pool:
    """A ``face.Upstream`` over SMTP. Nothing is opened unless ``run`` runs."""

    def __init__(
        self,
        upstream: config.Upstream,
        password: str,
        *,
        clock: Clock,
        helo: str = "",
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_failure`` is told the room of each surprise that was logged and survived.

        Raises: ConfigError: ``ca_file`` cannot be used.
        """
        self._upstream, self._on_failure = upstream, on_failure
        self._access = Access.build(upstream, password, helo)
        self._clock = clock
        self._idle: list[SmtpSession] = []  # the one returned last is the last
        self._busy: dict[Session, SmtpSession] = {}
        self._leaving: list[SmtpSession] = []
        self._quitting: set[SmtpSession] = set()
        self._openers: set[asyncio.Task[None]] = set()
        self._waiters: deque[asyncio.Future[SmtpSession]] = deque()
        self._wanted, self._is_ready = 1, False
        self._backoff = Backoff()
        self._width, self._pace = Width(), Pace()
        self._ceiling = Ceiling(upstream.sessions_max)
        self._changed = asyncio.Event()
        self._opening_s = 0.0
        self._opened = 0
        self._alarm_at = inf  # when ``run`` looks again even if nothing changes
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def want(self, sessions: int, *, ready: bool = False) -> None:
        """As ``face.Upstream.want``."""
        self._wanted, self._is_ready = max(1, sessions), ready
        self._wake_if_openable()

    async def acquire(self) -> Session:
        """As ``face.Upstream.acquire``."""
        if self._closed:
            raise Unreachable("the relay is closing its sessions")
        if (session := self._take_idle()) is not None:
            return session
        waiter: asyncio.Future[SmtpSession] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake_if_openable()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def release(self, session: Session) -> None:
        """As ``face.Upstream.release``. A session that ``aclose`` has cut off is ignored."""
        mine = self._busy.pop(session, None)
        if mine is None:
            return
        if mine.parting is not None and self._open_count and _says_too_many(mine.parting):
            self._on_too_many(mine.parting, mine.asked_at)
        self._place(mine)

    def snapshot(self) -> PoolState:
        """As ``face.Upstream.snapshot``; sessions that are saying QUIT are no longer open."""
        return PoolState(
            open=self._open_count,
            idle=len(self._idle),
            busy=len(self._busy),
            opening=len(self._openers),
            ceiling=self._ceiling.at(self._clock.monotonic()),
            opening_s=self._opening_s,
        )

    async def run(self) -> None:
        """Open, retire and bid goodbye until cancelled or closed."""
        async with asyncio.TaskGroup() as tasks:
            while not self._closed:
                now = self._clock.monotonic()
                self._retire_idle()
                self._changed.clear()
                self._start_goodbyes(tasks)
                self._start_openings(tasks, now)
                await self._wait_for_change(tasks, now)

    async def aclose(self) -> None:
        """Close all sessions: idle ones politely, within ``GOODBYE_S``, busy ones at once.

        Whoever waits is told Unreachable; a send under way ends with SessionLost, so drain
        before. ``run`` returns by itself. Safe to call twice.
        """
        self._closed = True
        self._changed.set()
        for opener in self._openers:
            opener.cancel()
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(Unreachable("the relay is closing its sessions"))
        for session in self._busy.values():
            session.abort()
        polite = self._idle + self._leaving
        for state in (self._busy, self._idle, self._leaving):
            state.clear()
        async with asyncio.TaskGroup() as tasks:
            for session in polite:
                tasks.create_task(session.quit(GOODBYE_S))
        await asyncio.sleep(0)  # one turn, in which the loop closes the sockets

    # -- handing out ---------------------------------------------------------------

    def _take_idle(self) -> SmtpSession | None:
        """An idle session that can still be used, now busy."""
        while self._idle:
            session = self._idle.pop(self._next_idle())
            if session.alive and not session.worn:
                self._busy[session] = session
                return session
            self._part_with(session)
        return None

    def _next_idle(self) -> int:
        """Which goes next: the one used last, or one that is wanted and would soon idle out."""
        surplus = max(0, self._open_count - self._wanted)
        if surplus < len(self._idle):
            rested_s = self._upstream.idle_close_s / 2
            if self._clock.monotonic() >= self._idle[surplus].idle_until - rested_s:
                return surplus
        return -1

    def _place(self, session: SmtpSession) -> None:
        """A session that nobody holds goes to the first who waits, to the idle ones, or away."""
        if self._closed or not session.alive or session.worn:
            self._part_with(session)
        elif (waiter := self._next_waiter()) is not None:
            self._busy[session] = session
            waiter.set_result(session)
        else:
            self._idle.append(session)
            self._look_again_at(session.idle_until)

    def _part_with(self, session: SmtpSession) -> None:
        """Let go of a session: QUIT by ``run`` if its connection lives."""
        if self._closed or not session.alive:
            session.abort()
        else:
            self._leaving.append(session)
        self._changed.set()

    def _next_waiter(self) -> asyncio.Future[SmtpSession] | None:
        """The one who has waited longest and still does, no longer in the queue."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def _give_up(self, waiter: asyncio.Future[SmtpSession]) -> None:
        """Undo a cancelled ``acquire``, even if a session was already on its way to it."""
        if waiter.cancelled():
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        elif waiter.exception() is None:
            self.release(waiter.result())

    # -- opening -------------------------------------------------------------------

    @property
    def _open_count(self) -> int:
        return len(self._idle) + len(self._busy)

    def _openable(self, now: float) -> int:
        """How many openings may begin now."""
        if self._closed or now < self._not_before:
            return 0
        most = min(self._missing, self._width.at_once) - len(self._openers)
        room = self._ceiling.at(now) - self._open_count - self._going
        return max(0, min(most, room, self._pace.room(now)))

    @property
    def _missing(self) -> int:
        """How many are wanted, and waited for or to be kept ready, that are not open."""
        short = max(0, self._wanted - self._open_count)
        return short if self._is_ready else min(len(self._waiters), short)

    @property
    def _going(self) -> int:
        """Sessions that the peer may count and that are not open yet, or no longer."""
        return len(self._openers) + len(self._leaving) + len(self._quitting)

    @property
    def _not_before(self) -> float:
        """The moment before which nothing is opened, because an opening failed."""
        return max(self._backoff.retry_at, self._ceiling.paused_until)

    def _wake_if_openable(self) -> None:
        """Wake ``run`` if it has an opening to begin, or to wait for."""
        now = self._clock.monotonic()
        if now < self._not_before:
            self._look_again_at(self._not_before)
        elif self._openable(now):
            self._changed.set()

    def _start_openings(self, tasks: asyncio.TaskGroup, now: float) -> None:
        if not self._open_count and not self._openers:
            self._width.on_narrowed()
        for _ in range(self._openable(now)):
            self._pace.on_begun()
            self._openers.add(tasks.create_task(self._open(now)))

    async def _open(self, begun_at: float) -> None:
        """Open one session and hand it out, or tell one waiter why not."""
        failure: UpstreamError | None = None
        session: SmtpSession | None = None
        try:
            share = share_of_life(self._opened + len(self._openers) - 1)
            session = await SmtpSession.open(self._access, self._clock, share)
        except UpstreamError as error:
            failure = error
        except Exception:
            log.exception("opening a session failed", extra={"upstream": self._upstream.name})
            self._on_failure("upstream")
            failure = Unreachable("a mistake of the relay's own; its log has the traceback")
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._openers.discard(task)
            self._changed.set()
        if session is not None:
            self._on_opened(session, begun_at)
        elif failure is not None:
            self._on_failed(failure, begun_at)

    def _on_opened(self, session: SmtpSession, begun_at: float) -> None:
        log.debug("session opened", extra={"upstream": self._upstream.name})
        session.watch(self._changed.set)
        now = self._clock.monotonic()
        took_s = now - begun_at
        self._opening_s += (took_s - self._opening_s) / min(self._opened + 1, OPENINGS_MEANT)
        self._opened += 1
        self._backoff.on_opened()
        self._width.on_opened()
        self._ceiling.on_opened(now, self._open_count + 1)
        self._place(session)

    def _on_failed(self, error: UpstreamError, begun_at: float) -> None:
        now = self._clock.monotonic()
        self._width.on_narrowed()
        if self._open_count and isinstance(error, Refused) and _says_too_many(error.reply):
            self._on_too_many(error.reply, begun_at)
            return
        facts = {"upstream": self._upstream.name, "error": str(error)}
        self._backoff.on_failed(now, begun_at)
        retry_s = round(self._backoff.retry_at - now, 3)
        log.warning("session not opened", extra={**facts, "retry_s": retry_s})
        if (waiter := self._next_waiter()) is not None:
            waiter.set_exception(error)

    def _on_too_many(self, reply: Reply, begun_at: float) -> None:
        """One session was too many beside those that are open."""
        now, count = self._clock.monotonic(), self._open_count
        self._ceiling.on_refused(now, begun_at, count, self._going)
        facts = {"upstream": self._upstream.name, "open": count}
        error = f"at {reply.stage}: {redact_all(str(reply))}"
        log.info("sessions at their ceiling", extra={**facts, "error": error})

    # -- retiring and waiting --------------------------------------------------------

    def _retire_idle(self) -> None:
        """Part with idle sessions that died or idled long enough."""
        gone = [session for session in self._idle if session.worn or not session.alive]
        for session in gone:
            self._idle.remove(session)
            self._part_with(session)

    def _start_goodbyes(self, tasks: asyncio.TaskGroup) -> None:
        while self._leaving:
            session = self._leaving.pop()
            self._quitting.add(session)
            tasks.create_task(self._say_goodbye(session))

    async def _say_goodbye(self, session: SmtpSession) -> None:
        try:
            await session.quit(GOODBYE_S)
        finally:
            self._quitting.discard(session)
            self._changed.set()

    def _look_again_at(self, at: float) -> None:
        """Have ``run`` look again at ``at``, or sooner."""
        if at < self._alarm_at:
            self._changed.set()

    async def _wait_for_change(self, tasks: asyncio.TaskGroup, now: float) -> None:
        """Return at a change, or when time alone has made one."""
        self._alarm_at = at = self._next_due(now)
        alarm = tasks.create_task(self._ring(at - now)) if at < inf else None
        try:
            await self._changed.wait()
        finally:
            if alarm is not None:
                alarm.cancel()

    def _next_due(self, now: float) -> float:
        """When an idle session is due, or one may be opened again; ``inf`` for never."""
        due = min((session.idle_until for session in self._idle), default=inf)
        if self._missing <= len(self._openers):
            return due
        if now < self._not_before:
            return min(due, self._not_before)
        return min(due, self._ceiling.climbs_at(now), self._paced_at(now))

    def _paced_at(self, now: float) -> float:
        """When an opening may begin that only the pace holds back; ``inf`` if none does."""
        return inf if self._pace.room(now) else self._pace.room_at(now)

    async def _ring(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._changed.set()


def _says_too_many(reply: Reply) -> bool:
    """Whether the peer has too many sessions: ``421 Too many concurrent SMTP connections``.

    *Assumed*: SES says it at the greeting; there, and after EHLO, a 421 with any text means it,
    for no other is known at these stages. Later it is believed by its text.
    """
    if reply.code == 421 and reply.stage in (Stage.CONNECT, Stage.EHLO):
        return True
    verdict = judge(reply).verdict
    return isinstance(verdict, SessionEnded) and verdict.ending is Ending.CONNECTION_CAP

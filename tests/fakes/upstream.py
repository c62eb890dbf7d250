"""An upstream in memory, with the face of ``relay.upstream.Pool``, for the dispatcher's tests.

It answers each attempt by a ``Plan``: first those in ``plans``, then what ``answer`` says
of the mail (250 unless told otherwise). ``failures`` make openings fail. It keeps what it
got in ``mails``. Time passes on the clock it is given, so it can be turned by hand.

``tests/integration/test_upstream_contract.py`` holds it to the real one's behaviour.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.errors import SessionLost
from relay.reply import Reply, Stage
from relay.upstream import Attempt, PoolState
from relay.upstream.address import encode_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from relay.clock import Clock
    from relay.errors import UpstreamError
    from relay.upstream import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the peer does with one attempt: a reply for a stage, or the link lost there.

    None means the good reply. ``until`` holds the decision back until the event is set.
    """

    mail: Reply | None = None
    rcpt: Mapping[int, Reply] = field(default_factory=dict)
    data: Reply | None = None
    dot: Reply | None = None
    lost: Stage | None = None
    until: asyncio.Event | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """One attempt as it reached the peer. ``attempt`` is None if the link was lost."""

    session: int
    at: float
    sender: str
    recipients: tuple[str, ...]
    content: bytes
    attempt: Attempt | None

    @property
    def sent(self) -> bool:
        final = self.attempt.final if self.attempt else None
        return final is not None and final.code == 250


def said(stage: Stage, line: str) -> Reply:
    """The reply made of a line such as ``454 Throttling failure: …``."""
    code, _, text = line.partition(" ")
    return Reply.read(stage, int(code), text)


class FakeUpstream:
    """The face of ``Pool``, and levers for the test."""

    def __init__(
        self,
        clock: Clock,
        *,
        latency_s: float = 0.0,
        sessions_max: int = 200,
        session_messages_max: int = 100,
    ) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.sessions_max = sessions_max
        self.session_messages_max = session_messages_max
        self.plans: deque[Plan] = deque()
        self.answer: Callable[[str, Sequence[str], bytes], Plan] = lambda *_: Plan()
        self.failures: deque[UpstreamError] = deque()
        self.mails: list[Mail] = []
        self.wants: list[int] = []
        self.readies: list[bool] = []
        self.opened = 0
        self.open_max = 0
        self._wanted = 1
        self._idle: list[FakeSession] = []
        self._busy: dict[Session, FakeSession] = {}
        self._waiters: deque[asyncio.Future[FakeSession]] = deque()

    @property
    def sent(self) -> list[Mail]:
        """The mails that were accepted, for at least one recipient."""
        return [mail for mail in self.mails if mail.sent]

    def want(self, sessions: int, *, ready: bool = False) -> None:
        self.wants.append(sessions)
        self.readies.append(ready)
        self._wanted = max(1, sessions)
        self._serve_waiters()

    async def acquire(self) -> Session:
        waiter: asyncio.Future[FakeSession] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._serve_waiters()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def release(self, session: Session) -> None:
        mine = self._busy.pop(session, None)
        if mine is not None and not mine.ended:
            self._idle.append(mine)
        self._serve_waiters()

    def snapshot(self) -> PoolState:
        idle, busy = len(self._idle), len(self._busy)
        return PoolState(idle + busy, idle, busy, 0, self.sessions_max)

    async def run(self) -> None:
        """As endless as the real one's; this one has nothing to do."""
        await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        self._idle.clear()

    def _serve_waiters(self) -> None:
        """Idle sessions first, then new ones as far as the limits go, for as long as one waits."""
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
            elif self._idle:
                self._give(self._idle.pop())
            elif len(self._busy) >= min(self.sessions_max, self._wanted):
                return
            elif self.failures:
                self._waiters.popleft().set_exception(self.failures.popleft())
            else:
                self.opened += 1
                self._give(FakeSession(self, self.opened))

    def _give(self, session: FakeSession) -> None:
        self._busy[session] = session
        self.open_max = max(self.open_max, len(self._busy) + len(self._idle))
        self._waiters.popleft().set_result(session)


class FakeSession:
    """One session of a ``FakeUpstream``."""

    def __init__(self, upstream: FakeUpstream, number: int) -> None:
        self.number = number
        self.ended = False
        self._upstream = upstream
        self._attempts = 0

    async def send(self, sender: str, recipients: Sequence[str], content: bytes) -> Attempt:
        if self.ended:
            raise SessionLost(Stage.MAIL, "the session had ended before")
        refused, source = _refuse_locally(recipients), encode_address(sender, Stage.MAIL)
        if isinstance(source, Reply):
            return Attempt({}, source, ended=False)
        if len(refused) == len(recipients):
            return Attempt(refused, None, ended=False)
        attempt: Attempt | None = None
        try:
            attempt = await self._send(sender, recipients, content, refused)
        finally:
            self.ended = attempt is None or attempt.ended
            mail = (self.number, self._upstream.clock.monotonic(), sender, tuple(recipients))
            self._upstream.mails.append(Mail(*mail, content, attempt))
        return attempt

    async def _send(
        self, sender: str, recipients: Sequence[str], content: bytes, refused: dict[int, Reply]
    ) -> Attempt:
        upstream = self._upstream
        self._attempts += 1
        plans = upstream.plans
        plan = plans.popleft() if plans else upstream.answer(sender, recipients, content)
        await upstream.clock.sleep(upstream.latency_s)
        if plan.until is not None:
            await plan.until.wait()
        final = _follow(plan, len(recipients), refused)
        ended = final is not None and final.code == 421
        ended = ended or self._attempts >= upstream.session_messages_max
        return Attempt(refused, final, ended, first=self._attempts == 1)


def _refuse_locally(recipients: Sequence[str]) -> dict[int, Reply]:
    encoded = enumerate(encode_address(recipient, Stage.RCPT) for recipient in recipients)
    return {n: target for n, target in encoded if isinstance(target, Reply)}


def _follow(plan: Plan, count: int, refused: dict[int, Reply]) -> Reply | None:
    """Go through the stages as the real session does; adds to ``refused``."""
    for stage, reply in _steps(plan, count, refused):
        if plan.lost is stage:
            raise SessionLost(stage, "cut by the plan")
        if reply is not None and reply.code >= 400:
            return reply
    if len(refused) == count:
        return None
    return plan.dot or Reply(
        Stage.DOT, 250, "Ok 01000170d10e6a6c-71c65177-ce88-4135-9258-48c0e8bf916d-000000"
    )


def _steps(
    plan: Plan, count: int, refused: dict[int, Reply]
) -> Iterator[tuple[Stage, Reply | None]]:
    yield Stage.MAIL, plan.mail
    for n in range(count):
        if n in refused:
            continue
        reply = plan.rcpt.get(n)
        if reply is not None and reply.code != 421:
            refused[n] = reply
            reply = None
        yield Stage.RCPT, reply
    if len(refused) < count:
        yield Stage.DATA, plan.data
        yield Stage.DOT, plan.dot

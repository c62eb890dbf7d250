"""What the dispatcher relies on, held against the real pool and its double alike.

Each test runs twice: with ``Pool`` against a scripted server, and with ``FakeUpstream``.
A test of the dispatcher with the double is worth as much as these.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import pytest

from relay import config
from relay.errors import SessionLost, Unreachable
from relay.reply import Reply, Stage
from relay.upstream import Pool, Refused
from tests.fakes.clock import ManualClock
from tests.fakes.script_server import After, Close, Cut, ScriptServer
from tests.fakes.upstream import FakeUpstream, Plan, said

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from relay.upstream import Session, Upstream

SENDER = "news@lists.example.com"
RECIPIENTS = ["r0@example.org", "r1@example.org", "r2@example.org"]
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"
THROTTLED = said(Stage.DOT, "454 Throttling failure: Maximum sending rate exceeded.")
BAD_ADDRESS = said(Stage.RCPT, "501 Invalid RCPT TO address provided")
TOO_MANY = said(Stage.CONNECT, "421 Too many concurrent SMTP connections")
MESSAGES_MAX, SESSIONS_MAX = 3, 4


class World(Protocol):
    """An upstream, and levers on the peer behind it."""

    @property
    def upstream(self) -> Upstream: ...

    def plan(self, plan: Plan) -> None:
        """What the peer does with the next attempt."""

    def fail(self, failure: Unreachable | Refused) -> None:
        """How the next opening ends."""

    def mails(self) -> list[bytes]:
        """The contents accepted so far."""


class Real:
    def __init__(self, pool: Pool, server: ScriptServer) -> None:
        self.upstream: Upstream = pool
        self._server = server

    def plan(self, plan: Plan) -> None:
        prefixes = {Stage.MAIL: "MAIL", Stage.RCPT: "RCPT", Stage.DATA: "DATA", Stage.DOT: "."}
        for prefix, reply in (("MAIL", plan.mail), ("DATA", plan.data), (".", plan.dot)):
            if reply is not None:
                self._server.script(prefix, str(reply))
        for n, reply in plan.rcpt.items():
            self._server.script(f"RCPT TO:<{RECIPIENTS[n]}>", str(reply))
        if plan.lost is not None:
            self._server.script(prefixes[plan.lost], Cut())
        if plan.until is not None:
            self._server.script(".", After(plan.until, str(plan.dot or "250 Ok")))

    def fail(self, failure: Unreachable | Refused) -> None:
        text = str(failure.reply) if isinstance(failure, Refused) else ""
        self._server.script("GREETING", Close(text))

    def mails(self) -> list[bytes]:
        return self._server.messages


class Fake:
    def __init__(self, upstream: FakeUpstream) -> None:
        self.upstream: Upstream = upstream
        self._fake = upstream

    def plan(self, plan: Plan) -> None:
        self._fake.plans.append(plan)

    def fail(self, failure: Unreachable | Refused) -> None:
        self._fake.failures.append(failure)

    def mails(self) -> list[bytes]:
        return [mail.content for mail in self._fake.sent]


@asynccontextmanager
async def world_of(kind: str) -> AsyncIterator[World]:
    if kind == "fake":
        yield Fake(
            FakeUpstream(
                ManualClock(), session_messages_max=MESSAGES_MAX, sessions_max=SESSIONS_MAX
            )
        )
        return
    upstream = config.Upstream(
        host="127.0.0.1",
        tls="none",
        session_messages_max=MESSAGES_MAX,
        sessions_max=SESSIONS_MAX,
    )
    async with (
        ScriptServer() as server,
        asyncio.timeout(20),
        asyncio.TaskGroup() as tasks,
        Pool(replace(upstream, port=server.port), "", clock=ManualClock()) as pool,
    ):
        tasks.create_task(pool.run())
        yield Real(pool, server)


@pytest.fixture(params=["real", "fake"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def acquire_within(upstream: Upstream, seconds: float = 10) -> Session:
    async with asyncio.timeout(seconds):
        return await upstream.acquire()


async def turns(count: int) -> None:
    """Let the loop turn: time enough for what must not happen."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_mail_is_accepted_for_all(kind: str) -> None:
    """250 at the dot, nobody refused, the session goes on."""
    async with world_of(kind) as world:
        session = await acquire_within(world.upstream)

        attempt = await session.send(SENDER, RECIPIENTS, CONTENT)

        assert attempt.final is not None
        assert (attempt.final.stage, attempt.final.code) == (Stage.DOT, 250)
        assert (attempt.refused, attempt.ended) == ({}, False)
        assert world.mails() == [CONTENT]


@pytest.mark.parametrize(
    ("plan", "refused", "final", "ended"),
    [
        (Plan(mail=said(Stage.MAIL, "501 no")), {}, said(Stage.MAIL, "501 no"), False),
        (Plan(data=said(Stage.DATA, "451 no")), {}, said(Stage.DATA, "451 no"), False),
        (Plan(dot=THROTTLED), {}, THROTTLED, False),
        (Plan(rcpt=dict.fromkeys(range(3), BAD_ADDRESS)), [0, 1, 2], None, False),
        (Plan(rcpt={0: BAD_ADDRESS}, dot=THROTTLED), [0], THROTTLED, False),
        (Plan(mail=said(Stage.MAIL, "421 bye")), {}, said(Stage.MAIL, "421 bye"), True),
        (Plan(rcpt={1: said(Stage.RCPT, "421 bye")}), {}, said(Stage.RCPT, "421 bye"), True),
        (
            Plan(rcpt={0: BAD_ADDRESS, 1: said(Stage.RCPT, "421 bye")}),
            [0],
            said(Stage.RCPT, "421 bye"),
            True,
        ),
        (Plan(dot=said(Stage.DOT, "421 bye")), {}, said(Stage.DOT, "421 bye"), True),
    ],
)
async def test_refusal_is_told_where_it_came(
    kind: str, plan: Plan, refused: list[int], final: Reply | None, ended: bool
) -> None:
    """Per recipient at RCPT, for all others wherever it was decided; 421 ends the session."""
    async with world_of(kind) as world:
        world.plan(plan)
        session = await acquire_within(world.upstream)

        attempt = await session.send(SENDER, RECIPIENTS, CONTENT)

        assert attempt.refused == dict.fromkeys(refused, BAD_ADDRESS)
        assert attempt.final == final
        assert attempt.ended is ended


async def test_first_mail_of_a_session_is_told_from_the_others(kind: str) -> None:
    """Whatever became of it; what cannot be put into an SMTP command was no mail."""
    async with world_of(kind) as world:
        world.plan(Plan(dot=THROTTLED))
        session = await acquire_within(world.upstream)
        nobody = "\N{SNOWMAN}@example.org"

        attempts = [await session.send(SENDER, [who], CONTENT) for who in (nobody, *RECIPIENTS[:2])]

        assert [attempt.first for attempt in attempts] == [False, True, False]


async def test_next_mail_on_the_session_is_free_of_the_last(kind: str) -> None:
    """A refusal leaves nothing behind."""
    async with world_of(kind) as world:
        world.plan(Plan(dot=THROTTLED))
        session = await acquire_within(world.upstream)
        await session.send(SENDER, RECIPIENTS, CONTENT)

        attempt = await session.send(SENDER, RECIPIENTS[:1], CONTENT)

        assert attempt.final is not None
        assert attempt.final.code == 250


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT])
async def test_lost_link_is_told_with_its_stage_and_ends_the_session(
    kind: str, stage: Stage
) -> None:
    """The next send on it is lost at MAIL, before the peer hears of it."""
    async with world_of(kind) as world:
        world.plan(Plan(lost=stage))
        session = await acquire_within(world.upstream)

        with pytest.raises(SessionLost) as lost:
            await session.send(SENDER, RECIPIENTS, CONTENT)
        with pytest.raises(SessionLost) as after:
            await session.send(SENDER, RECIPIENTS, CONTENT)

        assert lost.value.stage is stage
        assert after.value.stage is Stage.MAIL
        world.upstream.release(session)
        assert world.upstream.snapshot().open == 0
        assert await acquire_within(world.upstream) is not session


async def test_address_that_cannot_be_sent_is_refused_without_the_peer(kind: str) -> None:
    """553 at RCPT for a recipient, at MAIL for the sender; the others go."""
    async with world_of(kind) as world:
        session = await acquire_within(world.upstream)

        mixed = await session.send(SENDER, ["änn@example.org", RECIPIENTS[0]], CONTENT)
        alone = await session.send(SENDER, ["änn@example.org"], CONTENT)
        sender = await session.send("néws@example.com", RECIPIENTS, CONTENT)

        assert mixed.refused[0].code == 553
        assert mixed.final is not None
        assert alone.final is None
        assert sender.final is not None
        assert (sender.final.stage, sender.final.code) == (Stage.MAIL, 553)
        assert len(world.mails()) == 1


async def test_session_says_when_it_was_the_last_attempt(kind: str) -> None:
    """``session_messages_max`` attempts, then another session."""
    async with world_of(kind) as world:
        session = await acquire_within(world.upstream)

        ended = [(await session.send(SENDER, RECIPIENTS, CONTENT)).ended for _ in range(3)]

        assert ended == [False, False, True]
        world.upstream.release(session)
        assert await acquire_within(world.upstream) is not session


async def test_released_session_comes_back_last_first(kind: str) -> None:
    """The one used last is the one handed out."""
    async with world_of(kind) as world:
        world.upstream.want(2)
        first, second = [await acquire_within(world.upstream) for _ in range(2)]
        world.upstream.release(second)
        world.upstream.release(first)

        assert await acquire_within(world.upstream) is first
        assert world.upstream.snapshot().busy == 1
        assert world.upstream.snapshot().idle == 1


@pytest.mark.parametrize(("wanted", "open_max"), [(0, 1), (1, 1), (3, 3), (9, SESSIONS_MAX)])
async def test_caller_beyond_the_limit_waits_for_a_release(
    kind: str, wanted: int, open_max: int
) -> None:
    """``want`` and ``sessions_max`` bound what is open; the next in turn gets what comes back."""
    async with world_of(kind) as world:
        world.upstream.want(wanted)
        held = [await acquire_within(world.upstream) for _ in range(open_max)]
        waiting = asyncio.create_task(world.upstream.acquire())
        await turns(100)
        assert not waiting.done()
        assert world.upstream.snapshot().busy == open_max

        world.upstream.release(held[0])

        assert await waiting is held[0]


async def test_cancelled_acquire_gives_its_session_to_the_next(kind: str) -> None:
    """Also when the session was on its way already."""
    async with world_of(kind) as world:
        session = await acquire_within(world.upstream)
        leaving, staying = (asyncio.create_task(world.upstream.acquire()) for _ in range(2))
        await asyncio.sleep(0)

        world.upstream.release(session)
        leaving.cancel()

        assert await staying is session
        with pytest.raises(asyncio.CancelledError):
            await leaving


async def test_cancelled_send_ends_the_session(kind: str) -> None:
    """The dialogue is cut in the middle; it must not go on with another mail."""
    async with world_of(kind) as world:
        world.plan(Plan(until=asyncio.Event()))
        session = await acquire_within(world.upstream)
        sending = asyncio.create_task(session.send(SENDER, RECIPIENTS, CONTENT))
        await turns(2)

        sending.cancel()

        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(SessionLost):
            await session.send(SENDER, RECIPIENTS, CONTENT)
        world.upstream.release(session)
        assert world.upstream.snapshot().open == 0


@pytest.mark.parametrize("failure", [Unreachable("cut"), Refused(TOO_MANY)])
async def test_failed_opening_is_told_to_who_waits(
    kind: str, failure: Unreachable | Refused
) -> None:
    """With its reply, if there was one."""
    async with world_of(kind) as world:
        world.fail(failure)

        with pytest.raises(type(failure)) as caught:
            await acquire_within(world.upstream)

        if isinstance(caught.value, Refused):
            assert caught.value.reply == TOO_MANY
        assert world.upstream.snapshot().open == 0


async def test_release_twice_gives_nothing_twice(kind: str) -> None:
    """A session released by mistake again is not handed to two callers."""
    async with world_of(kind) as world:
        session = await acquire_within(world.upstream)
        world.upstream.release(session)
        world.upstream.release(session)

        assert world.upstream.snapshot().open == 1

"""The pool against a scripted server: when it opens, hands out, retires and closes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.errors import SessionLost, Unreachable
from relay.reply import Stage
from relay.upstream import Pool, PoolState, Refused
from tests.fakes.clock import ManualClock
from tests.fakes.script_server import After, Close, ScriptServer, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from relay.upstream import Session

SENDER, ANN = "news@lists.example.com", "ann@example.org"
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"
TOO_MANY = "421 Too many concurrent SMTP connections"
PLAIN = config.Upstream(host="127.0.0.1", tls="none", reply_timeout_s=5, connect_timeout_s=5)
PATIENCE_S = 10.0


@asynccontextmanager
async def pool_with(
    server: ScriptServer,
    clock: ManualClock,
    upstream: config.Upstream = PLAIN,
    *,
    on_failure: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Pool]:
    """A pool that runs; closed in the end, and ``run`` returns by itself."""
    async with asyncio.timeout(PATIENCE_S * 2), asyncio.TaskGroup() as tasks:
        upstream = replace(upstream, port=server.port)
        pool = Pool(upstream, "", clock=clock, on_failure=on_failure)
        async with pool:
            tasks.create_task(pool.run())
            yield pool


async def send(session: Session) -> None:
    attempt = await session.send(SENDER, [ANN], CONTENT)
    assert attempt.final is not None


async def acquire_all(pool: Pool, count: int) -> list[Session]:
    return list(await asyncio.gather(*(pool.acquire() for _ in range(count))))


async def turn_until(claim: Callable[[], bool]) -> None:
    """Let the loop run until ``claim`` holds: for what shows in the pool and not at the server."""
    async with asyncio.timeout(PATIENCE_S):
        while not claim():  # noqa: ASYNC110 - the pool has no event that tells it
            await asyncio.sleep(0.001)


async def test_nothing_is_opened_until_somebody_waits() -> None:
    """A relay without mail has no connection, however many sessions it could want."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(10)
        await clock.advance(60)

        assert server.connections == 0
        assert pool.snapshot() == PoolState(open=0, idle=0, busy=0, opening=0, ceiling=200)


async def test_released_session_is_used_again() -> None:
    """One connection for mail after mail, no RSET or NOOP between."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        for _ in range(5):
            session = await pool.acquire()
            assert pool.snapshot().busy == 1
            await send(session)
            pool.release(session)
            assert pool.snapshot() == PoolState(1, 1, 0, 0, 200)

        assert server.connections == 1
        assert server.count("MAIL") == 5


async def test_session_used_last_is_handed_out_first() -> None:
    """LIFO: those that the rate does not need idle out."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        pool.want(3)
        first, second, third = await acquire_all(pool, 3)
        for session in (second, third, first):
            pool.release(session)

        assert await pool.acquire() is first
        assert await pool.acquire() is third
        assert await pool.acquire() is second


@pytest.mark.parametrize(
    ("wanted", "sessions_max", "opened"), [(0, 200, 1), (1, 200, 1), (4, 200, 4), (9, 3, 3)]
)
async def test_no_more_are_open_than_wanted_or_allowed(
    wanted: int, sessions_max: int, opened: int
) -> None:
    """Ten wait; min(``want``, ``sessions_max``) open, or one; all are served in turn."""
    upstream = replace(PLAIN, sessions_max=sessions_max)
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        pool.want(wanted)

        async def work() -> None:
            session = await pool.acquire()
            await send(session)
            pool.release(session)

        await asyncio.gather(*(work() for _ in range(10)))

        assert server.open_max <= opened
        assert len(server.messages) == 10


async def test_openings_start_with_one_and_treble() -> None:
    """With the greetings held back: 1 at first, then 3, 9, 27 under way at once."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        gates = [asyncio.Event() for _ in range(50)]
        server.script("GREETING", *(After(gate, "220 hello") for gate in gates))
        pool.want(50)
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(50)]
        widths, released = [], 0

        while released < 33:
            await clock.advance(1)
            await server.until(lambda: server.open_now > released)  # noqa: B023
            await turn_until(lambda: server.open_now - released == pool.snapshot().opening)  # noqa: B023
            widths.append(pool.snapshot().opening)
            for gate in gates[released : released + widths[-1]]:
                gate.set()
            released += widths[-1]
            await turn_until(lambda: pool.snapshot().open == released)  # noqa: B023

        assert widths == [1, 3, 9, 27]
        for gate in gates:
            gate.set()
        await clock.advance(1)
        await asyncio.gather(*waiting)


async def test_idle_session_is_closed_politely_before_ses_would() -> None:
    """QUIT at ``idle_close_s``, not before."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        session = await pool.acquire()
        await send(session)
        pool.release(session)

        await clock.advance(5.9)
        assert pool.snapshot().idle == 1
        assert server.count("QUIT") == 0

        await clock.advance(0.1)
        assert pool.snapshot().open == 0
        await server.until(lambda: server.count("QUIT") == 1 and server.open_now == 0)


async def test_surplus_idles_out_while_the_rest_works() -> None:
    """Of three sessions one is used every second: after six, the other two are gone."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(3)
        for session in await acquire_all(pool, 3):
            pool.release(session)
        pool.want(1)

        for _ in range(7):
            session = await pool.acquire()
            await send(session)
            pool.release(session)
            await clock.advance(1)

        assert pool.snapshot().idle == 1
        await server.until(lambda: server.open_now == 1)


@pytest.mark.parametrize("hangup", ["close", "speak"])
async def test_session_that_died_while_idle_is_not_handed_out(hangup: str) -> None:
    """Cut by the peer, or only spoken to by it: the next caller gets a new one."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        session = await pool.acquire()
        await send(session)
        pool.release(session)

        writer = server.writers[0]
        if hangup == "speak":
            writer.write(b"451 4.4.2 Timeout waiting for data from client.\r\n")
        else:
            writer.close()
        await turn_until(lambda: pool.snapshot().open == 0)
        fresh = await pool.acquire()

        assert fresh is not session
        await send(fresh)
        assert server.connections == 2


async def test_worn_session_is_replaced() -> None:
    """At ``session_messages_max`` it says QUIT and the next mail goes over a new connection."""
    upstream = replace(PLAIN, session_messages_max=2, sessions_max=1)
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        for _ in range(5):
            session = await pool.acquire()
            await send(session)
            pool.release(session)

        assert server.connections == 3
        assert server.open_max == 1
        await server.until(lambda: server.count("QUIT") == 2)


async def test_session_counts_until_it_has_left() -> None:
    """While one is saying QUIT, no other takes its place: SES would count both."""
    upstream = replace(PLAIN, session_messages_max=1, sessions_max=1)
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        gate = asyncio.Event()
        server.script("QUIT", After(gate, "221 Bye"))
        session = await pool.acquire()
        await send(session)
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)

        pool.release(session)
        await server.until(lambda: server.count("QUIT") == 1)
        assert pool.snapshot().opening == 0
        gate.set()

        await waiting
        assert server.open_max == 1


async def test_old_session_is_replaced() -> None:
    """At ``session_age_max_s`` or up to half of it sooner, though it was never idle for long."""
    clock, upstream = ManualClock(), replace(PLAIN, session_age_max_s=20)
    async with ScriptServer() as server, pool_with(server, clock, upstream) as pool:
        for _ in range(10):
            session = await pool.acquire()
            await send(session)
            pool.release(session)
            await clock.advance(4)

        assert server.connections == 3  # the first lives for 20 s, the second for 14


async def test_ended_session_is_dropped_and_the_waiter_gets_another() -> None:
    """A 421 on the only session allowed: whoever waits is served by a new one."""
    upstream = replace(PLAIN, sessions_max=1)
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        server.script("MAIL", "421 Too many messages in one session")
        session = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        attempt = await session.send(SENDER, [ANN], CONTENT)

        pool.release(session)

        assert attempt.ended
        assert await waiting is not session
        assert server.connections == 2
        assert server.count("QUIT") == 0


async def test_released_session_goes_to_the_one_who_waited_longest() -> None:
    """First come, first served."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        session = await pool.acquire()
        order: list[int] = []

        async def wait(n: int) -> None:
            mine = await pool.acquire()
            order.append(n)
            pool.release(mine)

        async with asyncio.TaskGroup() as tasks:
            for n in range(3):
                tasks.create_task(wait(n))
                await asyncio.sleep(0)
            pool.release(session)

        assert order == [0, 1, 2]
        assert server.connections == 1


async def test_cancelled_acquire_loses_no_session() -> None:
    """Whether it still waits or a session is already on its way to it."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        session = await pool.acquire()
        early, late = (asyncio.create_task(pool.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        early.cancel()
        await asyncio.sleep(0)

        pool.release(session)  # handed to `late`, which has not run yet
        late.cancel()
        await asyncio.gather(early, late, return_exceptions=True)

        assert pool.snapshot() == PoolState(1, 1, 0, 0, 200)
        assert await pool.acquire() is session
        assert server.connections == 1


async def test_failure_goes_to_one_waiter_and_the_rest_wait_for_the_backoff() -> None:
    """Four wait at a dead upstream: told one by one at 0, 1 and 3 s, the fourth served at 7."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        server.script("GREETING", *[Close()] * 3)
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(4)]

        for n, pause_s in enumerate((1, 2, 4)):
            with pytest.raises(Unreachable):
                await waiting[n]
            assert not waiting[n + 1].done()

            await clock.advance(pause_s - 0.01)
            assert server.connections == n + 1
            await clock.advance(0.01)

        await send(await waiting[3])
        assert server.connections == 4


async def test_new_caller_waits_for_the_backoff_too() -> None:
    """It does not start an attempt of its own."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        server.script("GREETING", Close())
        with pytest.raises(Unreachable):
            await pool.acquire()

        waiting = asyncio.create_task(pool.acquire())
        await clock.advance(0.99)
        assert server.connections == 1

        await clock.advance(0.01)
        await send(await waiting)


async def test_refused_login_is_told_with_its_reply() -> None:
    """535 is for the caller to judge (the account is held); its stage is AUTH."""
    upstream = replace(PLAIN, username="AKIA")
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        server.script("AUTH", "535 Authentication Credentials Invalid")

        with pytest.raises(Refused) as caught:
            await pool.acquire()

        assert (caught.value.reply.stage, caught.value.reply.code) == (Stage.AUTH, 535)


async def test_wanted_sessions_do_not_idle_out_while_any_works() -> None:
    """Three are wanted and one works at a time: the one that rested long goes next, none closes."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(3)
        for session in await acquire_all(pool, 3):
            pool.release(session)

        for _ in range(20):
            session = await pool.acquire()
            await send(session)
            pool.release(session)
            await clock.advance(1)

        assert pool.snapshot().idle == 3
        assert server.connections == 3


async def test_ready_sessions_are_opened_for_nobody_and_replaced() -> None:
    """Five are kept ready: opened with nobody waiting, and another for one that ends."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        pool.want(5, ready=True)
        await turn_until(lambda: pool.snapshot().idle == 5)

        server.writers[0].close()
        await turn_until(lambda: server.connections == 6 and pool.snapshot().idle == 5)
        pool.want(5)
        server.writers[1].close()
        await turn_until(lambda: pool.snapshot().idle == 4)

        pool.release(await pool.acquire())
        assert server.connections == 6


async def test_opening_that_fails_for_nobody_is_backed_off() -> None:
    """Sessions kept ready at a dead upstream: one try, and the next a second later."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        server.script("GREETING", Close())
        pool.want(5, ready=True)
        await turn_until(lambda: server.connections == 1 and not pool.snapshot().opening)

        await clock.advance(0.99)
        assert server.connections == 1
        await clock.advance(0.02)

        await turn_until(lambda: pool.snapshot().idle == 5)


async def test_too_many_connections_sets_the_ceiling_and_is_no_failure() -> None:
    """With ten open the eleventh is turned away: 10 allowed, and who waits gets a free one."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(20)
        held = await acquire_all(pool, 10)
        await clock.advance(1)
        server.always("GREETING", Close(TOO_MANY))

        waiting = asyncio.create_task(pool.acquire())
        await turn_until(lambda: pool.snapshot().ceiling < 200)

        assert pool.snapshot().ceiling == 10
        await clock.advance(1)
        await server.until(lambda: server.connections == 12)
        assert not waiting.done()

        pool.release(held[0])
        assert await waiting is held[0]


async def test_ceiling_is_tried_again() -> None:
    """A second later one more is opened for who waits, and two more five seconds after that."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(20)
        await acquire_all(pool, 10)
        await clock.advance(1)
        server.script("GREETING", Close(TOO_MANY))
        waiting = [asyncio.create_task(pool.acquire())]
        await turn_until(lambda: pool.snapshot().ceiling == 10)
        waiting += [asyncio.create_task(pool.acquire()) for _ in range(2)]

        await clock.advance(1)
        await turn_until(lambda: pool.snapshot().open == 11)
        await clock.advance(5)
        await asyncio.gather(*waiting)

        assert pool.snapshot().ceiling == 13
        assert server.connections == 14


async def test_session_refused_below_the_ceiling_is_no_reason_to_wait_long() -> None:
    """A session that ended is replaced a second after its place was refused, not a minute."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(2)
        first, _ = await acquire_all(pool, 2)
        server.script("GREETING", Close(TOO_MANY))
        server.script("MAIL", "421 Too many messages in one session")
        await send(first)
        pool.release(first)
        waiting = asyncio.create_task(pool.acquire())
        await turn_until(lambda: server.connections == 3 and not pool.snapshot().opening)

        await clock.advance(0.99)
        assert server.connections == 3
        await clock.advance(0.01)

        await send(await waiting)
        assert server.connections == 4


@pytest.mark.parametrize("prefix", ["MAIL", "RCPT"])
async def test_session_told_at_its_mail_that_there_are_too_many_sets_the_ceiling(
    prefix: str,
) -> None:
    """A peer that takes every login and counts later is not asked for one more at once."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(6, ready=True)
        *held, last = await acquire_all(pool, 5)
        await turn_until(lambda: pool.snapshot().open == 6)
        await clock.advance(1)
        server.script(prefix, Close(TOO_MANY))

        await send(last)
        pool.release(last)

        assert pool.snapshot().ceiling == 5
        await clock.advance(0.9)
        assert server.connections == 6
        assert len(held) == 4


async def test_session_older_than_a_refusal_may_tell_that_there_are_too_many_now() -> None:
    """What counts is when it asked, not when it was opened."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(6)
        *_, last = await acquire_all(pool, 5)
        server.script("GREETING", Close(TOO_MANY))
        waiting = asyncio.create_task(pool.acquire())
        await turn_until(lambda: pool.snapshot().ceiling == 5)
        await clock.advance(0.5)
        server.script("MAIL", Close(TOO_MANY))

        await send(last)
        pool.release(last)

        assert pool.snapshot().ceiling < 5
        waiting.cancel()


async def test_only_session_told_that_there_are_too_many_leaves_the_ceiling_alone() -> None:
    """Others hold what there is; how many may be ours it does not tell."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        session = await pool.acquire()
        server.script("MAIL", Close(TOO_MANY))

        await send(session)
        pool.release(session)

        assert pool.snapshot().ceiling == 200


async def test_too_many_connections_after_the_login_is_no_failure_either() -> None:
    """Nobody is told that the upstream is unreachable while other sessions work."""
    clock = ManualClock()
    upstream = replace(PLAIN, username="me")
    async with ScriptServer() as server, pool_with(server, clock, upstream) as pool:
        pool.want(5)
        await acquire_all(pool, 3)
        await clock.advance(1)
        server.script("AUTH", Close(TOO_MANY))

        waiting = asyncio.create_task(pool.acquire())
        await turn_until(lambda: pool.snapshot().ceiling == 3)

        assert not waiting.done()
        await clock.advance(1)
        await send(await waiting)


async def test_nothing_is_opened_for_a_second_after_a_refusal() -> None:
    """Not even for a session that ends just then: a peer that refuses is not asked at once."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        pool.want(4)
        first, *_ = await acquire_all(pool, 3)
        server.script("GREETING", Close(TOO_MANY))
        waiting = asyncio.create_task(pool.acquire())
        await turn_until(lambda: pool.snapshot().ceiling == 3 and not pool.snapshot().opening)

        server.script("MAIL", "421 Too many messages in one session")
        await send(first)
        pool.release(first)
        await clock.advance(0.9)
        assert server.connections == 4

        await clock.advance(0.2)
        await send(await waiting)


async def test_too_many_connections_is_told_when_none_is_open() -> None:
    """Another client uses up the account's connections: somebody has to know."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        server.script("GREETING", Close(TOO_MANY))

        with pytest.raises(Refused) as caught:
            await pool.acquire()

        assert str(caught.value.reply) == TOO_MANY


async def test_too_many_connections_with_none_open_leaves_the_ceiling_alone() -> None:
    """A relay that was killed still counts there; its successor must not crawl for minutes."""
    clock = ManualClock()
    async with ScriptServer() as server, pool_with(server, clock) as pool:
        server.script("GREETING", Close(TOO_MANY))
        with pytest.raises(Refused):
            await pool.acquire()

        assert pool.snapshot().ceiling == 200

        pool.want(20)
        acquiring = asyncio.create_task(acquire_all(pool, 10))
        await clock.advance(1)  # the back-off
        await clock.advance(1)
        assert len(await acquiring) == 10


async def test_failed_opening_is_logged_without_a_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """WARNING, the constant message, facts in ``extra``."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        server.script("GREETING", Close("554 no"))
        with pytest.raises(Refused):
            await pool.acquire()

    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == "session not opened"
    assert record.__dict__["upstream"] == "ses"
    assert record.__dict__["error"] == "at connect: 554 no"
    assert record.__dict__["retry_s"] == 1


async def test_close_bids_goodbye_to_idle_sessions_and_cuts_busy_ones() -> None:
    """A send under way ends as lost where it was; the pool gives nothing out any more."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        pool.want(2)
        idle, busy = await acquire_all(pool, 2)
        server.script(".", Stall())
        sending = asyncio.create_task(busy.send(SENDER, [ANN], CONTENT))
        await server.until(lambda: len(server.messages) == 1)
        pool.release(idle)

        await pool.aclose()

        with pytest.raises(SessionLost) as lost:
            await sending
        assert lost.value.stage is Stage.DOT
        pool.release(busy)
        assert pool.snapshot().open == 0
        with pytest.raises(Unreachable):
            await pool.acquire()
        await server.until(lambda: server.open_now == 0)
        assert server.count("QUIT") == 1


async def test_close_tells_those_who_wait() -> None:
    """Nobody is left hanging on a pool that has gone."""
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)

        await pool.aclose()

        with pytest.raises(Unreachable):
            await waiting


async def test_close_does_not_wait_for_a_peer_that_ignores_quit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Politeness has its limit, one for all sessions together."""
    monkeypatch.setattr("relay.upstream.pool.GOODBYE_S", 0.5)
    async with ScriptServer() as server, pool_with(server, ManualClock()) as pool:
        pool.want(5)
        server.always("QUIT", Stall())
        for session in await acquire_all(pool, 5):
            pool.release(session)

        async with asyncio.timeout(2):
            await pool.aclose()

        await server.until(lambda: server.open_now == 0)


async def test_close_ends_openings_under_way() -> None:
    """A greeting that never comes does not keep the relay from stopping."""
    upstream = replace(PLAIN, connect_timeout_s=600)
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        server.script("GREETING", Stall())
        waiting = asyncio.create_task(pool.acquire())
        await server.until(lambda: server.connections == 1)

        await pool.aclose()

        with pytest.raises(Unreachable):
            await waiting
        await server.until(lambda: server.open_now == 0)


async def test_cancelled_run_leaves_no_task_and_no_connection() -> None:
    """The service cancels ``run`` and closes: openings and goodbyes under way end with it."""
    async with ScriptServer() as server:
        before = asyncio.all_tasks()
        pool = Pool(replace(PLAIN, port=server.port), "", clock=ManualClock())
        running = asyncio.create_task(pool.run())
        pool.want(5)
        session = await pool.acquire()
        server.script("GREETING", Stall())
        waiting = asyncio.create_task(pool.acquire())
        await server.until(lambda: server.connections == 2)

        running.cancel()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(asyncio.CancelledError):
            await waiting
        pool.release(session)
        await pool.aclose()

        await server.until(lambda: server.open_now == 0)
        ours = {task for task in asyncio.all_tasks() - before if "_serve" not in repr(task)}
        assert not ours


async def test_waiters_of_a_full_pool_do_not_wake_the_opener() -> None:
    """Session-bound work costs no turn of ``run``: it sleeps while nothing can be opened."""
    upstream = replace(PLAIN, sessions_max=1)
    async with ScriptServer() as server, pool_with(server, ManualClock(), upstream) as pool:
        session = await pool.acquire()
        await turn_until(lambda: not pool._changed.is_set())

        waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not pool._changed.is_set()

        for task in waiting:
            pool.release(session)
            assert await task is session
            assert not pool._changed.is_set()


async def test_mistake_of_our_own_is_told_as_unreachable(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in opening is logged with its traceback, counted, backed off, and stops nothing."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    clock, failures = ManualClock(), list[str]()
    async with (
        ScriptServer() as server,
        pool_with(server, clock, on_failure=failures.append) as pool,
    ):
        with monkeypatch.context() as patch:
            patch.setattr("relay.upstream.session.open_link", broken)
            with pytest.raises(Unreachable):
                await pool.acquire()

        waiting = asyncio.create_task(pool.acquire())
        await clock.advance(1)
        await send(await waiting)

    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)
    assert failures == ["upstream"]

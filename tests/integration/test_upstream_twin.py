"""The pool against the SES double, with all that SES does to a client."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.clock import SystemClock
from relay.errors import SessionLost, Unreachable
from relay.reply import Reply, Stage
from relay.twin import NO_LATENCY, Twin, TwinConfig, certificate_files
from relay.upstream import Pool, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Literal

    from relay.upstream import Attempt

SENDER = "news@lists.example.com"
FAST = TwinConfig(rate_per_s=1e6, latency=NO_LATENCY, seed=1)
OURS = config.Upstream(host="localhost", username="sandbox", ca_file=str(certificate_files()[0]))


def content(n: int) -> bytes:
    return f"Message-ID: <{n}@example.com>\r\nSubject: {n}\r\n\r\n.hello\r\n".encode()


@asynccontextmanager
async def against(twin: Twin, upstream: config.Upstream = OURS) -> AsyncIterator[Pool]:
    port = await twin.start()
    upstream = replace(upstream, port=port, tls=twin.config.tls)
    try:
        async with (
            asyncio.timeout(30),
            asyncio.TaskGroup() as tasks,
            Pool(upstream, "sandbox", clock=SystemClock()) as pool,
        ):
            tasks.create_task(pool.run())
            yield pool
    finally:
        await twin.stop()


async def attempt(pool: Pool, n: int) -> Attempt:
    """One attempt, on another session if the first turns out to be over."""
    while True:
        session = await pool.acquire()
        try:
            made = await session.send(SENDER, [f"r{n}@example.org"], content(n))
        except SessionLost as lost:
            if lost.stage is not Stage.MAIL:
                raise
            continue
        finally:
            pool.release(session)
        if made.final is not None and made.final.code == 421:
            continue
        return made


async def send_all(pool: Pool, count: int) -> list[Attempt]:
    return list(await asyncio.gather(*(attempt(pool, n) for n in range(count))))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_mails_go_through_sessions_that_ses_ends(
    tls: Literal["starttls", "implicit"],
) -> None:
    """Over TLS and AUTH, with caps of 5 to 9 messages a session: all arrive, once each."""
    twin = Twin(replace(FAST, tls=tls, session_messages=(5, 9)))
    async with against(twin) as pool:
        pool.want(8)

        attempts = await send_all(pool, 200)

        assert {str(made.final)[:6] for made in attempts} == {"250 Ok"}
        assert twin.ledger.total.accepted == 200
        assert len({record.message_id for record in twin.ledger.records}) == 200


async def test_recycled_sessions_never_meet_the_cap_of_ses() -> None:
    """At ``session_messages_max`` we go before we are sent away."""
    twin = Twin(replace(FAST, session_messages=(10, 10)))
    async with against(twin, replace(OURS, session_messages_max=10)) as pool:
        pool.want(4)

        await send_all(pool, 100)

        assert not twin.ledger.total.refused


async def test_throttled_session_is_reset_and_goes_on() -> None:
    """After a 454 the twin, as SES, says 503 to a MAIL without RSET; it hears one."""
    twin = Twin(TwinConfig(rate_per_s=0.001, burst=1, latency=NO_LATENCY))
    async with against(twin) as pool:
        finals = [(await attempt(pool, n)).final for n in range(4)]

        assert finals[0] is not None
        assert finals[0].code == 250
        throttled = Reply(Stage.DOT, 454, "Throttling failure: Maximum sending rate exceeded.")
        assert finals[1:] == [throttled] * 3
        assert twin.ledger.sessions_opened == 1
        assert not twin.ledger.total.refused


async def test_cap_on_connections_is_found_and_kept() -> None:
    """Of 20 wanted SES bears 6: nobody is told of a failure, and all mail goes."""
    twin = Twin(replace(FAST, connections_max=6))
    async with against(twin) as pool:
        pool.want(20)

        attempts = await send_all(pool, 100)

        assert len(attempts) == 100
        assert twin.ledger.total.accepted == 100
        assert twin.ledger.sessions_peak <= 7 + 10  # those being turned away count there, too
        assert pool.snapshot().ceiling <= 6


async def test_idle_sessions_go_before_ses_cuts_them() -> None:
    """Idle for 0.3 s of the 0.6 s that this twin allows: no timeout is ever said."""
    twin = Twin(replace(FAST, idle_s=0.6))
    async with against(twin, replace(OURS, idle_close_s=0.3)) as pool:
        await attempt(pool, 1)
        await wait_until(lambda: twin.ledger.sessions_open == 0)

        await attempt(pool, 2)

        assert twin.ledger.sessions_opened == 2
        assert not twin.ledger.total.refused


async def test_session_cut_for_idling_is_noticed_before_use() -> None:
    """We idle longer than SES bears: its 451 and hang-up cost no mail and no attempt."""
    twin = Twin(replace(FAST, idle_s=0.2))
    async with against(twin, replace(OURS, idle_close_s=60)) as pool:
        await attempt(pool, 1)
        await wait_until(lambda: pool.snapshot().open == 0)

        made = await attempt(pool, 2)

        assert made.final is not None
        assert made.final.code == 250


async def test_wrong_password_is_a_refusal_at_auth() -> None:
    """535, with which the account is held."""
    twin = Twin(replace(FAST, password="another"))
    async with against(twin) as pool:
        with pytest.raises(Refused) as caught:
            await pool.acquire()

        assert caught.value.reply.code == 535
        assert caught.value.reply.stage is Stage.AUTH


async def test_certificate_of_unknown_origin_is_not_trusted() -> None:
    """The twin's certificate is good only where it is named as ``ca_file``."""
    twin = Twin(FAST)
    async with against(twin, replace(OURS, ca_file="")) as pool:
        with pytest.raises(Unreachable) as caught:
            await pool.acquire()

        assert not caught.value.trusted


async def wait_until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - neither the twin nor the pool has an event for it
            await asyncio.sleep(0.01)

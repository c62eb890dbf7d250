"""The twin's rate, quota, caps, idle cut and latency, over real sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from relay.twin import NO_LATENCY, Action, Latency, Stage, Stall, Transaction
from relay.twin.session import INPUT_MAX
from tests.fakes.clock import ManualClock
from tests.fakes.rawsmtp import MESSAGE, OPEN, PATIENCE_S, RawSmtp, dialled, playing

RATE = "454 Throttling failure: Maximum sending rate exceeded."
QUOTA = "454 Throttling failure: Daily message quota exceeded."


async def _replies(client: RawSmtp, n: int, *recipients: str) -> list[str]:
    """Send ``n`` messages with an RSET after each; the replies, ids cut off."""
    replies = []
    for _ in range(n):
        reply = await client.message(*recipients)
        replies.append("250" if reply.startswith("250 Ok ") else reply)
        await client.ask("RSET")
    return replies


async def test_rate_is_a_bucket_of_recipients_with_debt() -> None:
    """At 2/s five recipients pass on one token, then nothing until the debt is paid."""
    clock = ManualClock()
    five = [f"r{n}@x.org" for n in range(5)]

    async with (
        playing(replace(OPEN, rate_per_s=2), clock=clock) as twin,
        dialled(twin.port) as client,
    ):
        assert await _replies(client, 1, *five) == ["250"]
        assert await _replies(client, 2) == [RATE, RATE]
        await clock.advance(1.99)
        assert await _replies(client, 1) == [RATE]
        await clock.advance(0.01)
        assert await _replies(client, 2) == ["250", RATE]

    assert twin.ledger.total.throttled == 4
    assert twin.ledger.total.attempts == 6
    assert twin.ledger.total.recipients == 6


async def test_burst_is_as_deep_as_configured() -> None:
    """A bucket of 5 lets five pass at once although the rate is 1/s."""
    async with (
        playing(replace(OPEN, rate_per_s=1, burst=5), clock=ManualClock()) as twin,
        dialled(twin.port) as client,
    ):
        assert await _replies(client, 6) == ["250"] * 5 + [RATE]


@pytest.mark.parametrize(("cost", "replies"), [(0, ["250"]), (1, [RATE])])
async def test_rejected_attempts_cost_what_the_switch_says(cost: int, replies: list[str]) -> None:
    """After four refusals and a second of rest: full again at cost 0, still in debt at 1."""
    clock = ManualClock()
    config = replace(OPEN, rate_per_s=1, rejected_cost=cost)

    async with playing(config, clock=clock) as twin, dialled(twin.port) as client:
        assert await _replies(client, 5) == ["250", RATE, RATE, RATE, RATE]
        await clock.advance(1)

        assert await _replies(client, 1) == replies


async def test_other_refusals_cost_nothing() -> None:
    """A message refused for its content leaves the tokens to others."""
    bad = MESSAGE.replace(b"Subject", b"From: again\r\nSubject")

    async with (
        playing(replace(OPEN, rate_per_s=1, quota=1), clock=ManualClock()) as twin,
        dialled(twin.port) as client,
    ):
        assert (await client.message(content=bad))[:3] == "554"
        await client.ask("RSET")
        assert await _replies(client, 1) == ["250"]


async def test_limits_come_before_content() -> None:
    """A bad message over the rate hears of the rate: no bounce while the account is throttled."""
    bad = MESSAGE.replace(b"Subject", b"From: again\r\nSubject")

    async with (
        playing(replace(OPEN, rate_per_s=1), clock=ManualClock()) as twin,
        dialled(twin.port) as client,
    ):
        await client.message()

        assert await client.message(content=bad) == RATE


async def test_rate_is_tested_when_the_whole_body_is_there() -> None:
    """Tokens that come while the body is on its way count."""
    clock = ManualClock()

    async with (
        playing(replace(OPEN, rate_per_s=1), clock=clock) as twin,
        dialled(twin.port) as client,
    ):
        assert await _replies(client, 1) == ["250"]
        await client.envelope()
        client.send(MESSAGE)
        await clock.advance(1)
        client.send(b".\r\n")

        assert (await client.reply())[:3] == "250"


async def test_rate_can_be_changed_while_it_runs() -> None:
    """From that moment the new limit rules, on open sessions, too."""
    clock = ManualClock()

    async with (
        playing(replace(OPEN, rate_per_s=1), clock=clock) as twin,
        dialled(twin.port) as client,
    ):
        assert await _replies(client, 2) == ["250", RATE]
        twin.set_rate(10)
        assert twin.rate_per_s == 10
        await clock.advance(0.5)
        assert await _replies(client, 6) == ["250"] * 5 + [RATE]
        twin.set_rate(1, burst=3)
        await clock.advance(100)
        assert await _replies(client, 4) == ["250"] * 3 + [RATE]


async def test_quota_is_a_sliding_day() -> None:
    """Spent, it stays spent until the hour of the sends is a day old."""
    clock = ManualClock(monotonic=3600.0)

    async with playing(replace(OPEN, quota=3), clock=clock) as twin, dialled(twin.port) as client:
        assert await _replies(client, 4) == ["250"] * 3 + [QUOTA]
        await clock.advance(23 * 3600)
        assert await _replies(client, 1) == [QUOTA]
        await clock.advance(3600)
        assert await _replies(client, 1) == ["250"]

    assert twin.ledger.total.over_quota == 2


async def test_rate_and_quota_are_the_accounts_not_the_sessions() -> None:
    """Two sessions drink from one bucket."""
    async with (
        playing(replace(OPEN, rate_per_s=2), clock=ManualClock()) as twin,
        dialled(twin.port) as one,
        dialled(twin.port) as other,
    ):
        assert await _replies(one, 1) + await _replies(other, 2) == ["250", "250", RATE]


async def test_connection_over_the_cap_is_refused_at_the_greeting() -> None:
    """421 and the end; when one goes, another may come."""
    async with playing(replace(OPEN, connections_max=2)) as twin, AsyncExitStack() as stack:
        first = await stack.enter_async_context(dialled(twin.port))
        await stack.enter_async_context(dialled(twin.port))
        async with dialled(twin.port, greeted=False) as third:
            assert await third.reply() == "421 Too many concurrent SMTP connections"
            assert await third.is_closed()
        assert await first.ask("QUIT") == "221 Bye"
        assert await first.is_closed()
        async with dialled(twin.port) as fourth:
            assert await fourth.ask("NOOP") == "250 Ok"

    assert twin.ledger.sessions_opened == 4
    assert twin.ledger.sessions_peak == 3
    assert twin.ledger.total.refused == {"421 Too many concurrent SMTP connections": 1}


async def test_session_ends_at_the_mail_after_its_last_message() -> None:
    """Three messages are taken; the fourth MAIL hears 421 and the link is closed."""
    async with (
        playing(replace(OPEN, session_messages=(3, 3))) as twin,
        dialled(twin.port) as client,
    ):
        assert await _replies(client, 3) == ["250"] * 3
        assert await client.ask("MAIL FROM:<a@x.org>") == (
            "421 Connection closed by server. Maximum message count per session reached."
        )
        assert await client.is_closed()


async def test_refused_messages_count_for_the_session_as_well() -> None:
    """The cap is on messages, not on accepted ones."""
    config = replace(OPEN, session_messages=(2, 2), rate_per_s=1)

    async with playing(config, clock=ManualClock()) as twin, dialled(twin.port) as client:
        assert await _replies(client, 2) == ["250", RATE]
        assert (await client.ask("MAIL FROM:<a@x.org>"))[:3] == "421"


async def test_each_session_draws_its_cap_from_the_range() -> None:
    """With a range of 1 to 5 the caps differ, all within it, and a seed repeats them."""
    config = replace(OPEN, session_messages=(1, 5), rate_per_s=1e6)

    runs = []
    for _ in range(2):
        async with playing(config) as twin:
            runs.append([await _cap(twin.port) for _ in range(12)])

    assert runs[0] == runs[1]
    assert set(runs[0]) <= {1, 2, 3, 4, 5}
    assert len(set(runs[0])) > 1


async def _cap(port: int) -> int:
    async with dialled(port) as client:
        messages = 0
        while (await client.ask("MAIL FROM:<a@x.org>"))[:3] == "250":
            await client.ask("RCPT TO:<b@x.org>")
            await client.ask("DATA")
            client.send(MESSAGE + b".\r\n")
            assert (await client.reply())[:3] == "250"
            messages += 1
    return messages


async def test_idle_client_is_told_unasked_and_cut() -> None:
    """The 451 comes without a command, then the end."""
    async with playing(replace(OPEN, idle_s=0.1)) as twin, dialled(twin.port) as client:
        assert await client.reply() == "451 4.4.2 Timeout waiting for data from client."
        assert await client.is_closed()

    assert twin.ledger.total.refused == {"451 4.4.2 Timeout waiting for data from client.": 1}


async def test_idle_in_mid_body_is_idle() -> None:
    """A client that stops in its message is cut as well, and the message is not taken."""
    async with playing(replace(OPEN, idle_s=1)) as twin, dialled(twin.port) as client:
        await client.envelope()
        client.send(MESSAGE)

        assert (await client.reply())[:3] == "451"

    assert not twin.ledger.records


async def test_client_that_keeps_talking_is_not_idle() -> None:
    """Each command starts the time anew: more than one idle time, no cut."""
    clock = asyncio.get_running_loop().time

    async with playing(replace(OPEN, idle_s=1.5)) as twin, dialled(twin.port) as client:
        end = clock() + 2
        while clock() < end:
            assert await client.ask("NOOP") == "250 Ok"
            await asyncio.sleep(0.02)


async def test_body_that_drips_is_not_idle() -> None:
    """Each piece of a message starts the time anew, although nothing is answered."""
    clock = asyncio.get_running_loop().time

    async with playing(replace(OPEN, idle_s=1.5)) as twin, dialled(twin.port) as client:
        await client.envelope()
        end = clock() + 2
        while clock() < end:
            client.send(b"x\r\n")
            await asyncio.sleep(0.02)
        client.send(b".\r\n")

        assert (await client.reply())[:3] == "250"


async def test_waiting_for_a_slow_reply_is_not_idle() -> None:
    """While it is the twin's turn the client may be silent for longer than the idle time."""

    def slow(stage: Stage, _transaction: Transaction) -> Action | None:
        return Stall(1.2) if stage is Stage.RSET else None

    async with playing(replace(OPEN, idle_s=0.8), fault=slow) as twin, dialled(twin.port) as client:
        assert await client.ask("RSET") == "250 Ok"
        assert (await client.reply())[:3] == "451"


async def test_latency_is_paid_by_each_reply_and_by_the_dot() -> None:
    """A round trip for each of four replies, and the accept's own time at the dot."""
    latency = Latency(rtt_s=0.02, accept_median_s=0.1, accept_p99_s=0.1, refuse_s=0.0)

    async with playing(replace(OPEN, latency=latency)) as twin, dialled(twin.port) as client:
        start = time.monotonic()
        await client.envelope()
        before_dot = time.monotonic() - start
        client.send(MESSAGE + b".\r\n")
        await client.reply()
        at_dot = time.monotonic() - start - before_dot

    # Loops round their timers to a millisecond.
    assert before_dot >= 3 * 0.019
    assert at_dot >= 0.119


async def test_message_counts_from_its_dot_not_from_its_reply() -> None:
    """A client gone before the slow 250 has sent a message all the same: RFC 1047."""
    slow = replace(NO_LATENCY, accept_median_s=60, accept_p99_s=60)
    at_dot = asyncio.Event()

    def tell(stage: Stage, _transaction: Transaction) -> None:
        if stage is Stage.DOT:
            at_dot.set()

    async with (
        playing(replace(OPEN, latency=slow), fault=tell) as twin,
        dialled(twin.port) as client,
    ):
        await client.envelope()
        client.send(MESSAGE + b".\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await at_dot.wait()

    assert twin.ledger.unanswered == {twin.ledger.records[0].id}


async def test_input_ahead_of_a_slow_reply_is_bounded_and_not_lost() -> None:
    """Megabytes sent ahead wait in the client's socket, not here; all get their reply."""
    slow = replace(NO_LATENCY, rtt_s=0.2)
    read_max = 256 * 1024  # what asyncio hands over at once

    async with playing(replace(OPEN, latency=slow)) as twin, dialled(twin.port) as client:
        client.send(b"NOOP\r\n" * 3 + b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n")
        client.send(b"x" * 3_000_000 + b"\r\n.\r\n")
        replies, waiting = [], []
        for _ in range(7):
            replies.append(await client.reply())
            waiting += [len(session._input) for session in twin._shared.sessions]

    assert [reply[:3] for reply in replies] == ["250"] * 5 + ["354", "250"]
    assert twin.ledger.records[0].size_bytes == 3_000_002
    assert 0 < max(waiting) <= INPUT_MAX + read_max

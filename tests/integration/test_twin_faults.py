"""What a test can make the twin do wrong, at every stage."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.twin import (
    Action,
    Cut,
    Say,
    Stage,
    Stall,
    Transaction,
    Trickle,
    texts,
    weather,
)
from tests.fakes.rawsmtp import MESSAGE, OPEN, PATIENCE_S, RawSmtp, dialled, playing

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = {
    Stage.EHLO: "EHLO x",
    Stage.STARTTLS: "STARTTLS",
    Stage.AUTH: "AUTH PLAIN",
    Stage.MAIL: "MAIL FROM:<a@example.com>",
    Stage.RCPT: "RCPT TO:<b@example.org>",
    Stage.DATA: "DATA",
    Stage.DOT: MESSAGE.decode() + ".",
    Stage.RSET: "RSET",
    Stage.OTHER: "NOOP",
}
"""A session that passes every stage, in order."""


def at(stage: Stage, action: Action) -> Callable[[Stage, Transaction], Action | None]:
    """A fault that strikes at ``stage`` only."""
    return lambda now, _transaction: action if now is stage else None


async def _walk_to(client: RawSmtp, stage: Stage) -> str:
    """Take all steps before ``stage``; returns the line that takes it."""
    for step, line in STEPS.items():
        if step is stage:
            return line
        await client.ask(line)
        if step is Stage.AUTH:
            await client.ask("*")
    raise AssertionError(stage)


@pytest.mark.parametrize("stage", STEPS)
async def test_reply_can_be_replaced_at_every_stage(stage: Stage) -> None:
    """The text is said as it is, the step is not done, and the session goes on."""
    async with (
        playing(fault=at(stage, Say("451 Temporary service failure"))) as twin,
        dialled(twin.port) as client,
    ):
        line = await _walk_to(client, stage)
        assert await client.ask(line) == "451 Temporary service failure"
        twin.fault = None
        assert await client.ask("QUIT") == "221 Bye"

    assert not twin.ledger.records or stage in (Stage.RSET, Stage.OTHER)
    assert twin.ledger.total.refused["451 Temporary service failure"] == 1


@pytest.mark.parametrize("stage", STEPS)
async def test_refusal_can_be_the_last_word_at_every_stage(stage: Stage) -> None:
    """Refused, then closed."""
    async with (
        playing(fault=at(stage, Say("421 Go away", close=True))) as twin,
        dialled(twin.port) as client,
    ):
        line = await _walk_to(client, stage)
        assert await client.ask(line) == "421 Go away"
        assert await client.is_closed()


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("stage", STEPS)
async def test_link_can_end_at_every_stage(stage: Stage, *, is_reset: bool) -> None:
    """FIN or RST in place of the reply; nothing was done."""
    async with playing(fault=at(stage, Cut(reset=is_reset))) as twin:
        async with dialled(twin.port) as client:
            line = await _walk_to(client, stage)
            client.send(line.encode() + b"\r\n")
            assert await client.is_reset() is is_reset
        async with dialled(twin.port):
            pass

    assert len(twin.ledger.records) == (1 if stage in (Stage.RSET, Stage.OTHER) else 0)
    assert not twin.ledger.unanswered


async def test_greeting_can_fail_in_every_way() -> None:
    """Another text, FIN, RST, and byte by byte."""
    async with playing() as twin:
        twin.fault = at(Stage.CONNECT, Say("421 Too many concurrent SMTP connections", close=True))
        async with dialled(twin.port, greeted=False) as client:
            assert (await client.reply())[:3] == "421"
            assert await client.is_closed()
        for is_reset in (False, True):
            twin.fault = at(Stage.CONNECT, Cut(reset=is_reset))
            async with dialled(twin.port, greeted=False) as client:
                assert await client.is_reset() is is_reset
        twin.fault = at(Stage.CONNECT, Trickle())
        async with dialled(twin.port) as client:
            assert await client.ask("NOOP") == "250 Ok"


@pytest.mark.parametrize("is_reset", [False, True])
async def test_message_can_be_accepted_and_nobody_told(*, is_reset: bool) -> None:
    """The ambiguity of RFC 1047: it is in the ledger, and its 250 is known to be missing."""
    async with (
        playing(fault=at(Stage.DOT, Cut(reset=is_reset, done=True))) as twin,
        dialled(twin.port) as client,
    ):
        await client.envelope()
        client.send(MESSAGE + b".\r\n")
        assert await client.is_reset() is is_reset

    assert twin.ledger.total.accepted == 1
    assert twin.ledger.unanswered == {twin.ledger.records[0].id}


@pytest.mark.parametrize("is_reset", [False, True])
async def test_link_can_end_in_mid_body(*, is_reset: bool) -> None:
    """After the first bytes of the message; it is not even an attempt."""
    async with (
        playing(fault=at(Stage.BODY, Cut(reset=is_reset))) as twin,
        dialled(twin.port) as client,
    ):
        await client.envelope()
        client.send(MESSAGE)
        assert await client.is_reset() is is_reset

    assert twin.ledger.total.attempts == 0


async def test_stall_in_mid_body_ends_and_loses_nothing() -> None:
    """Reading stops for a while, then the message is taken as a whole."""
    async with playing(fault=at(Stage.BODY, Stall(0.05))) as twin, dialled(twin.port) as client:
        assert (await client.message(content=MESSAGE + b"x" * 500_000 + b"\r\n"))[:3] == "250"

    assert twin.ledger.records[0].size_bytes == len(MESSAGE) + 500_002


async def test_refusal_at_the_dot_keeps_the_transaction_open() -> None:
    """A scripted refusal is like any other: 503 until RSET."""
    async with (
        playing(fault=at(Stage.DOT, Say("454 Temporary service failure"))) as twin,
        dialled(twin.port) as client,
    ):
        assert await client.message() == "454 Temporary service failure"
        assert await client.ask("MAIL FROM:<a@x.org>") == "503 Sender already specified."
        await client.ask("RSET")
        twin.fault = None
        assert (await client.message())[:3] == "250"

    assert (twin.ledger.total.attempts, twin.ledger.total.accepted) == (2, 1)


async def test_scripted_refusal_counts_for_the_session() -> None:
    """One message a session, whoever refuses it."""
    config = replace(OPEN, session_messages=(1, 1))
    fault = at(Stage.DOT, Say("554 Message rejected: Address blacklisted"))

    async with playing(config, fault=fault) as twin, dialled(twin.port) as client:
        await client.message()
        await client.ask("RSET")

        assert (await client.ask("MAIL FROM:<a@x.org>"))[:3] == "421"


async def test_stalled_reply_is_late_but_its_step_was_done_at_once() -> None:
    """Accepted when the dot came; the client that will not wait cannot know."""
    async with playing(fault=at(Stage.DOT, Stall(0.1))) as twin, dialled(twin.port) as client:
        await client.envelope()
        start = time.monotonic()
        client.send(MESSAGE + b".\r\n")
        reply = await client.reply()

        assert time.monotonic() - start >= 0.09  # loops round their timers to a millisecond

    assert reply == f"250 Ok {twin.ledger.records[0].id}"
    assert not twin.ledger.unanswered


async def test_endless_stall_never_answers() -> None:
    """Nothing comes, not even the idle cut, and the twin still stops at once."""
    config = replace(OPEN, idle_s=0.05)
    async with (
        playing(config, fault=at(Stage.OTHER, Stall(math.inf))) as twin,
        dialled(twin.port) as client,
    ):
        client.send(b"NOOP\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.3)


async def test_replies_can_come_byte_by_byte() -> None:
    """Every byte is a write of its own, multi-line replies, body and QUIT included."""
    async with playing(fault=lambda *_: Trickle(gap_s=0)) as twin, dialled(twin.port) as client:
        assert (await client.ask("EHLO x")).endswith("250 Ok")
        assert (await client.message())[:3] == "250"
        assert await client.ask("QUIT") == "221 Bye"
        assert await client.is_closed()


async def test_fault_sees_the_transaction_as_it_stands() -> None:
    """Session, message number, command, envelope, and at the dot the content."""
    seen: list[tuple[str, int, int, str, str | None, tuple[str, ...], bytes | None]] = []

    def look(stage: Stage, now: Transaction) -> None:
        recipients = tuple(now.recipients)
        seen.append(
            (stage, now.session, now.number, now.command, now.sender, recipients, now.content)
        )

    async with playing(fault=look) as twin, dialled(twin.port) as client:
        await client.message()
        await client.ask("MAIL FROM:<c@x.org>")

    a, b = "a@example.com", ("b@example.org",)
    assert seen == [
        ("connect", 1, 1, "", None, (), None),
        ("mail", 1, 1, "FROM:<a@example.com>", None, (), None),
        ("rcpt", 1, 1, "TO:<b@example.org>", a, (), None),
        ("data", 1, 1, "", a, b, None),
        ("body", 1, 1, "", a, b, None),
        ("dot", 1, 1, "", a, b, MESSAGE),
        ("mail", 1, 2, "FROM:<c@x.org>", None, (), None),
    ]


@pytest.mark.parametrize("stage", [Stage.CONNECT, *STEPS, Stage.BODY])
async def test_fault_that_raises_ends_its_session_and_no_other(stage: Stage) -> None:
    """A bug in a test's fault is logged and counted, the listener lives on."""

    def raising(now: Stage, _transaction: Transaction) -> None:
        if now is stage:
            raise RuntimeError("a bug")

    async with playing() as twin, dialled(twin.port) as other:
        twin.fault = raising
        async with dialled(twin.port, greeted=stage is not Stage.CONNECT) as client:
            if stage is Stage.BODY:
                await client.envelope()
                client.send(MESSAGE)
            elif stage is not Stage.CONNECT:
                client.send((await _walk_to(client, stage)).encode() + b"\r\n")
            assert await client.is_closed()
        twin.fault = None
        assert await other.ask("NOOP") == "250 Ok"
        async with dialled(twin.port):
            pass

    assert twin.ledger.broken == 1


async def test_client_that_reads_nothing_is_cut() -> None:
    """Replies are not piled up without end for a peer that only writes."""
    async with playing() as twin, dialled(twin.port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):
            await _flood(client)

    assert twin.ledger.broken == 0


async def _flood(client: RawSmtp) -> None:
    """Send ten million commands, or as many as the peer takes."""
    for _ in range(2_000):
        client.send(b"NOOP\r\n" * 5_000)
        await asyncio.wait_for(client.writer.drain(), PATIENCE_S)


async def test_connect_can_hang() -> None:
    """The link is there, the greeting never comes."""
    async with (
        playing(fault=at(Stage.CONNECT, Stall(math.inf))) as twin,
        dialled(twin.port, greeted=False) as client,
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.2)


async def test_connect_is_refused_while_the_twin_is_stopped() -> None:
    """As with a host that was taken out of DNS too late; the same port serves again later."""
    async with playing() as twin:
        await twin.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", twin.port)
        await twin.start()
        async with dialled(twin.port) as client:
            assert await client.ask("NOOP") == "250 Ok"


async def test_temporary_failures_come_in_a_burst_and_pass() -> None:
    """Three messages hear it, the fourth is taken; nothing was counted as sent before."""
    fault = weather.first(3, weather.at(Stage.DOT, Say(texts.TEMPORARY_454)))

    async with playing(fault=fault) as twin, dialled(twin.port) as client:
        replies = []
        for _ in range(4):
            replies.append(await client.message())
            await client.ask("RSET")

    assert replies[:3] == ["454 Temporary service failure"] * 3
    assert replies[3][:3] == "250"
    assert twin.ledger.total.accepted == 1


@pytest.mark.parametrize(
    "text", ["454 Temporary authentication failure", "535 Account not subscribed to SES"]
)
async def test_login_can_fail_for_a_while(text: str) -> None:
    """The session stays, and the next login on it succeeds."""
    fault = weather.first(1, weather.at(Stage.AUTH, Say(text)))

    async with (
        playing(replace(OPEN, auth_required=True), fault=fault) as twin,
        dialled(twin.port) as client,
    ):
        assert await client.ask("AUTH PLAIN AHNhbmRib3gAc2FuZGJveA==") == text
        assert (await client.ask("AUTH PLAIN AHNhbmRib3gAc2FuZGJveA=="))[:3] == "235"


async def test_late_reply_to_an_accepted_message_is_known_to_be_unheard() -> None:
    """A client that gives up before the 250 has sent the message: the ledger says so."""
    fault = weather.at(Stage.DOT, Stall(60))

    async with playing(fault=fault) as twin, dialled(twin.port) as client:
        await client.envelope()
        client.send(MESSAGE + b".\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.2)

    assert twin.ledger.unanswered == {twin.ledger.records[0].id}

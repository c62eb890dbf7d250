"""One session against a scripted server: what is said, and what becomes of each answer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.errors import SessionLost
from relay.reply import Reply, Stage
from relay.upstream.opening import Access
from relay.upstream.session import SmtpSession
from tests.fakes.clock import ManualClock
from tests.fakes.script_server import Action, After, Bytewise, Close, Cut, Raw, ScriptServer, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SENDER = "news@lists.example.com"
ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"
CONTENT = b"Subject: hello\r\n\r\n.leading dot\r\n"
THROTTLED = "454 Throttling failure: Maximum sending rate exceeded."

PLAIN = config.Upstream(host="127.0.0.1", tls="none", reply_timeout_s=5, dot_timeout_s=5)


@asynccontextmanager
async def session_with(
    server: ScriptServer, upstream: config.Upstream = PLAIN, clock: ManualClock | None = None
) -> AsyncIterator[SmtpSession]:
    access = Access.build(replace(upstream, port=server.port), "")
    session = await SmtpSession.open(access, clock or ManualClock())
    try:
        yield session
    finally:
        session.abort()
        await asyncio.sleep(0)


async def test_mail_is_said_in_order_and_its_reply_is_final() -> None:
    """MAIL, RCPT each, DATA, content, dot; no RSET after a good end."""
    async with ScriptServer() as server, session_with(server) as session:
        attempt = await session.send(SENDER, [ANN, BOB], CONTENT)

        assert attempt.final == Reply(Stage.DOT, 250, "Ok 0100-id")
        assert attempt.refused == {}
        assert not attempt.ended
        assert server.dialogue[1:] == [
            f"MAIL FROM:<{SENDER}>",
            f"RCPT TO:<{ANN}>",
            f"RCPT TO:<{BOB}>",
            "DATA",
            ".",
        ]
        assert server.messages == [CONTENT]


async def test_ehlo_names_our_own_address_unless_told_otherwise() -> None:
    """An address literal (RFC 5321 §4.1.3) needs no DNS and is never wrong."""
    async with ScriptServer() as server, session_with(server):
        assert server.dialogue == ["EHLO [127.0.0.1]"]


@pytest.mark.parametrize(
    ("offered", "content", "wanted"),
    [
        ("8BITMIME", b"plain\r\n", ""),
        ("8BITMIME", b"caf\xe9\r\n", " BODY=8BITMIME"),
        ("PIPELINING", b"caf\xe9\r\n", ""),
        ("SIZE 10485760", b"plain\r\n", " SIZE=7"),
        ("SIZE", b".dot\nbare", " SIZE=12"),
        ("size 1\n250-8bitmime", b"caf\xe9\r\n", " SIZE=6 BODY=8BITMIME"),
    ],
)
async def test_parameters_are_only_those_offered(offered: str, content: bytes, wanted: str) -> None:
    """SIZE counts the CRLFs but not the stuffing; BODY only says what is true."""
    async with ScriptServer() as server:
        server.always("EHLO", f"250-script.example\n250-{offered}\n250 Ok")
        async with session_with(server) as session:
            await session.send(SENDER, [ANN], content)

            assert server.dialogue[1] == f"MAIL FROM:<{SENDER}>{wanted}"


@pytest.mark.parametrize("refusal", ["501 Invalid RCPT TO address provided", "451 later"])
async def test_refused_recipient_is_recorded_and_the_others_go(refusal: str) -> None:
    """One reply of its own for the one, the dot's reply for the rest, and a RSET after it."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script(f"RCPT TO:<{BOB}>", refusal)

        attempt = await session.send(SENDER, [ANN, BOB, EVE], CONTENT)

        assert {n: str(reply) for n, reply in attempt.refused.items()} == {1: refusal}
        assert attempt.refused[1].stage is Stage.RCPT
        assert attempt.final is not None
        assert attempt.final.code == 250
        assert server.dialogue[-1] == "RSET"
        assert not attempt.ended


async def test_no_data_when_every_recipient_was_refused() -> None:
    """Nothing is left to decide about: no final reply, a RSET, and the session goes on."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("RCPT", "501 no", "553 no")

        attempt = await session.send(SENDER, [ANN, BOB], CONTENT)
        again = await session.send(SENDER, [EVE], CONTENT)

        assert sorted(attempt.refused) == [0, 1]
        assert attempt.final is None
        assert server.dialogue[4:6] == ["RSET", f"MAIL FROM:<{SENDER}>"]
        assert again.final is not None
        assert server.messages == [CONTENT]


@pytest.mark.parametrize(
    ("prefix", "stage"),
    [("MAIL", Stage.MAIL), ("DATA", Stage.DATA), (".", Stage.DOT)],
)
async def test_refusal_is_final_at_its_stage_and_is_followed_by_rset(
    prefix: str, stage: Stage
) -> None:
    """SES answers 503 to the next MAIL until the refused transaction is reset."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script(prefix, THROTTLED)

        attempt = await session.send(SENDER, [ANN], CONTENT)
        said = list(server.dialogue)
        again = await session.send(SENDER, [ANN], CONTENT)

        wanted = Reply(stage, 454, "Throttling failure: Maximum sending rate exceeded.")
        assert attempt.final == wanted
        assert said[-1] == "RSET"
        assert not attempt.ended
        assert again.final is not None
        assert again.final.code == 250


@pytest.mark.parametrize("answer", ["500 what", Close(), Cut(), Raw(b"\xff\xff\r\n"), Stall()])
async def test_session_that_cannot_be_reset_ends_and_the_reply_stands(answer: Action) -> None:
    """RSET refused, cut, garbled or unanswered: the 454 was said all the same."""
    upstream = replace(PLAIN, reply_timeout_s=0.7 if answer == Stall() else 5)
    async with ScriptServer() as server, session_with(server, upstream) as session:
        server.script(".", THROTTLED)
        server.script("RSET", answer)

        attempt = await session.send(SENDER, [ANN], CONTENT)

        assert attempt.final is not None
        assert attempt.final.code == 454
        assert attempt.ended
        assert not session.alive


@pytest.mark.parametrize(
    ("prefix", "stage"),
    [
        ("MAIL", Stage.MAIL),
        (f"RCPT TO:<{BOB}>", Stage.RCPT),
        ("DATA", Stage.DATA),
        (".", Stage.DOT),
    ],
)
async def test_421_decides_for_all_and_ends_the_session(prefix: str, stage: Stage) -> None:
    """RFC 5321 §3.8: the server is closing; at RCPT that is about no single recipient."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script(prefix, "421 Connection closed by server. Too many messages in one session")

        attempt = await session.send(SENDER, [ANN, BOB], CONTENT)

        assert attempt.final is not None
        assert (attempt.final.stage, attempt.final.code) == (stage, 421)
        assert attempt.refused == {}
        assert attempt.ended
        assert server.count("RSET") == 0


STAGES = [
    ("MAIL", Stage.MAIL),
    ("RCPT", Stage.RCPT),
    ("DATA", Stage.DATA),
    (".", Stage.DOT),
]
LOSSES: list[Action] = [
    Close(),
    Cut(),
    Stall(),
    Raw(b"250"),
    Raw(b"what?\r\n"),
    Raw(b"099 low\r\n"),
    Raw(b"+25 sign\r\n"),
    Raw(b"600 high\r\n"),
    Raw(b"250-" + b"x" * 40_000),
    "299 no such reply",
    "150 wait",
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: str(loss)[:30])
@pytest.mark.parametrize(("prefix", "stage"), STAGES)
async def test_lost_session_names_the_stage(prefix: str, stage: Stage, loss: Action) -> None:
    """No reply, half a reply, garbage or a reply out of step: lost, at that very stage."""
    timeout_s = 0.7 if loss in (Stall(), Raw(b"250")) else 5
    upstream = replace(PLAIN, reply_timeout_s=timeout_s, dot_timeout_s=timeout_s)
    async with ScriptServer() as server, session_with(server, upstream) as session:
        server.script(prefix, loss)

        with pytest.raises(SessionLost) as caught:
            await session.send(SENDER, [ANN], CONTENT)

        assert caught.value.stage is stage
        assert not session.alive
        with pytest.raises(SessionLost) as after:
            await session.send(SENDER, [ANN], CONTENT)
        assert after.value.stage is Stage.MAIL
        assert server.count("MAIL") == 1


async def test_354_at_the_wrong_place_sends_no_content() -> None:
    """A 250 to DATA or a 354 to MAIL: we have lost our place, and send nothing there."""
    for prefix, answer in (("DATA", "250 Ok"), ("MAIL", "354 go on")):
        async with ScriptServer() as server, session_with(server) as session:
            # Said raw, so that the script does not wait for content either.
            server.script(prefix, Raw(answer.encode() + b"\r\n"))
            if prefix == "MAIL":
                server.script("BODY", Stall())

            with pytest.raises(SessionLost, match="out of step"):
                await session.send(SENDER, [ANN], CONTENT)

            assert server.messages == []


@pytest.mark.parametrize("end", [Close(), Cut()])
async def test_loss_while_the_content_is_being_written_is_at_the_dot(end: Action) -> None:
    """From the 354 on the peer may have all of it; a big content is cut in the middle."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("BODY", end)

        with pytest.raises(SessionLost) as caught:
            await session.send(SENDER, [ANN], b"line\r\n" * 4_000_000)

        assert caught.value.stage is Stage.DOT


async def test_peer_that_stops_reading_is_lost_at_the_dot() -> None:
    """A full window is waited for as long as the dot's reply, not for ever."""
    upstream = replace(PLAIN, dot_timeout_s=0.5)
    async with ScriptServer() as server, session_with(server, upstream) as session:
        event = asyncio.Event()
        server.script("BODY", After(event, "250 never"))

        with pytest.raises(SessionLost, match=r"no reply within 0\.5 s") as caught:
            await session.send(SENDER, [ANN], b"line\r\n" * 8_000_000)

        assert caught.value.stage is Stage.DOT


async def test_refusal_before_the_dot_counts_and_ends_the_session() -> None:
    """552 in the middle of the content is an answer; what follows would be read as commands."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("BODY", "552 Message is too long.")

        attempt = await session.send(SENDER, [ANN], b"line\r\n" * 8_000_000)

        assert attempt.final == Reply(Stage.DOT, 552, "Message is too long.")
        assert attempt.ended


async def test_acceptance_before_the_dot_is_no_acceptance() -> None:
    """A peer that says 250 to half a message has not taken it: in doubt."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("BODY", "250 Ok too soon")

        with pytest.raises(SessionLost) as caught:
            await session.send(SENDER, [ANN], b"line\r\n" * 8_000_000)

        assert caught.value.stage is Stage.DOT


async def test_big_content_arrives_whole() -> None:
    """40 MB in chunks, dots at the beginning of lines and bytes above 127."""
    line = b"." * 3 + bytes(range(128, 256)) + b"\r\n"
    content = line * (40_000_000 // len(line))
    async with ScriptServer() as server, session_with(server) as session:
        attempt = await session.send(SENDER, [ANN], content)

        assert attempt.final is not None
        assert server.messages == [content]


async def test_replies_may_come_byte_by_byte() -> None:
    """SES has been seen to send `4` and then the rest (MailKit 232)."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("MAIL", Bytewise("250-Ok\n250 still Ok"))
        server.script(".", Bytewise("250 Ok 0100-id"))

        attempt = await session.send(SENDER, [ANN], CONTENT)

        assert attempt.final == Reply(Stage.DOT, 250, "Ok 0100-id")


async def test_bytes_behind_a_reply_end_the_session_but_the_reply_counts() -> None:
    """Else the leftover would be read as the answer to the next command."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script(".", Raw(b"250 Ok 0100-id\r\n451 4.4.2 Timeout waiting\r\n"))

        attempt = await session.send(SENDER, [ANN], CONTENT)

        assert attempt.final == Reply(Stage.DOT, 250, "Ok 0100-id")
        assert attempt.ended
        with pytest.raises(SessionLost):
            await session.send(SENDER, [ANN], CONTENT)


async def test_idle_session_that_is_spoken_to_is_dead() -> None:
    """SES's parting 451 comes unasked; the connection need not be closed yet to be useless."""
    async with ScriptServer() as server, session_with(server) as session:
        idle_cut = asyncio.Event()
        lost = asyncio.Event()
        session.watch(lost.set)
        server.script(".", Raw(b"250 Ok\r\n"))
        server.script("RSET", After(idle_cut, "250 late"))
        await session.send(SENDER, [ANN], CONTENT)
        assert session.alive

        # Two replies to one question, the second one late: unasked, and no hang-up behind it.
        session._link.write(b"RSET\r\n")
        idle_cut.set()
        await asyncio.wait_for(lost.wait(), 10)

        assert not session.alive
        with pytest.raises(SessionLost) as caught:
            await session.send(SENDER, [ANN], CONTENT)
        assert caught.value.stage is Stage.MAIL


async def test_timeout_reply_to_mail_is_an_answer_at_mail() -> None:
    """The 451 that meets our MAIL is handed up for ``verdict`` to recognise; then we part."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("MAIL", Close("451 4.4.2 Timeout waiting for data from client."))

        attempt = await session.send(SENDER, [ANN], CONTENT)

        wanted = Reply(Stage.MAIL, 451, "Timeout waiting for data from client.", "4.4.2")
        assert attempt.final == wanted
        assert attempt.ended


async def test_cancelled_send_closes_the_connection() -> None:
    """At the dot nobody can know: the connection must not be used for another mail."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script(".", Stall())
        task = asyncio.create_task(session.send(SENDER, [ANN], CONTENT))
        await server.until(lambda: len(server.messages) == 1)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.alive
        await server.until(lambda: server.open_now == 0)


async def test_addresses_that_cannot_be_sent_are_refused_without_a_word() -> None:
    """A non-ASCII local part: refused here for that recipient; as a sender, for all."""
    async with ScriptServer() as server, session_with(server) as session:
        mixed = await session.send(SENDER, ["änn@example.org", "bob@müller.example"], CONTENT)
        said = list(server.dialogue)
        none = await session.send(SENDER, ["änn@example.org"], CONTENT)
        sender = await session.send("néws@example.com", [ANN], CONTENT)

        assert (mixed.refused[0].code, mixed.refused[0].enhanced) == (553, "5.6.7")
        assert mixed.final is not None
        assert mixed.final.code == 250
        assert said[2:] == ["RCPT TO:<bob@xn--mller-kva.example>", "DATA", "."]
        assert none.final is None
        assert sender.final is not None
        assert (sender.final.stage, sender.final.code) == (Stage.MAIL, 553)
        assert server.dialogue == said


async def test_session_ends_itself_after_its_share_of_attempts() -> None:
    """SES cuts somewhere above 100 messages; the last attempt says that it was the last."""
    upstream = replace(PLAIN, session_messages_max=3)
    async with ScriptServer() as server, session_with(server, upstream) as session:
        server.script(".", THROTTLED)

        ended = [(await session.send(SENDER, [ANN], CONTENT)).ended for _ in range(3)]

        assert ended == [False, False, True]
        with pytest.raises(SessionLost):
            await session.send(SENDER, [ANN], CONTENT)


async def test_session_ends_itself_at_its_age() -> None:
    """Hosts behind SES's load balancer are replaced; a session lives ``session_age_max_s``."""
    clock, upstream = ManualClock(), replace(PLAIN, session_age_max_s=10, idle_close_s=6)
    async with ScriptServer() as server, session_with(server, upstream, clock) as session:
        await clock.advance(5)
        first = await session.send(SENDER, [ANN], CONTENT)
        await clock.advance(4.9)
        second = await session.send(SENDER, [ANN], CONTENT)
        await clock.advance(0.1)

        assert (first.ended, second.ended) == (False, False)
        assert session.worn


async def test_session_that_idled_in_its_holders_hands_says_nothing() -> None:
    """Past ``idle_close_s`` SES may be hanging up: lost at MAIL, nothing charged to the mail."""
    clock = ManualClock()
    async with ScriptServer() as server, session_with(server, clock=clock) as session:
        await clock.advance(6)

        with pytest.raises(SessionLost) as caught:
            await session.send(SENDER, [ANN], CONTENT)

        assert caught.value.stage is Stage.MAIL
        assert server.count("MAIL") == 0


async def test_reply_is_kept_printable_and_bounded() -> None:
    """Surrogates and NULs would break the spool's text columns; 32 kB would fill it."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script(".", Raw(b"554 bad\xff\x00\x1b[31m" + b"x" * 5000 + b"\r\n"))

        attempt = await session.send(SENDER, [ANN], CONTENT)

        assert attempt.final is not None
        assert attempt.final.text.startswith("bad\ufffd\ufffd\ufffd[31mxxx")
        assert len(attempt.final.text) <= 2048
        attempt.final.text.encode()


@pytest.mark.parametrize("answer", ["221 Bye", Close(), Cut(), Close("221 Bye"), Stall(), "500 no"])
async def test_quit_always_ends(answer: Action) -> None:
    """Whatever the peer makes of QUIT, the connection is gone after it, in bounded time."""
    async with ScriptServer() as server, session_with(server) as session:
        server.script("QUIT", answer)

        await session.quit(0.7)

        assert not session.alive
        assert server.dialogue[-1] == "QUIT"
        await server.until(lambda: server.open_now == 0)

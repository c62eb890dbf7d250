"""What Listmonk says, and what the listener answers, line by line.

The dialogues follow facts: listmonk-wire.md and listmonk.md 1.
"""

from __future__ import annotations

import re

import pytest

from relay.envelope import BULK, PRIORITY, id_value
from relay.errors import SpoolBroken
from tests.fakes.dialogue import BEGIN, CAMPAIGN, MESSAGE, content_of, listening

SUBSCRIBER = "b8e06f92-5726-4823-97ae-5fa190cd861a"


async def test_two_campaign_messages_as_listmonk_sends_them() -> None:
    """EHLO, then MAIL, RCPT, DATA, content, RSET on one connection, twice."""
    script = rf"""
        C: EHLO localhost
        S: 250-relay.test
        S: 250-8BITMIME
        S: 250-SIZE 41943040
        S: 250-PIPELINING
        S: 250 ENHANCEDSTATUSCODES
        C: MAIL FROM:<news@lists.example.com> BODY=8BITMIME
        S: 250 2.1.0 Ok
        C: RCPT TO:<reader1@example.com>
        S: 250 2.1.5 Ok
        C: DATA
        S: 354 End data with <CR><LF>.<CR><LF>
        C: X-Listmonk-Campaign: {CAMPAIGN.upper()}
        C: To: <reader1@example.com>
        C: X-Listmonk-Subscriber: {SUBSCRIBER}
        C: Message-Id: <L2AGQ3816HVq7mnAZN1Cl4Im@lists.example.com>
        C: X-Ses-Configuration-Set: News_1
        C~ \r\n
        C: ..a line with a dot
        C: ..
        C: .
        S: 250 2.0.0 Ok: queued as *
        C: RSET
        S: 250 2.0.0 Ok
        C: MAIL FROM:<orders@lists.example.com> BODY=8BITMIME
        S: 250 2.1.0 Ok
        C: RCPT TO:<reader2@example.com>
        S: 250 2.1.5 Ok
        C: DATA
        S: 354 *
        C: Subject: Order
        C~ \r\n
        C: Thank you
        C: .
        S: 250 2.0.0 Ok: queued as *
        C: RSET
        S: 250 2.0.0 Ok
    """

    async with listening() as house:
        heard = await house.say(script)

    first, second = (kept.envelopes[0] for kept in house.spool.kept)
    assert heard[8] == f"250 2.0.0 Ok: queued as {first.name}"
    assert (first.sender, [r.address for r in first.recipients]) == (
        "news@lists.example.com",
        ["reader1@example.com"],
    )
    assert (first.lane, first.campaign, first.subscriber) == (BULK, CAMPAIGN, SUBSCRIBER)
    assert first.message_id == "<L2AGQ3816HVq7mnAZN1Cl4Im@lists.example.com>"
    assert (first.configuration_set, first.upstream, first.auth_user) == ("News_1", "ses", "")
    assert (second.lane, second.campaign, second.sender) == (
        PRIORITY,
        "",
        "orders@lists.example.com",
    )
    assert content_of(house.spool).endswith(b"\r\n\r\n.a line with a dot\r\n.\r\n")
    assert content_of(house.spool, 1) == b"Subject: Order\r\n\r\nThank you\r\n"
    assert first.size_bytes == len(house.spool.kept[0].content)
    assert house.counts.envelopes == [first, second]
    assert len(house.counts.seconds) == 2


async def test_one_received_field_and_nothing_else_is_added() -> None:
    """RFC 5321 4.4, without the client's address or name; the rest is byte-identical."""
    async with listening() as house:
        await house.say(
            rf"""
            C: EHLO secret-name.internal
            S: 250-*
            S: 250-*
            S: 250-*
            S: 250-*
            S: 250 *
            {BEGIN}
            C~ X-Odd:  two  blanks \r\n\tfolded\r\n\r\n\xff\x00binary \t\r\n\r\n\r\n.\r\n
            S: 250 *
            """
        )

    kept = house.spool.kept[0]
    head, _, rest = kept.content.partition(b"\r\nX-Odd:")
    assert rest == b"  two  blanks \r\n\tfolded\r\n\r\n\xff\x00binary \t\r\n\r\n\r\n"
    match = re.fullmatch(
        rb"Received: by relay\.test \(listmonk-relay\) with ESMTP\r\n id (\w{13});"
        rb" (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000",
        head,
    )
    assert match is not None
    assert id_value(match[1].decode()) == kept.envelopes[0].content_id


@pytest.mark.parametrize("greeting", ["HELO localhost", "HELO", "helo ?!", "HELO \u00e9"])
async def test_helo_and_any_name_are_good(greeting: str) -> None:
    """HELO is answered whatever the name, and the mail goes as SMTP."""
    async with listening() as house:
        await house.say(f"C: {greeting}\nS: 250 relay.test\n{MESSAGE}")

    assert b" with SMTP\r\n" in house.spool.kept[0].content


@pytest.mark.parametrize("name", ["", " ", "[127.0.0.1]", "a_b.c", "\u00e9\u00e9", "x" * 400])
async def test_any_ehlo_name_is_good(name: str) -> None:
    """Names that are no names, and none at all: nobody's mail depends on them."""
    async with listening() as house:
        await house.say(f"C: EHLO {name}\nS: 250-relay.test\n" + "S: 250*\n" * 4 + MESSAGE)

    assert len(house.spool.kept) == 1


async def test_mail_without_a_greeting_is_taken() -> None:
    """A missing EHLO is no reason to lose a message."""
    async with listening() as house:
        await house.say(MESSAGE)

    assert len(house.spool.kept) == 1


@pytest.mark.parametrize("dot", [r".\r\n", r"\r\n.\r\n"])
@pytest.mark.parametrize("failure", [SpoolBroken("a secret"), RuntimeError("a secret"), OSError(5)])
async def test_refused_dot_leaves_listmonk_in_step(failure: Exception, dot: str) -> None:
    """Listmonk ends a refused message again: an empty line gets no answer, the dot one 500.

    And P1: a surprise is 451, never 500, and its text stays inside.
    """
    async with listening() as house:
        house.spool.failure = failure
        heard = await house.say(
            rf"""
            {BEGIN}
            C~ Subject: x\r\n\r\nhello\r\n.\r\n
            S: 451 4.3.0 *
            C~ {dot}
            S: 500 *
            C: RSET
            S: 250 2.0.0 Ok
            """
        )
        house.spool.failure = None
        await house.say(MESSAGE)

    assert "secret" not in str(heard)
    assert len(house.spool.kept) == 1
    assert house.counts.refusals == [451, 500]
    surprises = 0 if isinstance(failure, SpoolBroken) else 1
    assert house.counts.failures == ["listener"] * surprises


async def test_empty_line_elsewhere_gets_one_500() -> None:
    """Only after a refused message is an empty line without an answer, and only until the next."""
    async with listening() as house:
        await house.say(
            rf"""
            C~ \r\n
            S: 500 5.5.2 *
            {MESSAGE}
            C~ \r\n
            S: 500 5.5.2 *
            C: .
            S: 500 5.5.2 *
            """
        )
        house.spool.failure = SpoolBroken()
        await house.say(
            rf"""
            {BEGIN}
            C~ hello\r\n.\r\n
            S: 451 *
            C: NOOP
            S: 250 *
            C~ \r\n
            S: 500 *
            """
        )


async def test_any_number_of_unknown_commands_is_answered() -> None:
    """Each refused message brings a stray dot; at the fifth, aiosmtpd would hang up."""
    async with listening() as house:
        await house.say("C: .\nS: 500 *\n" * 30 + "C: MAIL FROM:<a@b>\nS: 250 *\n" * 300)

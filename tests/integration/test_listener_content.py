"""What the listener takes and what it makes of it: parameters, addresses, sizes, line ends."""

from __future__ import annotations

import pytest

from relay.listener.inflow import HIGH_WATER_BYTES, LINE_MAX_BYTES
from tests.fakes.dialogue import BEGIN, MESSAGE, content_of, listening

ONE_MORE = r"""
    C: DATA
    S: 354 *
    C~ x\r\n.\r\n
    S: 250 2.0.0 Ok: queued as *
"""


async def test_parameters_that_change_nothing_are_taken() -> None:
    """SMTPUTF8 (not offered), BODY, SIZE, AUTH=, DSN's and unknown ones, in any case and order."""
    async with listening() as house:
        await house.say(
            """
            C: MAIL FROM:<a@example.com> BODY=8BITMIME SMTPUTF8
            S: 250 2.1.0 Ok
            C: RSET
            S: 250 *
            C: mail from: <a@example.com> size=1000 auth=<> body=7bit ret=hdrs envid=Q-1 xodd
            S: 250 2.1.0 Ok
            C: rcpt to: <b@example.com> NOTIFY=NEVER ORCPT=rfc822;b@example.com
            S: 250 2.1.5 Ok
            """
        )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("MAIL FROM:<a@b> SIZE=41943041", "552 5.3.4"),
        ("MAIL FROM:<a@b> SIZE=" + "9" * 3000, "552 5.3.4"),
        ("MAIL FROM:<a@b> BODY=BINARYMIME", "501 5.5.4"),
        ("MAIL FROM:<a@b> REQUIRETLS", "555 5.5.4"),
        ("MAIL FROM:<>", "550 5.1.7"),
        ("MAIL FROM:<a b@c>", "553 5.1.7"),
        ("MAIL a@b", "501 5.5.4"),
        ("MAIL", "501 5.5.4"),
        ("RCPT TO:<b@c>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("STARTTLS", "502 5.5.1"),
        ("AUTH PLAIN", "502 5.5.1"),
        ("EXPN list", "502 5.5.1"),
        ("RSET now", "501 5.5.4"),
        ("BDAT 5", "500 5.5.2"),
        ("*", "500 5.5.2"),
    ],
)
async def test_what_cannot_be_served_is_refused_in_step(command: str, code: str) -> None:
    """Each refusal has its code, is counted, and leaves the connection usable."""
    async with listening() as house:
        await house.say(f"C: {command}\nS: {code} *\n{MESSAGE}")

    assert house.counts.refusals == [int(code[:3])]
    assert len(house.spool.kept) == 1


async def test_commands_that_do_nothing_are_answered() -> None:
    """VRFY tells nothing, HELP names the commands, NOOP takes an argument."""
    async with listening() as house:
        await house.say(
            "C: VRFY a@b\nS: 252 2.5.0 *\nC: HELP\nS: 214 2.0.0 EHLO *\nC: noop x\nS: 250 *"
        )


async def test_size_at_the_limit_is_taken() -> None:
    """The limit that EHLO names is itself allowed, declared or real."""
    async with listening(size_max_bytes=10) as house:
        await house.say(
            r"""
            C: EHLO x
            S: 250-relay.test
            S: 250-8BITMIME
            S: 250-SIZE 10
            S: 250-PIPELINING
            S: 250 ENHANCEDSTATUSCODES
            C: MAIL FROM:<a@b> SIZE=10
            S: 250 *
            C: RCPT TO:<c@d>
            S: 250 *
            C: DATA
            S: 354 *
            C~ 12345678\r\n.\r\n
            S: 250 *
            """
        )


async def test_message_over_the_limit_is_swallowed_to_its_end() -> None:
    """552 comes after the end marker; nothing of the message is taken for a command."""
    async with listening(size_max_bytes=200_000) as house:
        await house.say(
            BEGIN
            + "C: RCPT TO:<smuggled@example.com>\n" * 9000
            + r"""
            C: .
            S: 552 5.3.4 *
            C~ \r\n.\r\n
            S: 500 *
            """
            + MESSAGE
        )

    assert len(house.spool.kept) == 1


@pytest.mark.parametrize("before", [r"", r"x", r"x\r\n"])
@pytest.mark.parametrize(
    "end",
    [
        r"\n.\n",
        r"\n.\r\n",
        r"\r.\r\n",
        r"\r.\r",
        r"\r\n.\n",
        r"\r\n.\r",
        r"\n.\r",
        r"\r\n\x00.\r\n",
    ],
)
async def test_false_ends_never_end_a_message(before: str, end: str) -> None:
    """SMTP smuggling: only CRLF . CRLF ends it, and no bare CR or LF is ever passed on."""
    smuggled = r"MAIL FROM:<evil@x>\r\nRCPT TO:<victim@y>\r\nDATA\r\nboo"
    async with listening() as house:
        await house.say(
            rf"""
            {BEGIN}
            C~ {before}{end}{smuggled}\r\n.\r\n
            S: 250 2.0.0 Ok: queued as *
            """
        )

    assert len(house.spool.kept) == 1
    content = content_of(house.spool)
    assert content.endswith(b"DATA\r\nboo\r\n")
    assert b"\r" not in content.replace(b"\r\n", b"")
    assert b"\n" not in content.replace(b"\r\n", b"")


async def test_lines_over_1000_octets_are_taken() -> None:
    """Listmonk does not fold headers; aiosmtpd answers 500 to a long line, and all is lost."""
    long_line = "Subject: " + "=?UTF-8?q?na=C3=AFve?= " * 8000 + "x"
    async with listening() as house:
        await house.say(rf"{BEGIN}" + f"\nC: {long_line}\n" + r"C~ \r\n.\r\n" + "\nS: 250 *")

    assert content_of(house.spool) == long_line.encode() + b"\r\n\r\n"


async def test_long_command_line_gets_one_500_and_stays_in_step() -> None:
    """Up to the limit a command is read; beyond it, it is thrown away to its end."""
    longest = LINE_MAX_BYTES - len("NOOP \r")
    async with listening() as house:
        await house.say(
            f"""
            C: NOOP {"x" * longest}
            S: 250 2.0.0 Ok
            C: NOOP {"x" * (longest + 1)}
            S: 500 5.5.2 *
            C: NOOP {"x" * 3 * HIGH_WATER_BYTES}
            S: 500 5.5.2 *
            C: NOOP
            S: 250 2.0.0 Ok
            """
        )


async def test_addresses_of_every_kind_are_taken() -> None:
    """Raw UTF-8, quoted local parts, source routes, no domain, no brackets; one person once."""
    async with listening() as house:
        await house.say(
            r"""
            C: MAIL FROM:<josé@bücher.example> SMTPUTF8
            S: 250 *
            C: RCPT TO:<你@例.example>
            S: 250 *
            C: RCPT TO: <"a b>\""@example.com>
            S: 250 *
            C: RCPT TO:<@hop.example,@hop2.example:c@example.com>
            S: 250 *
            C: RCPT TO:<postmaster>
            S: 250 *
            C: RCPT TO:bare@example.com
            S: 250 *
            C: RCPT TO:<bare@example.com>
            S: 250 *
            C: RCPT TO:<>
            S: 553 5.1.3 *
            C: RCPT TO:<a@b>c>
            S: 553 5.1.3 *
            C: RCPT c@d
            S: 501 5.5.4 *
            C~ RCPT TO:<latin\xe9@example.com>\r\n
            S: 501 5.5.2 *
            """
            + ONE_MORE
        )

    envelope = house.spool.kept[0].envelopes[0]
    assert envelope.sender == "josé@bücher.example"
    assert [recipient.address for recipient in envelope.recipients] == [
        "你@例.example",
        r'"a b>\""@example.com',
        "c@example.com",
        "postmaster",
        "bare@example.com",
    ]


async def test_more_than_fifty_recipients_become_several_envelopes() -> None:
    """SES takes 50 in one message; the parts share their content, by the id that is told."""
    people = [f"r{n}@example.com" for n in range(120)]
    async with listening() as house:
        heard = await house.say(
            "C: MAIL FROM:<a@b>\nS: 250 *\n"
            + "".join(f"C: RCPT TO:<{one}>\nS: 250 *\n" for one in people)
            + ONE_MORE
        )

    (kept,) = house.spool.kept
    assert [envelope.cost for envelope in kept.envelopes] == [50, 50, 20]
    assert [r.address for envelope in kept.envelopes for r in envelope.recipients] == people
    assert [r.n for r in kept.envelopes[2].recipients] == list(range(20))
    assert {envelope.content_id for envelope in kept.envelopes} == {kept.envelopes[0].id}
    assert len({envelope.id for envelope in kept.envelopes}) == 3
    assert heard[-1] == f"250 2.0.0 Ok: queued as {kept.envelopes[0].name}"


async def test_recipients_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """452 for those beyond it; those before it get the message."""
    monkeypatch.setattr("relay.listener.client.RECIPIENTS_MAX", 2)
    async with listening() as house:
        await house.say(
            """
            C: MAIL FROM:<a@b>
            S: 250 *
            C: RCPT TO:<c@d>
            S: 250 *
            C: RCPT TO:<e@f>
            S: 250 *
            C: RCPT TO:<g@h>
            S: 452 4.5.3 *
            """
            + ONE_MORE
        )

    assert house.spool.kept[0].envelopes[0].cost == 2


async def test_mail_within_a_transaction_begins_anew() -> None:
    """Listmonk 2.4 sends no RSET: a 503 would lose every message after a refused one."""
    async with listening() as house:
        await house.say("C: MAIL FROM:<old@b>\nS: 250 *\nC: RCPT TO:<old@c>\nS: 250 *\n" + MESSAGE)

    envelope = house.spool.kept[0].envelopes[0]
    assert [recipient.address for recipient in envelope.recipients] == ["reader1@example.com"]
    assert envelope.sender == "news@lists.example.com"


@pytest.mark.parametrize("command", ["RSET", "EHLO x", "HELO x"])
async def test_transaction_is_forgotten(command: str) -> None:
    """RSET, and a new greeting: RFC 5321 4.1.4."""
    answers = "S: 250-*\n" * 4 if command.startswith("EHLO") else ""
    async with listening() as house:
        await house.say(
            f"""
            C: MAIL FROM:<a@b>
            S: 250 *
            C: RCPT TO:<c@d>
            S: 250 *
            C: {command}
            {answers}
            S: 250 *
            C: RCPT TO:<e@f>
            S: 503 5.5.1 *
            """
        )


@pytest.mark.parametrize(("hops", "code"), [(49, "250"), (50, "554 5.4.6"), (500, "554 5.4.6")])
async def test_message_that_has_passed_fifty_servers_is_a_loop(hops: int, code: str) -> None:
    """Only header fields count, and the text says what a loop comes from."""
    head, body = r"received:\r\n by x\r\n" * hops, r"Received: by y\r\n" * 60
    async with listening() as house:
        await house.say(BEGIN + rf"C~ {head}\r\n{body}.\r\n" + f"\nS: {code} *\n")

    assert len(house.spool.kept) == (1 if code == "250" else 0)

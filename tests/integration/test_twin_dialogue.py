"""The twin's dialogue, byte for byte as facts/ses-smtp.md 1, 2 and 7 have it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import replace

import pytest

from relay.twin import Policy, message_id_time
from tests.fakes.clock import ManualClock
from tests.fakes.rawsmtp import MESSAGE, OPEN, RawSmtp, dialled, playing

EHLO = "250-email-smtp.amazonaws.com\n250-8BITMIME\n{}250-AUTH PLAIN LOGIN\n250 Ok"
LOCKED = replace(OPEN, auth_required=True)


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


UNPAIRED = (
    "501 Syntax error at character position 4. CR and LF must be CRLF paired.  See RFC 2821 #2.7.1."
)
NAME, PAIR = _b64("sandbox"), _b64("\0sandbox\0sandbox")


async def test_whole_session_reads_as_ses_writes_it() -> None:
    """Greeting, EHLO, five steps and QUIT, every byte; nothing more after 221."""
    async with playing() as twin, dialled(twin.port, greeted=False) as client:
        greeting = await client.reply()
        replies = [
            await client.ask(command)
            for command in (
                "EHLO relay.example",
                "MAIL FROM:<a@example.com>",
                "RCPT TO:<b@example.org>",
                "DATA",
                MESSAGE.decode() + ".",
                "NOOP",
                "RSET",
                "QUIT",
            )
        ]
        is_closed = await client.is_closed()

    assert re.fullmatch(
        r"220 email-smtp\.amazonaws\.com ESMTP SimpleEmailService-d-[A-Z0-9]{9} [A-Za-z0-9]{20}",
        greeting,
    )
    accepted = replies.pop(4)
    assert replies == [
        EHLO.format(""),
        "250 Ok",
        "250 Ok",
        "354 End data with <CR><LF>.<CR><LF>",
        "250 Ok",
        "250 Ok",
        "221 Bye",
    ]
    assert accepted == f"250 Ok {twin.ledger.records[0].id}"
    assert is_closed


async def test_id_decodes_to_the_moment_of_acceptance() -> None:
    """The 12 hex digits after the region are the clock's milliseconds, to the one."""
    clock = ManualClock(wall_ms=1_700_000_000_123)

    async with playing(clock=clock) as twin, dialled(twin.port) as client:
        reply = await client.message()

    assert message_id_time(reply.removeprefix("250 Ok ")) == 1_700_000_000_123


async def test_dialogue_survives_being_fed_byte_by_byte() -> None:
    """A command in as many packets as it has bytes is the same command."""
    async with playing() as twin, dialled(twin.port) as client:
        wire = b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n" + MESSAGE + b".\r\nQUIT\r\n"
        for n in range(len(wire)):
            client.send(wire[n : n + 1])
            await asyncio.sleep(0)
        replies = [await client.reply() for _ in range(5)]

    assert [reply[:3] for reply in replies] == ["250", "250", "354", "250", "221"]


async def test_commands_sent_ahead_are_taken_in_order() -> None:
    """PIPELINING is not offered, but what comes early is kept, not lost."""
    async with playing() as twin, dialled(twin.port) as client:
        client.send(b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\n" + MESSAGE)
        client.send(b".\r\nMAIL FROM:<c@x.org>\r\nRSET\r\nQUIT\r\n")
        replies = [await client.reply() for _ in range(7)]

    assert [reply[:3] for reply in replies] == ["250", "250", "354", "250", "250", "250", "221"]


async def test_ehlo_on_a_starttls_port_offers_starttls() -> None:
    """Before TLS the extension stands between 8BITMIME and AUTH."""
    async with playing(replace(OPEN, tls="starttls")) as twin, dialled(twin.port) as client:
        assert await client.ask("EHLO x") == EHLO.format("250-STARTTLS\n")


async def test_nothing_but_hello_is_served_before_tls() -> None:
    """On a STARTTLS port secrets and mail must wait; NOOP and QUIT need not."""
    async with playing(replace(LOCKED, tls="starttls")) as twin, dialled(twin.port) as client:
        replies = [
            await client.ask(command)
            for command in ("AUTH PLAIN AA==", "MAIL FROM:<a@x.org>", "DATA", "RSET", "NOOP")
        ]

    assert replies == ["530 Must issue a STARTTLS command first"] * 4 + ["250 Ok"]


async def test_mail_needs_a_login_but_rset_does_not() -> None:
    """530 for what belongs to a transaction."""
    async with playing(LOCKED) as twin, dialled(twin.port) as client:
        replies = [
            await client.ask(command)
            for command in ("MAIL FROM:<a@x.org>", "RCPT TO:<a@x.org>", "DATA", "VRFY a", "RSET")
        ]

    assert replies == ["530 Authentication required"] * 4 + ["250 Ok"]


@pytest.mark.parametrize(
    "dialogue",
    [
        [(f"AUTH PLAIN {PAIR}", "235 Authentication successful.")],
        [("auth plain " + _b64("who\0sandbox\0sandbox"), "235 Authentication successful.")],
        [
            ("AUTH PLAIN", "334 Ok"),
            (PAIR, "235 Authentication successful."),
        ],
        [
            ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
            (NAME, "334 UGFzc3dvcmQ6"),
            (NAME, "235 Authentication successful."),
        ],
        [
            (f"AUTH LOGIN {NAME}", "334 UGFzc3dvcmQ6"),
            (NAME, "235 Authentication successful."),
        ],
    ],
    ids=["plain", "plain-authzid", "plain-asked", "login", "login-initial"],
)
async def test_login_opens_the_way_to_mail(dialogue: list[tuple[str, str]]) -> None:
    """PLAIN with and without an initial response, LOGIN likewise; then MAIL is taken."""
    async with playing(LOCKED) as twin, dialled(twin.port) as client:
        for line, reply in dialogue:
            assert await client.ask(line) == reply
        assert await client.ask("MAIL FROM:<a@example.com>") == "250 Ok"
        assert await client.ask("AUTH PLAIN") == "503 Refusing any other AUTH command."


@pytest.mark.parametrize(
    "dialogue",
    [
        [("AUTH PLAIN " + _b64("\0sandbox\0wrong"), "535 Authentication Credentials Invalid")],
        [(f"AUTH PLAIN {NAME}", "535 Authentication Credentials Invalid")],
        [("AUTH PLAIN !!!", "535 Authentication Credentials Invalid")],
        [("AUTH PLAIN =", "535 Authentication Credentials Invalid")],
        [
            ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
            (_b64("other"), "334 UGFzc3dvcmQ6"),
            (NAME, "535 Authentication Credentials Invalid"),
        ],
        [("AUTH LOGIN", "334 VXNlcm5hbWU6"), ("*", "501 Authentication canceled by client.")],
        [("AUTH", "501 Syntax: AUTH mechanism [initial-response]")],
        [("AUTH CRAM-MD5", "504 The requested authentication mechanism is not supported")],
    ],
    ids=["password", "no-nul", "no-base64", "empty", "user", "cancelled", "bare", "cram"],
)
async def test_refused_login_leaves_the_session_usable(dialogue: list[tuple[str, str]]) -> None:
    """After any refusal RSET is fine, MAIL is not, and another login may succeed."""
    async with playing(LOCKED) as twin, dialled(twin.port) as client:
        for line, reply in dialogue:
            assert await client.ask(line) == reply
        assert await client.ask("RSET") == "250 Ok"
        assert await client.ask("MAIL FROM:<a@x.org>") == "530 Authentication required"
        assert (await client.ask(f"AUTH PLAIN {PAIR}"))[:3] == "235"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("MAIL FROM:<>", "501 Invalid MAIL FROM address provided"),
        ("MAIL FROM:<a>b@x.org>", "501 Invalid MAIL FROM address provided"),
        ("MAIL FROM:<é@x.org>", "553 <é@x.org> Invalid email address"),
        ("MAIL FROM:", "501 Syntax: MAIL FROM: <address>"),
        ("MAIL", '501 Syntax: MAIL FROM: <address>  Error in parameters: ""'),
        ("MAIL TO:<a@x>", '501 Syntax: MAIL FROM: <address>  Error in parameters: "TO:<a@x>"'),
        ("RCPT TO:<b@x.org>", "503 Error: need MAIL command"),
        ("DATA", "503 Error: need MAIL command"),
        ("VRFY a@x.org", "502 VRFY command is disabled"),
        ("EXPN list", "502 EXPN command is disabled"),
        ("EHLO", "501 Syntax: EHLO hostname"),
        ("HELO", "501 Syntax: HELO hostname"),
        ("HELO x", "250 email-smtp.amazonaws.com"),
        ("STARTTLS", "454 TLS not supported"),
        ("STARTTLS now", "501 Syntax error (no parameters allowed)"),
        ("BDAT 10 LAST", "500 Error: command not implemented"),
        ("X", "500 Error: command not implemented"),
        ("", "500 Error: bad syntax"),
        ("  noop  ", "250 Ok"),
    ],
)
async def test_first_command_gets_the_text_of_ses(command: str, reply: str) -> None:
    """Each odd or early command has its own words, and the session goes on."""
    async with playing() as twin, dialled(twin.port) as client:
        assert await client.ask(command) == reply
        assert await client.ask("NOOP") == "250 Ok"


async def test_refused_recipient_leaves_the_others() -> None:
    """501 and 553 are about one address; the message goes to the rest."""
    async with playing() as twin, dialled(twin.port) as client:
        await client.ask("MAIL FROM:<a@example.com>")
        refused = [
            await client.ask(f"RCPT TO:<{address}>") for address in ("", "re>ceiver@x.org", "é@x")
        ]
        assert await client.ask("DATA") == "503 Error: need RCPT command"
        assert await client.ask("RCPT TO:<b@example.org>") == "250 Ok"
        assert await client.ask("DATA") == "354 End data with <CR><LF>.<CR><LF>"
        client.send(MESSAGE + b".\r\n")
        reply = await client.reply()

    assert refused == [
        "501 Invalid RCPT TO address provided",
        "501 Invalid RCPT TO address provided",
        "553 <é@x> Invalid email address",
    ]
    assert reply.startswith("250 Ok ")
    assert twin.ledger.records[0].recipients == ("b@example.org",)


async def test_mail_inside_a_transaction_is_503() -> None:
    """One sender at a time."""
    async with playing() as twin, dialled(twin.port) as client:
        await client.ask("MAIL FROM:<a@x.org>")

        assert await client.ask("MAIL FROM:<b@x.org>") == "503 Sender already specified."


async def test_accepted_message_ends_its_transaction() -> None:
    """After 250 the next MAIL is taken without RSET."""
    async with playing() as twin, dialled(twin.port) as client:
        await client.message()

        assert (await client.message())[:3] == "250"

    assert len(twin.ledger.records) == 2


@pytest.mark.parametrize("cure", ["RSET", "EHLO x", "HELO x"])
async def test_refused_data_keeps_its_transaction_until_cured(cure: str) -> None:
    """The RSET rule: after a refusal at the dot MAIL is 503, again and again, until cured."""
    refused = MESSAGE.replace(b"Subject", b"From: again\r\nSubject")

    async with playing() as twin, dialled(twin.port) as client:
        assert (await client.message(content=refused))[:3] == "554"
        for _ in range(2):
            assert await client.ask("MAIL FROM:<c@x.org>") == "503 Sender already specified."
        assert (await client.ask(cure))[:3] == "250"

        assert (await client.message("d@x.org"))[:3] == "250"

    assert twin.ledger.records[0].recipients == ("d@x.org",)
    assert twin.ledger.total.refused["503 Sender already specified."] == 2


async def test_policy_speaks_only_at_the_dot() -> None:
    """51 recipients are all taken at RCPT and refused as one after the dot; 50 are not."""
    many = [f"r{n}@example.org" for n in range(51)]

    async with playing(replace(OPEN, rate_per_s=1000)) as twin, dialled(twin.port) as client:
        assert await client.message(*many) == "554 Transaction failed: Recipient count exceeds 50."
        await client.ask("RSET")
        assert (await client.message(*many[:50]))[:3] == "250"


async def test_duplicate_once_only_header_is_refused_unless_switched_off() -> None:
    """The text that the issue's bar wants, and a switch for tests of other things."""
    content = b"Content-Type: text/plain\r\n" + MESSAGE.replace(
        b"\r\n\r\n", b"\r\ncontent-type: text/html\r\n\r\n", 1
    )

    async with playing() as twin, dialled(twin.port) as client:
        strict = await client.message(content=content)
    async with (
        playing(replace(OPEN, policy=Policy(once_only_headers=False))) as twin,
        dialled(twin.port) as client,
    ):
        lax = await client.message(content=content)

    assert strict == "554 Transaction failed: Duplicate header 'Content-Type'."
    assert lax[:3] == "250"


@pytest.mark.parametrize(
    ("sender", "recipient", "text"),
    [
        ("a@x.org", "nobody", "554 Transaction failed: Missing final '@domain'"),
        ("a@x!y", "b@x.org", "554 Transaction failed: Domain contains illegal character"),
    ],
)
async def test_bad_domain_is_refused_at_the_dot(sender: str, recipient: str, text: str) -> None:
    """It passes MAIL and RCPT."""
    async with playing() as twin, dialled(twin.port) as client:
        await client.envelope(recipient, sender=sender)
        client.send(MESSAGE + b".\r\n")

        assert await client.reply() == text


async def test_message_over_the_limit_is_552_at_the_dot_and_not_before() -> None:
    """All of it is read; exactly the limit passes; the session goes on."""
    head = b"From: a@example.com\r\n\r\n"
    config = replace(OPEN, size_max_bytes=1_000_000)

    async with playing(config) as twin, dialled(twin.port) as client:
        fits = head + b"x" * (1_000_000 - len(head) - 2) + b"\r\n"
        assert (await client.message(content=fits))[:3] == "250"
        for content in (fits.replace(b"\r\n\r\n", b"\r\n\r\nx", 1), fits * 5):
            assert await client.message(content=content) == "552 Message is too long."
            assert await client.ask("RSET") == "250 Ok"

    assert twin.ledger.records[0].size_bytes == 1_000_000
    assert twin.ledger.total.refused == {"552 Message is too long.": 2}


@pytest.mark.parametrize(
    ("raw", "reply"),
    [
        (
            b"NOOP\n",
            UNPAIRED,
        ),
        (b"X" * 3000, "501 Input line length is too long!"),
        (b"X" * 3000 + b"\r\n", "501 Input line length is too long!"),
    ],
)
async def test_line_that_is_none_ends_the_session(raw: bytes, reply: str) -> None:
    """As SubEthaSMTP does: a text, then the end."""
    async with playing() as twin, dialled(twin.port) as client:
        client.send(raw)

        assert await client.reply() == reply
        assert await client.is_closed()


async def test_ledger_has_what_was_sent() -> None:
    """Envelope, sizes, hashes with and without ``Received:``, tracking headers, the bytes."""
    received = b"Received: from [127.0.0.1] by relay\r\n\twith ESMTP id 01jz3a4b5c6d7; now\r\n"
    given = (
        b"X-Listmonk-Campaign: camp\r\nX-Listmonk-Subscriber: sub\r\nReceived: older\r\n"
        b"Message-ID: <7@example.com>\r\nFrom: a@example.com\r\n\r\n.dot\r\n..two\r\n"
    )
    stuffed = given.replace(b"\r\n.", b"\r\n..")
    clock = ManualClock(monotonic=50.0, wall_ms=1_700_000_000_000)

    async with (
        playing(replace(OPEN, keep_content=True), clock=clock) as twin,
        dialled(twin.port),
        dialled(twin.port) as client,
    ):
        reply = await client.message("b@example.org", "c@example.org", content=received + stuffed)

    record = twin.ledger.records[0]
    assert reply == f"250 Ok {record.id}"
    assert (record.wall_ms, record.at, record.session) == (1_700_000_000_000, 50.0, 2)
    assert record.sender == "a@example.com"
    assert record.recipients == ("b@example.org", "c@example.org")
    assert record.content == received + given
    assert record.size_bytes == len(received + given)
    assert record.sha256 == hashlib.sha256(received + given).hexdigest()
    assert record.sha256_bare == hashlib.sha256(given).hexdigest()
    assert record.received == "from [127.0.0.1] by relay\r\n\twith ESMTP id 01jz3a4b5c6d7; now"
    assert record.relay_id == "01jz3a4b5c6d7"
    assert record.message_id == "<7@example.com>"
    assert (record.campaign, record.subscriber) == ("camp", "sub")


async def test_content_is_not_kept_unless_asked() -> None:
    """Hashes are enough for most audits."""
    async with playing() as twin, dialled(twin.port) as client:
        await client.message()

    assert twin.ledger.records[0].content is None


async def test_empty_message_is_a_message() -> None:
    """A dot right after 354 ends it; SES's own words for a missing header are not known."""
    async with playing() as twin, dialled(twin.port) as client:
        assert (await client.message(content=b""))[:3] == "250"

    assert twin.ledger.records[0].size_bytes == 0


async def test_clients_that_vanish_at_any_step_harm_nobody() -> None:
    """Closed or reset in the middle of anything, the next client is served."""
    steps = [b"", b"EHL", b"EHLO x\r\n", b"MAIL FROM:<a@x.org>\r\nRCPT TO:<b@x.org>\r\nDATA\r\nabc"]

    async with playing() as twin:
        for step in steps:
            for is_rude in (False, True):
                async with dialled(twin.port) as client:
                    await _vanish(client, step, is_rude=is_rude)
        async with dialled(twin.port) as client:
            assert (await client.message())[:3] == "250"

    assert twin.ledger.sessions_open == 0
    assert twin.ledger.broken == 0
    assert len(twin.ledger.records) == 1


async def _vanish(client: RawSmtp, step: bytes, *, is_rude: bool) -> None:
    client.send(step)
    await client.writer.drain()
    if is_rude:
        client.writer.transport.abort()

"""The twin against facts/ses-smtp.md 2, driven by Python's own smtplib.

One row a reply: the state that calls for it, the stage at which it comes, and its text. Where
the twin does not model the cause (``said``), the row shows the stage and the wire alone.
Every text is written out here: the twin's own constants would prove nothing.
Nothing of the relay takes part, so that a misreading of SES in our own client cannot hide
one here.
"""

from __future__ import annotations

import smtplib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from relay.twin import (
    Fault,
    Policy,
    Say,
    Stage,
    TwinConfig,
    weather,
)
from tests.fakes.stdlib_client import CONTENT, OPEN, READER, SENDER, Client, drive, reply_text


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of section 2."""

    text: str
    stage: Stage = Stage.DOT
    config: TwinConfig = OPEN
    fault: Fault | None = None
    sender: str = SENDER
    readers: tuple[str, ...] = (READER,)
    content: str = CONTENT
    before: int = 0
    """Messages that are accepted first."""
    first: str = field(default="")
    """A command that precedes the message."""


def policy(**settings: Any) -> TwinConfig:  # noqa: ANN401  # Policy's fields
    return replace(OPEN, policy=Policy(**settings))


def said(stage: Stage, text: str) -> Fault:
    """The server says so without a reason that the twin models."""
    return weather.at(stage, Say(text))


ONCE_ONLY = (
    ("Content-Type", "text/plain"),
    ("MIME-Version", "1.0"),
    ("Content-Transfer-Encoding", "7bit"),
    ("Content-Disposition", "inline"),
    ("Sender", SENDER),
    ("Reply-To", SENDER),
    *(
        (name, "x")
        for name in (
            *("Auto-Submitted", "Content-ID", "Date", "DKIM-Signature", "In-Reply-To"),
            *("List-Archive", "List-Help", "List-Id", "List-Owner", "List-Post"),
            *("List-Subscribe", "List-Unsubscribe", "Message-ID", "Precedence", "References"),
            *("Return-Path", "User-Agent"),
        )
    ),
)
"""Facts 5: twice, and SES refuses. From and Subject stand in ``CONTENT`` already."""

ROWS = (
    Row(
        text="421 Too many concurrent SMTP connections",
        stage=Stage.CONNECT,
        config=replace(OPEN, connections_max=0),
    ),
    Row(
        text="421 Connection closed by server. Maximum message count per session reached.",
        stage=Stage.MAIL,
        config=replace(OPEN, session_messages=(1, 1)),
        before=1,
    ),
    Row(
        text="421 Connection closed by server. Too many messages in one session",
        stage=Stage.MAIL,
        config=replace(OPEN, session_messages=(1, 1), session_text="too-many"),
        before=1,
    ),
    Row(
        text="451 Temporary service failure", fault=said(Stage.DOT, "451 Temporary service failure")
    ),
    Row(
        text="454 Temporary service failure", fault=said(Stage.DOT, "454 Temporary service failure")
    ),
    Row(
        text="454 Throttling failure: Maximum sending rate exceeded.",
        config=replace(OPEN, rate_per_s=0.001, burst=1),
        before=1,
    ),
    Row(
        text="454 Throttling failure: Daily message quota exceeded.",
        config=replace(OPEN, quota=1),
        before=1,
    ),
    Row(
        text="454 Throttling failure: Maximum SigV2 SMTP sending rate exceeded.",
        config=replace(OPEN, rate_per_s=0.001, burst=1, sigv2_text=True),
        before=1,
    ),
    Row(
        text="454 Throttling failure: Service is busy.",
        fault=said(Stage.DOT, "454 Throttling failure: Service is busy."),
    ),
    Row(
        text="530 Authentication required",
        stage=Stage.MAIL,
        config=replace(OPEN, auth_required=True),
    ),
    Row(
        text="530 Must issue a STARTTLS command first",
        stage=Stage.MAIL,
        config=replace(OPEN, tls="starttls"),
    ),
    Row(text="501 Invalid MAIL FROM address provided", stage=Stage.MAIL, sender=""),
    Row(
        text="501 Invalid RCPT TO address provided", stage=Stage.RCPT, readers=("re>ceiver@x.org",)
    ),
    Row(text="553 <a@> Invalid email address", stage=Stage.MAIL, sender="a@"),
    Row(text="553 <@x.org> Invalid email address", stage=Stage.RCPT, readers=("@x.org",)),
    Row(
        text="553 <a@x.org> address unknown",
        stage=Stage.RCPT,
        fault=said(Stage.RCPT, "553 <a@x.org> address unknown"),
    ),
    Row(text="503 Sender already specified.", stage=Stage.MAIL, first="MAIL FROM:<a@example.com>"),
    Row(text="552 Message is too long.", config=replace(OPEN, size_max_bytes=50)),
    Row(
        text="554 Access denied: User `arn:aws:iam::123456789012:user/ses-smtp-user.sandbox' is not"
        " authorized to perform `ses:SendRawEmail' on resource"
        " `arn:aws:ses:us-east-1:123456789012:identity/lists.example.com'",
        config=policy(denied=True),
    ),
    Row(
        text="554 Message rejected: Email address is not verified. The following identities failed"
        f" the check in region US-EAST-1: {SENDER}",
        config=policy(verified=frozenset({"example.org"})),
    ),
    Row(
        text="554 Message rejected: Email address is not verified. The following identities failed"
        f" the check in region US-EAST-1: {READER}",
        config=policy(verified=frozenset({"lists.example.com"}), sandbox=True),
    ),
    Row(
        text="554 Message rejected: Email address is not verified. The following identities failed"
        " the check in region US-EAST-1: author@other.example",
        config=policy(verified=frozenset({"lists.example.com"})),
        content=CONTENT.replace(f"From: {SENDER}", "From: Author <author@other.example>"),
    ),
    Row(
        text="554 Message rejected: Sending paused for this account. For more information, please"
        " check the inbox of the email address associated with your AWS account.",
        config=policy(paused=True),
    ),
    *(
        Row(text=text, fault=said(Stage.DOT, text))
        for text in (
            "554 MAIL FROM domain not verified: DNS setup for MAIL FROM domain is invalid.",
            "554 Message rejected: Address blacklisted",
            (
                "554 Message rejected: Email address is not verified. The following identities"
                " failed the check in region US-EAST-1: a@x.org, b@y.org..."
            ),
            "554 Transaction failed: Illegal header 'Old-Return-Path'.",
            "554 Transaction failed: Invalid domain name: 'x..org'",
        )
    ),
    Row(
        text="554 Configuration set <news> does not exist.",
        config=policy(configuration_sets=frozenset({"other"})),
        content=f"X-SES-CONFIGURATION-SET: news\r\n{CONTENT}",
    ),
    Row(
        text="554 Transaction failed: Recipient count exceeds 50.",
        readers=tuple(f"r{n}@example.org" for n in range(51)),
    ),
    *(
        Row(
            text=f"554 Transaction failed: Duplicate header '{name}'.",
            content=f"{name}: {value}\r\n{name}: {value}\r\n{CONTENT}",
        )
        for name, value in ONCE_ONLY
    ),
    Row(
        text="554 Access denied: User `arn:aws:iam::123456789012:user/ses-smtp-user.sandbox' is not"
        " authorized to perform `ses:SendRawEmail' on resource"
        " `arn:aws:ses:us-east-1:123456789012:configuration-set/news'",
        config=policy(denied=True),
        content=f"X-SES-CONFIGURATION-SET: news\r\n{CONTENT}",
    ),
    Row(text="554 Transaction failed: Missing final '@domain'", sender="news"),
    Row(
        text="554 Transaction failed: Domain contains illegal character",
        readers=("a@ex!ample.org",),
    ),
    *(
        Row(text=f"554 Transaction failed: {text}", content=CONTENT.replace(SENDER, author))
        for author, text in (
            ("<a@>", "Missing domain"),
            ("@x.org", "Missing local name"),
            ("a\x01b@x.org", "Local address contains control or whitespace"),
        )
    ),
    Row(
        text="554 Transaction failed: Address contains illegal characters in user name:"
        " '<\"re:ceiver\"@x.org>'.",
        readers=('"re:ceiver"@x.org',),
    ),
    Row(
        text="421 Timeout waiting for data from client.",
        stage=Stage.MAIL,
        fault=said(Stage.MAIL, "421 Timeout waiting for data from client."),
    ),
    Row(
        text="554 Transaction failed: Expected ';', got \":\"",
        content=f"Content-Type: text/plain: charset=x\r\n{CONTENT}",
    ),
    Row(
        text="554 Transaction failed: Expected disposition, got =",
        content=f"Content-Disposition: =x\r\n{CONTENT}",
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.text[:60])
async def test_each_reply_comes_at_its_stage_with_its_text(row: Row) -> None:
    """Section 2: stage, code and text; nothing that was refused is in the ledger."""

    def use(client: Client) -> tuple[Stage, str]:
        for _ in range(row.before):
            assert client.message()[1].startswith("250 Ok ")
        if row.first:
            assert client.say(row.first) == "250 Ok"
        return client.message(row.sender, row.readers, row.content)

    found, twin = await drive(row.config, use, fault=row.fault)

    assert found == (row.stage, row.text)
    assert twin.ledger.total.accepted == row.before


@pytest.mark.parametrize(
    ("text", "config", "fault"),
    [
        (
            "454 Temporary authentication failure",
            OPEN,
            said(Stage.AUTH, "454 Temporary authentication failure"),
        ),
        ("535 Authentication Credentials Invalid", replace(OPEN, credentials_valid=False), None),
        (
            "535 Account not subscribed to SES",
            OPEN,
            said(Stage.AUTH, "535 Account not subscribed to SES"),
        ),
    ],
)
async def test_refused_login_leaves_the_session_usable(
    text: str, config: TwinConfig, fault: Fault | None
) -> None:
    """Section 2, AUTH: smtplib raises with the text, and RSET gets 250 Ok afterwards."""

    def use(client: Client) -> tuple[str, str]:
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.login("sandbox", "sandbox")
        error = caught.value
        return f"{error.smtp_code} {reply_text(error)}", client.say("RSET")

    found, _ = await drive(replace(config, auth_required=True), use, fault=fault)

    assert found == (text, "250 Ok")


SPENT = replace(OPEN, rate_per_s=0.001, burst=1)


@pytest.mark.parametrize("way_out", ["RSET", "EHLO localhost"])
@pytest.mark.parametrize(
    ("config", "before", "text"),
    [
        (SPENT, 1, "454 Throttling failure: Maximum sending rate exceeded."),
        (replace(OPEN, quota=1), 1, "454 Throttling failure: Daily message quota exceeded."),
        (replace(OPEN, size_max_bytes=50), 0, "552 Message is too long."),
        (policy(paused=True), 0, "554 Message rejected: Sending paused for this account."),
    ],
)
async def test_refused_message_stays_open_until_it_is_reset(
    config: TwinConfig, before: int, text: str, way_out: str
) -> None:
    """Section 2, the RSET rule, and 7.1: after any refusal MAIL is 503 until RSET or EHLO."""

    def use(client: Client) -> list[str]:
        for _ in range(before):
            assert client.message()[1].startswith("250")
        replies = [client.message()[1], client.message()[1]]
        client.say(way_out)
        return [*replies, client.say(f"MAIL FROM:<{SENDER}>")]

    (refused, *rest), _ = await drive(config, use)

    assert refused.startswith(text)
    assert rest == ["503 Sender already specified.", "250 Ok"]


async def test_twice_from_and_subject_are_refused() -> None:
    """Section 2: the two fields that every message here has, said once more."""

    def use(client: Client) -> list[str]:
        replies = []
        for field_ in (f"From: {SENDER}", "Subject: more"):
            replies.append(client.message(content=f"{field_}\r\n{CONTENT}")[1])
            client.say("RSET")
        return replies

    found, _ = await drive(OPEN, use)

    assert found == [
        "554 Transaction failed: Duplicate header 'From'.",
        "554 Transaction failed: Duplicate header 'Subject'.",
    ]


async def test_unknown_mechanism_is_504() -> None:
    """Section 2 and section 1: no CRAM-MD5."""

    def use(client: Client) -> str:
        return client.say("AUTH CRAM-MD5")

    found, _ = await drive(replace(OPEN, auth_required=True), use)

    assert found == "504 The requested authentication mechanism is not supported"


@pytest.mark.parametrize("local", [".a", "a..b", "a<b", "a b"])
async def test_odd_local_parts_are_accepted(local: str) -> None:
    """Section 2: a leading dot, two dots, a bracket, a space: 250 after the dot."""

    def use(client: Client) -> tuple[Stage, str]:
        return client.message(readers=(f"{local}@example.org",))

    (stage, reply), twin = await drive(OPEN, use)

    assert (stage, reply[:6]) == (Stage.DOT, "250 Ok")
    assert twin.ledger.records[0].recipients == (f"{local}@example.org",)


async def test_commands_out_of_order() -> None:
    """Section 2, our own bugs: 503 with what is missing; section 7's end: VRFY is 502."""

    def use(client: Client) -> list[str]:
        lines = ("RCPT TO:<a@x.org>", "DATA", f"MAIL FROM:<{SENDER}>", "DATA", "VRFY a", "HUH")
        return [client.say(line) for line in lines]

    found, _ = await drive(OPEN, use)

    assert found == [
        "503 Error: need MAIL command",
        "503 Error: need MAIL command",
        "250 Ok",
        "503 Error: need RCPT command",
        "502 VRFY command is disabled",
        "500 Error: command not implemented",
    ]

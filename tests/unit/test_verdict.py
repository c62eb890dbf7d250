"""The reply table of SES, with the server's own texts, and what no row of it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from relay.errors import Unreachable
from relay.reply import Reply, Stage
from relay.verdict import (
    TABLE,
    Bounced,
    Deferred,
    Ending,
    Held,
    InDoubt,
    Kind,
    Limit,
    Scope,
    Sent,
    SessionEnded,
    Throttled,
    Verdict,
    judge,
    judge_lost,
    judge_unreachable,
    kind_of,
)

CONNECT, EHLO, STARTTLS, AUTH = Stage.CONNECT, Stage.EHLO, Stage.STARTTLS, Stage.AUTH
MAIL, RCPT, DATA, DOT, RSET = Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT, Stage.RSET

SES_ID = "01000170d10e6a6c-71c65177-ce88-4135-9258-48c0e8bf916d-000000"
NOT_VERIFIED = (
    "554 Message rejected: Email address is not verified. The following identities failed "
    "the check in region US-EAST-1: "
)
PAUSED = (
    "554 Message rejected: Sending paused for this account. For more information, please "
    "check the inbox of the email address associated with your AWS account."
)
DENIED = (
    "554 Access denied: User `arn:aws:iam::123456789012:user/x' is not authorized to perform "
    "`ses:SendRawEmail' on resource `arn:aws:ses:us-east-1:123456789012:"
)


def reply_at(stage: Stage, line: str) -> Reply:
    return Reply.read(stage, int(line[:3]), line[4:])


@dataclass(frozen=True)
class Case:
    stage: Stage
    line: str
    rule: str
    verdict: type[Verdict]
    fields: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.stage}-{self.line[:60]}"


def case(stage: Stage, line: str, rule: str, verdict: type[Any], **fields: Any) -> Case:  # noqa: ANN401
    return Case(stage, line, rule, verdict, fields)


# Verbatim from facts/ses-smtp.md 2, in its order, with the old and the documented forms.
CASES = [
    case(DOT, f"250 Ok {SES_ID}", "accepted", Sent, ses_id=SES_ID),
    case(
        CONNECT,
        "421 Too many concurrent SMTP connections",
        "connection-cap",
        SessionEnded,
        ending=Ending.CONNECTION_CAP,
    ),
    case(
        MAIL,
        "421 Connection closed by server. Maximum message count per session reached.",
        "session-cap",
        SessionEnded,
        ending=Ending.SESSION_CAP,
    ),
    case(
        MAIL,
        "421 Connection closed by server. Too many messages in one session",
        "session-cap",
        SessionEnded,
        ending=Ending.SESSION_CAP,
    ),
    case(
        MAIL,
        "451 4.4.2 Timeout waiting for data from client.",
        "idle",
        SessionEnded,
        ending=Ending.IDLE,
    ),
    case(
        RSET,
        "451 Timeout waiting for data from client",
        "idle",
        SessionEnded,
        ending=Ending.IDLE,
    ),
    case(
        MAIL,
        "421 Timeout waiting for data from client.",
        "idle",
        SessionEnded,
        ending=Ending.IDLE,
    ),
    case(DOT, "451 Temporary service failure", "service-failure", Deferred),
    case(DOT, "454 Temporary service failure", "service-failure", Deferred),
    case(
        DOT,
        "454 Throttling failure: Maximum sending rate exceeded.",
        "throttled-rate",
        Throttled,
        limit=Limit.RATE,
    ),
    case(
        DOT,
        "454 Throttling failure: Maximum sending rate exceeded",
        "throttled-rate",
        Throttled,
        limit=Limit.RATE,
    ),
    case(
        DOT,
        "454 Throttling failure: Daily message quota exceeded.",
        "throttled-quota",
        Throttled,
        limit=Limit.QUOTA,
    ),
    case(
        DOT,
        "454 Throttling failure: Maximum SigV2 SMTP sending rate exceeded.",
        "throttled-sigv2",
        Throttled,
        limit=Limit.SIGV2,
    ),
    case(
        DOT,
        "454 Throttling failure: Please slow down.",
        "throttled-other",
        Throttled,
        limit=Limit.RATE,
    ),
    case(DOT, "554 Sending rate exceeded", "throttled-5xx", Throttled, limit=Limit.RATE),
    case(MAIL, "552 Throttling failure: anything", "throttled-5xx", Throttled, limit=Limit.RATE),
    *(
        case(stage, f"{line}Daily message quota exceeded.", name, Throttled, limit=Limit.QUOTA)
        for stage in (MAIL, RCPT, DATA, DOT)
        for line, name in (
            ("454 Throttling failure: ", "throttled-quota"),
            ("554 Throttling failure: ", "throttled-quota-5xx"),
            ("550 ", "throttled-quota-5xx"),
        )
    ),
    case(
        DOT,
        "554 Transaction failed: Illegal header 'Daily message quota exceeded'.",
        "illegal-header",
        Bounced,
        per_recipient=False,
    ),
    case(
        AUTH,
        "454 Temporary authentication failure",
        "login-failed-for-now",
        SessionEnded,
        ending=Ending.SERVER,
    ),
    case(
        MAIL,
        "530 Authentication required",
        "authentication-required",
        Held,
        scope=Scope.ACCOUNT,
    ),
    case(
        MAIL,
        "530 Must issue a STARTTLS command first",
        "starttls-required",
        Held,
        scope=Scope.ACCOUNT,
    ),
    case(
        AUTH,
        "535 Authentication Credentials Invalid",
        "credentials-invalid",
        Held,
        scope=Scope.ACCOUNT,
        slow=False,
    ),
    case(AUTH, "535 Account not subscribed to SES", "not-subscribed", Held, scope=Scope.ACCOUNT),
    case(
        MAIL,
        "501 Invalid MAIL FROM address provided",
        "sender-invalid",
        Held,
        scope=Scope.SENDER,
    ),
    case(
        RCPT,
        "501 Invalid RCPT TO address provided",
        "recipient-invalid",
        Bounced,
        per_recipient=True,
    ),
    case(MAIL, "553 <a@x> Invalid email address", "sender-invalid", Held, scope=Scope.SENDER),
    case(MAIL, "553 <a@x> address unknown", "sender-invalid", Held, scope=Scope.SENDER),
    case(
        RCPT,
        "553 <a@x> Invalid email address",
        "recipient-invalid",
        Bounced,
        per_recipient=True,
    ),
    case(RCPT, "553 <a@x> address unknown", "recipient-invalid", Bounced, per_recipient=True),
    case(
        MAIL,
        "503 Sender already specified.",
        "out-of-step",
        SessionEnded,
        ending=Ending.OUR_BUG,
    ),
    case(
        RCPT,
        "503 Error: need MAIL command",
        "out-of-step",
        SessionEnded,
        ending=Ending.OUR_BUG,
    ),
    case(
        DATA,
        "503 Error: need RCPT command",
        "out-of-step",
        SessionEnded,
        ending=Ending.OUR_BUG,
    ),
    case(MAIL, "502 Command not implemented", "out-of-step", SessionEnded, ending=Ending.OUR_BUG),
    case(AUTH, "504 Unrecognized mechanism", "out-of-step", SessionEnded, ending=Ending.OUR_BUG),
    case(DOT, "552 Message is too long.", "message-too-long", Bounced, per_recipient=False),
    case(
        MAIL,
        "552 5.3.4 Message size exceeds fixed limit",
        "declared-too-long",
        Bounced,
        per_recipient=False,
    ),
    case(
        DOT,
        DENIED + "identity/example.com'",
        "access-denied",
        Held,
        scope=Scope.ACCOUNT,
        subject="identity/example.com",
    ),
    case(
        DOT,
        DENIED + "configuration-set/main'",
        "access-denied",
        Held,
        scope=Scope.ACCOUNT,
        subject="configuration-set/main",
    ),
    case(
        DOT,
        "554 Access denied: User `arn:aws:iam::…:user/x' is not authorized to perform "
        "`ses:SendRawEmail' on resource `arn:aws:ses:…:identity/…'",
        "access-denied",
        Held,
        scope=Scope.ACCOUNT,
        subject="",
    ),
    case(
        DOT,
        NOT_VERIFIED + "a@x, b@y",
        "identity-not-verified",
        Held,
        scope=Scope.SENDER,
        subject="a@x",
    ),
    case(
        DOT,
        "554 Message rejected: Email address is not verified.",
        "identity-not-verified",
        Held,
        scope=Scope.SENDER,
        subject="",
    ),
    case(DOT, PAUSED, "account-paused", Held, scope=Scope.ACCOUNT, slow=True),
    case(
        DOT,
        "554 Message rejected: Account is paused",
        "account-paused",
        Held,
        scope=Scope.ACCOUNT,
        slow=True,
    ),
    case(
        DOT,
        "554 MAIL FROM domain not verified: DNS setup for MAIL FROM domain is invalid.",
        "mail-from-domain",
        Held,
        scope=Scope.SENDER,
    ),
    case(
        DOT,
        "554 Message rejected: Configuration set <my-set_1> does not exist.",
        "no-configuration-set",
        Held,
        scope=Scope.CONFIGURATION_SET,
        subject="my-set_1",
    ),
    case(
        DOT,
        "554 Configuration set main does not exist.",
        "no-configuration-set",
        Held,
        scope=Scope.CONFIGURATION_SET,
        subject="main",
    ),
    case(
        DOT,
        "554 Message rejected: Address blacklisted",
        "address-blacklisted",
        Bounced,
        per_recipient=True,
    ),
    case(
        DOT,
        "554 Transaction failed: Recipient count exceeds 50.",
        "too-many-recipients",
        Bounced,
        per_recipient=False,
    ),
    *(
        case(
            DOT,
            f"554 Transaction failed: Duplicate header '{name}'.",
            "duplicate-header",
            Bounced,
            per_recipient=False,
        )
        for name in (
            "Content-Type",
            "MIME-Version",
            "Content-Transfer-Encoding",
            "DKIM-Signature",
            "List-Unsubscribe",
        )
    ),
    case(
        DOT,
        "554 Transaction failed: Illegal header 'Old-Return-Path'.",
        "illegal-header",
        Bounced,
        per_recipient=False,
    ),
    *(
        case(
            DOT,
            f"554 Transaction failed: {text}",
            "address-in-content",
            Bounced,
            per_recipient=False,
        )
        for text in (
            "Missing final '@domain'",
            "Domain contains illegal character",
            "Invalid domain name: 'x..y'.",
            "Address contains illegal characters in user name: '<\"re:ceiver\"@x>'.",
            "Local address contains control or whitespace",
            "Missing domain",
            "Missing local name",
        )
    ),
    case(
        DOT,
        "554 Transaction failed: Expected ';', got \":\"",
        "content-unparsable",
        Bounced,
        per_recipient=False,
    ),
    case(
        DOT,
        "554 Transaction failed: Expected disposition, got =",
        "content-unparsable",
        Bounced,
        per_recipient=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_text_of_the_server_meets_its_row(case: Case) -> None:
    """Each text of the fact sheet is known, by its own row, and gives that row's verdict."""
    found = judge(reply_at(case.stage, case.line))

    assert (found.rule, found.known) == (case.rule, True)
    assert type(found.verdict) is case.verdict
    for name, wanted in case.fields.items():
        assert getattr(found.verdict, name) == wanted


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_of_letters_and_enhanced_code_do_not_matter(case: Case) -> None:
    """Texts are compared without case, and after an enhanced code, split off or not."""
    code, text = int(case.line[:3]), case.line[4:]
    enhanced = f"{code // 100}.7.1 "

    loud = judge(Reply(case.stage, code, text.upper()))
    unsplit = judge(Reply(case.stage, code, enhanced + text))
    split = judge(Reply.read(case.stage, code, enhanced + text))

    assert {loud.rule, unsplit.rule, split.rule} == {case.rule}


def test_every_row_has_a_text_of_the_server() -> None:
    """No row lands without a case here, and no two rows share a name."""
    names = [row.name for row in TABLE]

    assert len(set(names)) == len(names)
    assert set(names) == {case.rule for case in CASES}


DEFAULTS = [
    *(case(stage, "451 Try later", "unknown-4xx", Deferred) for stage in (MAIL, RCPT, DATA, DOT)),
    *(
        case(stage, "454 Not now", "unknown-4xx", SessionEnded, ending=Ending.SERVER)
        for stage in (CONNECT, EHLO, STARTTLS, AUTH, RSET)
    ),
    *(
        case(stage, "421 Going down", "unknown-421", SessionEnded, ending=Ending.SERVER)
        for stage in Stage
    ),
    *(
        case(stage, "554 No", "unknown-5xx", Bounced, per_recipient=False)
        for stage in (RCPT, DATA, DOT)
    ),
    *(case(RCPT, f"{code} No", "unknown-5xx", Bounced, per_recipient=True) for code in (501, 553)),
    *(case(MAIL, f"{code} No", "unknown-5xx", Held, scope=Scope.SENDER) for code in (501, 550)),
    *(
        case(stage, "554 No", "unknown-5xx", Held, scope=Scope.ACCOUNT)
        for stage in (CONNECT, EHLO, STARTTLS, AUTH)
    ),
    case(RSET, "500 What?", "unknown-5xx", SessionEnded, ending=Ending.OUR_BUG),
    case(DOT, "250 Ok", "unknown-2xx", Sent, ses_id=""),
    case(DOT, "251 Ok: queued as 4TkQ2", "unknown-2xx", Sent, ses_id=""),
    case(DATA, "250 Ok", "unknown-2xx", SessionEnded, ending=Ending.OUR_BUG),
    case(DOT, "354 Go on", "unknown-3xx", SessionEnded, ending=Ending.OUR_BUG),
    case(DOT, "199 Hm", "unknown-code", InDoubt),
    case(MAIL, "600 Hm", "unknown-code", SessionEnded, ending=Ending.LINK),
    # Known texts where they cannot mean what the row says.
    case(
        AUTH,
        "454 Throttling failure: Maximum sending rate exceeded.",
        "unknown-4xx",
        SessionEnded,
        ending=Ending.SERVER,
    ),
    case(DOT, "454 Temporary authentication failure", "unknown-4xx", Deferred),
    case(
        DOT,
        "553 <a@x> Invalid email address",
        "unknown-5xx",
        Bounced,
        per_recipient=False,
    ),
]


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_unknown_text_gets_the_default_of_its_class_and_stage(case: Case) -> None:
    """What no row knows is judged by code and stage, and says that it was not known."""
    found = judge(reply_at(case.stage, case.line))

    assert (found.rule, found.known) == (case.rule, False)
    assert type(found.verdict) is case.verdict
    for name, wanted in case.fields.items():
        assert getattr(found.verdict, name) == wanted


def test_recipient_not_verified_is_the_sandbox() -> None:
    """If all identities named are recipients of this message, only this message waits."""
    found = judge(reply_at(DOT, NOT_VERIFIED + "Bob <B@y>"), ["a@z", "b@Y"])

    assert found.verdict == Held(reply_at(DOT, NOT_VERIFIED + "Bob <B@y>"), Scope.SANDBOX, "B@y")


def test_sender_among_the_identities_holds_the_sender() -> None:
    """A sender that is named beside a recipient is the wider trouble, and the subject."""
    found = judge(reply_at(DOT, NOT_VERIFIED + "b@y, Alice <a@x>"), ["b@y"])

    assert isinstance(found.verdict, Held)
    assert (found.verdict.scope, found.verdict.subject) == (Scope.SENDER, "a@x")


@pytest.mark.parametrize(
    ("listed", "scope", "subject"),
    [
        ("b@y, a@lo...", Scope.SANDBOX, "b@y"),  # the cut address proves nothing
        ("b@y, ...", Scope.SANDBOX, "b@y"),
        ("a@lo...", Scope.SENDER, "a@lo"),
        ("example.com", Scope.SENDER, "example.com"),
        ('"Doe, Bob" <b@y>', Scope.SANDBOX, "b@y"),
        (" ", Scope.SENDER, ""),
    ],
)
def test_list_of_identities_is_read_as_far_as_it_goes(
    listed: str, scope: Scope, subject: str
) -> None:
    """Display names are skipped, a list cut short and a domain are understood."""
    found = judge(Reply(DOT, 554, NOT_VERIFIED[4:] + listed), ["b@y"])

    assert isinstance(found.verdict, Held)
    assert (found.verdict.scope, found.verdict.subject) == (scope, subject)


@pytest.mark.parametrize(
    "words",
    [
        "sending paused for this account",
        "access denied",
        "email address is not verified",
        "mail from domain not verified",
        "configuration set main does not exist",
        "sending rate exceeded",
        "address blacklisted",
    ],
)
def test_words_in_a_subscribers_address_hold_nobody(words: str) -> None:
    """SES quotes addresses; one made of its own phrases bounces like any other bad one."""
    text = (
        f"Transaction failed: Address contains illegal characters in user name: '<\"{words}\"@x>'."
    )

    found = judge(Reply(DOT, 554, text))

    assert found.rule == "address-in-content"


def test_words_in_an_identity_do_not_pause_the_account() -> None:
    """An identity that is named keeps its own row, whatever it is called."""
    found = judge(reply_at(DOT, NOT_VERIFIED + '"account is paused"@x'))

    assert found.rule == "identity-not-verified"


def test_session_that_ended_tells_what_was_said() -> None:
    """The text of an ended session is the reply as it stood on the wire."""
    found = judge(reply_at(MAIL, "451 4.4.2 Timeout waiting for data from client."))

    assert found.verdict == SessionEnded(
        Ending.IDLE, "451 4.4.2 Timeout waiting for data from client."
    )


@pytest.mark.parametrize("stage", list(Stage))
def test_lost_link_is_in_doubt_only_after_the_354(stage: Stage) -> None:
    """Before the content was asked for nothing can have been delivered."""
    verdict = judge_lost(stage, "reset by peer")

    if stage is DOT:
        assert verdict == InDoubt("reset by peer")
    else:
        assert verdict == SessionEnded(Ending.LINK, "reset by peer")


def test_peer_that_cannot_be_trusted_holds_the_account() -> None:
    """A wrong certificate or a missing STARTTLS keeps all mail, an unreachable host none."""
    away = judge_unreachable(Unreachable("connect: timed out"))
    wrong = judge_unreachable(Unreachable("certificate expired", trusted=False))

    assert away == SessionEnded(Ending.LINK, "connect: timed out")
    assert wrong == Held(Reply(CONNECT, 0, "certificate expired"), Scope.ACCOUNT)


def test_each_verdict_has_a_name_of_its_own() -> None:
    """Tables and metrics can tell the seven apart."""
    reply = Reply(DOT, 250, "Ok")
    verdicts: list[Verdict] = [
        Sent(reply, ""),
        Throttled(reply, Limit.RATE),
        Deferred(reply),
        Held(reply, Scope.ACCOUNT),
        Bounced(reply, per_recipient=False),
        InDoubt(""),
        SessionEnded(Ending.LINK, ""),
    ]

    assert [kind_of(verdict) for verdict in verdicts] == list(Kind)

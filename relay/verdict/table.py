"""What each reply of SES means for the envelope: one table, first match wins.

Knows replies and nothing else: no envelope, no rate, no clock. Keyed by (stage, code,
text), since SES uses 454 for a failed login and for its rate limit, and 554 for a broken
header and for a paused account (facts: AWS, "Amazon SES SMTP response codes", and what
users' logs show; about half of the texts are in no AWS page). Texts are compared without
regard to case, as parts of the reply, after one optional enhanced code.

Order (it decides where two rows fit): acceptance, ends of the session, throttles, AUTH,
account and identity, content, then the class's default. A text that no row knows gets that
default with ``known=False``, so that it is counted and shown.

SES quotes parts of the message (addresses, header names) behind ``Transaction failed:``.
Subscribers choose their own addresses, so the rows that would hold a whole account are not
looked for behind that prefix: nobody stops an account by signing up with the right words.

Choices that the facts leave open:

- A text that would be an account's trouble is believed at any stage from MAIL on, though seen
  only after the dot: SES may move a check forward, and its meaning would not change.

- A 250 to the dot without an SES id is *sent*, with no id and ``known=False``. AWS says that
  a message is accepted only when an id came; but a complete 250 hands over responsibility
  (RFC 5321 §6.1), and to send again would double the mail, while believing costs nothing
  that a bounce report would not show.
- ``Access denied`` holds the account, whatever resource it names: the policy is one document,
  and the resource shown is just the first one that failed.
- An identity that failed verification holds the sender, unless all identities named are
  recipients of this very message: then the account is in the sandbox and only this envelope
  waits.
- Any 5xx to MAIL is about the sender, who is the same for a whole campaign: held, not bounced.
  But 552 there answers the SIZE that we declared: this one message is too long.
- A throttle is one only from MAIL on. Before that, it ends the session like any other 4xx.
- ``554 Sending rate exceeded`` (one unconfirmed report) is a throttle, not a refusal for good; so
  is each text of a throttle, whatever its code, if the reply begins with it.
- 501 and 553 to RCPT are the recipient's fault even with an unknown text; any other 5xx there
  takes only that recipient along, too, but is counted by the breaker as one that may be ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.reply import Reply, Stage
from relay.verdict.words import (
    Bounced,
    Deferred,
    Ending,
    Held,
    Limit,
    Scope,
    Sent,
    SessionEnded,
    Throttled,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence


@dataclass(frozen=True, slots=True)
class Seen:
    """A reply, where a row's text was found in it, and the recipients it decides about."""

    reply: Reply
    found: re.Match[str]
    recipients: Sequence[str]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a reply of one of ``codes`` at one of ``stages`` that contains ``text``."""

    name: str
    stages: frozenset[Stage]
    codes: Container[int]
    text: re.Pattern[str]
    verdict: Callable[[Seen], Verdict]


def _ended(ending: Ending) -> Callable[[Seen], Verdict]:
    return lambda seen: SessionEnded(ending, str(seen.reply))


def _throttled(limit: Limit) -> Callable[[Seen], Verdict]:
    return lambda seen: Throttled(seen.reply, limit)


def _held(scope: Scope, *, slow: bool = False) -> Callable[[Seen], Verdict]:
    """A hold whose subject is what the pattern's group ``subject`` caught, if it has one."""
    return lambda seen: Held(seen.reply, scope, seen.found.groupdict().get("subject") or "", slow)


def _bounced(*, per_recipient: bool = False) -> Callable[[Seen], Verdict]:
    return lambda seen: Bounced(seen.reply, per_recipient)


def _deferred(seen: Seen) -> Verdict:
    return Deferred(seen.reply)


def _sent(seen: Seen) -> Verdict:
    return Sent(seen.reply, seen.found["id"].lower())


def _unverified(seen: Seen) -> Verdict:
    """The sender's hold, or the sandbox's if every identity named is one of the recipients."""
    named = _identities(seen.found["list"] or "")
    own = {recipient.casefold() for recipient in seen.recipients}
    others = [identity for identity in named if identity.casefold() not in own]
    if named and not others:
        return Held(seen.reply, Scope.SANDBOX, named[0])
    return Held(seen.reply, Scope.SENDER, others[0] if others else "")


def _identities(listed: str) -> list[str]:
    """The addresses in the list, without display names; else the list as it stands.

    SES may cut the list short with ``...``; a last address that it cut through is left out.
    """
    found = _ADDRESS.findall(listed)
    if len(found) > 1 and found[-1].endswith("..."):
        found.pop()
    names = [address.strip("'\"`.") for address in found] or [listed.strip().rstrip(".")]
    return [name for name in names if name]


_ADDRESS = re.compile(r"[^\s,;<>]+@[^\s,;<>]+")
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Not behind "Transaction failed:", where SES quotes the message (see the module's docstring).
_OURS = r"\A(?!transaction failed).*?"
_ACCESS_DENIED = (
    r"\A(?:message rejected: )?access denied"
    # … on resource `arn:aws:ses:REGION:ACCOUNT:identity/NAME' (or configuration-set/NAME)
    r"(?:.*resource\W+arn:(?:[^:]*:){4}(?P<subject>[^\s'`]+))?"
)
# The texts of JavaMail's address parser; the last three are known from the API only.
_BAD_ADDRESS = "|".join(
    (
        "missing final '@domain'",
        "domain contains illegal character",
        "invalid domain name",
        "address contains illegal characters",
        "local address contains control or whitespace",
        "missing domain",
        "missing local name",
    )
)

_ANY = frozenset(Stage)
FROM_MAIL = frozenset({Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT})
_MAIL = frozenset({Stage.MAIL})
_RCPT = frozenset({Stage.RCPT})
_AUTH = frozenset({Stage.AUTH})
_CONTENT = frozenset({Stage.DATA, Stage.DOT})
_DOT = frozenset({Stage.DOT})

_4XX = range(400, 500)
_5XX = range(500, 600)
ADDRESS_CODES = frozenset({501, 553})


def _row(
    name: str,
    stages: frozenset[Stage],
    codes: Container[int] | int,
    text: str,
    verdict: Callable[[Seen], Verdict],
) -> Row:
    codes = frozenset({codes}) if isinstance(codes, int) else codes
    return Row(name, stages, codes, re.compile(text, re.IGNORECASE | re.DOTALL), verdict)


TABLE: tuple[Row, ...] = (
    # Acceptance (observed: "250 Ok 0100…-000000", the id of later SNS events).
    _row("accepted", _DOT, range(200, 300), rf"\b(?P<id>[0-9a-f]{{16}}-{_UUID}-\d{{6}})\b", _sent),
    # Ends of the session.
    _row(
        "connection-cap",
        _ANY,
        421,
        r"too many concurrent smtp connections",
        _ended(Ending.CONNECTION_CAP),
    ),
    _row(
        "session-cap",
        _ANY,
        421,
        r"maximum message count per session|too many messages in one session",
        _ended(Ending.SESSION_CAP),
    ),
    _row(
        "idle",
        _ANY,
        frozenset({421, 451}),
        r"timeout waiting for data from client",
        _ended(Ending.IDLE),
    ),
    _row("out-of-step", _ANY, frozenset({502, 503, 504}), r"", _ended(Ending.OUR_BUG)),
    # Throttles. One that names neither limit suggests a service-wide problem (documented).
    _row(
        "throttled-sigv2",
        FROM_MAIL,
        _4XX,
        r"maximum sigv2 smtp sending rate exceeded",
        _throttled(Limit.SIGV2),
    ),
    _row(
        "throttled-quota", FROM_MAIL, _4XX, r"daily message quota exceeded", _throttled(Limit.QUOTA)
    ),
    _row(
        "throttled-rate", FROM_MAIL, _4XX, r"maximum sending rate exceeded", _throttled(Limit.RATE)
    ),
    _row("throttled-other", FROM_MAIL, _4XX, r"throttling failure", _throttled(Limit.RATE)),
    _row(
        "throttled-quota-5xx",
        FROM_MAIL,
        _5XX,
        r"\A(?:throttling failure: )?daily message quota exceeded",
        _throttled(Limit.QUOTA),
    ),
    _row(
        "throttled-5xx",
        FROM_MAIL,
        _5XX,
        r"\A(?:throttling failure|(?:maximum )?sending rate exceeded)",
        _throttled(Limit.RATE),
    ),
    _row(
        "service-failure", FROM_MAIL, frozenset({451, 454}), r"temporary service failure", _deferred
    ),
    # AUTH and what comes of not having done it.
    _row(
        "login-failed-for-now",
        _AUTH,
        454,
        r"temporary authentication failure",
        _ended(Ending.SERVER),
    ),
    _row("starttls-required", _ANY, 530, r"starttls", _held(Scope.ACCOUNT)),
    _row("authentication-required", _ANY, 530, r"", _held(Scope.ACCOUNT)),
    _row("not-subscribed", _ANY, 535, r"not subscribed", _held(Scope.ACCOUNT)),
    _row("credentials-invalid", _ANY, 535, r"", _held(Scope.ACCOUNT)),
    # Account, identity, policy.
    _row(
        "access-denied",
        FROM_MAIL,
        554,
        _ACCESS_DENIED,
        _held(Scope.ACCOUNT),
    ),
    _row(
        "identity-not-verified",
        FROM_MAIL,
        554,
        _OURS + r"email address is not verified(?:.*?in region[^:]*:(?P<list>.*))?",
        _unverified,
    ),
    _row(
        "account-paused",
        FROM_MAIL,
        554,
        _OURS + r"(?:sending paused for this account|account is paused)",
        _held(Scope.ACCOUNT, slow=True),
    ),
    _row(
        "mail-from-domain",
        FROM_MAIL,
        554,
        _OURS + r"mail from domain not verified",
        _held(Scope.SENDER),
    ),
    _row(
        "no-configuration-set",
        FROM_MAIL,
        554,
        r"\A(?:[\w ]+: )?configuration set\s+\W?(?P<subject>[\w-]+)\W? does not exist",
        _held(Scope.CONFIGURATION_SET),
    ),
    _row(
        "sender-invalid",
        _MAIL,
        ADDRESS_CODES,
        r"invalid mail from address|invalid email address|address unknown",
        _held(Scope.SENDER),
    ),
    # Recipients and content.
    _row(
        "recipient-invalid",
        _RCPT,
        ADDRESS_CODES,
        r"invalid rcpt to address|invalid email address|address unknown",
        _bounced(per_recipient=True),
    ),
    _row(
        "address-blacklisted",
        _CONTENT,
        554,
        r"\A(?:message rejected: )?address blacklisted",
        _bounced(per_recipient=True),
    ),
    _row("message-too-long", _CONTENT, 552, r"message is too long", _bounced()),
    # RFC 1870 §6.1: "552 message size exceeds fixed maximum message size" (assumed of SES).
    _row("declared-too-long", _MAIL, 552, r"", _bounced()),
    _row("too-many-recipients", _CONTENT, 554, r"recipient count exceeds", _bounced()),
    _row("duplicate-header", _CONTENT, 554, r"duplicate header", _bounced()),
    _row("illegal-header", _CONTENT, 554, r"illegal header", _bounced()),
    _row(
        "address-in-content",
        _CONTENT,
        554,
        _BAD_ADDRESS,
        _bounced(),
    ),
    _row("content-unparsable", _CONTENT, 554, r"expected .+, got", _bounced()),
)

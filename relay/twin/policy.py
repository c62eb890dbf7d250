"""What SES objects to in a message whose rate is fine: the account first, then the message.

Pure. The order of the tests is *assumed*: may this user send at all, may the account,
is the message one that can be read, does what it names exist, who is in it. Texts are
those of facts/ses-smtp.md 2. The header section was read once and is handed in.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from relay.twin import addresses, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from relay.twin.content import Head
    from relay.twin.parameters import Policy

SIMULATOR = "@simulator.amazonses.com"
"""Recipients there need no verification (*documented*, "Mailbox simulator")."""

AWS_ACCOUNT = "123456789012"
"""The account number of AWS's own examples."""

IAM_USER = "ses-smtp-user.sandbox"

_CONFIGURATION_SET = b"x-ses-configuration-set"
_ADDRESS_FIELDS = frozenset({b"from", b"to", b"cc"})

# RFC 2045 §5.1: tokens. Comments may stand between them.
_TOKEN = rb"[^\x00-\x20()<>@,;:\\\"/\[\]?=\x7f]+"
_COMMENT = re.compile(rb"\([^()]*\)")
_TYPE = re.compile(rb"\s*" + _TOKEN + rb"\s*/\s*" + _TOKEN + rb"\s*")
_DISPOSITION = re.compile(rb"\s*" + _TOKEN + rb"\s*")
_NEXT = re.compile(rb"\s*(" + _TOKEN + rb"|.)", re.DOTALL)


class Message(NamedTuple):
    """What is judged: the envelope, and the header section of the content."""

    sender: str
    recipients: list[str]
    head: Head


def objection(policy: Policy, message: Message) -> str | None:
    """The reply that refuses the message, or None."""
    for test in TESTS:
        text = test(policy, message)
        if text is not None:
            return text
    return None


def _denied(policy: Policy, message: Message) -> str | None:
    """The user lacks ``ses:SendRawEmail`` on the identity, or on the set that is named."""
    if not policy.denied:
        return None
    named = message.head.text(_CONFIGURATION_SET)
    identity = f"identity/{message.sender.rpartition('@')[2]}"
    return texts.ACCESS_DENIED.format(
        account=AWS_ACCOUNT,
        user=IAM_USER,
        region=policy.region.lower(),
        resource=f"configuration-set/{named}" if named else identity,
    )


def _paused(policy: Policy, _message: Message) -> str | None:
    return texts.PAUSED if policy.paused else None


def _too_many(policy: Policy, message: Message) -> str | None:
    """Over SMTP To, Cc and Bcc are the envelope's recipients."""
    if len(message.recipients) <= policy.recipients_max:
        return None
    return texts.TOO_MANY_RECIPIENTS.format(limit=policy.recipients_max)


def _duplicate(policy: Policy, message: Message) -> str | None:
    name = message.head.duplicate() if policy.once_only_headers else None
    return None if name is None else texts.DUPLICATE_HEADER.format(name=name)


def _unreadable(_policy: Policy, message: Message) -> str | None:
    """Content-Type and Content-Disposition, as far as JavaMail's words for it were seen."""
    for field in message.head.fields:
        if field.name == b"content-type":
            text = _after(_TYPE, field.value)
        elif field.name == b"content-disposition":
            text = _after(_DISPOSITION, field.value, texts.EXPECTED_DISPOSITION)
        else:
            continue
        if text is not None:
            return text
    return None


def _after(good: re.Pattern[bytes], value: bytes, otherwise: str | None = None) -> str | None:
    """The complaint about ``value``: ``good`` begins it, then come parameters or nothing.

    A value that does not begin so is complained of by ``otherwise``, if that is given.
    """
    if b"(" in value:
        value = _COMMENT.sub(b" ", value)
    start = good.match(value)
    if start is None:
        return otherwise and otherwise.format(found=_token(value))
    rest = value[start.end() :]
    if not rest or rest.startswith(b";"):
        return None
    return texts.EXPECTED_SEMICOLON.format(found=_token(rest))


def _token(value: bytes) -> str:
    found = _NEXT.match(value)
    return "null" if found is None else found[1].decode("ascii", "replace")


def _bad_address(_policy: Policy, message: Message) -> str | None:
    for address in _addresses(message):
        text = addresses.objection(address)
        if text is not None:
            return text
    return None


def _addresses(message: Message) -> Iterator[str]:
    yield message.sender
    yield from message.recipients
    for field in message.head.fields:
        if field.name in _ADDRESS_FIELDS:
            yield from addresses.in_header(field.value.decode("utf-8", "replace"))


def _unknown_set(policy: Policy, message: Message) -> str | None:
    """Of several fields the first counts (*documented* for the ARN headers)."""
    if policy.configuration_sets is None:
        return None
    name = message.head.text(_CONFIGURATION_SET)
    if not name or name in policy.configuration_sets:
        return None
    return texts.CONFIGURATION_SET_UNKNOWN.format(name=name)


def _unverified(policy: Policy, message: Message) -> str | None:
    if policy.verified is None:
        return None
    asked = [message.sender, *addresses.in_header(message.head.text(b"from"))]
    if policy.sandbox:
        asked += [one for one in message.recipients if not one.lower().endswith(SIMULATOR)]
    bad = [one for one in dict.fromkeys(asked) if not addresses.is_covered(one, policy.verified)]
    if not bad:
        return None
    return texts.UNVERIFIED.format(region=policy.region, identities=", ".join(bad))


TESTS: tuple[Callable[[Policy, Message], str | None], ...] = (
    _denied,
    _paused,
    _too_many,
    _duplicate,
    _unreadable,
    _bad_address,
    _unknown_set,
    _unverified,
)
"""In the order in which they are made; the first objection is the reply."""

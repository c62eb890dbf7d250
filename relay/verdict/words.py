"""The seven verdicts and the words in them.

Frozen values, to be told apart with ``match`` and ``assert_never``. Verdicts carry the reply
they came from, so that whoever settles an envelope can record what was said.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.reply import Reply


class Scope(StrEnum):
    """Whom a hold concerns."""

    ACCOUNT = "account"
    """All that goes to this upstream."""
    SENDER = "sender"
    CONFIGURATION_SET = "configuration-set"
    SANDBOX = "sandbox"
    """This envelope: its recipient is not verified and the account is in the sandbox."""
    CAMPAIGN = "campaign"
    """No reply says so; the breaker does when one campaign is refused again and again."""


class Ending(StrEnum):
    """Why a session came to its end."""

    CONNECTION_CAP = "connection-cap"
    """Too many sessions at once."""
    SESSION_CAP = "session-cap"
    """Enough messages in this one."""
    IDLE = "idle"
    OUR_BUG = "our-bug"
    """We and the server disagree on where in the dialogue we are."""
    SERVER = "server"
    """The server's own trouble: a 4xx before MAIL, or a 421 that gives no known reason."""
    LINK = "link"
    """No reply: the connection failed."""


class Limit(StrEnum):
    """Which of the account's limits a throttle names.

    ``RATE`` and ``SIGV2`` are for the shaper; ``QUOTA`` is for the quota and proves nothing
    about the rate. ``SIGV2`` (old credentials) is told to the quota, too, which sees whether
    it persists.
    """

    RATE = "rate"
    QUOTA = "quota"
    SIGV2 = "sigv2"


@dataclass(frozen=True, slots=True)
class Sent:
    """Accepted; ``ses_id`` is the upstream's id of the message, "" if it gave none."""

    reply: Reply
    ses_id: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """Too fast, or the quota is spent: nothing about the envelope."""

    reply: Reply
    limit: Limit


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now: the 4xx about this envelope that costs an attempt."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Held:
    """Our account, credentials or identity are at fault: keep, alarm.

    ``subject`` is the identity, configuration set or resource that the text names, else "".
    ``slow`` says that only people's work ends this: to ask every few minutes is no use.
    """

    reply: Reply
    scope: Scope
    subject: str = ""
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Bounced:
    """Refused for good; ``per_recipient`` if the address, not the message, is the cause."""

    reply: Reply
    per_recipient: bool


@dataclass(frozen=True, slots=True)
class InDoubt:
    """The link was lost between the 354 and the reply to the dot: it may have gone out."""

    text: str


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session, not the envelope, came to its end: reconnect, same envelope."""

    ending: Ending
    text: str


Verdict = Sent | Throttled | Deferred | Held | Bounced | InDoubt | SessionEnded


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the ``rule`` (row or class default) that gave it, and whether a row knew it."""

    verdict: Verdict
    rule: str
    known: bool


class Kind(StrEnum):
    """The verdicts by name, for tables and metrics."""

    SENT = "sent"
    THROTTLED = "throttled"
    DEFERRED = "deferred"
    HELD = "held"
    BOUNCED = "bounced"
    IN_DOUBT = "in_doubt"
    SESSION_ENDED = "session_ended"


_KINDS: Mapping[type[Verdict], Kind] = {
    Sent: Kind.SENT,
    Throttled: Kind.THROTTLED,
    Deferred: Kind.DEFERRED,
    Held: Kind.HELD,
    Bounced: Kind.BOUNCED,
    InDoubt: Kind.IN_DOUBT,
    SessionEnded: Kind.SESSION_ENDED,
}


def kind_of(verdict: Verdict) -> Kind:
    """Which of the seven it is."""
    return _KINDS[type(verdict)]

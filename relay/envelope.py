"""The envelope: one accepted SMTP transaction and who is still to get it.

Pure words. An envelope never changes: the spool hands out a new one for each attempt,
holding only the recipients that are still waiting. Content is not part of it; it is
found by ``content_id``, which several envelopes share when a message with more than
``RECIPIENTS_MAX`` recipients was split at intake.

Ids are 63-bit integers that grow with time (43 bits of Unix milliseconds, then a
20-bit count), so that id order is order of arrival, also over restarts and when the
clock steps back. People see them as 13 characters of Crockford's base 32, lower case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

RECIPIENTS_MAX = 50
"""SES refuses more: ``554 … Recipient count exceeds 50`` (AWS, "Service quotas")."""

BULK = "bulk"
PRIORITY = "priority"

_COUNT_BITS = 20
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_CHARS = 13
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


class Outcome(StrEnum):
    """How a recipient of an envelope ends, for good (P2: exactly one of these)."""

    SENT = "sent"
    BOUNCED = "bounced"
    EXPIRED = "expired"
    DROPPED = "dropped"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Recipient:
    """One recipient that still waits.

    ``n`` is its place in the envelope (from 0) and its key; ``attempts`` counts the tries
    that said something about this envelope (P4: throttles and ended sessions do not);
    ``in_doubt`` is True once a try may have been delivered without our hearing of it.
    """

    n: int
    address: str
    attempts: int = 0
    in_doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Sender, waiting recipients, and the labels by which mail is scheduled and found.

    Empty strings stand for "none". ``received_at`` is wall time, ms since the epoch.
    """

    id: int
    content_id: int
    sender: str
    recipients: tuple[Recipient, ...]
    upstream: str
    lane: str
    campaign: str = ""
    subscriber: str = ""
    message_id: str = ""
    configuration_set: str = ""
    auth_user: str = ""
    size_bytes: int
    received_at: int

    @property
    def cost(self) -> int:
        """Recipients: the unit in which SES counts rate and quota (AWS, "Service quotas")."""
        return len(self.recipients)

    @property
    def name(self) -> str:
        """The id as people see it."""
        return id_text(self.id)


class IdSource:
    """Hands out envelope ids; ``last`` is the highest id in use anywhere."""

    def __init__(self, last: int = 0) -> None:
        self._last = last

    def next(self, now_ms: int) -> int:
        """A new id, greater than every one before it, whatever the clock does."""
        self._last = max(self._last + 1, now_ms << _COUNT_BITS)
        return self._last


def id_text(envelope_id: int) -> str:
    """The 13 characters that stand for an id in replies, logs and commands."""
    head, rest = _ALPHABET[envelope_id >> 60 & 31], envelope_id
    return head + "".join([_PAIRS[rest >> shift & 1023] for shift in range(50, -1, -10)])


def id_value(text: str) -> int | None:
    """The id that ``text`` stands for, or None if it stands for none."""
    if len(text) != _ID_CHARS or any(char not in _ALPHABET for char in text.lower()):
        return None
    value = 0
    for char in text.lower():
        value = value << 5 | _ALPHABET.index(char)
    return value if value < 1 << 63 else None


def split(addresses: tuple[str, ...]) -> list[tuple[str, ...]]:
    """``addresses`` in order, in runs of at most ``RECIPIENTS_MAX``."""
    return [addresses[at : at + RECIPIENTS_MAX] for at in range(0, len(addresses), RECIPIENTS_MAX)]


def redact(address: str) -> str:
    """``address`` as logs show it: ``a***@example.com``; enough to search by, not to mail to."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***{at}{domain}" if at else "***"


def redact_all(text: str) -> str:
    """``text`` with every address in it as ``redact`` shows it: SES's replies quote addresses."""
    return _ADDRESS.sub(lambda found: redact(found[0]), text)


_ADDRESS = re.compile(r"[^\s<>,;:'\"`]+@[^\s<>,;:'\"`]+")

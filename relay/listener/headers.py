"""The few header fields that the relay reads, out of a message it otherwise does not touch.

Pure, and it never raises: whatever stands in a message, there is an answer. Names are
matched without regard to case, their order means nothing (Listmonk walks a Go map: the
order changes from message to message), values may be folded, and only the header section
counts. Of a repeated field the first wins, as in Listmonk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LABEL_MAX = 64
"""Characters of a label: a uuid has 36, a configuration set's name up to 64 (AWS, "Creating
configuration sets in SES")."""

MESSAGE_ID_MAX = 998
"""Characters: what one line may hold (RFC 5322 §2.1.1)."""

VALUE_MAX_BYTES = 16_384
"""Of a value, folds and blanks included: what is looked at. A message may be one field of 40 MB."""

_FIELD = re.compile(
    rb"^(X-Listmonk-Campaign|X-Listmonk-Subscriber|X-SES-Configuration-Set|Message-Id|Received)"
    # Possessive: what could be given back for another try is remembered, 40 bytes for each byte
    # of a folded field (*observed*, Python 3.11).
    rb"[ \t]*+:([^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What was found; "" for what is not there.

    ``campaign`` and ``subscriber`` are labels: lower case, printable ASCII without blanks
    (anything else becomes ``_``), at most ``LABEL_MAX``. Listmonk's uuids pass unchanged;
    a value that is no uuid still keeps its mail together in one bulk campaign.
    """

    campaign: str = ""
    subscriber: str = ""
    configuration_set: str = ""
    message_id: str = ""
    received: int = 0
    """Servers that have seen the message: its ``Received:`` fields."""


def read(content: bytes) -> Fields:
    """The fields of ``content``, whose lines end with CRLF."""
    found: dict[bytes, bytes] = {}
    received = 0
    for match in _FIELD.finditer(content, 0, _section_end(content)):
        name = match[1].lower()
        if name == b"received":
            received += 1
        else:
            begins, ends = match.span(2)
            found.setdefault(name, content[begins : min(ends, begins + VALUE_MAX_BYTES)])
    return Fields(
        campaign=_label(found.get(b"x-listmonk-campaign")).lower(),
        subscriber=_label(found.get(b"x-listmonk-subscriber")).lower(),
        configuration_set=_label(found.get(b"x-ses-configuration-set")),
        message_id=_text(found.get(b"message-id"))[:MESSAGE_ID_MAX],
        received=received,
    )


def _section_end(content: bytes) -> int:
    """Where the empty line stands that ends the header section (RFC 5322 §2.1)."""
    if content.startswith(b"\r\n"):
        return 0
    at = content.find(b"\r\n\r\n")
    return at if at >= 0 else len(content)


def _text(value: bytes | None) -> str:
    """``value`` unfolded, without blanks around it and without control characters."""
    if value is None:
        return ""
    words = " ".join(value.decode("utf-8", "replace").split())
    if words.isprintable():
        return words
    return "".join(char for char in words if char.isprintable())


def _label(value: bytes | None) -> str:
    return _NOT_LABEL.sub("_", _text(value)[:LABEL_MAX])


_NOT_LABEL = re.compile(r"[^!-~]")

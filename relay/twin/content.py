"""Reading a message: the dot that ends it, the dots that were stuffed, its header fields.

Built for thousands of messages a second: the body is searched and unstuffed as a whole,
in C, never line by line. Only CRLF ``.`` CRLF ends a message (RFC 5321 §4.1.1.4); a bare
CR or LF is content.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_CRLF = b"\r\n"
_END = b"\r\n.\r\n"

# RFC 5322 §2.2: a name of printable ASCII but the colon, then a value that may be folded.
_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:[ \t]*(.*(?:\n[ \t].*)*)\n?", re.MULTILINE)

_ONCE_ONLY = {
    name.lower().encode(): name
    for name in (
        *("Auto-Submitted", "Content-Disposition", "Content-ID", "Content-Transfer-Encoding"),
        *("Content-Type", "Date", "DKIM-Signature", "From", "In-Reply-To", "List-Archive"),
        *("List-Help", "List-Id", "List-Owner", "List-Post", "List-Subscribe"),
        *("List-Unsubscribe", "Message-ID", "MIME-Version", "Precedence", "References"),
        *("Reply-To", "Return-Path", "Sender", "Subject", "User-Agent"),
    )
}
"""*documented* ("Email header fields"): more than one of these and SES refuses the message."""


class Body:
    """The bytes between 354 and the dot, as they come.

    Past ``size_max`` bytes nothing is kept any more but the tail that may hold the start
    of the dot, so that a client is read to its end whatever it sends.
    """

    __slots__ = ("_dropped", "_gathered", "_keep_max")

    def __init__(self, size_max: int) -> None:
        # A CRLF ahead of the first line makes a dot there look like a dot on any other.
        self._gathered = bytearray(_CRLF)
        self._dropped = 0
        # Stuffing adds at most one byte to a line of three; below this the content may fit.
        self._keep_max = size_max + size_max // 3 + len(_END)

    def feed(self, data: bytes | bytearray) -> bytes | None:
        """Take ``data``; None while the dot has not come, else what came after it."""
        searched = max(0, len(self._gathered) - len(_END) + 1)
        self._gathered += data
        end = self._gathered.find(_END, searched)
        if end < 0:
            self._shed()
            return None
        rest = bytes(self._gathered[end + len(_END) :])
        del self._gathered[end + len(_CRLF) :]
        return rest

    def content(self) -> bytes | None:
        """The message with stuffed dots taken out; None if it was too big to keep."""
        if self._dropped:
            return None
        return bytes(self._gathered.replace(_CRLF + b".", _CRLF)[len(_CRLF) :])

    def _shed(self) -> None:
        if len(self._gathered) > self._keep_max:
            tail = len(_END) - 1
            self._dropped += len(self._gathered) - tail
            del self._gathered[:-tail]


class Field(NamedTuple):
    """A header field: its name in lower case, its raw value, and where it stands."""

    name: bytes
    value: bytes
    start: int
    end: int


class Head:
    """The header fields of a message, in their order."""

    __slots__ = ("fields",)

    def __init__(self, content: bytes) -> None:
        end = 0 if content.startswith(_CRLF) else content.find(_CRLF + _CRLF)
        head = content if end < 0 else content[: end + len(_CRLF)]
        self.fields = [
            Field(match[1].lower(), match[2].rstrip(), match.start(), match.end())
            for match in _FIELD.finditer(head)
        ]

    def first(self, name: bytes) -> Field | None:
        """The first field of that (lower-case) name."""
        return next((field for field in self.fields if field.name == name), None)

    def text(self, name: bytes) -> str:
        """The first value of that name, or nothing."""
        field = self.first(name)
        return "" if field is None else field.value.decode("utf-8", "replace")

    def duplicate(self) -> str | None:
        """The name, as SES writes it, of a once-only field that stands there twice."""
        names = [field.name for field in self.fields]
        if len(set(names)) == len(names):
            return None
        return next(
            (
                _ONCE_ONLY[name]
                for name, n in Counter(names).items()
                if n > 1 and name in _ONCE_ONLY
            ),
            None,
        )

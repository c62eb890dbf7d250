"""What an SMTP server said, and at which step.

Pure words. A reply is judged by (stage, code, text): SES uses 454 both for a failed
login and for its rate limit (facts: AWS, "Amazon SES SMTP response codes"), so the code
alone means nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Stage(StrEnum):
    """The step of an SMTP session that a reply belongs to, in the order they come."""

    CONNECT = "connect"
    """TCP, implicit TLS and the greeting."""
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    """The DATA command, whose good answer is 354."""
    DOT = "dot"
    """The end of the content: the reply that decides about the message."""
    RSET = "rset"


# RFC 2034 §4 and RFC 3463 §2: class "." subject "." detail, first thing in the text.
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply; ``text`` is without the codes, lines joined by a newline."""

    stage: Stage
    code: int
    text: str
    enhanced: str = ""

    @classmethod
    def read(cls, stage: Stage, code: int, text: str) -> Self:
        """The reply made of a code and the raw text after it, enhanced code split off."""
        match = _ENHANCED.match(text)
        if match is None:
            return cls(stage, code, text)
        return cls(stage, code, text[match.end() :], match.group(1))

    def __str__(self) -> str:
        """As it stood on the wire, without the stage."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)

"""What a test can make the twin do wrong, at any step.

A fault is a plain callable: asked before each step with the stage and the transaction as
it stands, it returns an action, or None to let the step go its normal way. ``weather``
makes such callables by plan and by probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """The step that is about to be taken; equal to its plain text."""

    CONNECT = "connect"
    """The greeting; with implicit TLS the handshake is over."""
    EHLO = "ehlo"
    STARTTLS = "starttls"
    TLS = "tls"
    """The handshake is to begin: after its 220, or at once with implicit TLS. ``Say`` puts its
    text in ServerHello's place and closes, ``Stall`` keeps the client waiting for it."""
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    """The first bytes after 354 have come. There is no reply here: only ``Cut`` and ``Stall``."""
    DOT = "dot"
    """The whole message is there, nothing is decided yet."""
    RSET = "rset"
    OTHER = "other"
    """NOOP, QUIT, VRFY and what is no command."""


@dataclass(slots=True, kw_only=True)
class Transaction:
    """One session's transaction as far as it has come."""

    session: int
    """Which connection of this twin, from 1."""
    number: int = 1
    """Which message of this session, from 1."""
    command: str = ""
    """What follows the verb of the command in hand."""
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)
    content: bytes | None = None
    """Dots unstuffed; only at ``DOT``, and None there if the message was too big to keep."""

    def clear(self) -> None:
        """Forget sender, recipients and content."""
        self.sender, self.content = None, None
        self.recipients = []


@dataclass(frozen=True, slots=True)
class Say:
    """The step is not done and ``text`` is the reply; then, if asked, the link is closed."""

    text: str
    close: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """No reply: the link ends with FIN, or RST if ``reset``.

    ``done`` takes the step first. At the dot that is the ambiguity of RFC 1047: the
    message counts as accepted and nobody was told.
    """

    reset: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """The step is done at once, its reply comes ``seconds`` late (infinity: never)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Trickle:
    """The step is done, its reply comes one byte at a time (*observed* on TLS)."""

    gap_s: float = 0.001


Action = Say | Cut | Stall | Trickle
Fault = Callable[[Stage, Transaction], Action | None]

"""What the rest of the relay sees of an upstream: the face, and nothing behind it.

Two things really stand behind these protocols: ``Pool`` (SMTP over TCP) and the
dispatcher tests' in-memory double. Both are held to one contract suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from relay.errors import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.reply import Reply


class Refused(UpstreamError):
    """The peer answered, and said no, while a session was being opened.

    ``reply.stage`` is the step: CONNECT (the greeting), EHLO, STARTTLS or AUTH.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"at {reply.stage}: {reply}")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the peer said to one attempt on an envelope.

    ``refused`` maps an index into the recipients to the refusal of that one alone.
    ``final`` decides for all the others, at whichever stage it came; it is None only when
    every recipient was refused on its own. ``ended``: the session takes no further attempt
    (the peer closed it, or it has served its time); release it. ``first``: it was the
    session's first, so whatever ended the session, it was not use or age.
    """

    refused: Mapping[int, Reply]
    final: Reply | None
    ended: bool
    first: bool = False


@dataclass(frozen=True, slots=True)
class PoolState:
    """How many sessions there are now. ``open`` is ``idle`` + ``busy``; ``opening`` is apart.

    ``ceiling`` is the most that may be open at once: ``sessions_max``, or less after the
    peer said that there were too many. ``opening_s`` is how long an opening takes, of late;
    0: none has succeeded yet.
    """

    open: int
    idle: int
    busy: int
    opening: int
    ceiling: int
    opening_s: float = 0.0


class Session(Protocol):
    """One connection to the upstream, used by one attempt at a time."""

    async def send(self, sender: str, recipients: Sequence[str], content: bytes) -> Attempt:
        """What the peer said to this mail.

        Cancelling it closes the connection: a half-done dialogue has no other safe end.

        Raises: SessionLost(stage): no reply came. Stage DOT means that the peer had
        already asked for the content (354), so the mail may have been accepted.
        """
        ...


class Upstream(Protocol):
    """A source of sessions, paced; the dispatcher's only way to the outside."""

    def want(self, sessions: int, *, ready: bool = False) -> None:
        """Let up to ``sessions`` be open at once, should that many be waited for.

        With ``ready``, open them ahead of need and keep up their number, until told otherwise.
        An opening that fails while nobody waits is told to nobody.
        """
        ...

    async def acquire(self) -> Session:
        """A session for the caller alone, who must ``release`` it.

        Waits while all are busy and while opening backs off. A cancelled call keeps none.

        Raises: Unreachable, Refused: an opening failed. Each failure is told to one caller,
        who decides; the others go on waiting.
        """
        ...

    def release(self, session: Session) -> None:
        """Give back a session, whatever became of it."""
        ...

    def snapshot(self) -> PoolState:
        """The figures of this moment."""
        ...

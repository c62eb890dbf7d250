"""A session of the grammar or of a test, played and held against the model."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from relay.service.logs import LogfmtFormatter
from tests.fakes.smtp_grammar import NAME, SECRET, Session
from tests.fakes.smtp_model import Message, Model, Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes.spool import Kept
    from tests.fakes.wire import Shop

FRIEND, STRANGER = "127.0.0.1", "203.0.113.9"


@dataclass(frozen=True)
class Case:
    """Who calls, and how the listener is set up."""

    peer: str
    has_users: bool
    auth: Literal["none", "required"]
    tls: bool


@dataclass
class Score:
    """What a run came to."""

    sessions: int = 0
    replies: int = 0
    accepted: int = 0
    in_the_air: int = 0
    """Kept, with the connection cut before its 250 was out."""
    sent_bytes: int = 0
    grown_bytes: int = 0
    """Of memory, by the caller's reckoning."""
    codes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Watch(logging.Handler):
    """Formats every record, as the relay does, and notes what must not be."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__()
        self._errors, self._as_logfmt = errors, LogfmtFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        line = self._as_logfmt.format(record)
        if record.levelno >= logging.ERROR or record.exc_info or _CONTROL.search(line):
            self._errors.append(line)


@contextmanager
def watched(score: Score) -> Iterator[None]:
    """No error may be logged, and no line may be broken by what a client says."""
    ours, others = logging.getLogger("relay"), logging.getLogger("asyncio")
    watch, level = Watch(score.errors), ours.level
    for one in (ours, others):
        one.addHandler(watch)
        one.propagate = False
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        for one in (ours, others):
            one.removeHandler(watch)
            one.propagate = True
        ours.setLevel(level)


def model_of(case: Case, size_max_bytes: int) -> Model:
    """A model of a session of that case, before its greeting."""
    return Model(
        size_max_bytes=size_max_bytes,
        is_trusted=case.peer == FRIEND,
        auth_required=case.auth == "required",
        has_tls=case.tls,
        name=NAME if case.has_users else b"",
        secret=SECRET,
    )


async def play(shop: Shop, case: Case, session: Session, score: Score) -> None:
    """One session from the greeting to its end, with all that must hold of it."""
    model = model_of(case, shop.listen.size_max_bytes)
    caller = shop.enter(case.peer)
    if session.is_hasty:
        for packet in session.packets:
            caller.wire.send(packet)
        for _ in range(session.patience_turns):
            await asyncio.sleep(0)
        heard = await caller.leave(cut=session.cuts)
        try:
            model.feed(b"".join(session.packets), heard)
        except Silent as due:
            # A client that only closed its side is answered, but for a guess that waits.
            assert session.cuts or "535" in due.args[0]  # noqa: PT017  # it is no test's
    else:
        model.feed(b"", await caller.hear())
        for packet in session.packets:
            model.feed(packet, await caller.send(packet))
            assert caller.wire.is_closed == model.is_closed
        assert await caller.leave(cut=session.cuts) == b""
    in_the_air = check_kept(shop.spool.kept, model)
    assert caller.ended == 1
    assert not shop.counts.failures
    assert not score.errors
    score.sessions += 1
    score.replies += model.codes.total()
    score.accepted += len(model.accepted)
    score.in_the_air += in_the_air
    score.sent_bytes += sum(map(len, session.packets))
    score.codes += model.codes


def check_kept(kept: list[Kept], model: Model) -> int:
    """All that was accepted is kept, as it was sent, and nothing else is."""
    wanted = list(model.accepted)
    in_the_air = len(kept) > len(wanted)
    if in_the_air:
        assert model.pending is not None, "kept and never sent"
        wanted.append(model.pending)
    assert len(kept) == len(wanted)
    for one, message in zip(kept, wanted, strict=True):
        _check_one(one, message)
    return in_the_air


def _check_one(one: Kept, message: Message) -> None:
    (envelope,) = one.envelopes
    trace, _, rest = one.content.partition(b"\r\n id ")
    assert trace.startswith(b"Received: by relay.test ")
    assert rest.partition(b"\r\n")[2] == message.content
    assert message.sender in {None, envelope.sender.encode()}
    told = dict.fromkeys(message.recipients)
    found = [recipient.address.encode() for recipient in envelope.recipients]
    assert told.keys() - {None} <= set(found)
    assert None in told or list(told) == found

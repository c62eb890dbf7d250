"""P1 when everything breaks: 451 or 452, a text that is always the same, and on with the next.

Each failure we know of, ours, SQLite's, Python's and the system's, is raised at each place where
a message meets the spool. The client is told neither what it was nor where.
"""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.errors import ConfigError, ConfigErrors, RelayError, SessionLost
from relay.listener import replies
from relay.upstream import Refused
from tests.fakes.smtp_model import replies_in
from tests.fakes.spool import FakeSpool
from tests.fakes.wire import Loop, Shop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from relay.envelope import Envelope

SECRET = "/var/lib/relay/secret.db line 42"
"""What every failure says of itself, and no client may ever read."""

MAIL = b"MAIL FROM:<a@b.example>\r\n"
BEGUN = MAIL + b"RCPT TO:<c@d.example>\r\nDATA\r\n"
GOOD = BEGUN + b"x\r\n.\r\n"


def ours(kind: type[RelayError]) -> RelayError:
    """One of that kind."""
    match kind.__name__:
        case "ConfigError":
            return ConfigError(SECRET, SECRET, SECRET)
        case "ConfigErrors":
            return ConfigErrors([ConfigError(SECRET, SECRET, SECRET)])
        case "SessionLost":
            return SessionLost("dot", SECRET)
        case "Refused":
            return Refused.__new__(Refused, SECRET)
    return kind(SECRET)


def kinds(root: type[RelayError]) -> Iterator[type[RelayError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


FAILURES: dict[str, BaseException] = {
    **{kind.__name__: ours(kind) for kind in kinds(RelayError)},
    "MemoryError": MemoryError(SECRET),
    "RecursionError": RecursionError(SECRET),
    "ENOSPC": OSError(errno.ENOSPC, SECRET),
    "EMFILE": OSError(errno.EMFILE, SECRET, SECRET),
    "EROFS": OSError(errno.EROFS, SECRET),
    "FileNotFoundError": FileNotFoundError(SECRET),
    "PermissionError": PermissionError(SECRET),
    "ConnectionError": ConnectionResetError(SECRET),
    "BrokenPipeError": BrokenPipeError(SECRET),
    "TimeoutError": TimeoutError(SECRET),
    "SSLError": ssl.SSLError(SECRET),
    "sqlite OperationalError": sqlite3.OperationalError(SECRET),
    "sqlite DatabaseError": sqlite3.DatabaseError(SECRET),
    "sqlite IntegrityError": sqlite3.IntegrityError(SECRET),
    "sqlite ProgrammingError": sqlite3.ProgrammingError(SECRET),
    "UnicodeEncodeError": UnicodeEncodeError("ascii", SECRET, 0, 1, SECRET),
    "UnicodeDecodeError": UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
    "ValueError": ValueError(SECRET),
    "KeyError": KeyError(SECRET),
    "TypeError": TypeError(SECRET),
    "AttributeError": AttributeError(SECRET),
    "ZeroDivisionError": ZeroDivisionError(SECRET),
    "AssertionError": AssertionError(SECRET),
    "NotImplementedError": NotImplementedError(SECRET),
    "StopIteration": StopIteration(SECRET),
    "StopAsyncIteration": StopAsyncIteration(SECRET),
    "EOFError": EOFError(SECRET),
    "Exception": Exception(SECRET),
    "ExceptionGroup": ExceptionGroup(SECRET, [ValueError(SECRET)]),
    "InvalidStateError": asyncio.InvalidStateError(SECRET),
    "IncompleteReadError": asyncio.IncompleteReadError(SECRET.encode(), 3),
    "QueueFull": asyncio.QueueFull(SECRET),
}

PLACES = ("has_room", "wait_for_room", "new_id", "append")

TEXTS = {replies.SURPRISE.decode(), replies.NO_ROOM.decode()}


@dataclass
class BadSpool(FakeSpool):
    """Raises ``failure`` where ``place`` says, as long as there is one."""

    place: str = ""
    ill: BaseException | None = None

    def _fall(self, place: str) -> None:
        if self.ill is not None and place == self.place:
            raise self.ill

    @property
    def has_room(self) -> bool:
        self._fall("has_room")
        return self.ill is None or self.place != "wait_for_room"

    async def wait_for_room(self) -> None:
        self._fall("wait_for_room")
        await super().wait_for_room()

    def new_id(self) -> int:
        self._fall("new_id")
        return super().new_id()

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        await asyncio.sleep(0)
        self._fall("append")
        await super().append(envelopes, content)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FAILURES)
def test_p1_failure_is_451_or_452_and_tells_nothing(
    name: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The text is constant, the log has the failure, nothing is kept, the next mail is taken."""
    spool = BadSpool(place=place)
    shop = Shop(listen=config.Listen(stall_max_s=0.01), spool=spool)

    async def play() -> list[str]:
        caller = shop.enter()
        await caller.hear()
        spool.ill = FAILURES[name]
        said = replies_in(await caller.send(GOOD if place in {"new_id", "append"} else MAIL))
        spool.ill = None
        assert not spool.kept
        if place in {"new_id", "append"}:
            # Listmonk ends a refused message once more: the empty line is not to be answered.
            assert await caller.send(b"\r\n") == b""
        assert "250 2.0.0 Ok: queued" in replies_in(await caller.send(b"RSET\r\n" + GOOD))[-1]
        await caller.leave(cut=False)
        return said

    with asyncio.Runner(loop_factory=Loop) as runner:
        said = runner.run(play())

    assert said[-1] in TEXTS
    assert len(spool.kept) == 1
    assert shop.house.allowance.used_bytes == 0
    is_known = isinstance(FAILURES[name], RelayError) or said[-1] == replies.NO_ROOM.decode()
    assert bool(shop.counts.failures) != is_known
    assert is_known or SECRET in caplog.text or name == "IncompleteReadError"

"""The real program, with a trap in it: at the wanted call of a function the process is killed.

``python -m tests.fault.victim TARGET MOMENT CALLS DELAY_S [--step] -- serve -c relay.toml``

``MOMENT`` is ``before`` or ``after`` the call, or ``during``: a thread kills ``DELAY_S`` after it
began, wherever SQLite, the socket or the loop is by then. The kill is SIGKILL to itself: no
handler, no flush, no ``finally``. With ``stall`` the call never returns, as on a disk that hangs;
then the kill has to come from outside. Nothing else of the program is changed, but for limits that
make rare work frequent.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from relay.spool import migrations, room, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "intake": (
        "relay.listener.body:BodyReader.feed",
        "relay.listener.intake:Intake.keep",
        "relay.spool.writer:Writer.append",
        "relay.spool.batch:_append",
    ),
    "dispatch": (
        "relay.dispatcher.feed:Feed._read",
        "relay.dispatcher.attempts:Attempts._sound_content",
        "relay.upstream.session:SmtpSession.send",
    ),
    "settle": (
        "relay.dispatcher.attempts:Attempts._conclude",
        "relay.dispatcher.books:Books.settle",
        "relay.spool.settling:settle",
        "relay.spool.settling:_place",
    ),
    "commit": ("relay.spool.batch:Scribe._commit", "relay.spool.writer:Writer._apply"),
    "checkpoint": ("relay.spool.upkeep:checkpoint", "relay.spool.batch:checkpoint"),
    "start": ("relay.service.relay:Relay._restore", "relay.service.relay:Relay._open_doors"),
    "stop": (
        "relay.service.relay:Relay._finish",
        "relay.dispatcher.dispatcher:Dispatcher.drain",
        "relay.spool.writer:Writer.close",
        "relay.spool.spool:Spool.close",
    ),
    "migration": ("relay.spool.migrations:_apply", "relay.spool.migrations:_split"),
}
"""The functions of each stage of a message's life, and of the file's."""
MOMENTS: Final = ("before", "during", "after")

STALL_S: Final = 3600

WAL_BYTES: Final = 512 << 10
"""A small cap of the log: several checkpoints a second instead of one in many seconds."""
NEXT_VERSION: Final = migrations.VERSION + 1
NEXT_STEP: Final = """
ALTER TABLE envelope ADD COLUMN colour TEXT NOT NULL DEFAULT '';
UPDATE envelope SET colour = 'red';
CREATE TABLE crayon (id INTEGER PRIMARY KEY, colour TEXT NOT NULL) STRICT;
INSERT INTO crayon SELECT id, colour FROM envelope;
CREATE INDEX envelope_colour ON envelope (colour);
UPDATE outcome SET reply = reply || '';
"""
"""A made-up next format: it rewrites each row, which no step of ours does today."""


class Trap:
    """Kills this process at the wanted call of what it is wrapped around."""

    def __init__(self, moment: str, calls: int, delay_s: float) -> None:
        self._moment, self._left, self._delay_s = moment, calls, delay_s

    def spring(self, moment: str) -> None:
        """Die, if this is the moment."""
        if moment == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)
        while self._moment == "stall":
            time.sleep(STALL_S)

    def enters(self) -> bool:
        """Whether this call is the one; then the clock of ``during`` runs."""
        self._left -= 1
        if self._left:
            return False
        self.spring("before")
        if self._moment == "during":
            threading.Thread(target=self._late).start()  # The exit waits for it.
        return True

    def _late(self) -> None:
        time.sleep(self._delay_s)
        self.spring("during")

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with the trap; each item of a generator counts as a call, and its end."""
        if inspect.isgeneratorfunction(function):
            return self._around_items(function)
        if asyncio.iscoroutinefunction(function):
            return self._around_coroutine(function)

        @wraps(function)
        def plain(*args: object, **named: object) -> object:
            is_it = self.enters()
            result = function(*args, **named)
            if is_it:
                self.spring("after")
            return result

        return plain

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def waiting(*args: object, **named: object) -> object:
            is_it = self.enters()
            result = await function(*args, **named)
            if is_it:
                self.spring("after")
            return result

        return waiting

    def _around_items(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def items(*args: object, **named: object) -> Iterator[object]:
            for item in function(*args, **named):
                if self.enters():
                    self.spring("after")
                yield item
            if self.enters():
                self.spring("after")

        return items


def place_of(target: str) -> tuple[Any, str]:
    """The module or class that holds ``module:name``, and the last part of the name."""
    module, _, name = target.partition(":")
    *outer, last = name.split(".")
    holder: Any = import_module(module)
    for part in outer:
        holder = getattr(holder, part)
    return holder, last


def lay(target: str, trap: Trap) -> None:
    """Put the trap around a function of the program."""
    holder, name = place_of(target)
    setattr(holder, name, trap.around(getattr(holder, name)))


def next_script(file: str) -> str:
    """The scripts of the program that knows a format more."""
    return NEXT_STEP if file == f"{NEXT_VERSION:04}.sql" else statements.script(file)


def main() -> None:
    """Lay the trap and be the relay."""
    from relay.cli import main as relay  # noqa: PLC0415  # As late as the real one.

    target, moment, calls, delay_s, *more = sys.argv[1:]
    room.WAL_MAX_BYTES = WAL_BYTES  # type: ignore[misc]
    if more[0] == "--step":
        migrations.VERSION = NEXT_VERSION  # type: ignore[misc]
        migrations.script = next_script  # type: ignore[attr-defined]
    if target:
        lay(target, Trap(moment, int(calls), float(delay_s)))
    relay(more[more.index("--") + 1 :], prog_name="relay")


if __name__ == "__main__":
    main()

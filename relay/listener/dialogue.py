"""The dialogue on one connection: lines in, replies out.

What aiosmtpd does itself would lose mail from Listmonk and is replaced here (aiosmtpd 1.4.6,
read): it hangs up after five unknown commands, answers the empty line after a refused dot, tells
an exception's text with 500, and writes two log lines for each command.

What the commands do: ``client``. The dialogue closes the connection after QUIT, after
``STRANGER_LINES_MAX`` commands of a stranger, and when it fails within a message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from relay.errors import RelayError
from relay.listener import replies
from relay.listener.connection import Connection, Step
from relay.listener.handover import decoded
from relay.listener.inflow import ClientGone, LineTooLong

log = logging.getLogger(__name__)

_T = TypeVar("_T")

STRANGER_LINES_MAX = 100
"""Commands of a stranger. It needs ten to log in, and each one takes our time from Listmonk."""

TURN_MAX = 100
"""Commands obeyed in a row before others have their turn: some half a millisecond."""

_BEFORE_TLS = frozenset({b"EHLO", b"HELO", b"NOOP", b"QUIT", b"RSET", b"STARTTLS"})

_OF_A_MESSAGE = frozenset({b"MAIL", b"RCPT", b"DATA"})

Command = Callable[[Any, str], Awaitable[bytes]]
"""A method that takes a command's argument and returns the reply, or ``NOTHING``."""

NOTHING = b""
"""No reply: all has been said."""


class Dialogue(Connection):
    """One line, one answer, until one side has had enough; subclasses have the commands."""

    _COMMANDS: ClassVar[dict[bytes, Command]] = {}

    async def _handle_client(self) -> None:
        """Loop in aiosmtpd's place until the connection is closed or let go."""
        try:
            if self._standing is not None:
                # Now, not with the connection: a loop may begin to read only after that.
                self._inflow.feed(decoded(self._standing.unread))
            if self._standing is None or not self._standing.is_greeted:
                await self.push(b"220 " + self._name() + b" ESMTP listmonk-relay")
            while (line := await self._next_line()) is not None:
                await self._obey(line)
        except ClientGone:
            pass
        finally:
            if self.transport is not None:
                self.transport.close()

    async def _next_line(self) -> bytes | None:
        """The next command; None once the relay drains and nothing is under way."""
        while True:
            try:
                line = self._inflow.line()
            except LineTooLong:
                await self.push(replies.LINE_TOO_LONG)
                continue
            if line is not None:
                self._in_turn += 1
                if self._in_turn > TURN_MAX:
                    self._in_turn = 0
                    await asyncio.sleep(0)
                return line
            if self._is_draining and self._mail is None and not self._is_negotiating:
                await asyncio.sleep(0)  # uvloop sends what was written at the end of its turn
                self._let_go()
                return None
            await self._more()

    async def _more(self) -> None:
        self._in_turn = 0
        self._silent_since = self.loop.time()
        try:
            await self._inflow.more()
        finally:
            self._silent_since = None

    async def _obey(self, line: bytes) -> None:
        self._line = line
        if not line and self._was_refused:
            # Listmonk ends a refused message twice: an empty line, a dot, and reads one answer.
            return
        self._was_refused = False
        if self._is_stranger():
            self._stranger_lines += 1
            if self._stranger_lines > STRANGER_LINES_MAX:
                await self.push(replies.COMMANDS_TOO_MANY)
                raise ClientGone
        try:
            reply = await self._reply_to(line)
        except ClientGone:
            raise
        except Exception as error:  # the one of this loop
            await self._apologise(error)
        else:
            if reply is not NOTHING:
                self._note_refusal(line, reply)
                await self.push(reply)

    def _note_refusal(self, line: bytes, reply: bytes) -> None:
        """Log what lost somebody a message: Listmonk keeps no record of it."""
        if reply[0] in b"45" and line[:4].upper() in _OF_A_MESSAGE:
            level = logging.WARNING if self._is_trusted or self._auth_user else logging.INFO
            at = line[:4].decode().lower()
            facts = {"peer": self._peer, "at": at, "reply": reply.decode()}
            log.log(level, "message refused", extra=facts)

    async def _reply_to(self, line: bytes) -> bytes:
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        command = self._COMMANDS.get(verb)
        if command is None:
            return replies.UNKNOWN
        if self._listen.tls_required and not self._is_encrypted and verb not in _BEFORE_TLS:
            return replies.TLS_FIRST
        try:
            text = argument.strip().decode()
        except UnicodeDecodeError:
            return replies.NOT_TEXT
        return await command(self, text)

    async def _apologise(self, error: Exception) -> None:
        self._mail = None
        await self.push(await self.handle_exception(error))
        if self._in_content:
            # What follows would be read as commands, though it is somebody's letter.
            raise ClientGone from error

    async def handle_exception(self, error: Exception) -> str:
        """Give aiosmtpd's hook the reply to a failure of ours, which is logged."""
        if isinstance(error, RelayError):
            log.error("message not kept", extra={"error": str(error)})
        else:
            log.error("surprise in the listener", exc_info=error)
            self._observer.failed("listener")
        return replies.of_failure(error).decode()

    async def push(self, status: bytes | str) -> None:
        """Answer with ``status``, one or more whole lines without the last line's end."""
        reply = status.encode("ascii", "replace") if isinstance(status, str) else status
        if reply[0] in b"45":
            self._observer.refused(int(reply[:3]))
        wire = self._wire()
        if wire.is_closing():
            raise ClientGone
        wire.write(reply + b"\r\n")
        if self._is_full:
            await self._flush()

    async def _flush(self) -> None:
        """Wait until a client that sends and does not read has read."""
        self._silent_since = self.loop.time()
        try:
            await self._writer.drain()
        except OSError as error:
            raise ClientGone from error
        finally:
            self._silent_since = None

    def _name(self) -> bytes:
        return str(self.hostname).encode()

    async def _within(self, step: Step, wait: Callable[[], Awaitable[_T]]) -> _T:
        """Wait for a resource of ours, until the client leaves."""
        if self._inflow.ended:
            raise ClientGone
        self._step = step
        try:
            return await wait()
        finally:
            self._step = Step.CLIENT

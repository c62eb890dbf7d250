"""One session: attempt after attempt on one connection, until it has served its time.

The order of an attempt: MAIL, RCPT each, DATA, content and dot, and RSET if anything was
refused. SES keeps a transaction open after a refused DATA and answers the next MAIL with
``503 Sender already specified.`` (facts: SubEthaSMTP's code), hence the RSET; it is sent
at once, so that an idle session is always a clean one.

Nothing is charged to a message that is not its own: what a reply means is for ``verdict``.
"""

from __future__ import annotations

import asyncio
import logging
from math import ceil
from typing import TYPE_CHECKING, Self

from relay.errors import SessionLost
from relay.reply import Reply, Stage

from .address import encode_address
from .content import normalise, stuff
from .face import Attempt
from .opening import Access, Opened, open_link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.clock import Clock

log = logging.getLogger(__name__)

RESET_WAIT_S = 10.0
"""The reply before it is known and waits to be used; a dead link must not keep it for a minute."""

_GOOD = {
    Stage.MAIL: (250,),
    Stage.RCPT: (250, 251, 252),
    Stage.DATA: (354,),
    Stage.DOT: (250,),
}
"""The replies after which an attempt goes on (RFC 5321 §4.3.2)."""


class SmtpSession:
    """A ``face.Session`` over SMTP. ``on_lost`` is called when its connection has gone."""

    def __init__(self, opened: Opened, access: Access, clock: Clock, share: float = 1.0) -> None:
        """``share`` of the messages and of the age that a session may have are this one's."""
        self._link = opened.link
        self._extensions = opened.extensions
        self._upstream = access.upstream
        self._clock = clock
        self._attempts = 0
        self._attempts_max = ceil(share * access.upstream.session_messages_max)
        self._age_max_s = share * access.upstream.session_age_max_s
        self._opened_at = clock.monotonic()
        self._used_at = self._opened_at
        self.asked_at = self._opened_at
        """When the last attempt began."""
        self.parting: Reply | None = None
        """The 421 with which the peer ended it, if it did."""

    @classmethod
    async def open(cls, access: Access, clock: Clock, share: float = 1.0) -> Self:
        """A session ready to send. Raises: Unreachable, Refused."""
        return cls(await open_link(access), access, clock, share)

    @property
    def alive(self) -> bool:
        """False once the connection is closing, the peer hung up or spoke unasked."""
        return self._link.is_connected

    @property
    def worn(self) -> bool:
        """True once it has had its share of attempts or time, or idled for too long."""
        now = self._clock.monotonic()
        return (
            self._attempts >= self._attempts_max
            or now >= self._opened_at + self._age_max_s
            or now >= self.idle_until
        )

    @property
    def idle_until(self) -> float:
        """The monotonic moment until which it may be left unused."""
        return self._used_at + self._upstream.idle_close_s

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Have ``on_lost`` called when the connection has gone."""
        self._link.on_lost = on_lost

    async def send(self, sender: str, recipients: Sequence[str], content: bytes) -> Attempt:
        """As ``face.Session.send``.

        A session that the caller kept idle for too long is lost at MAIL before a word is
        said: SES may be hanging up at that moment, and its parting words are about no mail.
        """
        if not self.alive or self.worn:
            self.abort()
            raise SessionLost(Stage.MAIL, "the session had ended before")
        try:
            refused, final = await self._send(sender, recipients, content)
        except BaseException:
            self.abort()
            raise
        ended = not self.alive or self.worn
        return Attempt(refused, final, ended, first=self._attempts == 1)

    async def _send(
        self, sender: str, recipients: Sequence[str], content: bytes
    ) -> tuple[dict[int, Reply], Reply | None]:
        """Refusals by recipient and the reply for the others; the transaction is closed."""
        source = encode_address(sender, Stage.MAIL)
        if isinstance(source, Reply):
            return {}, source
        targets, refused = _encode_all(recipients)
        if not targets:
            return refused, None
        self._attempts += 1
        self.asked_at, refused_here = self._clock.monotonic(), len(refused)
        final = await self._transact(source, targets, refused, normalise(content))
        if final is not None and final.code == 421:
            self.parting = final
            self._link.close()  # RFC 5321 §3.8: the peer closes after saying so; so do we.
        elif final is None or final.code != 250 or len(refused) > refused_here:
            await self._reset()
        self._used_at = self._clock.monotonic()
        return refused, final

    async def _transact(
        self, source: bytes, targets: dict[int, bytes], refused: dict[int, Reply], content: bytes
    ) -> Reply | None:
        """The reply that decides for all who are not in ``refused``, to which it adds."""
        reply = await self._ask(Stage.MAIL, b"MAIL FROM:<%b>" % source, *self._options(content))
        if _is_refusal(reply):
            return reply
        for n, target in targets.items():
            reply = await self._ask(Stage.RCPT, b"RCPT TO:<%b>" % target)
            if reply.code == 421:
                return reply
            if _is_refusal(reply):
                refused[n] = reply
        if all(n in refused for n in targets):
            return None
        reply = await self._ask(Stage.DATA, b"DATA")
        if _is_refusal(reply):
            return reply
        return _checked(await self._link.submit(stuff(content), self._upstream.dot_timeout_s))

    async def _ask(self, stage: Stage, *words: bytes) -> Reply:
        return _checked(
            await self._link.ask(stage, *words, timeout_s=self._upstream.reply_timeout_s)
        )

    def _options(self, content: bytes) -> list[bytes]:
        """MAIL's parameters, of those on offer. SIZE counts no stuffing (RFC 1870 §3)."""
        options = []
        if "size" in self._extensions:
            options.append(b"SIZE=%d" % len(content))
        if "8bitmime" in self._extensions and not content.isascii():
            options.append(b"BODY=8BITMIME")
        return options

    async def _reset(self) -> None:
        """RSET; a session that cannot be reset ends here, and what was said before stands."""
        timeout_s = min(RESET_WAIT_S, self._upstream.reply_timeout_s)
        try:
            reply = await self._link.ask(Stage.RSET, b"RSET", timeout_s=timeout_s)
        except SessionLost:
            log.debug("session lost at reset", extra={"upstream": self._upstream.name})
            self.abort()
            return
        if reply.code != 250:
            self.abort()

    async def quit(self, timeout_s: float) -> None:
        """Close, politely if that takes no longer than ``timeout_s``; never fails.

        SES may close TLS without close_notify or with "user canceled" after its 221 (facts:
        aiosmtplib 345, listmonk 1717); whatever comes here is an ordinary end.
        """
        try:
            async with asyncio.timeout(timeout_s):
                # QUIT has no stage of its own: its reply is about no mail and is not kept.
                await self._link.ask(Stage.RSET, b"QUIT", timeout_s=timeout_s)
                self._link.close()
                await self._link.lost.wait()
        except (SessionLost, TimeoutError):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once; what is under way ends with SessionLost."""
        self._link.abort()


def _encode_all(recipients: Sequence[str]) -> tuple[dict[int, bytes], dict[int, Reply]]:
    """By index: the addresses that can be sent, and the refusals of those that cannot."""
    targets: dict[int, bytes] = {}
    refused: dict[int, Reply] = {}
    for n, recipient in enumerate(recipients):
        match encode_address(recipient, Stage.RCPT):
            case Reply() as refusal:
                refused[n] = refusal
            case target:
                targets[n] = target
    return targets, refused


def _checked(reply: Reply) -> Reply:
    """``reply`` if it fits its stage. Raises: SessionLost: neither the good one nor a refusal.

    Then question and answer are out of step, and nothing said on this connection counts.
    """
    if reply.code < 400 and reply.code not in _GOOD[reply.stage]:
        raise SessionLost(reply.stage, f"out of step: {reply}")
    return reply


def _is_refusal(reply: Reply) -> bool:
    return reply.code >= 400

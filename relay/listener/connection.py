"""One client connection: its life, from the connect to the end, or to the next relay.

A subclass of aiosmtpd's ``SMTP``, which gives the connection's life and the hooks. It cancels
the dialogue when the client half-closes, and sets a timer for each command; both are replaced
here (aiosmtpd 1.4.6, read).

The relay closes first only when it drains, when a stranger has not logged in within
``STRANGER_MAX_S`` or has to make room for another (``slots``), and after hours of silence
from anyone. What else a stranger can be hung up on for: ``dialogue`` and ``client``.

Why three classes for one connection (``dialogue``, ``client``), where we have no base classes
else: aiosmtpd's hooks are methods of one object, and together they are more than a reader takes
in at once. No properties here: aiosmtpd's constructor reads every attribute of the new object.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from aiosmtpd.smtp import SMTP

from relay import loops
from relay.guesses import origin_of
from relay.listener import access
from relay.listener.handover import Keep, Standing, encoded, let_go
from relay.listener.inflow import ClientGone, Inflow

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from relay.listener.allowance import Allowance
    from relay.listener.auth import Passwords
    from relay.listener.intake import Intake, Mail
    from relay.listener.slots import Slots

log = logging.getLogger(__name__)

STRANGER_MAX_S = 60.0
"""From the connection to the login, whatever a stranger says meanwhile: a trickle of bytes must
not keep a place. RFC 5321 §4.5.3.2.7 asks a server to wait 5 minutes at least, for mail; a
stranger can bring none. Listmonk logs in within a second; all that strangers can have before it
in the queue for a password check are some seconds."""

IDLE_BETWEEN_S = 86_400.0
"""Between commands: Listmonk with one connection keeps it for ever, idle (facts: listmonk.md 1)."""

IDLE_CONTENT_S = 7_200.0
"""Within a message: it holds memory, and a client that pauses for two hours is dead."""

NEGOTIATION_GRACE_S = 2.0
"""At a drain, for a login or a TLS handshake under way: a few round trips, over any line."""

GONE_GRACE_S = 1.0
"""How long a message may still take to be kept after its client has left without a stall.
Its end had come, so keeping it is right; Listmonk takes it for lost either way (facts:
listmonk-wire.md, Errors)."""

_KEEPALIVE = {"TCP_KEEPIDLE": 120, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 5}
"""Seconds, seconds, probes: a peer that vanished is found after some five minutes."""


class Step(Enum):
    """What the dialogue waits for."""

    CLIENT = auto()
    ROOM = auto()
    """MAIL stalls until the spool has room."""
    ALLOWANCE = auto()
    """A body waits for memory."""
    LOGIN = auto()
    """A guess at a password waits for its turn, or for the answer to a wrong one."""
    COMMIT = auto()
    """The dot waits for the spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What all connections of one listener share."""

    intake: Intake
    networks: access.Networks
    allowance: Allowance
    passwords: Passwords | None
    tls: ssl.SSLContext | None
    slots: Slots


class Connection(SMTP):
    """The server's side of one connection; ``on_end`` is called once, when all of it is over."""

    transport: asyncio.Transport | None

    def __init__(
        self,
        house: House,
        on_end: Callable[[Connection], None],
        standing: Standing | None = None,
    ) -> None:
        """With a ``standing``, go on where another process has let go of the connection."""
        listen = house.intake.listen
        super().__init__(
            None,
            hostname=house.intake.hostname,
            data_size_limit=listen.size_max_bytes,
            auth_require_tls=False,
            loop=asyncio.get_running_loop(),
        )
        self._house, self._listen, self._on_end = house, listen, on_end
        self._observer, self._clock = house.intake.observer, house.intake.clock
        self._inflow = Inflow()
        self._peer = ""
        self._step = Step.CLIENT
        self._mail: Mail | None = None
        self._auth_user = self._auth_proof = ""
        self._standing = standing
        self._keep: Keep | None = None
        self._is_extended = self._is_encrypted = self._is_trusted = self._is_negotiating = False
        self._is_full = self._is_draining = self._is_over = False
        self._was_refused = self._in_content = False
        self._in_turn = 0
        self._line = b""
        self._silent_since: float | None = None
        self._stranger_since, self._stranger_lines = self.loop.time(), 0
        self._idle_timer: asyncio.TimerHandle | None = None

    # The connection's life: called by the transport and by the listener.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As aiosmtpd, which starts ``_handle_client``; and keep-alive, and the idle watch."""
        super().connection_made(transport)
        self._inflow.attach(self._wire())
        peer = transport.get_extra_info("peername")
        found = access.read_address(str(peer[0])) if peer else None
        self._peer = str(found or "unknown")
        self._is_trusted = self._peer in self._house.networks
        _keep_alive(transport.get_extra_info("socket"))
        if self._standing is not None:
            self._go_on_from(self._standing)
        self._watch_silence()
        self._dialogue().add_done_callback(lambda _: self._part())

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone in both directions; told twice, the second time is nothing."""
        if self.transport is None:
            return
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        self._client_left()
        self._part()

    def data_received(self, data: bytes) -> None:
        """The client sent ``data``."""
        self._inflow.feed(data)

    def eof_received(self) -> bool:
        """The client will send no more; what it has sent is still answered, except under TLS."""
        self._client_left()
        return not self._is_encrypted

    def pause_writing(self) -> None:
        """The client does not read its answers."""
        super().pause_writing()
        self._is_full = True

    def resume_writing(self) -> None:
        """It has read some."""
        super().resume_writing()
        self._is_full = False

    def drain(self, keep: Keep | None = None) -> None:
        """End now if between messages, else as soon as the one under way is answered.

        ``keep`` is given the connection if it can be handed over; else it is closed.
        """
        self._is_draining, self._keep = True, keep
        if self._step is Step.ROOM:
            # The next process may obey this MAIL; if it is closed instead, Listmonk 5+ tries
            # a connection cut at MAIL again (facts: listmonk.md 1).
            self._inflow.put_back(self._line + b"\r\n")
            self._let_go()
            self._dialogue().cancel()
        elif self._step is Step.LOGIN:
            self._dialogue().cancel()
        elif self._is_negotiating:
            self.loop.call_later(NEGOTIATION_GRACE_S, self._end_negotiation)
        self._inflow.wake()

    def _end_negotiation(self) -> None:
        """Nobody may hold up a restart by a login that he does not finish."""
        if self._is_negotiating:
            self.abort()

    def _go_on_from(self, standing: Standing) -> None:
        self._is_extended = standing.is_extended
        self._was_refused = standing.was_refused
        passwords, user = self._house.passwords, standing.auth_user
        if passwords is not None and user and passwords.proof(user) == standing.auth_proof:
            self._auth_user, self._auth_proof = user, standing.auth_proof
            passwords.strangers.trust(origin_of(self._peer))

    def _let_go(self) -> None:
        """Give the connection to ``keep``, if one is there and all that matters can go along."""
        wire, unread = self.transport, self._inflow.unread()
        if self._keep is None or wire is None or unread is None:
            return
        if self._is_encrypted or self._inflow.ended or wire.get_write_buffer_size():
            return
        wire.pause_reading()
        standing = Standing(
            is_extended=self._is_extended,
            was_refused=self._was_refused,
            auth_user=self._auth_user,
            auth_proof=self._auth_proof,
            unread=encoded(unread),
        )
        try:
            self._keep(let_go(wire.get_extra_info("socket").fileno(), standing))
        except OSError as error:
            log.warning("connection not handed over", extra={"error": str(error)})

    def abort(self) -> None:
        """Close now, whatever is under way."""
        self._dialogue().cancel()
        if self.transport is not None:
            loops.abort(self.transport)

    def push_out(self) -> None:
        """Make room for somebody who may be a friend."""
        log.info("stranger pushed out", extra={"peer": self._peer})
        self.abort()

    def give_up(self) -> None:
        """The connection could not be set up; end what was begun."""
        if self._handler_coroutine is not None:
            self.abort()
        elif not self._is_over:
            self._is_over = True
            self._on_end(self)

    def _dialogue(self) -> asyncio.Task[None]:
        assert self._handler_coroutine is not None  # begun with the connection
        return self._handler_coroutine

    def _wire(self) -> asyncio.Transport:
        if self.transport is None:
            raise ClientGone
        return self.transport

    def _client_left(self) -> None:
        """Stop waiting for our own resources on behalf of a client that is not there."""
        self._inflow.end()
        if self._step in {Step.ROOM, Step.ALLOWANCE, Step.LOGIN}:
            self._dialogue().cancel()
        elif self._step is Step.COMMIT:
            self._withdraw_soon()

    def _withdraw_soon(self) -> None:
        """Take back the message under way: at once in a stall, else after a short grace.

        A stall can last for hours, in which somebody stops the campaign and starts it again.
        """
        grace_s = GONE_GRACE_S if self._house.intake.spool.has_room else 0.0
        message = self._mail

        def withdraw() -> None:
            if self._step is Step.COMMIT and self._mail is message:
                self._dialogue().cancel()

        self.loop.call_later(grace_s, withdraw)

    def _part(self) -> None:
        if self.transport is None and self._dialogue().done() and not self._is_over:
            self._is_over = True
            self._on_end(self)

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Nothing: aiosmtpd would set a timer at each command; see ``_watch_silence``."""

    def _watch_silence(self) -> None:
        """Close if the client has been silent too long, else look again when it may be."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        now, since, limit_s = self.loop.time(), self._silent_since, self._silence_max_s()
        if self._is_stranger():
            since = self._stranger_since
        silent_s = 0.0 if since is None else now - since
        if silent_s >= limit_s:
            log.info("client silent, closed", extra={"peer": self._peer, "silent_s": silent_s})
            self.abort()
            return
        # The limit may have become the shorter one by then.
        look_again_s = min(limit_s - silent_s, IDLE_CONTENT_S)
        self._idle_timer = self.loop.call_later(look_again_s, self._watch_silence)

    def _is_stranger(self) -> bool:
        return not self._is_trusted and not self._auth_user

    def stranger_from(self) -> str:
        """The origin that a stranger counts with; "" for a friend."""
        return origin_of(self._peer) if self._is_stranger() else ""

    def _silence_max_s(self) -> float:
        if self._is_stranger():
            return STRANGER_MAX_S
        return IDLE_CONTENT_S if self._in_content else IDLE_BETWEEN_S


def _keep_alive(connection: socket.socket | None) -> None:
    """Let TCP find out that a silent peer is dead; there is no timeout that would."""
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

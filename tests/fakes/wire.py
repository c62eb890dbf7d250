"""A listener's connection without a socket: bytes in, replies out, all in one process.

``Client`` is the real one; the transport under it and the spool behind it are in memory. One
session costs some hundred microseconds, so that a fuzzer can play hundreds of thousands.
The transport behaves as asyncio's: nothing is delivered while reading is paused, the end of
the connection is told by the loop and once, and nothing is written after ``abort``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relay import config
from relay.listener.access import Networks
from relay.listener.allowance import Allowance
from relay.listener.auth import Passwords
from relay.listener.client import Client
from relay.listener.connection import House
from relay.listener.intake import Intake
from relay.listener.slots import Slots
from relay.listener.users import Plain
from tests.fakes.dialogue import Counts
from tests.fakes.spool import FakeSpool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relay.envelope import Envelope
    from relay.listener import Users

TURNS_MAX = 400
"""Turns of the loop within which a connection is at rest; one takes a hundred commands."""

PATIENCE_S = 10.0
"""Beyond those turns: for what is done in threads, as the check of a password may be."""


class QuickClock:
    """Stands still; whoever sleeps is woken in the next turn of the loop."""

    def monotonic(self) -> float:
        return 1000.0

    def wall_ms(self) -> int:
        return 1_800_000_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop that can put TLS on a ``Wire``: a pretence, no byte is encrypted."""

    async def start_tls(self, transport: Any, protocol: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401
        wire: Wire = transport
        return await wire.shake_hands(protocol)


class Wire(asyncio.Transport):
    """The transport. ``out`` is all that the server has written, ``is_closed`` its end."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 40_000)})
        self.out = bytearray()
        self.is_closed = self.is_encrypted = False
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = None
        self._held: deque[bytes] = deque()
        self._is_paused = self._is_at_end = False
        self._shaking: asyncio.Future[None] | None = None

    # The client's side.

    def join(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        """The client sends ``data``, which arrives as one piece."""
        self._held.append(data)
        self._deliver()

    def end(self) -> None:
        """The client closes its sending side."""
        self._is_at_end = True
        self._deliver()

    def cut(self) -> None:
        """The connection breaks."""
        self._end(ConnectionResetError())

    def _deliver(self) -> None:
        while self._held and not self._is_paused and not self.is_closed:
            data = self._held.popleft()
            if self._shaking is not None:
                self._answer_handshake(data)
            else:
                self._protocol.data_received(data)
        if self._is_at_end and not self._held and not self._is_paused and not self.is_closed:
            # Told again after a pause: both asyncio and uvloop read the end once more.
            if self._shaking is not None:
                self._end(None)
            elif not self._protocol.eof_received():
                self.close()

    # The server's side.

    def write(self, data: Any) -> None:  # noqa: ANN401
        assert self._shaking is None, "plain text within the handshake"
        if not self.is_closed:
            self.out += data

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._deliver)

    def get_write_buffer_size(self) -> int:
        return 0

    def _end(self, error: Exception | None) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._held.clear()
        if self._shaking is not None and not self._shaking.done():
            self._shaking.set_exception(error or ConnectionAbortedError())
        self._loop.call_soon(self._protocol.connection_lost, error)

    # TLS: the client's hello is HELLO; anything else is none.

    async def shake_hands(self, protocol: Any) -> Wire:  # noqa: ANN401
        """As ``loop.start_tls``: what comes from now on is the handshake, then secret."""
        assert self._protocol is protocol
        self._shaking = self._loop.create_future()
        self.resume_reading()
        try:
            await self._shaking
        finally:
            self._shaking = None
        self.is_encrypted = True
        return self

    def _answer_handshake(self, data: bytes) -> None:
        assert self._shaking is not None
        if self._shaking.done():
            return
        if data == HELLO:
            self._shaking.set_result(None)
            self._shaking = None
        else:
            self._shaking.set_exception(ssl.SSLError("not a hello"))


HELLO = b"\x16\x03\x01 hello"


class Disk(FakeSpool):
    """Keeps a message some turns of the loop later, so that its client may leave meanwhile."""

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        for _ in range(len(content) % 4):
            await asyncio.sleep(0)
        await super().append(envelopes, content)


class QuickPasswords(Passwords):
    """Checks a password without a hash in a thread, which would be all the time there is."""

    async def is_right(self, name: str, password: str) -> bool:
        entry = self._users.find(name)
        return isinstance(entry, Plain) and entry.secret == password


@dataclass
class Shop:
    """What all sessions of a fuzzer share: one house, its spool and what it told its observer."""

    users: Users | None = None
    tls: bool = True
    listen: config.Listen = field(default_factory=config.Listen)
    counts: Counts = field(default_factory=Counts)
    spool: FakeSpool = field(default_factory=Disk)

    def __post_init__(self) -> None:
        intake = Intake(
            listen=self.listen,
            hostname="relay.test",
            spool=self.spool,
            clock=QuickClock(),
            upstream_of=lambda _: "ses",
            observer=self.counts,
        )
        self.house = House(
            intake=intake,
            networks=Networks(self.listen.allow_networks),
            allowance=Allowance(self.listen.body_bytes_max),
            passwords=None if self.users is None else QuickPasswords(self.users),
            tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if self.tls else None,
            slots=Slots(self.listen.connections_max, lambda: 0.0),
        )

    def forget(self) -> None:
        """What was kept and counted so far."""
        self.spool.kept.clear()
        for figures in vars(self.counts).values():
            figures.clear()

    def enter(self, peer: str = "127.0.0.1") -> Caller:
        return Caller(self, peer)


class Caller:
    """One session: the client's hands, and the server's end of the wire."""

    def __init__(self, shop: Shop, peer: str) -> None:
        self.shop, self.ended = shop, 0
        self.wire = Wire(peer)
        self.client = Client(shop.house, self._on_end)
        self.wire.join(self.client)
        self._heard = 0

    def _on_end(self, _client: object) -> None:
        self.ended += 1

    async def send(self, data: bytes) -> bytes:
        """What the server answers to ``data`` until it has nothing to do but wait for more."""
        self.wire.send(data)
        return await self.hear()

    async def hear(self) -> bytes:
        """What the server has said since, once it is at rest."""
        await self._until(self._is_at_rest)
        heard = bytes(self.wire.out[self._heard :])
        self._heard = len(self.wire.out)
        return heard

    async def leave(self, *, cut: bool) -> bytes:
        """Go, and see that the server's side comes to an end; what it said at the last."""
        (self.wire.cut if cut else self.wire.end)()
        await self._until(lambda: self.ended > 0)
        assert self.client._dialogue().done()
        return bytes(self.wire.out[self._heard :])

    def _is_at_rest(self) -> bool:
        if self.client._dialogue().done():
            return self.ended > 0
        if self.wire._shaking is not None:
            return not self.wire._shaking.done()
        waiter = self.client._inflow._waiter
        return waiter is not None and not waiter.done() and not self.wire._is_paused

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(TURNS_MAX):
            if condition():
                return
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():  # noqa: ASYNC110  # there is no event for being at rest
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError("the connection is not at rest: a hang") from None

"""The listener: sockets, and the connections that come in on them.

Accepting is our own loop rather than ``loop.create_server``: beyond
``listen.connections_max`` a new client must wait, unanswered, and never be refused (a
refused connection is a lost message; one in the backlog is not, facts: listmonk.md 1).

The tasks here are not in a TaskGroup of the service: connections outlive the accepting,
and ``drain`` ends each in its own time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from relay import config
from relay.listener import access, handover
from relay.listener.allowance import Allowance
from relay.listener.auth import Passwords
from relay.listener.client import Client
from relay.listener.connection import Connection, House
from relay.listener.intake import Intake, Spool, UpstreamOf, hostname_of
from relay.listener.observer import NoObserver, Observer
from relay.listener.slots import Slots
from relay.listener.users import Users

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence

    from relay.clock import Clock
    from relay.listener.handover import Keep, Resting, Standing

log = logging.getLogger(__name__)

BACKLOG = 4_096
"""Connections the kernel keeps for us (Linux cuts it to net.core.somaxconn, 4096 by default)."""

DRAIN_GRACE_S = 30.0
"""For transactions under way at the end."""

ABORT_GRACE_S = 2.0
"""For connections that were cut to be gone."""

ACCEPT_RETRY_S = 1.0
"""After a failed accept, mostly for want of file descriptors."""


def users_of(listen: config.Listen) -> Users | None:
    """The users of ``listen.users_file``, None if there is none.

    Raises:
        ConfigError, ConfigErrors: the file cannot be used.
    """
    return Users.load(Path(listen.users_file)) if listen.users_file else None


class Listener:
    """SMTP towards Listmonk.

    ``sockets`` are bound already (by systemd); else ``listen.host`` and ``listen.port`` rule.
    ``resting`` are the connections that the relay before this one has let go of, None if
    nothing at all was kept.
    """

    def __init__(
        self,
        listen: config.Listen,
        spool: Spool,
        users: Users | None,
        *,
        clock: Clock,
        upstream_of: UpstreamOf | None = None,
        observer: Observer | None = None,
        sockets: Sequence[socket.socket] = (),
        resting: Sequence[Resting] | None = None,
    ) -> None:
        self._listen, self._clock, self._users = listen, clock, users
        self._observer = observer or NoObserver()
        self._intake = Intake(
            listen=listen,
            hostname=hostname_of(listen, socket.gethostname()),
            spool=spool,
            clock=clock,
            upstream_of=upstream_of or (lambda _sender: config.Upstream().name),
            observer=self._observer,
        )
        self._sockets, self._resting = list(sockets), resting
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[Connection] = set()
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._tls: ssl.SSLContext | None = None
        self._waiting: list[socket.socket] = []

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """What is listened on."""
        return tuple(self._sockets)

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._connections)

    async def start(self) -> None:
        """Accept from now on.

        Raises:
            AddressBusy: another program listens there.
            ConfigError: it would be an open relay, a certificate or an address cannot be
                used. Either way nothing is open.
        """
        # aiosmtpd logs addresses and each command; the relay's own lines say what is needed.
        logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)
        self._tls = access.tls_context(self._listen)
        opened = [] if self._sockets else access.open_sockets(self._listen)
        if self._sockets:
            log.info("the sockets are systemd's: listen.host and listen.port have no effect")
        try:
            access.check_sockets(self._sockets or opened, self._listen)
        except BaseException:
            _close(opened)
            raise
        self._sockets.extend(opened)
        if self._listen.auth == "required" and not self._users:
            log.warning("nobody can log in: add a user with relay user add NAME")
        house = House(
            intake=self._intake,
            networks=access.Networks(self._listen.allow_networks),
            allowance=Allowance(self._listen.body_bytes_max),
            passwords=None if self._users is None else Passwords(self._users),
            tls=self._tls,
            slots=Slots(self._listen.connections_max, self._clock.monotonic),
        )
        await self._adopt(house)
        for door in self._sockets:
            door.settimeout(0)  # as asyncio wants it
            door.listen(BACKLOG)
            self._accepting.append(asyncio.create_task(self._accept(door, house)))
            log.info("listening", extra={"address": _address_text(door)})

    def reread(self) -> None:
        """Take users and certificate from their files again, for whoever comes from now on.

        Raises: ConfigError: the certificate cannot be used; the one in use stays.
        """
        if self._users is not None:
            self._users.refresh()
        if self._tls is not None:
            access.tls_context(self._listen)  # a key that does not fit must not get into ours
            access.load_certificate(self._tls, self._listen)

    async def drain(self, grace_s: float = DRAIN_GRACE_S, keep: Keep | None = None) -> None:
        """Stop accepting, answer what is under way, end what is between messages.

        ``keep`` is given the connections that another process can go on with; without it
        they are closed. Returns when no connection is left, at the latest after ``grace_s``
        (then the rest is cut) and a little more. After it, everything answered with 250 is
        in the spool.
        """
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._accepting.clear()
        _close(self._sockets)
        self._hand_over_waiting(keep)
        for connection in tuple(self._connections):
            connection.drain(keep)
        if await self._wait_all_gone(grace_s):
            return
        log.warning("clients cut at the end of the drain", extra={"clients": self.connections})
        for connection in tuple(self._connections):
            connection.abort()
        await self._wait_all_gone(ABORT_GRACE_S)

    def _hand_over_waiting(self, keep: Keep | None) -> None:
        """Clients that were accepted and found no slot: nothing was said yet."""
        for one in self._waiting:
            if keep is not None:
                try:
                    keep(handover.let_go(one.fileno(), handover.Standing(is_greeted=False)))
                except OSError as error:  # no descriptor is left
                    log.warning("connection not handed over", extra={"error": str(error)})
            one.close()
        self._waiting.clear()

    async def _wait_all_gone(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True

    async def _accept(self, door: socket.socket, house: House) -> None:
        """Open one connection after the other.

        While friends have all the slots, one client waits here and the others in the backlog.
        """
        while True:
            accepted: socket.socket | None = None
            try:
                # Not sock_accept: cancelled at the wrong moment, it loses the client it has.
                await _readable(door)
                accepted, _ = door.accept()
                accepted.settimeout(0)
                await self._seat(accepted, house)
            except BlockingIOError:
                continue  # it went away again
            except Exception:  # the one of this loop; mostly no file descriptors are left
                log.exception("connection not accepted")
                self._observer.failed("listener")
                _close([accepted] if accepted else [])
                await self._clock.sleep(ACCEPT_RETRY_S)

    async def _seat(self, accepted: socket.socket, house: House) -> None:
        """Open the connection once there is a slot; cancelled before that, ``drain`` has it."""
        try:
            await house.slots.take()
        except asyncio.CancelledError:
            self._waiting.append(accepted)
            raise
        # From here on it is a connection, which ``drain`` must find among the others.
        opening = asyncio.ensure_future(self._open(accepted, house))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            raise

    async def _adopt(self, house: House) -> None:
        """Go on with the connections of the relay before this one, ahead of any new client."""
        if self._resting is None:
            return
        resting = sorted(self._resting, key=lambda one: _rank(one, house))
        self._resting = None
        if not await handover.forgotten(self._clock):
            log.error("systemd does not answer: the connections that it kept are closed")
            _close(one.socket for one in resting)
            return
        for one in resting:
            if not one.standing.is_greeted:
                # It found no slot before, and waits for one again.
                self._accepting.append(asyncio.create_task(self._receive(one.socket, house)))
            else:
                await self._go_on_with(one, house)
        log.info("connections taken over", extra={"clients": self.connections})

    async def _go_on_with(self, one: Resting, house: House) -> None:
        if house.slots.are_taken:
            log.warning("connection not taken over: listen.connections_max is lower now")
            one.socket.close()
            return
        await house.slots.take()
        try:
            await self._open(one.socket, house, one.standing)
        except OSError as error:  # the client has gone meanwhile
            log.info("connection not taken over", extra={"error": str(error)})
            one.socket.close()

    async def _receive(self, accepted: socket.socket, house: House) -> None:
        try:
            await self._seat(accepted, house)
        except OSError as error:
            log.info("connection not taken over", extra={"error": str(error)})
            accepted.close()

    async def _open(
        self,
        accepted: socket.socket,
        house: House,
        standing: Standing | None = None,
    ) -> None:
        def ended(connection: Connection) -> None:
            house.slots.leave(connection)
            self._connections.discard(connection)
            self._observer.connection(-1)
            if not self._connections:
                self._all_gone.set()

        try:
            client = Client(house, ended, standing)
        except BaseException:
            house.slots.give_back()
            raise
        self._connections.add(client)
        self._all_gone.clear()
        self._observer.connection(+1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, accepted)
        except BaseException:
            client.give_up()
            raise
        if client in self._connections:
            house.slots.seat(client, client.stranger_from())


async def _readable(door: socket.socket) -> None:
    """Return when a client waits in the backlog."""
    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def come() -> None:
        if not found.done():
            found.set_result(None)

    loop.add_reader(door, come)
    try:
        await found
    finally:
        loop.remove_reader(door)


def _rank(one: Resting, house: House) -> int:
    """Friends first, who lose mail by it, then strangers, then those who wait for a slot."""
    if not one.standing.is_greeted:
        return 2
    try:
        peer = str(access.read_address(str(one.socket.getpeername()[0])))
    except OSError:  # it has gone
        return 1
    return 0 if one.standing.auth_user or peer in house.networks else 1


def _close(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _address_text(door: socket.socket) -> str:
    host, port = door.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

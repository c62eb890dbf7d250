"""Idle client connections that outlive the process: from one relay to the next.

Listmonk keeps its connections in a pool, and one that dies there costs it a mail later
(facts: listmonk.md 1). So at a restart the relay does not close a connection between two
messages: it lets go of the socket, and systemd's descriptor store keeps it for the next
process (``FileDescriptorStoreMax=``, systemd.service(5)). What the client sends meanwhile
waits in the socket. All that the next relay must know is in ``Standing``; it travels in a
memory file beside the sockets, each entry found again by the kernel's number for its socket.

The client never notices. That is why only a connection whose whole state fits in a few
words is handed over: in plain text, outside a message and a login, all answers sent. The
state of TLS lives in the process, so those connections are closed between messages.

Invariant: what systemd keeps stands between messages. So it must have forgotten a connection
before the first byte of it is obeyed: were it to give one that stands within a letter to a
further relay, that letter would be read as commands.

Who may use it: the descriptors and the file come from systemd alone, over ``LISTEN_FDS``;
no client can put anything into them. A login is kept only while the user's entry is the same.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from relay import systemd

if TYPE_CHECKING:
    from relay.clock import Clock

log = logging.getLogger(__name__)

CLIENT_NAME = "client"
"""``FDNAME`` of the connections."""
STANDINGS_NAME = "clients-standing"
"""``FDNAME`` of the file that says where each stands."""

KEPT_NAMES = frozenset({CLIENT_NAME, STANDINGS_NAME})

FORMAT = 1
"""Of the file. A relay of another format closes the connections, as if there were no store."""

STANDINGS_MAX_BYTES = 100_000_000
"""1,000 connections with all that one may have sent ahead, 64 kB, are 90 MB; most have nothing."""
ENTRY_BYTES = 2_000
"""For the rest of an entry: the longest user name, escaped, and the names of its fields."""

FORGET_TRIES = 10
FORGET_RETRY_S = 1.0
"""For a systemd that is busy; that long the start is late, and clients wait."""

_SO_COOKIE = 57
"""The kernel's number for a socket, the same in every process that holds it (socket(7), since
Linux 4.6; Python has no name for it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a dialogue stands between two messages."""

    is_greeted: bool = True
    is_extended: bool = False
    """It began with EHLO."""
    was_refused: bool = False
    """The last message was refused: an empty line will get no answer."""
    auth_user: str = ""
    auth_proof: str = ""
    """What the user's entry was, as ``Passwords.proof`` has it."""
    unread: str = ""
    """What the client has sent and nobody has obeyed, in base64."""


@dataclass(frozen=True, slots=True)
class Resting:
    """A connection that belongs to no dialogue now; whoever has it closes the socket."""

    socket: socket.socket
    standing: Standing


Keep = Callable[[Resting], None]
"""Takes a connection that its dialogue has let go of."""


def let_go(fd: int, standing: Standing) -> Resting:
    """The connection behind ``fd``, which may be closed after that.

    Raises: OSError: no descriptor is left.
    """
    return Resting(socket.socket(fileno=os.dup(fd)), standing)


def store(resting: Sequence[Resting]) -> bool:
    """Give the connections to systemd and close ours; whether it was told.

    Whether it keeps them is not told to us: if it does not, the clients see them closed between
    messages, as they would have been.
    """
    try:
        if not resting or not (file := _write(resting)):
            return False
        try:
            return (
                systemd.store([file], STANDINGS_NAME)
                and systemd.store([one.socket.fileno() for one in resting], CLIENT_NAME)
                and systemd.barrier()
            )
        finally:
            os.close(file)
    finally:
        for one in resting:
            one.socket.close()


def take_back(kept: Iterable[systemd.Inherited]) -> list[Resting]:
    """The connections among what systemd kept for us; those of unknown standing are closed.

    systemd keeps them still, for the next try if this start fails; after it: ``forgotten``.
    """
    clients: list[socket.socket] = []
    standings: dict[int, Standing] = {}
    for one in kept:
        if one.name == STANDINGS_NAME:
            standings |= _read(one.fd)
        elif one.name == CLIENT_NAME:
            clients.append(socket.socket(fileno=one.fd))
    found = []
    for client in clients:
        standing = standings.get(_cookie(client))
        if standing is None:
            log.warning("kept connection of unknown standing closed")
            client.close()
        else:
            found.append(Resting(client, standing))
    return found


async def forgotten(clock: Clock) -> bool:
    """Return once systemd has forgotten what it kept; False if it cannot be told.

    Only then may a connection be served: see the invariant, and else its end would not reach
    the client.
    """
    if not systemd.is_present():
        return True
    for _ in range(FORGET_TRIES):
        if await asyncio.to_thread(_forget):
            return True
        await clock.sleep(FORGET_RETRY_S)
    return False


def _forget() -> bool:
    told = systemd.forget(CLIENT_NAME) and systemd.forget(STANDINGS_NAME)
    return told and systemd.barrier()


def _write(resting: Iterable[Resting]) -> int:
    """A file in memory with all standings; 0 if this system has none, or no cookies."""
    try:
        content = {str(_cookie(one.socket)): asdict(one.standing) for one in _bounded(resting)}
        file = os.memfd_create(STANDINGS_NAME)
    except (AttributeError, OSError) as error:
        log.warning("connections not handed over", extra={"error": str(error)})
        return 0
    with open(file, "wb", closefd=False) as writer:  # a descriptor
        writer.write(json.dumps({"format": FORMAT, "standings": content}).encode())
    return file


def _bounded(resting: Iterable[Resting]) -> list[Resting]:
    """Those with the least to remember first, as many as the file may hold; the rest is closed."""
    found, size_bytes = [], 0
    for one in sorted(resting, key=lambda one: len(one.standing.unread)):
        size_bytes += len(one.standing.unread) + ENTRY_BYTES
        if size_bytes > STANDINGS_MAX_BYTES:
            log.warning("connection not handed over: there is too much to remember")
            continue
        found.append(one)
    return found


def _read(file: int) -> dict[int, Standing]:
    """What ``_write`` wrote, by cookie; nothing if it is of another format. Closes the file."""
    with contextlib.closing(open(file, "rb")) as reader:  # a descriptor
        try:
            reader.seek(0)
            found: Any = json.loads(reader.read(STANDINGS_MAX_BYTES))
            if found["format"] != FORMAT:
                return {}
            names = {field.name for field in fields(Standing)}
            return {
                int(cookie): Standing(**{name: one[name] for name in names})
                for cookie, one in found["standings"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("kept connections' file not read", extra={"error": str(error)})
            return {}


def _cookie(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def encoded(unread: bytes) -> str:
    """``unread`` as ``Standing`` has it."""
    return base64.b64encode(unread).decode()


def decoded(unread: str) -> bytes:
    """What ``encoded`` was given."""
    return base64.b64decode(unread)

"""What the relay tells systemd, and what systemd hands to it.

The two protocols are small and stable (sd_notify(3), sd_listen_fds(3): *documented*), so
no library is asked. Outside systemd everything here does nothing. The environment is an
argument, so that tests need not touch the real one.
"""

from __future__ import annotations

import os
import re
import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIRST_FD = 3
"""``SD_LISTEN_FDS_START``: descriptors come after the three standard ones."""

_COUNT = re.compile(r"[0-9]{1,6}\Z")
"""More sockets than any unit has; a broken count must not make a huge range."""

_SEND_TIMEOUT_S = 1.0
BARRIER_MAX_S = 5.0
"""For systemd to have read what it was sent; sd_notify_barrier(3) leaves the choice to us."""
_FDS_A_MESSAGE = 200
"""Descriptors in one datagram; the kernel's limit is 253 (``SCM_MAX_FD``, unix(7))."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """A descriptor that systemd handed over, and its ``FileDescriptorName=`` or ``FDNAME=``."""

    fd: int
    name: str


def notify(
    *, fds: Sequence[int] = (), environment: Mapping[str, str] = os.environ, **fields: str
) -> bool:
    """Tell systemd ``fields``, such as ``READY="1"``; whether the datagram was sent.

    ``fds`` go with it; they stay open here. A line break in a value would begin a field of
    its own, so it becomes a space. A full or missing socket is no reason to stop mail: then
    the answer is False. The wait is bounded, because systemd may be busy while the event
    loop stands still.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    lines = [f"{key}={' '.join(value.splitlines())}" for key, value in fields.items()]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        link.settimeout(_SEND_TIMEOUT_S)
        try:
            # "@" stands for the zero byte of Linux's abstract names.
            link.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            socket.send_fds(link, ["\n".join(lines).encode()], list(fds))
        except OSError:
            return False
    return True


def is_present(*, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a service manager listens to us."""
    return bool(environment.get("NOTIFY_SOCKET"))


def store(fds: Sequence[int], name: str, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Have systemd keep ``fds`` under ``name`` for the next start; whether it was told all.

    It keeps them if the unit has ``FileDescriptorStoreMax=``, over a restart but not over a
    stop, and drops a socket of its own accord once both directions are shut (``FDPOLL``,
    sd_notify(3): *documented*).
    """
    batches = [fds[n : n + _FDS_A_MESSAGE] for n in range(0, len(fds), _FDS_A_MESSAGE)]
    fields = {"FDSTORE": "1", "FDNAME": name}
    return all(notify(fds=batch, environment=environment, **fields) for batch in batches)


def forget(name: str, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Have systemd close what it keeps under ``name``; else a client never sees our closing."""
    return notify(environment=environment, FDSTOREREMOVE="1", FDNAME=name)


def barrier(*, environment: Mapping[str, str] = os.environ) -> bool:
    """Return once systemd has read all that it was told (``BARRIER=1``); whether it has.

    A process that ends at once may be gone before systemd looks who it was, and then its
    last messages count for nothing (sd_notify_barrier(3): *documented*).
    """
    ours, theirs = os.pipe()
    try:
        told = notify(fds=[theirs], environment=environment, BARRIER="1")
        os.close(theirs)
        theirs = -1
        if not told:
            return False
        # systemd closes its copy when it comes to it; that hangs up the pipe.
        hung_up = select.poll()
        hung_up.register(ours, 0)
        return bool(hung_up.poll(BARRIER_MAX_S * 1000))
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def inherited(*, environment: Mapping[str, str] = os.environ) -> tuple[Inherited, ...]:
    """The descriptors that systemd has opened, or kept, for this very process.

    Empty if the variables were meant for another one (a parent's environment is inherited)
    or make no sense. They will not leak into programs that this one starts.

    Raises:
        OSError: a descriptor that was announced is not open.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = environment.get("LISTEN_FDS", "")
    if not _COUNT.match(count):
        return ()
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found = [Inherited(FIRST_FD + n, names[n] if n < len(names) else "") for n in range(int(count))]
    for one in found:
        os.set_inheritable(one.fd, False)  # noqa: FBT003 - positional only
    return tuple(found)

"""What this process finds open at its start: sockets that systemd holds for it.

``relay.socket`` holds the listening ones, so that a client is never refused while the relay
restarts; the descriptor store holds idle client connections (``listener.handover``).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from relay import systemd
from relay.errors import ConfigError
from relay.listener import KEPT_NAMES, Resting, take_back


@dataclass(frozen=True, slots=True)
class Inheritance:
    """Listening sockets, and connections that an earlier relay has let go of."""

    doors: tuple[socket.socket, ...] = ()
    resting: tuple[Resting, ...] | None = None
    """None: nothing was kept."""


NOTHING = Inheritance()


def claim() -> Inheritance:
    """Everything that was handed to this process; nothing outside systemd.

    Raises: ConfigError: something that is no socket.
    """
    found = systemd.inherited()
    kept = [one for one in found if one.name in KEPT_NAMES]
    doors = tuple(_door(one) for one in found if one.name not in KEPT_NAMES)
    return Inheritance(doors, tuple(take_back(kept)) if kept else None)


def _door(one: systemd.Inherited) -> socket.socket:
    try:
        return socket.socket(fileno=one.fd)
    except OSError as error:
        raise ConfigError(
            "listen.host",
            f"descriptor {one.fd} ({one.name or 'without a name'}) from systemd: {error.strerror}",
            "a listening socket, as relay.socket makes it with ListenStream=",
        ) from error

"""What the relay tells systemd, and what systemd hands to it.

The two protocols are small and stable (sd_notify(3), sd_listen_fds(3): *documented*), so
no library is asked. Outside systemd everything here does nothing. The environment is an
argument, so that tests need not touch the real one.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIRST_FD = 3
"""``SD_LISTEN_FDS_START``: descriptors come after the three standard ones."""

_COUNT = re.compile(r"[0-9]{1,3}\Z")
"""More sockets than any unit has; a broken count must not make a huge range."""

_SEND_TIMEOUT_S = 1.0


def notify(*, environment: Mapping[str, str] = os.environ, **fields: str) -> bool:
    """Tell systemd ``fields``, such as ``READY="1"``; whether the datagram was sent.

    A line break in a value would begin a field of its own, so it becomes a space. A full
    or missing socket is no reason to stop mail: then the answer is False. The wait is
    bounded, because systemd may be busy while the event loop stands still.
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
            link.sendall("\n".join(lines).encode())
        except OSError:
            return False
    return True


def listen_fds(*, environment: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """The descriptors of the sockets that systemd has opened for this very process.

    None if the variables were meant for another one (a parent's environment is inherited)
    or make no sense. They will not leak into programs that this one starts.

    Raises:
        OSError: a descriptor that was announced is not open.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = environment.get("LISTEN_FDS", "")
    if not _COUNT.match(count):
        return ()
    fds = tuple(range(FIRST_FD, FIRST_FD + int(count)))
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
    return fds


def is_private(path: Path, mode: int, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a secret with these permission bits is for our eyes only.

    Mode 0600 or less. In the credentials folder 0440 is as good: from systemd 254 on the
    mask of a credential's ACL shows as its group's bits (systemd#29435).
    """
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    is_credential = bool(folder) and path.is_relative_to(folder)
    return not mode & (0o037 if is_credential else 0o077)

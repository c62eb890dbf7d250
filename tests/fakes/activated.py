"""``relay`` started as systemd starts it: with descriptors from 3 on, and told so.

Run as ``python -m tests.fakes.activated SOCKET WORDS…``: fetches what ``ServiceManager`` holds
for it over its socket, then is the relay, in this very process, as ``LISTEN_PID`` demands.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from relay.cli import main

FDS_A_MESSAGE = 200
FIRST_FD = 3
OUT_OF_THE_WAY = 10_000
"""Above all descriptors that Python and pytest have open."""


def fetch(path: str) -> tuple[str, list[int], list[str]]:
    """Where to notify, the descriptors, and their names."""
    fds: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as manager:
        manager.connect(path)
        message, _, _, _ = socket.recv_fds(manager, 1_000_000, 0)
        told = json.loads(message)
        while len(fds) < len(told["names"]):
            fds.extend(socket.recv_fds(manager, 10, FDS_A_MESSAGE)[1])
    return told["notify"], fds, told["names"]


def become_activated(path: str) -> None:
    """Put the descriptors in their places, and say so in the environment."""
    notify, fds, names = fetch(path)
    aside = [os.dup2(fd, OUT_OF_THE_WAY + n) for n, fd in enumerate(fds)]
    for fd in fds:
        os.close(fd)
    for n, fd in enumerate(aside):
        os.dup2(fd, FIRST_FD + n)
        os.close(fd)
    os.environ |= {
        "NOTIFY_SOCKET": notify,
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(fds)),
        "LISTEN_FDNAMES": ":".join(names),
    }


if __name__ == "__main__":
    become_activated(sys.argv.pop(1))
    sys.argv[0] = "relay"
    main()

"""Another machine, without another machine: network namespaces joined by a virtual cable.

This process moves into a namespace of its own for a while (what it starts there lives there,
too), and a thread makes a second one for the other end of the cable. Nothing of the real
network is seen or touched, addresses cannot collide, and there is nothing to tidy up: the
kernel removes a namespace with its last process, and a cable with either end.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE, HERE_TOO, HERE_6 = "10.77.0.1", "10.88.0.1", "fd77::1"
STRANGER, FRIEND, STRANGER_6 = "10.77.0.2", "10.88.0.2", "fd77::2"
"""The other machine's addresses: which one it calls from makes it a stranger or a friend."""
FRIENDS_NET = "10.88.0.0/24"

PATIENCE_S = 10.0
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@cache
def why_not() -> str:
    """What is missing on this machine to make namespaces, "" if nothing is."""
    if not hasattr(_libc, "unshare"):
        return "not Linux"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    try:
        with ThreadPoolExecutor(1) as aside:
            aside.submit(_leave).result()
            aside.submit(_ip, "link add dev x type veth peer name y").result()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces are not allowed here: {error}"
    return ""


@dataclass(frozen=True)
class OtherMachine:
    """Calls from the far end of the cable."""

    _there: ThreadPoolExecutor

    def call(self, host: str, port: int, caller: str = STRANGER) -> socket.socket:
        """A connection to us from its address ``caller``. Raises: OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def dial() -> socket.socket:
            one = socket.socket(family)
            try:
                one.settimeout(PATIENCE_S)
                one.bind((caller, 0))
                one.connect((host, port))
                one.settimeout(None)
            except BaseException:
                one.close()
                raise
            return one

        return self._there.submit(dial).result()


@contextmanager
def two_machines() -> Iterator[OtherMachine]:
    """This thread, and what it starts, in a namespace of its own; and another machine beside it."""
    home = os.open(_own_namespace(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _leave()
        with ThreadPoolExecutor(1) as there:
            try:
                there.submit(_leave).result()
                _lay_cable(there)
                yield OtherMachine(there)
            finally:
                _call(_libc.setns, home, _CLONE_NEWNET)
    finally:
        os.close(home)


def _lay_cable(there: ThreadPoolExecutor) -> None:
    ours, theirs = f"vr{secrets.token_hex(4)}", f"vs{secrets.token_hex(4)}"
    their_thread = there.submit(threading.get_native_id).result()
    _ip("link set lo up")
    _ip(f"link add dev {ours} type veth peer name {theirs} netns {their_thread}")
    for address in (f"{HERE}/24", f"{HERE_TOO}/24", f"{HERE_6}/64 nodad"):
        _ip(f"addr add {address} dev {ours}")
    _ip(f"link set {ours} up")
    for address in (f"{STRANGER}/24", f"{FRIEND}/24", f"{STRANGER_6}/64 nodad"):
        there.submit(_ip, f"addr add {address} dev {theirs}").result()
    there.submit(_ip, "link set lo up").result()
    there.submit(_ip, f"link set {theirs} up").result()


def _own_namespace() -> Path:
    """Of this thread, not of the process."""
    return Path("/proc/thread-self/ns/net")


def _leave() -> None:
    _call(_libc.unshare, _CLONE_NEWNET)


def _call(function: object, *arguments: int) -> None:
    if function(*arguments) != 0:  # type: ignore[operator]
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(words: str) -> None:
    """A child is in the namespace of the thread that started it."""
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)

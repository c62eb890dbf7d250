"""``relay`` with an /etc/hosts of its own, which a test may rewrite while it runs.

    python -m tests.fakes.own_hosts HOSTS serve -c …

In a mount namespace, so that nobody else sees it; that takes root on Linux. Only this file
is asked for names: no resolver of the machine answers in its place.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_NEW_NAMESPACE = 0x00020000
"""CLONE_NEWNS of linux/sched.h."""
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
"""MS_BIND, MS_REC and MS_PRIVATE of linux/mount.h."""


def is_possible() -> bool:
    """Whether this machine lets us."""
    try:
        tried = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    except OSError:
        return False
    return tried.returncode == 0


def put_in_place(hosts: Path) -> None:
    """From now on this process, and only it, looks names up in ``hosts``."""
    switch = hosts.with_suffix(".nsswitch")
    switch.write_text("hosts: files\n")
    libc = ctypes.CDLL(None, use_errno=True)
    _succeed(libc.unshare(_NEW_NAMESPACE))
    _succeed(libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
    for ours, theirs in ((hosts, "/etc/hosts"), (switch, "/etc/nsswitch.conf")):
        _succeed(libc.mount(bytes(ours), theirs.encode(), None, _BIND, None))


def _succeed(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    put_in_place(Path(sys.argv.pop(1)))
    from relay.cli import main

    main()

"""File descriptors: clients must not take those that the spool and the upstream need.

Each client and each session to an upstream is a descriptor. If clients could take them all,
nothing could be sent any more, and the full spool would then stall the very clients. So the
limits of both are fitted to the process's own at the start. A client beyond the limit waits
in the kernel's backlog, which costs us none.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.config import Config

_log = logging.getLogger(__name__)

RESERVE = 48
"""For all else. An idle relay has 26 open (measured: spool, event loop, doors, log); the rest is
for clients that wait at a door, name look-ups, and visitors of the dashboard and the control."""
SHARE_MIN = 2
"""Of either kind, however low the limit is: one more than the least, so that mail moves."""


def fit(config: Config) -> Config:
    """``config`` with as many clients and sessions as there are descriptors for.

    The process's soft limit is raised first, as far as it needs and may be.
    """
    clients = config.listen.connections_max
    sessions = sum(upstream.sessions_max for upstream in config.upstreams)
    limit = _raised(RESERVE + clients + sessions)
    if limit >= RESERVE + clients + sessions:
        return config
    spare = limit - RESERVE
    for_sessions = max(SHARE_MIN, min(sessions, spare // 2))
    for_clients = max(SHARE_MIN, min(clients, spare - for_sessions))
    _log.warning(
        "few file descriptors: clients wait sooner, raise LimitNOFILE of the service",
        extra={
            "limit": limit,
            "wanted": RESERVE + clients + sessions,
            "connections_max": for_clients,
            "sessions_max": for_sessions,
        },
    )
    return replace(
        config,
        listen=replace(config.listen, connections_max=for_clients),
        upstreams=tuple(
            replace(one, sessions_max=max(1, one.sessions_max * for_sessions // sessions))
            for one in config.upstreams
        ),
    )


def _raised(wanted: int) -> int:
    """The limit on descriptors, after raising it to ``wanted`` or as near as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    nearer = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (nearer, hard))
    except (OSError, ValueError):
        return soft
    return nearer

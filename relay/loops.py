"""The event loop that this program runs on, and what differs between loops.

Above nothing, so that every row may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which halves the CPU a message; asyncio's own where there is none."""
    try:
        import uvloop  # noqa: PLC0415  # optional: no wheel, no harm
    except ImportError:
        return None
    return uvloop.new_event_loop


def abort(transport: asyncio.WriteTransport) -> None:
    """Close ``transport`` at once, also one that is closing already.

    asyncio's TLS in Python before 3.11.4 (Debian 12 has 3.11.2) forgets the link when it begins
    to close and cannot abort it any more (*observed*); then ``ssl_shutdown_timeout`` ends it.
    """
    try:
        transport.abort()
    except AttributeError:
        if not transport.is_closing():
            raise

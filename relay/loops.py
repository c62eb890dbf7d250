"""Which event loop this program runs on; above nothing, so that every row may ask."""

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

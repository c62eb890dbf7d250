"""What was learned before the last stop, read so that nothing in it can stop the start.

A row that cannot be read costs what it held: a rate is searched for anew, the quota says again
that it is spent. A relay that does not start takes no mail, and Listmonk loses what nobody takes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay.errors import SpoolError

if TYPE_CHECKING:
    from relay.spool import Spool

_log = logging.getLogger(__name__)


async def recalled(spool: Spool, key: str) -> dict[str, object]:
    """What is kept under ``key``; nothing if there is nothing, or none that can be read."""
    try:
        return await spool.state(key) or {}
    except SpoolError as error:
        _log.error("kept state cannot be read, starting without", extra={"error": str(error)})
    return {}

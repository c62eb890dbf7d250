"""What goes when to one upstream, and what became of it.

``dispatcher`` is the loop, ``turn`` its decisions; ``feed`` keeps the lanes filled from the
spool, ``sessions`` gets sessions (``staffing``: how many; ``bound``: whether they are too few),
``attempts`` makes one attempt, ``conclusion`` turns replies into what becomes of each recipient,
``books`` writes it down.
"""

from relay.dispatcher.attempts import IN_DOUBT_REASON
from relay.dispatcher.books import parks
from relay.dispatcher.dispatcher import Dispatcher
from relay.dispatcher.rooms import Rooms

__all__ = ["IN_DOUBT_REASON", "Dispatcher", "Rooms", "parks"]

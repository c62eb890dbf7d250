"""The durable store of envelopes: what is in here survives kill -9 and a power cut.

``Spool`` is its face. Below it, from the outside in: ``writer`` gathers batches,
``batch`` commits them, ``settling`` and ``reading`` know the tables, ``gate`` and
``room`` know the disk, ``upkeep`` does the housework, ``place`` owns the files.
"""

from relay.spool.settlement import Finished, Parked, Rescheduled, Settlement
from relay.spool.spool import Spool
from relay.spool.words import DepthKey, Due, Found, Room, State

__all__ = [
    "DepthKey",
    "Due",
    "Finished",
    "Found",
    "Parked",
    "Rescheduled",
    "Room",
    "Settlement",
    "Spool",
    "State",
]

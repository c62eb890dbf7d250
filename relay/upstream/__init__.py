"""SMTP towards SES: paced sessions, and what was said on them.

``Pool`` hands out sessions, ``Session.send`` makes one attempt and returns an ``Attempt``.
The room decides nothing about mail: it reports each reply with its stage, and a lost link
with the stage it was lost at. aiosmtplib lives in ``link`` alone; none of its types or
exceptions leave this room.
"""

from .credentials import find_password
from .face import Attempt, PoolState, Refused, Session, Upstream
from .pool import Pool

__all__ = [
    "Attempt",
    "Pool",
    "PoolState",
    "Refused",
    "Session",
    "Upstream",
    "find_password",
]

"""SMTP towards Listmonk: never gives it a reason to lose a message.

Listmonk takes every 4xx and 5xx, and every connection it finds closed, for a message that
could not be sent, and forgets it; a late answer it waits for without end (facts: listmonk.md
1). So the rule of this room is: stall, never refuse; and never close first.

``listener`` has the sockets, ``connection`` the life of one of them, ``dialogue`` and ``client``
what is said on it, ``inflow``, ``body`` and ``allowance`` the bytes, ``intake`` the way into
the spool, ``access``, ``users``, ``auth`` and ``logins`` the question who may send, ``slots``
who has to wait, ``handover`` the idle connections at a restart; ``address`` and ``headers``
read, ``replies`` has every text.
"""

from relay.listener.handover import KEPT_NAMES, Resting, store, take_back
from relay.listener.intake import by_domain
from relay.listener.listener import DRAIN_GRACE_S, Listener, users_of
from relay.listener.observer import NoObserver, Observer
from relay.listener.users import Users

__all__ = [
    "DRAIN_GRACE_S",
    "KEPT_NAMES",
    "Listener",
    "NoObserver",
    "Observer",
    "Resting",
    "Users",
    "by_domain",
    "store",
    "take_back",
    "users_of",
]

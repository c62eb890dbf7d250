"""Who may be connected at once: places for friends, and a few of them for strangers.

A *stranger* is a client from outside ``listen.allow_networks`` that has not logged in (yet).
It can do nothing but try to, and it holds a place; all places taken, Listmonk would wait for
as long as strangers like. So strangers have a share of the places, and friends find the rest,
and push a stranger out when there is none.

A new stranger is never turned away: Listmonk on another machine begins as one, and to it a 421
or a refused connection is a lost message (facts: listmonk.md 1). It pushes another one out
instead: of the origin (``relay.guesses``) that has most strangers here, the one that came
first. Listmonk logs in within a second and is a friend from then on, so it is neither among
the oldest nor among the many. That is the limit for each origin as well: nobody can push out
somebody who holds less than himself. A number would be too low for a pool of Listmonk's, which
comes all at once, or too high to help it.

Invariants: at most ``connections_max`` places are taken, at most ``strangers_max`` of them by
strangers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.listener.connection import Connection

STRANGERS_SHARE = 4
"""One place in so many is open to strangers: 125 of the 500 that are usual. What friends have
left is as good as all."""

STRANGERS_MIN = 50
"""Where a quarter is less: more than the connections that a Listmonk on another machine opens at
once (10 by default), lest it push itself out."""


class Slots:
    """The places of one listener."""

    def __init__(self, connections_max: int) -> None:
        share = max(connections_max // STRANGERS_SHARE, STRANGERS_MIN)
        self.strangers_max = min(connections_max, share)
        self._free = asyncio.Semaphore(connections_max)
        self._origins: dict[Connection, str] = {}
        self._strangers: dict[str, dict[Connection, int]] = {}
        """By origin, in order of arrival, with the number of the arrival."""
        self._arrivals = 0

    @property
    def strangers(self) -> int:
        """Places that strangers hold now."""
        return len(self._origins)

    @property
    def are_taken(self) -> bool:
        """No place is free."""
        return self._free.locked()

    async def take(self) -> None:
        """Return when a place is taken; cancelled, none is."""
        if self.are_taken:
            self._push_out()
        await self._free.acquire()

    def seat(self, connection: Connection, origin: str) -> None:
        """Count a connection that has a place; ``origin`` is a stranger's, and "" a friend's."""
        if not origin:
            return
        self._arrivals += 1
        self._origins[connection] = origin
        self._strangers.setdefault(origin, {})[connection] = self._arrivals
        if self.strangers > self.strangers_max:
            self._push_out()

    def befriend(self, connection: Connection) -> None:
        """It has logged in: it counts as a stranger no longer, and keeps its place."""
        origin = self._origins.pop(connection, "")
        if origin:
            here = self._strangers[origin]
            del here[connection]
            if not here:
                del self._strangers[origin]

    def leave(self, connection: Connection) -> None:
        """Its place is free again; to be called once."""
        self.befriend(connection)
        self.give_back()

    def give_back(self) -> None:
        """The place that was taken is not needed."""
        self._free.release()

    def _push_out(self) -> None:
        """Cut the stranger who is to make room; its place comes free as soon as it has gone."""
        if self._strangers:
            most = max(self._strangers.values(), key=lambda here: (len(here), -_first(here)))
            oldest = next(iter(most))
            self.befriend(oldest)
            oldest.push_out()


def _first(here: dict[Connection, int]) -> int:
    return next(iter(here.values()))

"""Who may be connected at once: places for friends, and a few of them for strangers.

A *stranger* is a client from outside ``listen.allow_networks`` that has not logged in (yet).
It can do nothing but try to, and it holds a place; all places taken, Listmonk would wait for
as long as strangers like. So strangers have a share of the places, and friends find the rest,
and push a stranger out when there is none.

A new stranger is never turned away: Listmonk on another machine begins as one, and to it a 421
or a refused connection is a lost message (facts: listmonk.md 1). It pushes another one out
instead, the one that came first of its origin (``relay.guesses``). Which origin (not its own, if
nobody else is here from there), is asked in turn:

1. one from which nobody has ever logged in, before one that is *known*;
2. a crowd, with more strangers than a pool has (``POOL_MAX``), the larger first;
3. the one with most that had time to log in (``YOUNG_S``) and did not: those of a thousand
   addresses who just sit there go before the ten that Listmonk opens at once;
4. the one with most, then the one that came first: those who come again and again, and are never
   here for long, push out themselves.

Invariants: at most ``connections_max`` places are taken, at most ``strangers_max`` of them by
strangers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.listener.connection import Connection

STRANGERS_SHARE = 4
"""One place in so many is open to strangers: 125 of the 500 that are usual. What friends have
left is as good as all."""

STRANGERS_MIN = 50
"""Where a quarter is less: more than the connections that a Listmonk on another machine opens at
once (10 by default), lest it push itself out."""

POOL_MAX = 30
"""Connections of one Listmonk: the README advises 25, and one or two more can occur (facts:
listmonk-wire.md)."""

YOUNG_S = 2.0
"""Listmonk logs in within a second."""

_Arrival = tuple[int, float]
"""Its number, and its moment."""

KNOWN_MAX = 1_000
"""Origins that have logged in, the latest ones; some 100 kB."""


class Slots:
    """The places of one listener."""

    def __init__(self, connections_max: int, now: Callable[[], float]) -> None:
        """``now`` is the monotonic clock."""
        self._now = now
        share = max(connections_max // STRANGERS_SHARE, STRANGERS_MIN)
        self.strangers_max = min(connections_max, share)
        self._free = asyncio.Semaphore(connections_max)
        self._origins: dict[Connection, str] = {}
        self._strangers: dict[str, dict[Connection, _Arrival]] = {}
        """By origin, in order of arrival."""
        self._arrivals = 0
        self._known: OrderedDict[str, None] = OrderedDict()

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
        arrival = self._arrivals, self._now()
        self._strangers.setdefault(origin, {})[connection] = arrival
        if self.strangers > self.strangers_max:
            self._push_out(connection)

    def befriend(self, connection: Connection) -> None:
        """It has logged in: it counts as a stranger no longer, and keeps its place."""
        origin = self._forget(connection)
        if origin:
            self._known[origin] = None
            self._known.move_to_end(origin)
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    def _forget(self, connection: Connection) -> str:
        """Count it as a stranger no longer; whence it was, "" if it was none."""
        origin = self._origins.pop(connection, "")
        if origin:
            here = self._strangers[origin]
            del here[connection]
            if not here:
                del self._strangers[origin]
        return origin

    def leave(self, connection: Connection) -> None:
        """Its place is free again; to be called once."""
        self._forget(connection)
        self.give_back()

    def give_back(self) -> None:
        """The place that was taken is not needed."""
        self._free.release()

    def _push_out(self, newcomer: Connection | None = None) -> None:
        """Cut the stranger who is to make room; its place comes free as soon as it has gone.

        Never the ``newcomer``, though all others may be of origins that are known.
        """
        oldest_of = {origin: next(iter(here)) for origin, here in self._strangers.items()}
        others = [origin for origin, oldest in oldest_of.items() if oldest is not newcomer]
        if others:
            oldest = oldest_of[max(others, key=self._unwanted)]
            self._forget(oldest)
            oldest.push_out()

    def _unwanted(self, origin: str) -> tuple[bool, int, int, int, int]:
        """The higher, the sooner one of it has to go: the four questions in their order."""
        here = self._strangers[origin]
        crowd = len(here) if len(here) > POOL_MAX else 0
        grown_up_at = self._now() - YOUNG_S
        idlers = sum(at <= grown_up_at for _, at in here.values())
        return origin not in self._known, crowd, idlers, len(here), -_first(here)


def _first(here: dict[Connection, _Arrival]) -> int:
    number, _ = next(iter(here.values()))
    return number

"""Who is held, by whom, since when and why.

A hold has a key (what is held) and a source (who holds it): a key is held while any source
holds it, and each source lifts only its own, so that the breaker's probe never lets go what
an operator has stopped. Holds are one store for the whole relay, shared by the breakers of
all upstreams: it lives in memory, the dispatcher copies each change to the spool. Bounded by
the keys there are: one for each upstream and campaign, sender or configuration set in use.

Knows nothing of replies or counts. Times are wall milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PROBE_LOST_MS = 30 * 60_000
"""A probe of which nothing was heard for so long is given up, and the next may start: three
times the longest wait for a reply (``upstream.dot_timeout_s``, 600 s by default)."""


class Source(StrEnum):
    """Who holds."""

    OPERATOR = "operator"
    LISTMONK = "listmonk"
    """The campaign is paused there."""
    BREAKER = "breaker"
    """The upstream's replies."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One source's hold on one key.

    ``reason`` is for people; ``next_probe_at`` is when one envelope may be tried all the
    same (0: never, somebody must lift it); ``probes`` counts those refused so far.
    """

    key: str
    source: Source
    reason: str
    since_at: int
    next_probe_at: int = 0
    probes: int = 0


def account_key(upstream: str) -> str:
    """The key of everything that goes to ``upstream``."""
    return f"account:{upstream}"


def sender_key(upstream: str, sender: str) -> str:
    """The key of one envelope sender, letter for letter as it stands in MAIL FROM."""
    return f"sender:{upstream}:{sender}"


def configuration_set_key(upstream: str, name: str) -> str:
    """The key of all mail that asks for one SES configuration set."""
    return f"configuration-set:{upstream}:{name}"


def sandbox_key(upstream: str) -> str:
    """The key under which mail waits whose recipient a sandbox account may not write to."""
    return f"sandbox:{upstream}"


def campaign_key(campaign: str) -> str:
    """The key of one campaign, whatever upstream it goes to."""
    return f"campaign:{campaign}"


def in_doubt_key(upstream: str) -> str:
    """The key under which mail in doubt waits for a person (``upstream.in_doubt = "hold"``)."""
    return f"in-doubt:{upstream}"


class Holds:
    """All holds of the relay, by key and source."""

    def __init__(self, holds: Iterable[Hold] = ()) -> None:
        self._by_key: dict[str, dict[Source, Hold]] = {}
        self._probing: dict[str, int] = {}
        for hold in holds:
            self.add(hold)

    def __bool__(self) -> bool:
        """Whether anything at all is held."""
        return bool(self._by_key)

    def add(self, hold: Hold) -> None:
        """Hold ``hold.key``; the same source's earlier hold on it is replaced."""
        self._by_key.setdefault(hold.key, {})[hold.source] = hold

    def lift(self, key: str, source: Source) -> bool:
        """End one source's hold on ``key``; whether there was one."""
        found = self._by_key.get(key, {}).pop(source, None)
        if not self._by_key.get(key):
            self._by_key.pop(key, None)
        if source is Source.BREAKER:
            self._probing.pop(key, None)
        return found is not None

    def lift_all(self, key: str, sources: Iterable[Source] = tuple(Source)) -> bool:
        """End the holds of ``sources`` on ``key``; whether there was any.

        The breaker's counts begin at nothing again (see ``breaker``).
        """
        lifted = [source for source in sources if self.lift(key, source)]
        return bool(lifted)

    def get(self, key: str, source: Source) -> Hold | None:
        """One source's hold on ``key``."""
        return self._by_key.get(key, {}).get(source)

    def sources(self, key: str) -> frozenset[Source]:
        """Who holds ``key``; nobody if it is free."""
        return frozenset(self._by_key.get(key, ()))

    def held(self, key: str) -> bool:
        """Whether anybody holds ``key``."""
        return key in self._by_key

    def campaign_held(self, campaign: str) -> bool:
        """Whether the campaign as a whole is held; never for mail without one."""
        return bool(campaign) and campaign_key(campaign) in self._by_key

    def account_held(self, upstream: str) -> bool:
        """Whether everything that goes to ``upstream`` is held."""
        return account_key(upstream) in self._by_key

    def all(self) -> list[Hold]:
        """Every hold, the oldest first."""
        holds = [hold for by_source in self._by_key.values() for hold in by_source.values()]
        return sorted(holds, key=lambda hold: (hold.since_at, hold.key, hold.source))

    def of(self, source: Source) -> list[Hold]:
        """The holds of one source, the oldest first."""
        return [hold for hold in self.all() if hold.source is source]

    def probing(self, key: str, now_ms: int) -> bool:
        """Whether an envelope is under way to see if ``key`` may be freed."""
        started_at = self._probing.get(key)
        return started_at is not None and abs(now_ms - started_at) < PROBE_LOST_MS

    def probe_started(self, key: str, now_ms: int) -> None:
        """Note that a probe of ``key`` is under way: one at a time, over all upstreams."""
        self._probing[key] = now_ms

    def probe_ended(self, key: str) -> bool:
        """Note that the probe of ``key`` is over; whether one was under way."""
        return self._probing.pop(key, None) is not None

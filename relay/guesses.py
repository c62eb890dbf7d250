"""How long those who guess a secret must wait for their next guess to be looked at.

The wait begins after some wrong guesses, doubles with each further one up to a bound, and is
forgotten after a while or with a right one. It belongs to an *origin*: an address, or for IPv6
the network that one customer gets. Names are not counted: whoever knows a user's name could
keep its owner out by guessing badly. A right guess clears its origin: whoever knows one secret
is in already.

All origins together are bounded as well: ``ORIGINS_MAX`` are told apart, all further ones
count as one. So the guesses of any number of machines come to at most
``(ORIGINS_MAX + 1) / longest_s`` a second in the long run. An origin that has once guessed
right keeps an account of its own, lest a crowd make it wait.

The caller sees to it that the guesses of one origin are looked at one after the other.
Pure: ``now`` is monotonic seconds.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from math import inf

ORIGINS_MAX = 1_000
"""Told apart, and as many again of those that have guessed right: some 200 kB."""

FORGET_S = 900.0
"""After the end of its last wait an origin begins anew: a slow typist is no attacker."""

NEIGHBOURS_BITS = 64
"""Of an IPv6 address: what one customer is given at least (RFC 6177 §2), so it is one origin."""

_CROWD = ""
"""What all origins beyond ``ORIGINS_MAX`` count as."""
_DOUBLINGS_MAX = 60
"""A longer wait than any; a float bears it."""
_PURGE_EVERY_S = 1.0
"""Between two looks for what may be forgotten, each a walk over all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """``free`` wrong guesses cost nothing, the next ``first_s``, any at most ``longest_s``."""

    free: int = 0
    first_s: float
    longest_s: float


@dataclass(slots=True)
class _Account:
    wrong: int = 0
    next_at: float = 0.0


class Guesses:
    """Who has guessed wrong, and how often."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._accounts: dict[str, _Account] = {}
        self._good: OrderedDict[str, None] = OrderedDict()
        self._purged_at = -inf

    def counted_as(self, now: float, origin: str) -> str:
        """What ``origin`` counts as now: itself, or the crowd when there are too many."""
        if origin in self._accounts or origin in self._good:
            return origin
        if len(self._accounts) >= ORIGINS_MAX:
            self._purge(now)
        return origin if len(self._accounts) < ORIGINS_MAX else _CROWD

    def wait_s(self, now: float, origin: str) -> float:
        """How long until a guess of ``origin`` may be looked at; 0: at once."""
        account = self._accounts.get(self.counted_as(now, origin))
        return 0.0 if account is None else max(0.0, account.next_at - now)

    def wrong(self, now: float, origin: str) -> float:
        """Count a wrong guess; the wait that it costs."""
        account = self._accounts.setdefault(self.counted_as(now, origin), _Account())
        if self._is_over(now, account):
            account.wrong = 0
        account.wrong += 1
        wait_s = self._cost_s(account.wrong)
        account.next_at = max(now, account.next_at) + wait_s
        return wait_s

    def right(self, origin: str) -> None:
        """Clear ``origin``, and know it from now on."""
        self._accounts.pop(origin, None)
        self._good[origin] = None
        self._good.move_to_end(origin)
        if len(self._good) > ORIGINS_MAX:
            self._good.popitem(last=False)

    def _cost_s(self, wrong: int) -> float:
        doublings = wrong - self._patience.free - 1
        if doublings < 0:
            return 0.0
        grown_s = self._patience.first_s * 2.0 ** min(doublings, _DOUBLINGS_MAX)
        return min(grown_s, self._patience.longest_s)

    def _purge(self, now: float) -> None:
        if now - self._purged_at < _PURGE_EVERY_S:
            return
        self._purged_at = now
        over = [name for name, account in self._accounts.items() if self._is_over(now, account)]
        for name in over:
            del self._accounts[name]

    @staticmethod
    def _is_over(now: float, account: _Account) -> bool:
        return now - account.next_at > FORGET_S


def origin_of(host: str) -> str:
    """What the peer at this address counts as; IPv4 seen through IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), NEIGHBOURS_BITS), strict=False))

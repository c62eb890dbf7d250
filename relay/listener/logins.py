"""The queue for logging in: the guesses of one origin are looked at one after the other.

A wrong one keeps the next of its origin waiting, over however many connections they come
(``relay.guesses`` says how long), and is itself answered only after that wait. The wait comes
before the look: if only the answer were late, a guesser would hang up on each late answer.

*Friends*, clients from ``listen.allow_networks``, do not wait as long as they may send without
logging in: a guess gains them nothing. With ``listen.auth = "required"`` they wait as well, but
never longer than the first time, and not at all for a pair that was found wrong before: Listmonk
with a wrong password brings the same one over tens of connections again and again, and must
not stand in its own way when the password is mended.

A drain, and a client that leaves, end a wait; what it cost stays on the account.

Whoever shares an origin with guessers (Docker's published ports make everybody look like its
bridge) shares their queue. To let a pair that is known to be right pass by would let a guesser
see at once, and so as often as he likes, that a guess was not it.

Each wrong login is a line of the log, ``msg="wrong login" peer=… user=… mechanism=…``, written
before the wait; fail2ban can go by it: ``failregex = msg="wrong login" peer=<HOST> ``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from relay.guesses import Guesses, Patience

if TYPE_CHECKING:
    from relay.clock import Clock

FRIENDS = Patience(first_s=2.0, longest_s=2.0)
STRANGERS = Patience(first_s=2.0, longest_s=30.0)
"""2, 4, 8, 16, then 30 s: less than 3,000 guesses a day from one origin."""

Wait = Callable[[Callable[[], Awaitable[object]]], Awaitable[object]]
"""Awaits what it is given until the client leaves or the relay drains; then it raises."""


class Queue:
    """The origins that wait, and what each has to wait for."""

    def __init__(self, patience: Patience) -> None:
        self._guesses = Guesses(patience)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def trust(self, origin: str) -> None:
        """It has guessed right, in the relay before this one."""
        self._guesses.right(origin)

    async def look(
        self, origin: str, clock: Clock, wait: Wait, check: Callable[[], Awaitable[bool]]
    ) -> bool:
        """What ``check`` finds, once it is the turn of ``origin``; if wrong, after the wait."""
        counted_as = self._guesses.counted_as(clock.monotonic(), origin)
        turn = self._turns.setdefault(counted_as, asyncio.Lock())
        if turn.locked():
            await wait(turn.acquire)
        else:
            await turn.acquire()
        try:
            before_s = self._guesses.wait_s(clock.monotonic(), origin)
            if before_s:
                await wait(partial(clock.sleep, before_s))
            is_right = await check()
            if is_right:
                self._guesses.right(origin)
            else:
                cost_s = self._guesses.wrong(clock.monotonic(), origin)
                await wait(partial(clock.sleep, cost_s))
        finally:
            turn.release()
        return is_right

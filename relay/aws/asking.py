"""A question to AWS that ends in time, whatever hangs.

A blocking call in a thread. The thread is a *daemon* and the event loop's pool is not used: that
pool is joined when the loop ends, so one look-up that hangs (DNS, a metadata service, a credential
process, each with time-outs of their own or none) would hold up the stop of the whole relay. A
daemon that is late is left behind: while it lives nothing new is asked, so there is never more
than one; when the process ends, it ends.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from relay.aws.words import Account, Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.aws.place import Endpoint

ANSWER_MAX_S = 45.0
"""Two calls of ``vendor.CONNECT_S`` + ``READ_S``, and credentials from a metadata service or a
role before them."""


def _account_at(endpoint: Endpoint) -> Account | Silence:
    """``vendor.account_at``, or that the extra is not there. Blocks."""
    try:
        from relay.aws.vendor import account_at  # noqa: PLC0415  # optional; 0.1 s and 20 MB
    except ImportError:
        return Silence.EXTRA
    return account_at(endpoint)


class Asker:
    """Asks about the account at one endpoint; at most one thread of it is alive."""

    def __init__(
        self, endpoint: Endpoint, account_at: Callable[[Endpoint], Account | Silence] = _account_at
    ) -> None:
        """``account_at`` blocks; whatever it raises is handed on by ``ask``."""
        self._endpoint, self._account_at = endpoint, account_at
        self._is_asking = False

    async def ask(self) -> Account | Silence:
        """The answer, after ``ANSWER_MAX_S`` at the latest. May be cancelled at any time."""
        if self._is_asking:
            return Silence.LATE
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Account | Silence] = loop.create_future()
        thread = threading.Thread(
            target=self._work, args=(loop, answer), name="relay-aws", daemon=True
        )
        self._is_asking = True  # before the start, which the thread may outrun
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: not now
            self._is_asking = False
            return Silence.LATE
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                return await answer
        except TimeoutError:
            return Silence.LATE

    def _work(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Account | Silence]
    ) -> None:
        """In the thread: ask, and hand over what came of it if anybody still waits."""
        found: Account | Silence | Exception
        try:
            found = self._account_at(self._endpoint)
        except Exception as error:  # handed to whoever waits
            found = error
        self._is_asking = False
        self._hand_over(loop, answer, found)

    @staticmethod
    def _hand_over(
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[Account | Silence],
        found: Account | Silence | Exception,
    ) -> None:
        def settle() -> None:
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        try:
            loop.call_soon_threadsafe(settle)
        except RuntimeError:
            return  # the loop has ended: the relay is gone

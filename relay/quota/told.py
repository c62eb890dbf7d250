"""What AWS says of the account's day, and how far it can be relied upon. Pure.

AWS counts others' mail, too, but its counter lags: 346 of 500 were shown when all had been sent
(observed; by how much it lags nobody says). So what we sent shortly before is taken off what AWS
says is left: that of ``UNSEEN_MS`` before its word may stop the lanes without reserve, that of
``UNSEEN_MAX_MS`` before its word counts for more than the allowance. To stop too early by this
ends by itself, a quarter of an hour later. Measured in the model of
``tests/unit/test_quota_week.py`` with a lag of 10 minutes: at a reserve of 2 % priority mail waits
6 hours on one day of the week and not at all on the others, at 5 % never; without AWS it waits 23
hours and 6 hours on two days. With a lag of an hour it is as without AWS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TOLD_FOR_MS = 900_000
"""Three of the questions to AWS; what it said before says little of a day that moves."""
TOLD_MIN = 200
"""The smallest quota there is, a sandbox's (documented): a smaller number is none."""
TOLD_OVER = 1.1
"""More than this share of its own maximum no account has sent (102 % were observed)."""
UNSEEN_MS, UNSEEN_MAX_MS = 1_200_000, 7_500_000


class Told:
    """AWS's last word on the day, in recipients. Times are wall milliseconds."""

    def __init__(self) -> None:
        self._at: int | None = None
        self._left = self._unseen = self._unseen_max = 0
        self._reserve = 0.0

    def hear(
        self,
        now_ms: int,
        day_max: int | None,
        day_sent: int | None,
        *,
        reserve_share: float,
        sent_since: Callable[[int], int],
    ) -> None:
        """Replace the last word by this one, or by none if it is absurd or lacks a number.

        ``sent_since`` says how many recipients we have sent since a moment.
        """
        self._at = None
        if day_max is None or day_sent is None:
            return
        if day_max < TOLD_MIN or day_sent > TOLD_OVER * day_max:
            return
        self._at, self._left = now_ms, day_max - day_sent
        self._reserve = day_max * reserve_share
        self._unseen = sent_since(now_ms - UNSEEN_MS)
        self._unseen_max = sent_since(now_ms - UNSEEN_MAX_MS)

    def sent(self, recipients: int) -> None:
        """So many more are gone."""
        self._left -= recipients

    def left(self, now_ms: int) -> int | None:
        """What is left by AWS's word; None if there is none that is fresh.

        By a clock that was set back since then it never is.
        """
        is_fresh = self._at is not None and 0 <= now_ms - self._at < TOLD_FOR_MS
        return self._left if is_fresh else None

    def surely_leaves_some(self, now_ms: int) -> bool:
        """Whether there is more than the reserve, however late AWS counts."""
        left = self.left(now_ms)
        return left is not None and left - self._unseen_max > self._reserve

    def stops_until(self, now_ms: int) -> int:
        """Until when its word, that no more than the reserve is left, is fresh; now if not so."""
        left = self.left(now_ms)
        if self._at is None or left is None or not self._reserve:
            return now_ms
        return now_ms if left - self._unseen > self._reserve else self._at + TOLD_FOR_MS

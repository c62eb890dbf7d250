"""How much of the account's daily quota is used, and who may still send.

SES compares each send with what went out in the 24 hours before it, in recipients, and
refuses what is over (documented). It tells nobody how much is left, and others may use the
account, so two things are kept apart:

- The **ledger**: recipients accepted from us, in buckets of ``BUCKET_MS`` over a rolling
  day. It is rebuilt from the spool's outcomes at the start. It answers "how much did we
  use" and predicts when room comes back: when the oldest bucket leaves the day. A bucket counts
  until its last moment has left, so the prediction errs by at most ``BUCKET_MS``, late.
- **Spent**: what the upstream said. From then on only a sparse probe goes, one message after
  ``PROBE_FIRST_MS``, twice as long after each refused one, up to ``PROBE_MAX_MS``; it goes
  to whoever stands first, which is the priority lane. SES gives room back bit by bit (an
  observer saw hourly steps), so waiting for a day would waste most of one. Anything accepted
  opens the quota again. Not kept over a restart: one refusal tells us again.

With a known ``daily_max`` a share of it, ``priority_reserve``, is kept for the priority lane: all
other lanes stop by the ledger when the rest is used. The priority lane never stops by the
ledger, for only the upstream knows. What is in flight is not in the ledger yet, so the other
lanes may overrun by that much (SES, too, admits a message while one recipient is left).

The rate is another room's: a spent quota says nothing about it. ``SIGV2`` throttles (old
credentials) are treated as the rate's, but were seen on an account at 102 % of its quota
(observed); if nothing is accepted for ``SIGV2_PERSISTS_MS`` while they go on, the quota is spent.

Pure; times are wall milliseconds. A clock that is set back makes later entries count as
made now (they stay a day), and a probe is never further away than its longest wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.envelope import PRIORITY
from relay.verdict import Limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay import config

WINDOW_MS = 24 * 3_600_000
"""The quota's day: any 24 hours (AWS, "Managing your Amazon SES sending limits")."""
BUCKET_MS = 300_000
"""Five minutes: finer than the hourly steps in which room was seen to come back, and 289
numbers in all."""
BUCKETS_MAX = WINDOW_MS // BUCKET_MS + 1
PROBE_FIRST_MS = 120_000
PROBE_MAX_MS = 900_000
"""15 minutes (design 7): at most 96 refused messages a day."""
SIGV2_PERSISTS_MS = 600_000
"""Ten minutes: AWS lets clients wait "up to 10 minutes" for a throttle to clear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaState:
    """The figures of one moment; ``left`` and the moments are None where nobody knows.

    ``used`` is our own recipients in the last 24 hours. ``spent_at`` is when the upstream
    said that there is no more, ``next_at`` when bulk mail may next be tried.
    """

    used: int
    daily_max: int | None
    left: int | None
    spent_at: int | None
    next_at: int | None
    room_at: int | None


class Quota:
    """The daily quota of one upstream."""

    def __init__(self, config: config.Quota, buckets: Iterable[tuple[int, int]] = ()) -> None:
        """``buckets`` are (start, recipients) of what was sent before, in any order and size."""
        self._daily_max = config.daily_max
        self._others_max = config.daily_max * (1 - config.priority_reserve)
        self._ledger: dict[int, int] = {}
        self._rolled_to: int | None = None
        for start, recipients in sorted(buckets):
            self._count(start, recipients)
        self._spent_at: int | None = None
        self._wait_ms = PROBE_FIRST_MS
        self._probe_at = 0
        self._probing = False
        self._sigv2_since: int | None = None

    # -- What the upstream said -----------------------------------------------------------

    def sent(self, now_ms: int, recipients: int) -> None:
        """Enter accepted recipients; there is room after all."""
        self._roll(now_ms)
        self._count(now_ms, recipients)
        self._spent_at = self._sigv2_since = None

    def throttled(self, limit: Limit, now_ms: int) -> None:
        """Take note of a throttle; the rate's own are nothing to the quota."""
        if limit is Limit.QUOTA:
            self.spent(now_ms)
        elif limit is Limit.SIGV2:
            self._sigv2_since = min(now_ms, self._sigv2_since or now_ms)
            if now_ms - self._sigv2_since >= SIGV2_PERSISTS_MS:
                self.spent(now_ms)

    def spent(self, now_ms: int) -> None:
        """No more for now. Refusals of what was in flight at that moment count once."""
        if self._spent_at is None:
            self._spent_at, self._wait_ms = now_ms, PROBE_FIRST_MS
        elif self._probing:
            self._wait_ms = min(PROBE_MAX_MS, 2 * self._wait_ms)
        else:
            return
        self._probing = False
        self._probe_at = now_ms + self._wait_ms

    # -- Who may send ---------------------------------------------------------------------

    def allows(self, lane: str, now_ms: int) -> bool:
        """Whether a message of ``lane`` may go now.

        While the quota is spent that message is a probe: tell ``probe_started`` as it goes.
        """
        return self.next_at(now_ms, lane) <= now_ms

    def probe_started(self, now_ms: int) -> None:
        """A message goes out; if the quota is spent, the next waits its time.

        May be told of every message. Nothing need be said if a probe ended without word
        about the quota.
        """
        self._probing = True
        self._probe_at = now_ms + self._wait_ms

    def next_at(self, now_ms: int, lane: str = "") -> int:
        """When to ask again for ``lane`` (by default any but priority); now, if it may go."""
        self._roll(now_ms)
        if self._spent_at is not None:
            at = max(now_ms, self._probe_at)
            return at if at - now_ms <= PROBE_MAX_MS else now_ms
        if lane == PRIORITY:
            return now_ms
        return self._room_at(now_ms) or now_ms

    def room_at(self, now_ms: int) -> int | None:
        """When room is expected for mail without reserve; None if there is, or nobody knows."""
        self._roll(now_ms)
        if self._spent_at is None:
            return self._room_at(now_ms)
        return min(map(_leaves_at, self._ledger), default=None)

    def snapshot(self, now_ms: int) -> QuotaState:
        """The figures of this moment."""
        self._roll(now_ms)
        used, next_at = self._used(), self.next_at(now_ms)
        known = bool(self._daily_max)
        return QuotaState(
            used=used,
            daily_max=self._daily_max if known else None,
            left=max(0, self._daily_max - used) if known else None,
            spent_at=self._spent_at,
            next_at=next_at if next_at > now_ms or self._spent_at is not None else None,
            room_at=self.room_at(now_ms),
        )

    # -- The ledger -----------------------------------------------------------------------

    def _used(self) -> int:
        return sum(self._ledger.values())

    def _count(self, at_ms: int, recipients: int) -> None:
        start = at_ms - at_ms % BUCKET_MS
        self._ledger[start] = self._ledger.get(start, 0) + recipients

    def _roll(self, now_ms: int) -> None:
        """Drop what has left the day; what lies in the future was made now.

        Buckets come and go only where one begins, so it is done once for each.
        """
        if now_ms // BUCKET_MS == self._rolled_to:
            return
        self._rolled_to = now_ms // BUCKET_MS
        for start in [start for start in self._ledger if start > now_ms]:
            self._count(now_ms, self._ledger.pop(start))
        for start in [start for start in self._ledger if _leaves_at(start) <= now_ms]:
            del self._ledger[start]

    def _room_at(self, now_ms: int) -> int | None:
        """When the ledger falls below what lanes without reserve may use; None if it is."""
        used = self._used()
        if not self._daily_max or used < self._others_max:
            return None
        for start in sorted(self._ledger):
            used -= self._ledger[start]
            if used < self._others_max:
                return _leaves_at(start)
        return now_ms + WINDOW_MS


def _leaves_at(start: int) -> int:
    """When the last recipient that may be in the bucket is a day old."""
    return start + BUCKET_MS + WINDOW_MS

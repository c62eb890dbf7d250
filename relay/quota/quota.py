"""How much of the account's daily quota is used, and who may still send.

SES compares each send with what went out in the 24 hours before it, in recipients, and
refuses what is over (documented). It tells nobody how much is left, and others may use the
account, so three things are kept apart:

- The **ledger**: recipients accepted from us, in buckets of ``BUCKET_MS`` over a rolling
  day. It is rebuilt from the spool's outcomes at the start. It answers "how much did we
  use" and predicts when room comes back: when enough buckets have left the day. A bucket
  counts until its last moment has left, so the prediction errs by at most ``BUCKET_MS``, late.
- **Spent**: what the upstream said. From then on only a sparse probe goes, one message after
  ``PROBE_FIRST_MS``, twice as long after each refused one, up to ``PROBE_MAX_MS``; it goes
  to whoever stands first, which is the priority lane. SES gives room back bit by bit (an
  observer saw hourly steps), so waiting for a day would waste most of one. Only a probe's
  accept opens the quota again: what was on its way when the first refusal came proves
  nothing, and accepts are answered later than refusals (0.15 s to 0.03 s, observed). Spent
  again within ``PROBE_MAX_MS``, probes go on at their last pace, or each hour's step would
  cost a series of its own.
- The **allowance**: what our ledger held when the upstream said "spent", since the day had
  that much for us, to within an hour's step (``STEP_MS``). Less does not replace it for
  ``ALLOWED_KEPT_MS``: others took more that day, and to stop too late costs one refusal, to
  stop too early a day. For the same reason that of a single day is forgotten after as long, so
  that one day of others' does not stop next week's campaign for a day; one that was met again
  on another day is kept for ``ALLOWED_BELIEVED_MS``. Whatever tells us of more ends it: accepts
  beyond it, or room that our own ledger does not explain (others' mail has left the day, or the
  quota was raised).

A share, ``priority_reserve``, of ``daily_max`` and of the allowance is kept for the priority
lane: all other lanes stop by the ledger when the rest is used, since a campaign that takes
the last of a day leaves the password resets of the next 23 hours waiting. The priority lane
never stops by the ledger, for only the upstream knows. What is in flight is not in the ledger
yet, so the other lanes may overrun by that much (SES, too, admits a message while one
recipient is left). An allowance would be believed for ever by a lane that stops short of it,
so once it is ``ALLOWED_FOR_MS`` old it no longer binds while the ledger expects a good part of
the reserve within ``PROBE_MAX_MS``: if that ends in "spent", nobody waits for long. Measured over
a week, see ``tests/unit/test_quota_week.py``: with no others on the account, priority mail that
waited 23 hours a day waits a minute from the third day on, at 99 % use.

If AWS can be asked, it says how much of the day is used, others' mail included (``told``). While
that is fresh, the other lanes also stop where it leaves no more than the reserve, from the first
day on; and where it surely leaves more, the allowance, which only guesses at others, is not asked.
It opens nothing that the upstream called spent, and ``daily_max`` is the operator's word beside it.

The rate is another room's: a spent quota says nothing about it. ``SIGV2`` throttles (old
credentials) are treated as the rate's, but were seen on an account at 102 % of its quota
(observed); if nothing is accepted for ``SIGV2_PERSISTS_MS`` while they go on, the quota is spent.

What was said is kept in the spool (``learned``): a restart, or a crash in a loop, costs no
volley of refusals, and mail that waits goes on waiting for the same probe. A kill within a
minute of the news forgets it, for one volley.

Pure; times are wall milliseconds. A clock that is set back makes later entries count as
made now (they stay a day), and a probe is never further away than its longest wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.envelope import PRIORITY
from relay.quota.told import Told
from relay.verdict import Limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay import config

WINDOW_MS = 24 * 3_600_000
"""The quota's day: any 24 hours (AWS, "Managing your Amazon SES sending limits")."""
BUCKET_MS = 300_000
"""Five minutes: finer than the hourly steps in which room was seen to come back, and 289
numbers in all."""
BUCKETS_MAX = WINDOW_MS // BUCKET_MS + 1
STEP_MS = 3_600_000
"""By how much mail may leave the upstream's day earlier than ours (hourly steps, observed)."""
PROBE_FIRST_MS = 120_000
PROBE_MAX_MS = 900_000
"""15 minutes (design 7): at most 96 refused probes a day."""
SIGV2_PERSISTS_MS = 600_000
"""Ten minutes: AWS lets clients wait "up to 10 minutes" for a throttle to clear."""
ALLOWED_MIN = 200
"""The smallest quota there is, a sandbox's (documented): what is below it others have used."""
ALLOWED_FOR_MS = 20 * 3_600_000
"""A little less than a day, so that the end of the allowance can be looked for each day at the
hour in which room comes back."""
ALLOWED_KEPT_MS = 2 * WINDOW_MS
ALLOWED_BELIEVED_MS = 30 * WINDOW_MS
"""A month of weekly campaigns; whoever sends more rarely looks for the end of the day anew."""
_WORTH = 0.1
"""What must be about to leave, as a share of the reserve, before the reserve is risked."""
_WHOLE_MAX = 2**53
"""Beyond it a float is not exact, and somewhat further there is none: such a number is none."""
_CONFIRMS = 0.9
"""From this share of the allowance on, "spent" speaks of the same allowance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaState:
    """The figures of one moment; what nobody knows is None.

    ``used`` is our own recipients in the last 24 hours; ``allowed`` is the allowance; ``left``
    is by the smaller of ``daily_max`` and what AWS says, else ``allowed``. ``spent_at`` is when
    the upstream said that there is no more, ``next_at`` when bulk mail may next be tried,
    ``room_at`` when our own ledger expects room for it.
    """

    used: int
    daily_max: int | None
    allowed: int | None
    left: int | None
    spent_at: int | None
    next_at: int | None
    room_at: int | None


class Quota:
    """The daily quota of one upstream."""

    def __init__(self, config: config.Quota, buckets: Iterable[tuple[int, int]] = ()) -> None:
        """``buckets`` are (start, recipients) of what was sent before, in any order and size."""
        self._daily_max = config.daily_max
        self._others_share = 1 - config.priority_reserve
        self._ledger: dict[int, int] = {}
        self._rolled_to: int | None = None
        for start, recipients in sorted(buckets):
            self._count(start, recipients)
        self._spent_at: int | None = None
        self._opened_at: int | None = None
        self._wait_ms = PROBE_FIRST_MS
        self._probe_at = 0
        self._probing = False
        self._sigv2_since: int | None = None
        self._allowed: int | None = None
        self._allowed_at = self._allowed_since = 0
        """When the allowance was met last, and when first."""
        self._told = Told()

    # -- What the upstream said -----------------------------------------------------------

    def sent(self, now_ms: int, recipients: int) -> None:
        """Enter accepted recipients. If it was a probe's, there is room after all."""
        self._roll(now_ms)
        self._count(now_ms, recipients)
        self._sigv2_since = None
        self._told.sent(recipients)
        if self._spent_at is None:
            return
        if self._probing:
            self._open(now_ms)
        elif self._allowed and self._allowed_at == self._spent_at:
            self._allowed += recipients  # It was on its way, and let in before the refusal.

    def _open(self, now_ms: int) -> None:
        """There is room again; ours, or else the allowance was too small."""
        self._spent_at, self._opened_at = None, now_ms
        if self._allowed and self._recent(now_ms) >= self._allowed * self._others_share:
            self._allowed = None

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
            self._begin(now_ms)
        elif self._probing:
            self._wait_ms = min(PROBE_MAX_MS, 2 * self._wait_ms)
        else:
            return
        self._probing = False
        self._probe_at = now_ms + self._wait_ms

    def _begin(self, now_ms: int) -> None:
        """Note that the quota is spent, and what the day has allowed."""
        self._spent_at = now_ms
        if self._opened_at is None or now_ms - self._opened_at >= PROBE_MAX_MS:
            self._wait_ms = PROBE_FIRST_MS
        self._roll(now_ms)
        used = self._used()
        is_lasting = now_ms - self._allowed_at < ALLOWED_KEPT_MS
        if self._allowed and is_lasting and used < _CONFIRMS * self._allowed:
            return
        before = self._allowed or 0
        if not _CONFIRMS * before <= used <= before / _CONFIRMS:
            self._allowed_since = now_ms
        self._allowed, self._allowed_at = used if used >= ALLOWED_MIN else None, now_ms

    def told(self, now_ms: int, *, day_max: int | None, day_sent: int | None) -> None:
        """Take AWS's word on the account's day, in recipients; None: it does not say.

        Bulk mail that waited for it may go now: whoever sleeps until ``next_at`` is to be woken.
        """
        self._roll(now_ms)
        self._told.hear(
            *(now_ms, day_max, day_sent),
            reserve_share=1 - self._others_share,
            sent_since=self._since,
        )

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
        at = max(now_ms, self._falls_below(self._daily_line, now_ms))
        if self._told.surely_leaves_some(now_ms):
            return at
        return max(at, self._allowance_at(now_ms), self._told.stops_until(now_ms))

    def room_at(self, now_ms: int) -> int | None:
        """When room is expected for mail without reserve; None if there is, or nobody knows."""
        self._roll(now_ms)
        at = max(self._falls_below(line, now_ms) for line in (self._daily_line, self._line))
        if at <= now_ms and self._spent_at is not None:
            at = min(map(_leaves_at, self._ledger), default=0)
        return at if at > now_ms else None

    def snapshot(self, now_ms: int) -> QuotaState:
        """The figures of this moment."""
        self._roll(now_ms)
        used, next_at = self._used(), self.next_at(now_ms)
        return QuotaState(
            used=used,
            daily_max=self._daily_max or None,
            allowed=self._allowed,
            left=self._left(now_ms),
            spent_at=self._spent_at,
            next_at=next_at if next_at > now_ms or self._spent_at is not None else None,
            room_at=self.room_at(now_ms),
        )

    def _left(self, now_ms: int) -> int | None:
        """What is left of the day by the smallest of what is known of it; None: nothing is."""
        used, left = self._used(), []
        if self._daily_max:
            left.append(self._daily_max - used)
        told = self._told.left(now_ms)
        if told is not None and self._spent_at is None:
            left.append(told)
        elif self._allowed:
            left.append(self._allowed - used)
        return max(0, min(left)) if left else None

    # -- Over a restart -------------------------------------------------------------------

    def learned(self) -> dict[str, int | None]:
        """What to keep besides the ledger, for ``restore``; fit for JSON."""
        return {
            "spent_at": self._spent_at,
            "wait_ms": self._wait_ms,
            "probe_at": self._probe_at,
            "allowed": self._allowed,
            "allowed_at": self._allowed_at,
            "allowed_since": self._allowed_since,
        }

    def restore(self, learned: Mapping[str, object]) -> None:
        """Go on from what ``learned`` once returned; anything unusable in it is left out."""
        self._spent_at = _moment(learned.get("spent_at"))
        wait_ms = _moment(learned.get("wait_ms")) or PROBE_FIRST_MS
        self._wait_ms = min(PROBE_MAX_MS, max(PROBE_FIRST_MS, wait_ms))
        self._probe_at = _moment(learned.get("probe_at")) or 0
        allowed = _moment(learned.get("allowed")) or 0
        self._allowed = allowed if allowed >= ALLOWED_MIN else None
        self._allowed_at = _moment(learned.get("allowed_at")) or 0
        self._allowed_since = _moment(learned.get("allowed_since")) or self._allowed_at

    # -- What stops the lanes without reserve ---------------------------------------------

    @property
    def _daily_line(self) -> float | None:
        """What they may use of ``daily_max``; None: any number."""
        return self._daily_max * self._others_share if self._daily_max else None

    @property
    def _line(self) -> float | None:
        """What they may use of the allowance; None: it is unknown, or nothing is in reserve."""
        has_reserve = self._allowed and self._others_share < 1
        return self._allowed * self._others_share if self._allowed and has_reserve else None

    def _allowance_at(self, now_ms: int) -> int:
        """When the allowance no longer stops them: there is room, or its end may be looked for."""
        at = self._falls_below(self._line, now_ms)
        if at <= now_ms:
            return now_ms
        stale_at = self._allowed_at + ALLOWED_FOR_MS
        worth = (self._allowed or 0) * (1 - self._others_share) * _WORTH
        for start in sorted(self._ledger):
            # What has begun to leave may be all gone: the upstream's steps are not ours.
            begins_at = start + WINDOW_MS
            looks_at = max(now_ms, stale_at, begins_at - PROBE_MAX_MS)
            if looks_at < begins_at and self._ledger[start] >= worth:
                return min(at, looks_at)
        return at

    def _falls_below(self, line: float | None, now_ms: int) -> int:
        """When the ledger falls below ``line``; now, if it is."""
        used = self._used()
        if line is None or used < line:
            return now_ms
        for start in sorted(self._ledger):
            used -= self._ledger[start]
            if used < line:
                return _leaves_at(start)
        return now_ms + WINDOW_MS

    # -- The ledger -----------------------------------------------------------------------

    def _used(self) -> int:
        return sum(self._ledger.values())

    def _recent(self, now_ms: int) -> int:
        """Of ``used`` what cannot have left the upstream's day, in whatever steps it counts."""
        return self._since(now_ms - WINDOW_MS + STEP_MS)

    def _since(self, since_ms: int) -> int:
        """Of ``used`` what was sent in buckets that began at ``since_ms`` or later."""
        return sum(count for start, count in self._ledger.items() if start >= since_ms)

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
        self._allowed_at = min(self._allowed_at, now_ms)
        if self._spent_at is not None:
            self._spent_at = min(self._spent_at, now_ms)
        if self._recent(now_ms) > (self._allowed or 0) or self._is_outdated(now_ms):
            self._allowed = None

    def _is_outdated(self, now_ms: int) -> bool:
        """Whether the allowance was met too long ago, for the number of days it was met on."""
        is_believed = self._allowed_at - self._allowed_since >= ALLOWED_FOR_MS
        kept_ms = ALLOWED_BELIEVED_MS if is_believed else ALLOWED_KEPT_MS
        return now_ms - self._allowed_at >= kept_ms


def _leaves_at(start: int) -> int:
    """When the last recipient that may be in the bucket is a day old."""
    return start + BUCKET_MS + WINDOW_MS


def _moment(value: object) -> int | None:
    """A whole number from 1 on, or None."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 < value <= _WHOLE_MAX else None  # type: ignore[operator,return-value]

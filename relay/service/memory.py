"""What outlives a restart of one upstream's shaper, and how far it can still be believed.

Kept in the spool under ``shaper:<name>``: what the shaper has learned, the wall time at which
it was last confirmed (or told), by whom, and whose account it is. What was confirmed in this
run is dated by the shaper, what was not keeps the date and the confidence of its origin, so that
a number which is carried over ten restarts is no younger for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, TypeGuard

from relay.figures import KnownBy
from relay.service.kept import recalled
from relay.shaper import Cause

if TYPE_CHECKING:
    from relay import config
    from relay.clock import Clock
    from relay.shaper import Change, Shaper
    from relay.spool import Spool

DRIFT_A_DAY = 0.05
"""By how much a limit is taken to move in a day, as a share of it (``faded``)."""
ERROR_MAX = 0.3
"""The most that age adds up to: even an old limit of the account says more than the
``start_per_s`` of everybody, and what is far off is found out within seconds."""
ERROR_UNKNOWN = 0.5
"""The error of a limit whose own is missing or not a number."""
AGE_UNKNOWN_S = 7 * 86_400.0
"""What cannot be dated (no date, one that lies ahead, a clock set back) counts as a week old:
it is tested soon, and is a start all the same."""
AHEAD_MS = 60_000
"""A date so little ahead of the clock is one of now: NTP has corrected the clock."""
SAME_DATE_MS = 5_000
"""Dates nearer to each other are one; else each look at the two clocks would be worth a write."""
LIMIT_MIN_PER_S, LIMIT_MAX_PER_S = 0.001, 100_000
"""No account has fewer or more recipients a second; a slip of the finger, or of the disk, must not
pass."""
TOLD_CONFIDENCE = 0.9
"""How sure a told number counts as: an error of 10 %, that of fifteen messages. A reading that
contradicts it by more replaces it (``Estimate.learn``). Measured in the model, 30 and 250 ms, a
bucket of one second: told 100 at 50/s, 95 % use after 2 s and 1 to 2 % refused in that minute;
told 20 at 100/s, 95 % after 18 to 33 s (a probe has to find the way up). A number that is far too
high costs refusals in its first seconds, not throughput: told 500 at 50/s, 7 % of that minute."""

_BY = {
    Cause.OPERATOR: KnownBy.OPERATOR,
    Cause.AWS: KnownBy.AWS,
    Cause.REMEMBERED: KnownBy.REMEMBERED,
}
"""Who speaks if the shaper has not measured it itself."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a limit comes from that no reading has confirmed in this run.

    ``since`` is the monotonic moment from which on it holds, ``at_ms`` the wall time to which
    ``confidence`` belongs (None: not known).
    """

    by: KnownBy
    since: float
    at_ms: int | None
    confidence: object


class Memory:
    """Recalls, dates and saves what one shaper has learned."""

    def __init__(
        self, upstream: config.Upstream, shaper: Shaper, spool: Spool, clock: Clock
    ) -> None:
        self._key, self._account = f"shaper:{upstream.name}", account_of(upstream)
        self._shaper, self._spool, self._clock = shaper, spool, clock
        self._origin: Origin | None = None
        self._saved: dict[str, object] = {}

    async def recall(self) -> None:
        """Start the shaper from what was kept, if it is this account's."""
        found = await recalled(self._spool, self._key)
        if found.get("account") != self._account:
            return
        at_ms, now_ms = _date(found.get("at_ms")), self._clock.wall_ms()
        if at_ms is not None and at_ms > now_ms + AHEAD_MS:
            at_ms = None
        age_s = None if at_ms is None else (now_ms - at_ms) / 1000
        learned = {name: value for name, value in found.items() if _is_number(value)}
        if not LIMIT_MIN_PER_S <= learned.get("limit_per_s", 0) <= LIMIT_MAX_PER_S:
            return
        learned["confidence"] = faded(found.get("confidence"), age_s)
        now = self._clock.monotonic()
        self._shaper.restore(now, learned, Cause.REMEMBERED)
        by = _told(found.get("known_by"))
        self._origin = Origin(by, now, at_ms, found.get("confidence"))

    def tell(self, per_s: float) -> None:
        """Start the shaper over from what an operator says."""
        now = self._clock.monotonic()
        known = {"limit_per_s": per_s, "confidence": TOLD_CONFIDENCE}
        self._shaper.restore(now, known, Cause.OPERATOR)
        at_ms = self._clock.wall_ms()
        self._origin = Origin(KnownBy.OPERATOR, now, at_ms, TOLD_CONFIDENCE)

    def changes(self) -> tuple[Change, ...]:
        """Hand out, once, how the limit moved, and keep in mind what made it what it is."""
        changes = self._shaper.changes()
        for change in changes:
            if self._origin is None or change.at > self._origin.since:
                by = _BY.get(change.cause, KnownBy.ESTIMATED)
                confidence = self._shaper.learned().get("confidence")
                self._origin = Origin(by, change.at, self.wall_ms(change.at), confidence)
        return changes

    def wall_ms(self, at: float) -> int:
        """The wall time of a monotonic moment, by the clocks of now."""
        return self._clock.wall_ms() - round((self._clock.monotonic() - at) * 1000)

    def known(self) -> tuple[KnownBy, int | None]:
        """How the limit of now is known, and since when."""
        state, origin = self._shaper.snapshot(), self._origin
        at = state.confirmed_at
        if state.limit_per_s is None:
            return KnownBy.NOBODY, None
        if at is not None and (origin is None or _is_later(at, origin)):
            return KnownBy.CONFIRMED, self.wall_ms(at)
        return (KnownBy.ESTIMATED, None) if origin is None else (origin.by, origin.at_ms)

    async def save(self) -> None:
        """Write down what was learned, if it is another than last time. Raises: SpoolError.

        While no limit is known, what an earlier run has found stays: it may be found again.
        """
        by, at_ms = self.known()
        if by is KnownBy.NOBODY:
            return
        record: dict[str, object] = {
            **self._shaper.learned(),
            "known_by": by.value,
            "account": self._account,
        }
        if self._origin is not None and by not in {KnownBy.CONFIRMED, KnownBy.ESTIMATED}:
            record["confidence"] = self._origin.confidence
        saved_ms = _date(self._saved.get("at_ms"))
        if at_ms is not None and saved_ms is not None and abs(at_ms - saved_ms) < SAME_DATE_MS:
            at_ms = saved_ms
        record["at_ms"] = at_ms
        if record != self._saved:
            await self._spool.put_state(self._key, record)
            self._saved = record


def faded(confidence: object, age_s: float | None) -> float:
    """The confidence of a limit that nobody has tested for ``age_s`` (None: not known).

    Limits move while nobody looks: AWS raises those of healthy accounts, by how much and when is
    unpublished (facts/ses-smtp.md 3), and other senders take shares. Neither direction is the
    likelier (*assumed*), so that the logarithm of the limit walks at random and variances add:

        error(t)^2 = error(0)^2 + (DRIFT_A_DAY^2) t

    To fade twice over a night is to fade once over two: restarts alone cost no confidence. With
    5 % a day (*assumed*: a step of a fifth every other week gives as much), 14.0/s +-0.5 % is
    after a minute still good to 0.5 %, after an hour to 1.1 %, after a day to 5 %, after a week
    to 13 %, and from five weeks on to 30 %.
    """
    error = ERROR_UNKNOWN
    if _is_number(confidence) and 0 <= confidence <= 1:
        error = 1.0 - confidence
    days = max(0.0, AGE_UNKNOWN_S if age_s is None else age_s) / 86_400
    return 1 - max(error, min(ERROR_MAX, sqrt(error**2 + DRIFT_A_DAY**2 * days)))


def account_of(upstream: config.Upstream) -> str:
    """What tells this account from another under the same name, without naming it."""
    who = f"{upstream.host.lower()}\0{upstream.username}"
    return hashlib.sha256(who.encode()).hexdigest()[:16]


def _is_number(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # false for NaN, too, and for an integer that is no float


def _date(value: object) -> int | None:
    """Wall milliseconds, if ``value`` is that."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _is_later(confirmed_at: float, origin: Origin) -> bool:
    """Whether a reading came after ``origin``; a reading that moved the limit is of its moment."""
    if origin.by is KnownBy.ESTIMATED:
        return confirmed_at >= origin.since
    return confirmed_at > origin.since


def _told(by: object) -> KnownBy:
    """A word of somebody stays his; whatever the relay found itself is now remembered."""
    return next(
        (one for one in (KnownBy.OPERATOR, KnownBy.AWS) if one.value == by), KnownBy.REMEMBERED
    )

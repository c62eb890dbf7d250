"""The send rate that nobody told us, learned from replies, and the pace that keeps to it.

Pure: ``now`` is handed in, nothing waits. This module is the face; ``pacing`` spaces,
``order`` puts replies back into send order, ``evidence`` says what they prove, ``control``
decides. It may not know sessions, lanes or what an envelope is.

Theory
======
SES admits a message if its bucket holds one token, takes a token a recipient (into debt) and
refills at the limit L (facts/ses-smtp.md 3). Neither L nor the depth is told.

1. *Identity.* Between two refusals the bucket went from empty to empty. If it was never full
   in between, what passed is what was refilled: ``passed / elapsed = L``, whatever the depth
   and whatever our rate did. The error is about one message at either end, so a reading of n
   messages is good to 1.5/n, and readings blend by n. A reading that contradicts the past
   beyond both errors replaces it: the limit moved.
2. *Never full* has to be earned. Idle time (demand, sessions, late timers), the share that
   ``use_max`` leaves to others, and replies that prove nothing count as idle; more than 5 % of
   it voids a reading, 0.25 s of it in a cycle makes the bucket's content unknown. Then a refusal
   only starts a cycle, and a second, close to it, reads it. A climb from half the limit may have
   filled a small bucket, hence its reading weighs little.
3. *Send order.* A refusal proves an empty bucket at the moment it was sent. Replies overtake
   each other, so they are judged in the order of ``sent_at``, as late as the longest latency
   seen lately; nothing else here would hold without it.
4. *From above.* A reading counts one message more than passed. An estimate that is too high by d
   drains the cushion p that each refusal's pause leaves in p/d messages and is read again, twice
   as well; one that is too low would only fill the bucket and never be found out.
5. *Probes.* In between we hold 0.998 of the estimate, so hardly anything overflows, and go above
   it now and then by 3 to 25 %, to end within 40 messages or 2 s. The saved tokens are bounded
   by the estimate and its error *at the probe's start*; a probe that uses up twice that bound
   unrefused proves a raise: the estimate is lifted by half the excess, the excess doubles, and
   at 25 % the search takes over. A probe costs a refusal, or at 250 ms and 200/s about five:
   the next one waits until 0.3 % of what was accepted covers it.
6. *Noise.* Refusals leak away with accepts on two scales; two within 8 messages, or four within
   100, are a limit. Refusals in cruise under a well known estimate are learned as noise, and
   then more are asked for. A false alarm is harmless by the identity: it reads our own rate.
7. *Far off.* Three refusals that are a quarter of a cluster cut the rate by their share, at most
   by half, once an epoch (what was sent before the last change accuses nobody). What was still
   under way counts in the cycle that starts there; a slow climb then makes its reading.
8. *Low limits.* Below 3/s a bucket may hold one token: full at each send, so the identity does not
   hold. There probes keep what they proved, refusals step down by 3 %, nothing is caught up, and
   the spacing has a guard against early arrival.

Measured in the model (tests/fakes/bucket.py; timers up to 1 ms late, seconds 60 to 600 of the
course, to 240 from 200/s on, latency 30 and 250 ms +-30 %, depth 0.3, 1 and 3 s and at least
three tokens, two seeds; the worst of each row's grid):

    limit/s         5       14      50      200     1000
    use             0.998   0.998   0.999   0.999   0.999
    refused         0.41 %  0.33 %  0.27 %  0.23 %  0.24 %

    0.5 % lone random refusals, 5 to 200/s: use 0.976 to 1.0, refused 0.8 to 1.4 % in all
    limit x4, time to 95 % of it: 6 to 18 s at 200/s, 9 to 35 s at 50/s, 10 to 45 s at 14/s,
    31 to 92 s at 5/s
    limit /5, from 25 to 1000/s: 0.1 s (30 ms) to 1.0 s (250 ms) worth of the old limit refused,
    use of the new one at least 0.98 from the tenth second on
    10/s to 500/s from cold: 95 % after 11 s; three idle minutes: full rate at once
    four recipients a message: use 0.999, refused up to 0.42 %
Known to be weak: 2 % noise (use 0.56 to 0.98), one-token buckets below 4/s (use 0.72 to 0.89 at
1 to 2 % refused), messages of 1 to 50 recipients at 14/s (use 0.95), mail in spurts of a
second (4 % refused at 14/s, the estimate stands).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from relay.shaper.control import BUSY_IDLE_MAX, Controller
from relay.shaper.order import Kind, SendOrder
from relay.shaper.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.config.schema import Rate

__all__ = ["Shaper", "ShaperState"]

REFUSED_SPAN = 1000.0
"""Recipients over which the refused share is shown."""

RESTORED_WEIGHT_MAX = 200.0
"""Evidence that a limit of an earlier run counts for at most: it may be days old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShaperState:
    """What the shaper knows, for people and metrics.

    ``phase``: "idle" (nothing booked or under way), "searching", "settling", "holding" or
    "probing". ``error_share`` is the likely error of the limit as a share of it (1: a guess),
    ``refused_share`` that of the last 1,000 recipients tried, ``noise_share`` the part of
    refusals that no limit explains, ``burst`` what the bucket holds, if that was seen;
    ``has_backlog`` is False while demand or sessions, not the rate, hold sending back.
    """

    rate_per_s: float
    limit_per_s: float | None
    phase: str
    refused_share: float
    error_share: float
    noise_share: float
    burst: float | None
    has_backlog: bool
    under_way: int


class Shaper:
    """Says when the next recipients may go, and learns from what became of them.

    ``now`` and ``sent_at`` are monotonic seconds. Each booking of ``reserve`` is closed by
    exactly one call of ``accepted``, ``throttled``, ``ignored`` or ``cancelled``.
    """

    def __init__(self, config: Rate) -> None:
        start_per_s = max(config.floor_per_s, config.start_per_s)
        if config.ceiling_per_s > 0:
            start_per_s = min(config.ceiling_per_s, start_per_s)
        self._pacer = Pacer(start_per_s)
        self._order = SendOrder()
        self._controller = Controller(config, self._pacer)
        self._refused_share = 0.0
        self._tried = 0.0

    def reserve(self, now: float, recipients: int) -> float:
        """Book the next moment for ``recipients``: not before ``now`` or an earlier booking's.

        Called later than the booking before allows, it shows that there was no backlog.
        """
        self._judge(now)
        return self._pacer.book(now, max(1, recipients))

    def accepted(self, now: float, recipients: int, sent_at: float) -> None:
        """The upstream took what was sent at ``sent_at``."""
        self._answered(now, Kind.ACCEPTED, recipients, sent_at)

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        """The upstream found it too fast. A spent daily quota is ``ignored``, not this."""
        self._answered(now, Kind.THROTTLED, recipients, sent_at)

    def ignored(self, now: float, recipients: int, sent_at: float) -> None:
        """It was answered, or lost, in a way that proves nothing about the rate."""
        self._answered(now, Kind.IGNORED, recipients, sent_at)

    def cancelled(self, now: float, recipients: int) -> None:
        """A booking that was not used gives its time back."""
        self._pacer.cancel(now, max(1, recipients))
        self._judge(now)

    def snapshot(self) -> ShaperState:
        """Return what is known now."""
        controller = self._controller
        return ShaperState(
            rate_per_s=self._pacer.rate_per_s,
            limit_per_s=controller.estimate.limit_per_s,
            phase=controller.phase.value if self._pacer.open_count else "idle",
            refused_share=self._refused_share,
            error_share=controller.estimate.error_share,
            noise_share=controller.suspicion.noise_share,
            burst=controller.burst,
            has_backlog=controller.idle_share <= BUSY_IDLE_MAX,
            under_way=self._pacer.open_count,
        )

    def learned(self) -> dict[str, float | None]:
        """Return what is worth keeping over a restart, as JSON can hold it."""
        estimate = self._controller.estimate
        return {
            "limit_per_s": estimate.limit_per_s,
            "burst": self._controller.burst,
            "confidence": 1 - estimate.error_share,
        }

    def restore(self, now: float, learned: Mapping[str, object]) -> None:
        """Start from what ``learned`` once returned; anything unusable in it is left out."""
        limit_per_s = _positive(learned.get("limit_per_s"))
        if limit_per_s is None:
            return
        error_share = 1 - min(1.0, _positive(learned.get("confidence")) or 0.0)
        weight = min(RESTORED_WEIGHT_MAX, 1.5 / max(error_share, 1e-9))
        self._controller.burst = _positive(learned.get("burst"))
        self._controller.start_from(now, limit_per_s, weight)

    def _answered(self, now: float, kind: Kind, recipients: int, sent_at: float) -> None:
        recipients = max(1, recipients)
        self._pacer.close()
        self._order.add(now, kind, recipients, sent_at)
        if kind is not Kind.IGNORED:
            self._tried = min(REFUSED_SPAN, self._tried + recipients)
            refused = 1.0 if kind is Kind.THROTTLED else 0.0
            step = min(1.0, recipients / self._tried)
            self._refused_share += (refused - self._refused_share) * step
        self._judge(now)

    def _judge(self, now: float) -> None:
        """Judge every outcome that no older one can follow any more."""
        self._controller.spread_s = self._order.spread_s
        complete = self._pacer.under_way(now) == 0
        while (outcome := self._order.next_due(now, complete=complete)) is not None:
            idle_s = self._pacer.idle_until(outcome.sent_at)
            self._controller.judge(now, outcome, idle_s)


def _positive(value: object) -> float | None:
    """Return ``value`` if it is a finite number above 0."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and isfinite(value)
        and value > 0
    ):
        return float(value)
    return None

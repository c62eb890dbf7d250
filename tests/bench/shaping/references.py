"""Other people's rules, with the shaper's face, so that they stand in the same table.

All but CUBIC have to be told a limit. In the table they are told the *true* one of the moment at
which a course begins (the foreign rows tell what the other sender leaves): that is more than
anybody knows of a real account, and it favours them wherever the limit does not move.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TIMER_LATE_S = 0.005
"""Lateness of a timer that is made good, as in the shaper's own pacer."""


@dataclass(slots=True)
class Pace:
    """Even spacing at ``rate_per_s``."""

    rate_per_s: float
    _due: float = field(default=0.0, init=False)

    def book(self, now: float, recipients: int) -> float:
        start = max(self._due, now - max(TIMER_LATE_S, 1 / self.rate_per_s))
        self._due = start + recipients / self.rate_per_s
        return max(now, start)


class Fixed:
    """A fixed rate: ``share`` of the limit it is told, whatever the replies say.

    What most guides advise ("start at 70 to 90 % of your maximum send rate").
    """

    def __init__(self, limit: float, share: float = 0.9) -> None:
        self._pace = Pace(share * limit)

    def reserve(self, now: float, recipients: int) -> float:
        return self._pace.book(now, recipients)

    def accepted(self, now: float, recipients: int, sent_at: float) -> None:
        """Learns nothing."""

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        """Learns nothing."""

    def ignored(self, now: float, recipients: int, sent_at: float) -> None:
        """Learns nothing."""

    def cancelled(self, now: float, recipients: int) -> None:
        """Gives nothing back."""


def knows(limit: float) -> Fixed:
    """A pacer that knows the limit: what can be had without learning anything."""
    return Fixed(limit, 0.985)


class Timer(Fixed):
    """A slower value for a while after a refusal, then the normal one again.

    The rule of KumoMTA's traffic shaping automation (``SetConfig`` of ``max_message_rate`` with a
    ``duration``, docs.kumomta.com, "Traffic Shaping Automation") and of PowerMTA's backoff mode
    (``mode=backoff``, ``backoff-to-normal-after``). Both leave the numbers to the operator; here
    half the rate for a minute, mild beside the hours of their examples. Told the whole limit.
    """

    SLOW, SLOW_S = 0.5, 60.0

    def __init__(self, limit: float) -> None:
        super().__init__(limit, 1.0)
        self._limit, self._slow_until = limit, 0.0

    def reserve(self, now: float, recipients: int) -> float:
        self._pace.rate_per_s = self._limit * (self.SLOW if now < self._slow_until else 1.0)
        return super().reserve(now, recipients)

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        self._slow_until = now + self.SLOW_S


class Cubic:
    """The client-side rate limiter of the AWS SDKs' adaptive retry mode, told nothing.

    After a throttle the rate is 0.7 of what was sent, and grows as
    ``0.4 (t - K)^3 + w_max`` with ``K = (w_max 0.3 / 0.4)^(1/3)``, never beyond twice the measured
    rate (half-second buckets, smoothed by 0.8), never below 0.5/s. Sending is paced by a token
    bucket of one second's rate (AWS SDK reference, "Retry behavior"; RFC 8312). Until the first
    throttle the SDK does not limit; here it begins at the shaper's own start rate and doubles.
    """

    BETA, SCALE, SMOOTH, BUCKET_S, RATE_MIN = 0.7, 0.4, 0.8, 0.5, 0.5

    def __init__(self, _: float) -> None:
        self._rate, self._tokens, self._at = 10.0, 1.0, 0.0
        self._w_max, self._failed_at = 0.0, 0.0
        self._measured, self._counted, self._bucket = 0.0, 0, 0
        self._is_limited = False
        self._latest = 0.0

    def reserve(self, now: float, recipients: int) -> float:
        at = max(now, self._latest)
        if self._at:
            self._tokens = min(max(1.0, self._rate), self._tokens + (at - self._at) * self._rate)
        self._at = at
        self._tokens -= recipients
        self._latest = at + max(0.0, -self._tokens / self._rate)
        return self._latest

    def accepted(self, now: float, recipients: int, sent_at: float) -> None:
        self._measure(now, recipients)
        if not self._is_limited:
            self._rate = max(self._rate, 2 * self._measured)
            return
        wait_s = (self._w_max * (1 - self.BETA) / self.SCALE) ** (1 / 3)
        grown = self.SCALE * (now - self._failed_at - wait_s) ** 3 + self._w_max
        self._set(grown)

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        self._measure(now, recipients)
        sent = min(self._measured or self._rate, self._rate)
        self._w_max, self._failed_at, self._is_limited = sent, now, True
        self._set(sent * self.BETA)

    def ignored(self, now: float, recipients: int, sent_at: float) -> None:
        """A reply all the same."""
        self._measure(now, recipients)

    def cancelled(self, now: float, recipients: int) -> None:
        """Gives the tokens back."""
        self._tokens += recipients

    def _set(self, rate: float) -> None:
        most = max(self.RATE_MIN, 2 * self._measured)
        self._rate = max(self.RATE_MIN, min(rate, most))

    def _measure(self, now: float, recipients: int) -> None:
        self._counted += recipients
        bucket = int(now / self.BUCKET_S)
        if self._bucket == 0:
            self._bucket = bucket
        if bucket > self._bucket:
            fresh = self._counted / ((bucket - self._bucket) * self.BUCKET_S)
            self._measured = fresh * self.SMOOTH + self._measured * (1 - self.SMOOTH)
            self._counted, self._bucket = 0, bucket

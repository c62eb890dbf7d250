"""What a ledger says of a run: how well the limit was used, kept and found again.

``since`` and ``until`` are monotonic seconds of the twin's clock; the moment ``since``
belongs to an interval and ``until`` does not. An ``Audit`` is a picture of the ledger as
it is when built, in O(records); each answer then takes a few look-ups, or one a record.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from relay.twin.ledger import Ledger


class _Sums:
    """Amounts at moments that do not fall, and what they come to between two moments."""

    def __init__(self, events: Sequence[tuple[float, int]]) -> None:
        self.times = [at for at, _ in events]
        self._sums = list(accumulate((amount for _, amount in events), initial=0))

    def between(self, since: float, until: float) -> int:
        """The sum from ``since`` until just before ``until``."""
        first, last = bisect_left(self.times, since), bisect_left(self.times, until)
        return self._sums[last] - self._sums[first] if first < last else 0


class Audit:
    """The answers; see each."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._accepted = _Sums([(one.at, len(one.recipients)) for one in ledger.records])
        self._foreign = _Sums(list(ledger.foreign))
        self._limits = list(ledger.limits)

    def accepted(self, since: float, until: float) -> int:
        """Recipients that were accepted in that time."""
        return self._accepted.between(since, until)

    def offered(self, since: float, until: float) -> float:
        """Recipients that the limit had room for in that time, strangers' own taken off.

        What a full bucket adds at the start is not in it, nor is the quota.
        """
        room = sum(
            rate * max(0.0, min(end, until) - max(at, since))
            for (at, rate), (end, _) in pairwise([*self._limits, (math.inf, 0.0)])
        )
        return max(0.0, room - self._foreign.between(since, until))

    def use(self, since: float, until: float) -> float:
        """Accepted recipients by offered ones; a saved-up burst may carry it above 1."""
        offered = self.offered(since, until)
        return self.accepted(since, until) / offered if offered > 0 else 0.0

    def rate_lowest(
        self, window_s: float, since: float | None = None, until: float | None = None
    ) -> float:
        """The fewest accepted recipients a second in any window of that length.

        Windows lie wholly between ``since`` and ``until``, by default the first and the
        last accept; 0 if none fits.
        """
        times = self._accepted.times
        if not times:
            return 0.0
        since, until = times[0] if since is None else since, times[-1] if until is None else until
        if until - since < window_s:
            return 0.0
        # A window that slides is emptiest just before it takes another record in.
        ends = [at for at in times if since + window_s <= at < until]
        return min(self.accepted(end - window_s, end) for end in (*ends, until)) / window_s

    def recovery_s(
        self, change_at: float, share: float = 0.95, window_s: float = 2.0
    ) -> float | None:
        """Seconds from a change of the limit until ``window_s`` of it were used to that share.

        ``change_at`` is a moment of ``Ledger.limits``, or any. The window that counts
        begins then or later and ends before the limit changes again; None: there is none.
        """
        until = next((at for at, _ in self._limits if at > change_at), math.inf)
        starts = (at for at in self._accepted.times if change_at <= at <= until - window_s)
        for start in (change_at, *starts):
            if self.accepted(start, start + window_s) >= share * self.offered(
                start, start + window_s
            ):
                return start - change_at
        return None

    def recoveries(
        self, share: float = 0.95, window_s: float = 2.0
    ) -> list[tuple[float, float | None]]:
        """(moment, ``recovery_s``) of every change of the limit."""
        changes = [at for (_, old), (at, new) in pairwise(self._limits) if old != new]
        return [(at, self.recovery_s(at, share, window_s)) for at in changes]

    def refused_share(self, since: float, until: float) -> float:
        """The share of messages refused for their rate, over the whole seconds that are touched."""
        inside = [
            counts
            for second, counts in self._ledger.seconds.items()
            if math.floor(since) <= second < until
        ]
        attempts = sum(counts.attempts for counts in inside)
        return sum(counts.throttled for counts in inside) / attempts if attempts else 0.0

    def throttled_by_second(self) -> dict[int, int]:
        """Messages refused for their rate by monotonic second, where there were any."""
        seconds = self._ledger.seconds.items()
        return {second: counts.throttled for second, counts in seconds if counts.throttled}

    def lost(self, told: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Of the (key, recipient) pairs that a client was told 250 for, those not accepted.

        The key is the message's Message-ID as its header has it, the relay's envelope id,
        or SES's id.
        """
        here = {
            (key, recipient)
            for record in self._ledger.records
            for key in (record.message_id, record.relay_id, record.id)
            for recipient in record.recipients
        }
        return set(told) - here

"""How many sessions a rate needs. Pure.

A message takes a session for its *occupancy*: four round trips and the upstream's work. By
Little's law rate x occupancy sessions are taken on average; the margin is for occupancies that
differ (SES accepts in 0.15 s in the median and in 1 s at the 99th percentile, facts
ses-smtp.md 7.4), and grows with the root of the load, as Erlang's formulas have it (square-root
staffing). Sessions end after their share of messages, so those in the making are part of it.
"""

from __future__ import annotations

from collections import deque
from math import ceil, sqrt

SPARE = 2
"""One is in the hand of the loop while it waits for the moment, one is for a slow reply."""
MARGIN = 1.5
"""Times the root of the load. An even pace makes fewer coincide than chance arrivals would, so
this is half of what Erlang asks for one wait in a thousand (``tests/unit/test_staffing.py``)."""
OCCUPANCY_S = 0.4
"""Until anything is measured: four round trips of 50 ms and 0.2 s (facts, ses-smtp.md 3)."""
ROUNDS_SHARE = 0.8
"""An opening is five round trips (greeting, EHLO, STARTTLS, EHLO, AUTH), a message four."""
WORK_S = 0.2
"""What SES takes to accept, on average (facts, ses-smtp.md 7.4)."""
RISING = 1.3
"""Growth within one opening that shows a rise; a probe goes no higher than 1.25."""
TREND_STEP_S, TREND_MAX = 0.1, 64
"""Rates are noted so often, and so many of them: six seconds, longer than openings take."""
REMEMBERED_S = 5.0
"""Attempts of so long make the mean: the noise of a few shows as sessions too few or too many."""
REMEMBERED_MIN = 20
"""Attempts that do so at a low rate."""
SESSION_MESSAGES = 75
"""A session's messages, on average: up to 100, but they go one by one (upstream's pacing)."""


def needed(rate_per_s: float, occupancy_s: float, opening_s: float) -> int:
    """Sessions with which hardly any message at ``rate_per_s`` waits for one."""
    load = max(0.0, rate_per_s * occupancy_s)
    replaced = rate_per_s / SESSION_MESSAGES * opening_s
    return ceil(load + replaced + MARGIN * sqrt(load)) + SPARE


class Trend:
    """Where a rate will be by the time a session that is begun now is open."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=TREND_MAX)

    def ahead(self, now: float, rate_per_s: float, opening_s: float) -> float:
        """The rate in ``opening_s``, if it goes on rising as fast as it did; at most the double.

        A rate that rises by less than ``RISING``, as in the shaper's probes, counts as it is.
        """
        if not self._seen or now - self._seen[-1][0] >= TREND_STEP_S:
            self._seen.append((now, rate_per_s))
        while len(self._seen) > 1 and self._seen[1][0] <= now - opening_s:
            self._seen.popleft()
        growth = rate_per_s / max(self._seen[0][1], 1e-9)
        return rate_per_s * min(2.0, growth) if growth >= RISING else rate_per_s


class Occupancy:
    """How long a message takes a session, of late."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._seen = 0

    def mean_s(self, opening_s: float) -> float:
        """The mean of late; before any message guessed from how long an opening takes, if known."""
        if self._seen:
            return self._mean_s
        return ROUNDS_SHARE * opening_s + WORK_S if opening_s else OCCUPANCY_S

    def note(self, took_s: float, rate_per_s: float) -> None:
        """An attempt took so long, at ``rate_per_s`` attempts a second."""
        remembered = max(REMEMBERED_MIN, int(rate_per_s * REMEMBERED_S))
        self._seen = min(self._seen + 1, remembered)
        self._mean_s += (took_s - self._mean_s) / self._seen

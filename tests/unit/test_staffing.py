"""How many sessions a rate needs, and how that is foreseen."""

from __future__ import annotations

import heapq
import random
from math import exp

import pytest

from relay.dispatcher.staffing import OCCUPANCY_S, Occupancy, Trend, needed

RTT_S, MEDIAN_S, SIGMA = 0.05, 0.15, 0.8157
"""Facts, ses-smtp.md 7.4: median 0.15 s and 1 s at the 99th percentile on top of the rounds."""


def waiting_share(rate_per_s: float, sessions: int, *, seconds: float, seed: int = 1) -> float:
    """The share of messages, evenly paced, that find no session; the loop holds one itself."""
    chance, ends = random.Random(seed), list[float]()
    count = round(rate_per_s * seconds)
    waited = 0
    for n in range(count):
        now = n / rate_per_s
        while ends and ends[0] <= now:
            heapq.heappop(ends)
        if len(ends) >= sessions - 1:
            waited += 1
            now = heapq.heappop(ends)
        heapq.heappush(ends, now + 4 * RTT_S + MEDIAN_S * exp(SIGMA * chance.gauss()))
    return waited / count


@pytest.mark.parametrize("rate_per_s", [14, 50, 200])
def test_hardly_any_message_waits_for_a_session(rate_per_s: float) -> None:
    """Below one in a thousand, with the long tail of SES's accepts, for a third of surplus."""
    sessions = needed(rate_per_s, 0.409, opening_s=0.3)

    assert waiting_share(rate_per_s, sessions, seconds=200_000 / rate_per_s) < 0.001
    assert sessions <= rate_per_s * 0.409 * 1.2 + 10


def test_sessions_in_the_making_are_a_part_of_it() -> None:
    """500/s wear out 7 sessions a second, each missing for the 1.4 s of the next's handshake."""
    assert 8 <= needed(500, 0.4, opening_s=1.4) - needed(500, 0.4, opening_s=0.0) <= 10


def test_margin_is_worth_its_sessions() -> None:
    """Without it one message in thirty would wait at 50/s."""
    load = 50 * 0.409

    assert waiting_share(50, round(load) + 2, seconds=2000) > 0.03


def test_occupancy_is_guessed_from_an_opening_until_a_message_is_through() -> None:
    """Five round trips of half a second take 2.5 s; a message has four of them."""
    occupancy = Occupancy()

    assert occupancy.mean_s(0.0) == OCCUPANCY_S
    assert occupancy.mean_s(2.5) == pytest.approx(2.2)

    occupancy.note(3.0, rate_per_s=10)
    occupancy.note(1.0, rate_per_s=10)
    assert occupancy.mean_s(2.5) == pytest.approx(2.0)


@pytest.mark.parametrize(("rate_per_s", "attempts"), [(1, 60), (50, 750), (1000, 15_000)])
def test_occupancy_follows_within_seconds(rate_per_s: float, attempts: int) -> None:
    """Another latency is known after three times the time that is remembered."""
    occupancy = Occupancy()
    for _ in range(20_000):
        occupancy.note(0.3, rate_per_s)

    for _ in range(attempts):
        occupancy.note(1.0, rate_per_s)

    assert occupancy.mean_s(0.3) == pytest.approx(1.0, abs=0.05)


def test_rising_rate_is_foreseen_and_a_probe_is_not() -> None:
    """Doubling within an opening: twice the rate; 25 % more: as it is; long level: as it is."""
    trend = Trend()
    assert trend.ahead(0.0, 10, opening_s=1.0) == 10
    assert trend.ahead(0.9, 12.5, opening_s=1.0) == 12.5
    assert trend.ahead(1.0, 15, opening_s=1.0) == pytest.approx(22.5)
    assert trend.ahead(1.1, 100, opening_s=1.0) == 200

    later = [trend.ahead(tick / 10, 100, opening_s=1.0) for tick in range(12, 100)]

    assert later[-1] == 100

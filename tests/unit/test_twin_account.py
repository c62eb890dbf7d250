"""The twin's account: its rate's habits, the stranger on it, its schedule and its quota."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from relay.twin import Accepted, Audit, Foreign, Ledger, Transaction, TwinConfig
from relay.twin.account import Account
from tests.fakes.clock import ManualClock

RATE = "454 Throttling failure: Maximum sending rate exceeded."
QUOTA = "454 Throttling failure: Daily message quota exceeded."
CONTENT = b"From: a@x.org\r\nMessage-ID: <1@x.org>\r\n\r\nHi\r\n"
WIDE = TwinConfig(quota=0)


class _Played:
    """An account on a clock that the test turns."""

    def __init__(self, config: TwinConfig, seed: int = 1) -> None:
        self.clock, self.ledger = ManualClock(), Ledger(100_000)
        self.account = Account(config, self.ledger, self.clock, random.Random(seed))

    def send(self, *recipients: str) -> str:
        """One message; "" if it was accepted, else the refusal, counted."""
        self.account.attempted()
        judged = self.account.judge(
            Transaction(
                session=1,
                sender="a@x.org",
                recipients=list(recipients or ("b@y.org",)),
                content=CONTENT,
            )
        )
        if isinstance(judged, Accepted):
            return ""
        self.account.refused(judged)
        return judged

    def fill(self) -> int:
        """How many pass before the first is refused."""
        sent = 0
        while not self.send():
            sent += 1
        return sent

    async def pour(self, seconds: float, per_s: int) -> list[int]:
        """Try ``per_s`` evenly; accepted by second from now."""
        accepted = [0] * int(seconds)
        for n in range(int(seconds * per_s)):
            accepted[n // per_s] += not self.send()
            await self.clock.advance(1 / per_s, rounds=0)
        return accepted


async def test_window_lets_a_second_of_the_clock_have_its_fill() -> None:
    """Ten at the end of a second and ten at the start of the next, nothing saved up."""
    played = _Played(replace(WIDE, rate_per_s=10, window=True))
    await played.clock.advance(100.75)

    assert played.fill() == 10
    await played.clock.advance(0.25)
    assert played.fill() == 10
    await played.clock.advance(0.5)
    assert played.fill() == 0


async def test_window_carries_its_debt_on() -> None:
    """Twenty-five recipients at 10/s leave half of the third second."""
    played = _Played(replace(WIDE, rate_per_s=10, window=True))

    assert played.send(*(f"r{n}@y.org" for n in range(25))) == ""
    await played.clock.advance(1)
    assert played.fill() == 0
    await played.clock.advance(1)
    assert played.fill() == 5


async def test_effective_rate_is_below_the_one_that_is_told() -> None:
    """At 0.8 of 10/s eight a second pass, while the owner is told 10."""
    played = _Played(replace(WIDE, rate_per_s=10, effective=0.8))

    accepted = await played.pour(10, 20)

    assert accepted[1:] == [8] * 9
    assert played.account.rate_per_s == 10
    assert [rate for _, rate in played.ledger.limits] == [8]


async def test_noise_refuses_at_random_and_charges_nothing() -> None:
    """Three in ten are refused with room to spare, which stays there."""
    played = _Played(replace(WIDE, rate_per_s=2000, noise=0.3))

    said = [played.send() for _ in range(2000)]

    assert said.count(RATE) == pytest.approx(600, abs=60)
    assert played.ledger.total.throttled == said.count(RATE)
    assert sum(not played.send() for _ in range(2000)) == pytest.approx(600, abs=60)


async def test_sigv2_text_is_a_throttle_in_other_words() -> None:
    """It takes the place of the usual one and counts as such."""
    played = _Played(replace(WIDE, rate_per_s=1, sigv2_text=True))

    said = [played.send(), played.send()]

    assert said[1] == "454 Throttling failure: Maximum SigV2 SMTP sending rate exceeded."
    assert played.ledger.total.throttled == 1
    assert not played.ledger.total.refused


async def test_schedule_begins_with_the_first_message() -> None:
    """Changes come at their moments after it, and the depth follows the rate."""
    played = _Played(replace(WIDE, rate_per_s=10, rate_changes=((5.0, 20.0), (8.0, 4.0))))
    await played.clock.advance(1000)
    assert played.account.rate_per_s == 10

    first_at = played.clock.monotonic()
    accepted = await played.pour(12, 40)
    await played.clock.advance(100)

    assert accepted[1:5] == [10] * 4
    assert accepted[6:8] == [20] * 2
    assert accepted[9:] == [4] * 3
    assert played.fill() == 4
    assert [(at - first_at, rate) for at, rate in list(played.ledger.limits)[1:]] == [
        (5, 20),
        (8, 4),
    ]


@pytest.mark.parametrize("step_s", [0.01, 0.5, 100.0])
async def test_stranger_takes_as_much_however_often_one_looks(step_s: float) -> None:
    """Bursts of five at 6/s in all, at the same moments whether looked at or not."""
    played = _Played(replace(WIDE, rate_per_s=50, foreign=Foreign(rate_per_s=6, burst=5)))

    for _ in range(round(100 / step_s)):
        await played.clock.advance(step_s, rounds=0)
        played.account.catch_up()
    taken = played.ledger.total.foreign

    other = _Played(replace(WIDE, rate_per_s=50, foreign=Foreign(rate_per_s=6, burst=5)))
    await other.clock.advance(played.clock.monotonic() - other.clock.monotonic())
    other.account.catch_up()
    assert taken == other.ledger.total.foreign == pytest.approx(600, rel=0.3)
    assert list(played.ledger.foreign) == list(other.ledger.foreign)
    assert sum(second.foreign for second in played.ledger.seconds.values()) == taken


async def test_stranger_drinks_from_the_same_bucket_and_quota() -> None:
    """He gets no more than the limit; what he takes is missing to others."""
    played = _Played(
        replace(WIDE, rate_per_s=10, quota=1500, foreign=Foreign(rate_per_s=5, burst=5))
    )

    accepted = sum(await played.pour(100, 8))

    taken = played.ledger.total.foreign
    assert taken > 150
    assert accepted < 800
    assert 900 < accepted + taken <= 1010
    assert played.account.quota_sent == accepted + taken
    assert list(played.ledger.seconds) == sorted(played.ledger.seconds)
    audit, start = Audit(played.ledger), played.ledger.limits[0][0]
    assert audit.offered(start, start + 100) == pytest.approx(1000 - taken, abs=5)


async def test_quota_used_by_others_is_gone_for_a_day() -> None:
    """Of ten, eight are gone from the start; the quota's clock put forward brings them back."""
    played = _Played(replace(WIDE, rate_per_s=100, quota=10, quota_used=8))

    assert [played.send(), played.send(), played.send()] == ["", "", QUOTA]
    played.account.skip(86_400)
    assert played.send() == ""
    assert played.account.quota_sent == 1


async def test_quota_runs_on_a_faster_clock() -> None:
    """At 1440 a day is over in a minute, in which the rate's clock is not moved."""
    played = _Played(replace(WIDE, rate_per_s=100, quota=1, quota_speed=1440, quota_step_s=60))
    assert [played.send(), played.send()] == ["", QUOTA]

    await played.clock.advance(59)
    assert played.send() == QUOTA
    await played.clock.advance(1)
    assert played.send() == ""


async def test_quota_is_overshot_by_one_message_to_many() -> None:
    """One left of ten admits five; then nothing, at 14 of 10."""
    played = _Played(replace(WIDE, rate_per_s=100, quota=10, quota_used=9))

    assert played.send(*(f"r{n}@y.org" for n in range(5))) == ""
    assert played.send() == QUOTA
    assert played.account.quota_sent == 14


async def test_simulator_costs_rate_but_no_quota() -> None:
    """Its recipients empty the bucket and leave the quota alone."""
    played = _Played(replace(WIDE, rate_per_s=2, quota=10))

    assert played.send("success@simulator.amazonses.com", "b@y.org") == ""
    assert played.send() == RATE
    assert played.account.quota_sent == 1


async def test_counter_that_lags_does_not_know_the_last_seconds() -> None:
    """Ten seconds late, it tells what stood there ten seconds ago."""
    played = _Played(replace(WIDE, rate_per_s=100, quota_used=3, quota=100))

    played.send("b@y.org", "c@y.org")
    await played.clock.advance(6)
    played.send()
    await played.clock.advance(5)

    assert [played.account.sent_until(lag_s) for lag_s in (0, 10, 20)] == [6, 5, 3]

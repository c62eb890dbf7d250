"""What is left of a learned limit after a restart, a night, a wrong clock and a bad disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.figures import KnownBy
from relay.service.memory import (
    AGE_UNKNOWN_S,
    ERROR_MAX,
    LIMIT_MAX_PER_S,
    Memory,
    account_of,
    faded,
)
from relay.shaper import Cause, Shaper, ShaperState
from tests.fakes.clock import ManualClock
from tests.fakes.spool_file import open_spool

if TYPE_CHECKING:
    from pathlib import Path

    from relay.spool import Spool

UPSTREAM = config.Upstream(host="smtp.example.com", username="AKIAEXAMPLE")
DAY_S, DAY_MS = 86_400.0, 86_400_000
KEY = "shaper:ses"


def fresh(spool: Spool, clock: ManualClock, upstream: config.Upstream = UPSTREAM) -> Memory:
    """The memory of a relay that has just been started."""
    return Memory(upstream, Shaper(upstream.rate), spool, clock)


async def kept(spool: Spool) -> dict[str, object]:
    found = await spool.state(KEY)
    assert found is not None
    return found


# -- Age -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "error"),
    [(0, 0.005), (60, 0.0052), (3600, 0.0114), (DAY_S, 0.0502), (7 * DAY_S, 0.1324)],
)
def test_error_of_a_limit_grows_with_its_age(age_s: float, error: float) -> None:
    """14.0/s ±0.5 % is as good after a restart, good to 5 % after a day."""
    assert 1 - faded(0.995, age_s) == pytest.approx(error, abs=0.0001)


def test_fading_twice_is_fading_once_over_both_times() -> None:
    """Ten restarts in a night cost no more confidence than one."""
    at_once = faded(0.99, 10 * 3600.0)

    confidence = 0.99
    for _ in range(10):
        confidence = faded(confidence, 3600.0)

    assert confidence == pytest.approx(at_once, rel=1e-9)


def test_age_alone_never_makes_a_limit_worthless() -> None:
    """A year later it is a better start than any; one that was a guess is no better for it."""
    assert faded(0.999, 365 * DAY_S) == pytest.approx(1 - ERROR_MAX)
    assert faded(0.2, 365 * DAY_S) == pytest.approx(0.2)
    assert faded(0.2, 0) == pytest.approx(0.2)


@pytest.mark.parametrize("age_s", [None, -5.0])
def test_age_that_is_not_known_is_a_long_one_and_a_negative_one_is_none(
    age_s: float | None,
) -> None:
    """Neither gives a limit more confidence than it had."""
    wanted = faded(0.99, AGE_UNKNOWN_S if age_s is None else 0.0)

    assert faded(0.99, age_s) == wanted <= 0.99


@pytest.mark.parametrize(
    "confidence", [None, "0.9", True, math.nan, math.inf, -1, 1.5, 10**400, [0.9], {}]
)
def test_confidence_that_is_none_counts_as_little(confidence: object) -> None:
    """Whatever JSON can hold."""
    assert faded(confidence, 0) == 0.5


# -- Over a restart ------------------------------------------------------------------------


async def test_limit_of_yesterday_is_the_start_and_says_so(tmp_path: Path) -> None:
    """With its date, less sure than it was; carried over a second restart it is no younger."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        first = fresh(spool, clock)
        first.tell(14.0)
        await first.save()
        told_at = clock.wall_ms()
        await clock.advance(DAY_S)
        second = fresh(spool, clock)
        await second.recall()
        await second.save()
        await clock.advance(DAY_S)

        third = fresh(spool, clock)
        await third.recall()

        state = third._shaper.snapshot()
        assert state.limit_per_s == pytest.approx(14)
        assert state.error_share == pytest.approx(1 - faded(0.9, 2 * DAY_S), rel=0.05)
        assert third.known() == (KnownBy.OPERATOR, told_at)
        assert [change.cause for change in third.changes()] == [Cause.REMEMBERED]
        assert third.known() == (KnownBy.OPERATOR, told_at)


async def test_what_was_measured_is_remembered_from_its_last_confirmation(tmp_path: Path) -> None:
    """The stamp is that of the reading, not of the write."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        record = {
            "limit_per_s": 14.0,
            "confidence": 0.99,
            "known_by": "confirmed",
            "at_ms": clock.wall_ms() - 5_000,
            "account": account_of(UPSTREAM),
        }
        await spool.put_state(KEY, record)

        memory = fresh(spool, clock)
        await memory.recall()

        assert memory.known() == (KnownBy.REMEMBERED, clock.wall_ms() - 5_000)


@pytest.mark.parametrize(
    "other",
    [{"host": "smtp.example.net"}, {"username": "AKIAOTHER"}, {"username": ""}],
)
async def test_another_account_under_the_same_name_does_not_inherit(
    tmp_path: Path, other: dict[str, str]
) -> None:
    """Its limit is another; and what was learned is not lost to the first one for that."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        mine = fresh(spool, clock)
        mine.tell(14.0)
        await mine.save()

        theirs = fresh(spool, clock, replace(UPSTREAM, **other))  # type: ignore[arg-type]
        await theirs.recall()
        await theirs.save()

        assert theirs._shaper.snapshot().limit_per_s is None
        assert theirs.known() == (KnownBy.NOBODY, None)
        again = fresh(spool, clock, replace(UPSTREAM, host="SMTP.example.com"))
        await again.recall()
        assert again._shaper.snapshot().limit_per_s == pytest.approx(14)


async def test_spool_does_not_name_the_account(tmp_path: Path) -> None:
    """A user name is half of a credential."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        memory = fresh(spool, clock)
        memory.tell(14.0)
        await memory.save()

        assert UPSTREAM.username not in json.dumps(await kept(spool))


@pytest.mark.parametrize("at_ms", [None, "yesterday", True, -1, 0, math.inf, 10**400, "ahead"])
async def test_wrong_clock_or_date_makes_a_limit_old_not_false(
    tmp_path: Path, at_ms: object
) -> None:
    """It is the start all the same, and is trusted like one a week old."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        memory = fresh(spool, clock)
        memory.tell(14.0)
        await memory.save()
        ahead_ms = clock.wall_ms() + DAY_MS
        wrong = {**await kept(spool), "at_ms": ahead_ms if at_ms == "ahead" else at_ms}
        await spool.put_state(KEY, wrong)

        second = fresh(spool, clock)
        await second.recall()

        state = second._shaper.snapshot()
        assert state.limit_per_s == pytest.approx(14)
        assert state.error_share == pytest.approx(1 - faded(0.9, AGE_UNKNOWN_S), rel=0.05)
        assert second.known() == (KnownBy.OPERATOR, None)


async def test_date_a_moment_ahead_is_one_of_now(tmp_path: Path) -> None:
    """NTP moves a clock by seconds at any start."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        memory = fresh(spool, clock)
        memory.tell(14.0)
        await memory.save()
        clock.step_wall(-30_000)

        second = fresh(spool, clock)
        await second.recall()

        assert second._shaper.snapshot().error_share == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    "rubbish",
    [
        {"limit_per_s": "14"},
        {"limit_per_s": None},
        {"limit_per_s": True},
        {"limit_per_s": -3},
        {"limit_per_s": 0},
        {"limit_per_s": 1e-30},
        {"limit_per_s": math.nan},
        {"limit_per_s": math.inf},
        {"limit_per_s": 10**400},
        {"limit_per_s": LIMIT_MAX_PER_S * 2},
        {"limit_per_s": [14]},
    ],
)
async def test_rubbish_in_the_spool_is_a_cold_start(
    tmp_path: Path, rubbish: dict[str, object]
) -> None:
    """No error, no limit, and the rate of ``start_per_s``."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await spool.put_state(KEY, {"account": account_of(UPSTREAM), **rubbish})

        memory = fresh(spool, clock)
        await memory.recall()

        state = memory._shaper.snapshot()
        assert (state.limit_per_s, state.rate_per_s) == (None, UPSTREAM.rate.start_per_s)


@pytest.mark.parametrize(("field", "value"), [("burst", "x"), ("noise", 10**400), ("burst", -1)])
async def test_rubbish_beside_a_good_limit_is_left_out(
    tmp_path: Path, field: str, value: object
) -> None:
    """The rest is used."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        good = {"account": account_of(UPSTREAM), "limit_per_s": 14, "confidence": 0.9}
        await spool.put_state(KEY, {**good, field: value})

        memory = fresh(spool, clock)
        await memory.recall()

        assert memory._shaper.snapshot().limit_per_s == pytest.approx(14)


@pytest.mark.parametrize(
    ("rate", "least", "most"),
    [
        (config.Rate(ceiling_per_s=8), 0.5, 8.0),
        (config.Rate(floor_per_s=20, start_per_s=20), 20.0, 1e9),
        (config.Rate(use_max=0.5), 0.5, 7.0),
    ],
)
async def test_bounds_of_today_hold_against_what_was_learned_yesterday(
    tmp_path: Path, rate: config.Rate, least: float, most: float
) -> None:
    """``relay.toml`` may have changed since."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        sure = {"limit_per_s": 14.0, "confidence": 0.999, "at_ms": clock.wall_ms()}
        await spool.put_state(KEY, {"account": account_of(UPSTREAM), **sure})

        second = fresh(spool, clock, replace(UPSTREAM, rate=rate))
        await second.recall()

        assert least <= second._shaper.snapshot().rate_per_s <= most


class ReadShaper(Shaper):
    """A shaper whose last reading is when the test says."""

    read_at: float | None = None

    def snapshot(self) -> ShaperState:
        return replace(super().snapshot(), confirmed_at=self.read_at)


async def test_reading_confirms_and_a_word_after_it_is_a_word_again(tmp_path: Path) -> None:
    """The latest of the two says how the limit is known; a restart remembers the reading's date."""
    clock, shaper = ManualClock(), ReadShaper(UPSTREAM.rate)
    async with open_spool(tmp_path, clock) as spool:
        memory = Memory(UPSTREAM, shaper, spool, clock)
        memory.tell(14.0)
        memory.changes()
        assert memory.known() == (KnownBy.OPERATOR, clock.wall_ms())

        await clock.advance(100)
        shaper.read_at, read_ms = clock.monotonic(), clock.wall_ms()
        await clock.advance(40)

        assert memory.known() == (KnownBy.CONFIRMED, read_ms)
        await memory.save()
        again = fresh(spool, clock)
        await again.recall()
        assert again.known() == (KnownBy.REMEMBERED, read_ms)

        memory.tell(28.0)
        assert memory.known() == (KnownBy.OPERATOR, clock.wall_ms())


async def test_clock_that_was_set_is_the_one_that_dates(tmp_path: Path) -> None:
    """Without a battery a machine starts in 1970: what was confirmed then is dated anew."""
    clock, shaper = ManualClock(wall_ms=10**9), ReadShaper(UPSTREAM.rate)
    async with open_spool(tmp_path, clock) as spool:
        memory = Memory(UPSTREAM, shaper, spool, clock)
        memory.tell(14.0)
        await clock.advance(100)
        shaper.read_at = clock.monotonic()
        await memory.save()

        clock.step_wall(10**12)
        await memory.save()

        assert (await kept(spool))["at_ms"] == clock.wall_ms()


# -- How it is known, and what is written ---------------------------------------------------


async def test_word_of_aws_is_known_as_such_until_a_reading_confirms_it(tmp_path: Path) -> None:
    """It came to the shaper past the memory, which hears of it by the change."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        memory = fresh(spool, clock)
        memory.tell(14.0)
        memory.changes()
        await clock.advance(60)
        told = {"limit_per_s": 28.0, "confidence": 0.8}
        memory._shaper.restore(clock.monotonic(), told, Cause.AWS)

        [change] = memory.changes()

        assert change.cause is Cause.AWS
        assert memory.known() == (KnownBy.AWS, clock.wall_ms())
        await memory.save()
        assert (await kept(spool))["known_by"] == "aws"


async def test_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    """An idle relay does not wear out the disk; a new word is written."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        memory = fresh(spool, clock)
        memory.tell(14.0)
        await memory.save()
        await spool.put_state(KEY, {"untouched": True})

        await clock.advance(3600)
        await memory.save()
        assert await kept(spool) == {"untouched": True}

        memory.tell(28.0)
        await memory.save()
        assert (await kept(spool))["limit_per_s"] == pytest.approx(28)


async def test_clocks_that_differ_by_a_moment_make_no_new_date(tmp_path: Path) -> None:
    """A reading is dated by two clocks, which NTP slews: that is no news, and no write."""
    clock, shaper = ManualClock(), ReadShaper(UPSTREAM.rate)
    async with open_spool(tmp_path, clock) as spool:
        memory = Memory(UPSTREAM, shaper, spool, clock)
        memory.tell(14.0)
        await clock.advance(100)
        shaper.read_at = clock.monotonic()
        await memory.save()
        await spool.put_state(KEY, {"untouched": True})

        clock.step_wall(4_000)
        await memory.save()

        assert await kept(spool) == {"untouched": True}


async def test_nothing_learned_leaves_what_an_earlier_run_found(tmp_path: Path) -> None:
    """A start that was killed before its first reading costs no memory."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await spool.put_state(KEY, {"kept": 1})

        await fresh(spool, clock).save()

        assert await kept(spool) == {"kept": 1}

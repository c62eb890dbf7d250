"""What a spent quota does to the mail that waits, through the dispatcher."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from relay import config
from relay.envelope import PRIORITY
from relay.quota import PROBE_MAX_MS
from relay.reply import Stage
from tests.fakes.house import open_house
from tests.fakes.upstream import Plan, said

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.house import House

SPENT = Plan(dot=said(Stage.DOT, "454 Throttling failure: Daily message quota exceeded."))
HOUR_S = 3600.0


def priority_waits(house: House) -> int:
    depth = house.spool.depth()
    return sum(count for stream, count in depth.items() if stream.lane == PRIORITY)


async def test_probe_is_the_priority_lanes_first_message(tmp_path: Path) -> None:
    """It is sent within a quarter of an hour of room, before all that waited longer."""
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: SPENT
        await house.keep(20, campaign="a")
        await house.until(lambda: house.dispatcher.doing == "quota")
        await house.pass_time(HOUR_S)
        await house.keep(1, campaign="")
        house.upstream.answer = lambda *_: Plan()

        took_s = await house.until(lambda: not priority_waits(house), step_s=1.0)

        assert took_s <= PROBE_MAX_MS / 1000 + 2
        [wanted] = house.kept[-1].recipients
        assert house.upstream.sent[0].recipients == (wanted.address,)


async def test_probe_of_many_hours_is_still_the_first_in_its_lane(tmp_path: Path) -> None:
    """That the quota is spent is nothing about the mail that asks: it does not step aside."""
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: SPENT
        await house.keep(2, campaign="")
        await house.keep(20, campaign="a")
        for _ in range(6):
            await house.pass_time(HOUR_S)
        house.upstream.answer = lambda *_: Plan()

        await house.until(lambda: bool(house.upstream.sent), step_s=1.0)

        tried = [mail.recipients for mail in house.upstream.mails]
        [(asker, count)] = Counter(tried).most_common(1)
        assert count >= 20
        assert house.upstream.sent[0].recipients == asker


async def test_days_without_quota_let_no_mail_grow_old(tmp_path: Path) -> None:
    """Priority mail of a day's worth outlives it: nothing expires, bounces or is charged."""
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: SPENT
        before = house.rooms.shaper.snapshot().rate_per_s
        await house.keep(3, campaign="")
        await house.until(lambda: house.dispatcher.doing == "quota")
        end = house.clock.monotonic() + 30 * HOUR_S
        await house.until(
            lambda: house.clock.monotonic() >= end, within_s=31 * HOUR_S, step_s=PROBE_MAX_MS / 3000
        )
        tried = len(house.upstream.mails)
        spent_rate = house.rooms.shaper.snapshot().rate_per_s
        house.upstream.answer = lambda *_: Plan()

        await house.until(lambda: not priority_waits(house), step_s=1.0)

        assert spent_rate == before
        assert 50 <= tried <= 130
        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 3


async def test_campaign_stops_where_aws_leaves_the_reserve_and_priority_goes_on(
    tmp_path: Path,
) -> None:
    """With AWS asked, the first day that is spent costs no password reset its hours."""
    settings = replace(config.Upstream(), quota=config.Quota(priority_reserve=0.02))
    async with open_house(tmp_path, upstream=settings) as house:
        house.rooms.quota.told(house.clock.wall_ms(), day_max=1_000, day_sent=960)
        await house.keep(50, campaign="a")
        await house.until(lambda: house.dispatcher.doing == "quota")
        await house.keep(5, campaign="")

        await house.until(lambda: not priority_waits(house))

        assert 20 <= len(house.upstream.sent) - 5 <= 26
        house.rooms.quota.told(house.clock.wall_ms(), day_max=1_000, day_sent=500)
        house.dispatcher.wake()
        await house.until(lambda: len(house.upstream.sent) == 55, within_s=10)


async def test_campaign_stops_by_the_ledger_and_priority_goes_on(tmp_path: Path) -> None:
    """With a known quota the reserve is kept without one refusal."""
    settings = replace(config.Upstream(), quota=config.Quota(daily_max=40, priority_reserve=0.25))
    async with open_house(tmp_path, upstream=settings) as house:
        await house.keep(50, campaign="a")
        await house.until(lambda: house.dispatcher.doing == "quota")
        await house.keep(5, campaign="")

        await house.until(lambda: not priority_waits(house))

        assert 30 <= len(house.upstream.sent) - 5 <= 36
        assert house.upstream.mails == house.upstream.sent

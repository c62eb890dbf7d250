"""Whose mail the quota's ledger counts: another account under the same name begins at nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from relay import config
from relay.ageing import Ageing
from relay.breaker import Holds
from relay.envelope import BULK, Outcome
from relay.metrics import Metrics
from relay.quota import PROBE_FIRST_MS
from relay.service.branch import Branch, Shared
from tests.fakes.clock import ManualClock
from tests.fakes.spool_file import finished, keep, open_spool, settle

if TYPE_CHECKING:
    from pathlib import Path

    from relay.spool import Spool

DAILY_MAX = 10
MINE = config.Upstream(
    host="smtp.example.com", username="AKIAMINE", quota=config.Quota(daily_max=DAILY_MAX)
)
OTHER = replace(MINE, username="AKIAOTHER")
MINUTE_S = 60.0


async def start(spool: Spool, clock: ManualClock, upstream: config.Upstream) -> Branch:
    """The upstream's rooms as the next start of the relay has them."""
    shared = Shared(
        spool=spool,
        holds=Holds(),
        ageing=Ageing(clock.wall_ms()),
        metrics=Metrics(),
        clock=clock,
    )
    branch = Branch(config.Config(), upstream, "", shared, lambda: None)
    await branch.restore()
    return branch


async def use_up(spool: Spool, clock: ManualClock) -> None:
    """A day's worth is sent, and it is a minute later."""
    for _ in range(DAILY_MAX):
        await settle(spool, await keep(spool), finished(Outcome.SENT), at=clock.wall_ms())
    await clock.advance(MINUTE_S)


async def test_what_was_sent_counts_over_restarts(tmp_path: Path) -> None:
    """The same account: its day is used."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await (await start(spool, clock, MINE)).save()
        await use_up(spool, clock)

        again = await start(spool, clock, MINE)

        assert again.quota.snapshot(clock.wall_ms()).used == DAILY_MAX
        assert not again.quota.allows(BULK, clock.wall_ms())


async def test_another_account_has_its_own_day(tmp_path: Path) -> None:
    """Its campaigns do not wait for a day because the one before has used up its own."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await (await start(spool, clock, MINE)).save()
        await use_up(spool, clock)

        other = await start(spool, clock, OTHER)

        assert other.quota.snapshot(clock.wall_ms()).used == 0
        assert other.quota.allows(BULK, clock.wall_ms())


async def test_another_accounts_day_lasts_over_restarts(tmp_path: Path) -> None:
    """What it sent itself counts, what the one before had sent never does."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await (await start(spool, clock, MINE)).save()
        await use_up(spool, clock)
        await (await start(spool, clock, OTHER)).save()
        await settle(spool, await keep(spool), finished(Outcome.SENT), at=clock.wall_ms())
        await clock.advance(MINUTE_S)

        again = await start(spool, clock, OTHER)

        assert again.quota.snapshot(clock.wall_ms()).used == 1


async def test_what_one_account_was_told_is_not_said_to_another(tmp_path: Path) -> None:
    """Spent was the other's quota."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        first = await start(spool, clock, MINE)
        first.quota.spent(clock.wall_ms())
        await first.save()

        mine, other = await start(spool, clock, MINE), await start(spool, clock, OTHER)

        now = clock.wall_ms()
        assert mine.quota.next_at(now) == now + PROBE_FIRST_MS
        assert other.quota.next_at(now) == now


async def test_clock_set_back_does_not_forget_what_an_account_sent(tmp_path: Path) -> None:
    """It began in the future then; that is now."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        await (await start(spool, clock, MINE)).save()
        await clock.advance(MINUTE_S)
        await (await start(spool, clock, OTHER)).save()
        clock.step_wall(-3_600_000)
        await settle(spool, await keep(spool), finished(Outcome.SENT), at=clock.wall_ms())
        await clock.advance(MINUTE_S)
        await (await start(spool, clock, OTHER)).save()
        await settle(spool, await keep(spool), finished(Outcome.SENT), at=clock.wall_ms())
        await clock.advance(MINUTE_S)

        again = await start(spool, clock, OTHER)

        assert again.quota.snapshot(clock.wall_ms()).used == 1

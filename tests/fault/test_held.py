"""An account that is held for weeks: the queue is as young afterwards as it was before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay.reply import Reply, Stage
from relay.upstream import Refused
from tests.fakes.house import House, open_house

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOUR_S = 3600.0
DAYS = 15
"""Longer than either lane's ``age_max_h``: 14 days for campaigns, one for the rest."""


def hour_has_passed(house: House) -> Callable[[], bool]:
    end = house.clock.monotonic() + HOUR_S
    return lambda: house.clock.monotonic() >= end


@pytest.mark.parametrize("campaign", ["", "a"])
async def test_p2_mail_that_waits_for_a_held_account_does_not_expire(
    tmp_path: Path, campaign: str
) -> None:
    """The login is refused for two weeks and more; mended, every mail is sent, none expired."""
    refused = Refused(Reply(Stage.AUTH, 535, "Authentication Credentials Invalid"))
    async with open_house(tmp_path) as house:
        house.upstream.failures.extend([refused] * 10_000)
        await house.keep(3, campaign=campaign)
        await house.until(lambda: house.holds.account_held("ses"))
        for _ in range(DAYS * 24):
            await house.until(hour_has_passed(house), step_s=1800)
        house.upstream.failures.clear()

        await house.until(lambda: len(house.upstream.mails) == 3, step_s=10)
        await house.until(lambda: not sum(house.spool.depth().values()))

        assert await house.statuses() == ["sent"] * 3

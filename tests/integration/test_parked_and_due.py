"""Mail that waits, parked or for its time: none of it is forgotten, and none bars the rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from relay.ageing import GRACE_MS
from relay.breaker import Source, account_key
from relay.errors import SpoolBroken
from relay.reply import Stage
from relay.spool import State
from tests.fakes.house import open_house
from tests.fakes.spool_file import query
from tests.fakes.upstream import Plan, said
from tests.integration.test_dispatcher_trouble import (
    FAST,
    KEY,
    LATER,
    RATE_454,
    accepted,
    altered,
    count,
    hold,
    nothing_left,
    parked,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from relay.envelope import Envelope
    from relay.spool import Spool

RCPT_LATER = said(Stage.RCPT, "451 Temporary service failure")
DUPLICATE = said(Stage.DOT, "554 Transaction failed: Duplicate header 'Content-Type'.")
BROKEN = b"BAD: x\r\n\r\nx\r\n"


def refuse_broken(_sender: str, _recipients: Sequence[str], content: bytes) -> Plan:
    return Plan(dot=DUPLICATE) if content == BROKEN else Plan()


# -- Probes of what is parked --------------------------------------------------------------


async def test_broken_mail_of_a_sender_does_not_bar_its_good_mail(tmp_path: Path) -> None:
    """Each probe takes the mail untried for longest, so that a good one has its turn."""
    async with open_house(tmp_path, rate=FAST) as house:
        house.upstream.answer = refuse_broken
        await house.keep(12, content=BROKEN)
        await house.until(lambda: count(house, State.PARKED) > 0)
        await house.keep(5)

        await house.until(lambda: len(house.upstream.sent) == 5, within_s=12 * 3600, step_s=30)


async def test_unreadable_parked_mail_does_not_stop_the_probe(tmp_path: Path) -> None:
    """It is quarantined, and the next is the probe that frees the rest."""
    async with open_house(tmp_path, rate=FAST) as house:
        await parked(house, 3)
        sql = "UPDATE envelope SET message_id = CAST(x'ff' AS TEXT) WHERE id = ?"
        query(tmp_path, sql, (house.kept[0].id,))

        await house.until(lambda: len(house.upstream.sent) == 2, step_s=5)

        assert count(house, State.QUARANTINED) == 1


async def test_probe_that_ended_during_a_read_of_parked_mail_is_not_lent_again(
    tmp_path: Path,
) -> None:
    """The answer is older than the end of the lease: what it says of that mail is stale."""
    answer, reading, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    is_slow = False

    async def read(spool: Spool, *words: str, limit: int) -> list[Envelope]:
        found = await spool.read_parked(*words, limit=limit)
        if is_slow:
            reading.set()
            await go_on.wait()
        return found

    async with open_house(tmp_path, rate=FAST, wrap=altered(read_parked=read)) as house:
        await parked(house, 1)
        house.upstream.plans.append(Plan(dot=DUPLICATE, until=answer))
        await house.until(lambda: not house.upstream.plans, step_s=1)
        is_slow = True
        hold(house, account_key("ses"), Source.BREAKER, house.clock.wall_ms())
        house.dispatcher.wake()
        await house.until(reading.is_set)

        answer.set()
        await house.until(lambda: not count(house, State.PARKED))
        is_slow = False
        go_on.set()
        await house.pass_time(3)

        assert len(house.upstream.mails) == 1


async def test_release_that_fails_for_minutes_happens_in_the_end(tmp_path: Path) -> None:
    """Mail parked under a hold that is gone would wait for the next start, held by nobody."""
    is_broken = True

    async def release(spool: Spool, key: str) -> int:
        if is_broken:
            raise SpoolBroken("disk I/O error")
        return await spool.release(key)

    async with open_house(tmp_path, rate=FAST, wrap=altered(release=release)) as house:
        await parked(house, 3)
        for _ in range(6):
            await house.pass_time(600)
        assert not house.holds.held(KEY)
        assert count(house, State.PARKED) == 2

        is_broken = False
        took_s = await house.until(lambda: nothing_left(house), step_s=1)

        assert took_s < 300
        assert await house.spool.holds() == []
        assert await house.statuses() == ["sent"] * 3


async def test_hold_set_again_while_its_end_cannot_be_written_stays(tmp_path: Path) -> None:
    """What is tried again is the end of the old one; a restart must find the new one."""
    is_broken = True

    async def drop(spool: Spool, key: str, source: Source) -> bool:
        if is_broken:
            raise SpoolBroken("disk I/O error")
        return await spool.drop_hold(key, source)

    async with open_house(tmp_path, rate=FAST, wrap=altered(drop_hold=drop)) as house:
        await parked(house, 3)
        await house.until(lambda: len(house.upstream.sent) == 1, step_s=1)
        hold(house, KEY, Source.BREAKER)
        await house.spool.put_hold(house.holds.all()[0])

        is_broken = False
        await house.pass_time(300)

        assert [one.key for one in await house.spool.holds()] == [KEY]
        assert count(house, State.PARKED) == 2


# -- Recipients of one envelope that fall due apart ----------------------------------------


async def test_deferred_recipient_that_falls_due_while_the_rest_is_under_way_is_sent(
    tmp_path: Path,
) -> None:
    """It is looked for when the lease has ended: while it lasts, its envelope is not read."""
    answer = asyncio.Event()
    async with open_house(tmp_path) as house:
        house.upstream.plans.append(Plan(rcpt={0: RCPT_LATER}, dot=RATE_454))
        house.upstream.plans.append(Plan(until=answer))
        await house.keep(cost=2)
        await house.until(lambda: not house.upstream.plans)
        await house.pass_time(120)

        answer.set()
        await house.until(lambda: nothing_left(house), step_s=1)

        assert set(accepted(house).values()) == {1}
        assert await house.statuses() == ["sent"] * 2


async def test_recipients_that_fall_due_apart_both_go(tmp_path: Path) -> None:
    """What is known after an attempt is when the first of all is due, not only of those tried."""
    answer = asyncio.Event()
    async with open_house(tmp_path) as house:
        house.upstream.plans.append(Plan(rcpt={0: RCPT_LATER}, dot=RATE_454))
        house.upstream.plans.append(Plan(dot=LATER, until=answer))
        await house.keep(cost=2)
        await house.until(lambda: not house.upstream.plans)
        await house.pass_time(5)

        answer.set()
        await house.until(lambda: nothing_left(house), step_s=5)

        assert set(accepted(house).values()) == {1}
        assert await house.statuses() == ["sent"] * 2


async def test_recipient_that_waits_beside_an_expired_one_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time comes although the one beside it was put away without a try."""
    answer = asyncio.Event()
    async with open_house(tmp_path) as house:
        await house.pass_time(GRACE_MS / 1000)
        house.upstream.plans.append(Plan(rcpt={0: RCPT_LATER}, dot=RATE_454, until=answer))
        await house.keep(cost=2)
        await house.until(lambda: not house.upstream.plans)
        with monkeypatch.context() as aged:
            aged.setattr(house.rooms.ageing, "expired", lambda *_: True)
            answer.set()
            await house.until(lambda: count(house) == 1)

        await house.until(lambda: nothing_left(house), step_s=1)

        assert await house.statuses() == ["sent", "expired"]

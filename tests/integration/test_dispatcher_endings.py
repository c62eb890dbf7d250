"""Trouble that is nobody's refusal: sessions that end, surprises, clocks, parked mail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.breaker import Source, sandbox_key
from relay.reply import Stage
from relay.spool import State
from tests.fakes.house import House, open_house
from tests.fakes.upstream import Plan, said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FAST = config.Rate(start_per_s=200, ceiling_per_s=200)


def left(house: House, *states: State) -> int:
    wanted = states or (State.WAITING, State.PARKED)
    return sum(count for key, count in house.spool.depth().items() if key.state in wanted)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("421 4.3.0 Service not available", "Service not available"),
        ("421 Too many concurrent SMTP connections", "Too many concurrent"),
        ("421 Too many messages in one session", "Too many messages"),
        ("421 Timeout waiting for data from client.", "Timeout waiting"),
    ],
)
async def test_outage_behind_the_greeting_is_backed_off_and_shown(
    tmp_path: Path, line: str, shown: str
) -> None:
    """An upstream that takes the login and closes at MAIL is asked ever more rarely, uncharged.

    Whatever it says: no session was full, idle or one too many before its first mail.
    """
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: Plan(mail=said(Stage.MAIL, line))
        await house.keep(20, campaign="a")

        await house.pass_time(600)

        assert len(house.upstream.mails) < 150  # thousands at full speed
        assert shown in house.dispatcher.doing

        house.upstream.answer = lambda *_: Plan()
        await house.until(lambda: not left(house), step_s=1)
        fates = (await house.fates()).values()
        assert {(fate.status, fate.attempts) for fate in fates} == {("sent", 1)}


async def test_mail_that_ends_every_session_does_not_hold_up_its_campaign(tmp_path: Path) -> None:
    """It waits by the retry schedule, uncharged, while the others go."""

    def answer(_: str, __: Sequence[str], content: bytes) -> Plan:
        return Plan(dot=said(Stage.DOT, "421 Internal error")) if b"bad" in content else Plan()

    async with open_house(tmp_path, rate=FAST) as house:
        house.upstream.answer = answer
        await house.keep(1, campaign="a", content=b"bad\r\n\r\n\r\n")
        await house.keep(30, campaign="a")
        await house.until(lambda: left(house) == 1)

        before = len(house.upstream.mails)
        await house.pass_time(600)

        assert len(house.upstream.mails) - before <= 6
        [bad, *_] = (await house.fates()).values()
        assert (bad.status, bad.attempts) == ("waiting", 0)


async def test_content_that_never_gets_through_in_time_is_put_off(tmp_path: Path) -> None:
    """A timeout in mid-content says nothing of idling: a slow link would send it for ever."""
    timeout = said(Stage.DOT, "451 4.4.2 Timeout waiting for data from client.")
    async with open_house(tmp_path, rate=FAST) as house:
        house.upstream.answer = lambda _, __, content: (
            Plan(dot=timeout) if b"large" in content else Plan()
        )
        await house.keep(1, campaign="a", content=b"large\r\n\r\n\r\n")
        await house.keep(30, campaign="a")
        await house.until(lambda: left(house) == 1)

        before = len(house.upstream.mails)
        await house.pass_time(600)

        assert len(house.upstream.mails) - before <= 6
        [large, *_] = (await house.fates()).values()
        assert (large.status, large.attempts) == ("waiting", 0)


async def test_mail_that_is_always_throttled_does_not_stop_its_campaign(tmp_path: Path) -> None:
    """It waits by the retry schedule, uncharged; the others go, and go ever faster."""
    throttled = Plan(dot=said(Stage.DOT, "454 Throttling failure: Maximum sending rate exceeded."))
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda _, __, content: throttled if b"bad" in content else Plan()
        await house.keep(1, campaign="a", content=b"bad\r\n\r\n\r\n")
        await house.keep(300, campaign="a")

        await house.until(lambda: left(house) == 1, step_s=1)

        for _ in range(12):
            await house.keep(1, campaign="a")
            await house.pass_time(300)
        tries = sum(b"bad" in mail.content for mail in house.upstream.mails)
        assert tries <= 50  # a hundred and more if it were tried each minute
        [bad, *others] = (await house.fates()).values()
        assert (bad.status, bad.attempts) == ("waiting", 0)
        assert {(one.status, one.attempts) for one in others} == {("sent", 1)}
        house.upstream.answer = lambda *_: Plan()
        await house.until(lambda: not left(house), step_s=1)


async def test_hour_in_which_all_is_throttled_puts_no_mail_off_for_long(tmp_path: Path) -> None:
    """When it is over a password reset is sent within a minute or so."""
    throttled = Plan(dot=said(Stage.DOT, "454 Throttling failure: Maximum sending rate exceeded."))
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: throttled
        await house.keep(2, campaign="")
        await house.keep(20, campaign="a")
        await house.pass_time(3600)
        house.upstream.answer = lambda *_: Plan()

        took_s = await house.until(lambda: not left(house), step_s=1)

        assert took_s <= 120
        fates = (await house.fates()).values()
        assert {(fate.status, fate.attempts) for fate in fates} == {("sent", 1)}


async def test_mail_of_a_sandbox_account_is_not_expired_by_its_release(tmp_path: Path) -> None:
    """Two days under a hold make a password reset no older."""
    text = (
        "554 Message rejected: Email address is not verified. The following identities failed "
        "the check in region US-EAST-1: "
    )
    async with open_house(tmp_path, rate=FAST) as house:
        house.upstream.answer = lambda _, to, __: Plan(dot=said(Stage.DOT, text + to[0]))
        await house.keep()
        await house.until(lambda: left(house, State.PARKED) == 1)
        for _ in range(25):
            await house.pass_time(7000)
        house.upstream.answer = lambda *_: Plan()

        house.holds.lift(sandbox_key("ses"), Source.BREAKER)
        house.rooms.ageing.go(sandbox_key("ses"), house.clock.wall_ms())
        await house.spool.release(sandbox_key("ses"))
        house.dispatcher.reread()
        await house.until(lambda: not left(house), step_s=1)

        assert await house.statuses() == ["sent"]


async def test_surprise_while_choosing_does_not_keep_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours between choosing and sending ends the lease."""
    async with open_house(tmp_path, rate=FAST) as house:
        steady, surprises = house.rooms.ageing.is_steady, [RuntimeError("surprise")]

        def once(now_ms: int, now: float) -> bool:
            if surprises:
                raise surprises.pop()
            return steady(now_ms, now)

        monkeypatch.setattr(house.rooms.ageing, "is_steady", once)
        await house.keep()

        await house.until(lambda: not left(house), within_s=600, step_s=1)

        assert await house.statuses() == ["sent"]


async def test_clock_step_expires_nothing_before_it_is_noticed(tmp_path: Path) -> None:
    """A reset that waits when the clock jumps by a day is sent, not expired."""
    gate = asyncio.Event()
    async with open_house(tmp_path, rate=FAST) as house:
        await house.keep()
        await house.until(lambda: not left(house))
        house.upstream.answer = lambda *_: Plan(until=gate)
        await house.keep(300)
        await house.until(lambda: house.upstream.snapshot().busy > 1)

        house.clock.step_wall(25 * 3_600_000)
        gate.set()
        await house.pass_time(5)
        house.rooms.ageing.stepped(25 * 3_600_000, house.clock.wall_ms())
        await house.until(lambda: not left(house), step_s=1)

        assert set(await house.statuses()) == {"sent"}

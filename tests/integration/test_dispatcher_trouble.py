"""What the dispatcher does when two things happen at once, or something fails in the midst."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from relay import config
from relay.breaker import Breaker, Hold, Source, account_key, campaign_key, in_doubt_key, sender_key
from relay.dispatcher import Dispatcher
from relay.dispatcher.feed import RETRY_S, Feed
from relay.envelope import PRIORITY
from relay.errors import SpoolBroken, SpoolError, Unreachable
from relay.lanes import Lanes, StreamKey
from relay.quota import Quota
from relay.reply import Stage
from relay.shaper import Shaper
from relay.spool import Settlement, State
from relay.upstream import Refused
from tests.fakes.clock import ManualClock
from tests.fakes.house import House, open_house
from tests.fakes.upstream import FakeUpstream, Plan, said

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from relay.spool import Due, Spool

SENDER = "news@lists.example.com"
KEY = sender_key("ses", SENDER)
FAST = config.Rate(start_per_s=200, ceiling_per_s=200)
RATE_454 = said(Stage.DOT, "454 Throttling failure: Maximum sending rate exceeded.")
BAD_RCPT = said(Stage.RCPT, "501 Invalid RCPT TO address provided")
LATER = said(Stage.DOT, "451 Temporary service failure")


class Altered:
    """A spool of which some methods are other ones, called with the true spool first."""

    def __init__(self, spool: Spool, methods: dict[str, Callable[..., Awaitable[Any]]]) -> None:
        self._spool, self._methods = spool, methods

    def __getattr__(self, name: str) -> object:
        method = self._methods.get(name)
        if method is None:
            return getattr(self._spool, name)
        return lambda *words, **more: method(self._spool, *words, **more)


def altered(**methods: Callable[..., Awaitable[Any]]) -> Callable[[Spool], Spool]:
    return lambda spool: cast("Spool", Altered(spool, methods))


def count(house: House, state: State = State.WAITING) -> int:
    return sum(count for key, count in house.spool.depth().items() if key.state is state)


def nothing_left(house: House) -> bool:
    return not count(house) and not count(house, State.PARKED)


def accepted(house: House) -> Counter[str]:
    """How many times each recipient's mail was accepted."""
    return Counter(address for mail in house.upstream.sent for address in mail.recipients)


def hold(house: House, key: str, source: Source = Source.OPERATOR, probe_at: int = 0) -> None:
    since = house.clock.wall_ms()
    house.holds.add(Hold(key, source, "test", since, next_probe_at=probe_at))


async def release(house: House, key: str) -> None:
    """As an operator does it."""
    house.holds.lift_all(key)
    await house.spool.release(key)
    house.dispatcher.reread()


async def parked(house: House, messages: int) -> None:
    """So many messages are parked under ``KEY``, whose probe is due in a minute."""
    hold(house, KEY, Source.BREAKER, house.clock.wall_ms() + 60_000)
    await house.keep(messages, campaign="a", sender=SENDER)
    await house.until(lambda: count(house, State.PARKED) == messages)


# -- Parts of one message ------------------------------------------------------------------


async def test_refused_recipient_leaves_and_the_throttled_rest_is_sent(tmp_path: Path) -> None:
    """The one bounces once, the others go on as if nothing had been tried."""
    async with open_house(tmp_path) as house:
        house.upstream.plans.append(Plan(rcpt={1: BAD_RCPT}, dot=RATE_454))
        await house.keep(cost=3)

        await house.until(lambda: nothing_left(house))

        fates = (await house.fates()).values()
        told = [(fate.status, fate.attempts) for fate in fates]
        assert told == [("sent", 1), ("bounced", 1), ("sent", 1)]
        assert len(house.upstream.mails) == 2
        assert set(accepted(house).values()) == {1}


async def test_each_booking_is_closed_once(tmp_path: Path) -> None:
    """However many recipients, parts and endings: the shaper knows that nothing is under way."""
    plans = [
        Plan(),
        Plan(rcpt={0: BAD_RCPT, 2: BAD_RCPT}),
        Plan(rcpt={0: BAD_RCPT, 1: BAD_RCPT, 2: BAD_RCPT}),
        Plan(dot=RATE_454),
        Plan(lost=Stage.MAIL),
        Plan(dot=LATER),
    ]
    async with open_house(tmp_path, rate=FAST) as house:
        house.upstream.plans.extend(plans)
        await house.keep(8, cost=3)

        await house.until(lambda: nothing_left(house), step_s=0.5)

        assert house.rooms.shaper.snapshot().under_way == 0
        assert house.rooms.shaper.snapshot().phase == "idle"
        used = house.rooms.quota.snapshot(house.clock.wall_ms()).used
        assert used == (await house.statuses()).count("sent") == 8 * 3 - 2 - 3


# -- Holds and probes ----------------------------------------------------------------------


async def test_accepted_probe_is_not_sent_with_those_it_frees(tmp_path: Path) -> None:
    """It is settled before the rest is released, however slow the disk."""

    async def slow(spool: Spool, settlement: Settlement) -> int | None:
        await house.clock.sleep(5)
        return await spool.settle(settlement)

    async with open_house(tmp_path, wrap=altered(settle=slow)) as house:
        await parked(house, 5)

        await house.until(lambda: nothing_left(house), step_s=0.2)
        await house.pass_time(20)

        assert sorted(accepted(house).values()) == [1] * 5


async def test_hold_lifted_while_its_probe_is_under_way_sends_it_once(tmp_path: Path) -> None:
    """The probe was parked, and parked mail is released: but it is leased."""
    answer = asyncio.Event()
    async with open_house(tmp_path) as house:
        await parked(house, 3)
        house.upstream.plans.append(Plan(until=answer))
        await house.until(lambda: not house.upstream.plans, step_s=1)

        await release(house, KEY)
        await house.until(lambda: len(house.upstream.mails) == 2)
        await house.pass_time(5)
        answer.set()
        await house.until(lambda: nothing_left(house) and not house.upstream.snapshot().busy)

        assert sorted(accepted(house).values()) == [1] * 3


async def test_throttled_probe_of_a_parked_sender_stays_parked(tmp_path: Path) -> None:
    """It says nothing, costs nothing, is asked again, and is sent once in the end."""
    async with open_house(tmp_path) as house:
        await parked(house, 2)
        house.upstream.plans.append(Plan(dot=RATE_454))
        await house.until(lambda: len(house.upstream.mails) == 1, step_s=1)
        await house.pass_time(10)
        assert count(house, State.PARKED) == 2
        assert house.holds.held(KEY)

        await house.until(lambda: nothing_left(house), step_s=1)

        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 2
        assert set(accepted(house).values()) == {1}
        assert not house.holds.held(KEY)


async def test_throttled_probe_that_was_released_meanwhile_goes_on(tmp_path: Path) -> None:
    """What is left of it is found where the spool says."""
    answer = asyncio.Event()
    async with open_house(tmp_path) as house:
        await parked(house, 1)
        house.upstream.plans.append(Plan(until=answer, dot=RATE_454))
        await house.until(lambda: not house.upstream.plans, step_s=1)
        await release(house, KEY)
        await house.pass_time(2)

        answer.set()
        await house.until(lambda: nothing_left(house))

        assert await house.statuses() == ["sent"]
        assert set(accepted(house).values()) == {1}


async def test_probe_that_another_hold_stops_stays_where_it_is(tmp_path: Path) -> None:
    """Asked again and again for hours, it does not multiply."""
    async with open_house(tmp_path) as house:
        await parked(house, 1)
        hold(house, campaign_key("a"))
        await house.pass_time(7200)
        assert house.upstream.mails == []

        await release(house, campaign_key("a"))
        await release(house, KEY)
        await house.until(lambda: nothing_left(house))

        assert list(accepted(house).values()) == [1]


async def test_parked_mail_is_lent_once_and_only_while_it_is_held(tmp_path: Path) -> None:
    """Two probes at a time, the account's and the sender's, must not take the same mail."""
    async with open_house(tmp_path) as house:
        await parked(house, 2)
        feed = house.dispatcher._feed

        lent = [await feed.lease_parked([KEY], house.holds.held) for _ in range(3)]

        assert [one and one.id for one in lent] == [house.kept[0].id, house.kept[1].id, None]
        assert lent[0] is not None
        feed.end_lease(lent[0], lent[0].recipients)
        assert await feed.lease_parked([KEY], lambda _: False) is None
        assert await feed.lease_parked(["other", KEY], house.holds.held) == lent[0]


async def test_hold_lifted_while_mail_is_being_parked_leaves_none_behind(tmp_path: Path) -> None:
    """Released before the parking is on disk, it would wait for nobody."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(spool: Spool, settlement: Settlement) -> int | None:
        if settlement.parked is not None:
            begun.set()
            await go_on.wait()
        return await spool.settle(settlement)

    async with open_house(tmp_path, wrap=altered(settle=slow)) as house:
        hold(house, KEY)
        await house.keep(3, campaign="a", sender=SENDER)
        await house.until(begun.is_set)

        await release(house, KEY)
        go_on.set()
        await house.until(lambda: nothing_left(house))

        assert await house.statuses() == ["sent"] * 3


async def test_recipient_refused_as_a_probe_does_not_end_the_probing(tmp_path: Path) -> None:
    """A bad address says little about the campaign: the next is asked in minutes."""
    async with open_house(tmp_path) as house:
        hold(house, campaign_key("a"), Source.BREAKER, house.clock.wall_ms() + 60_000)
        house.upstream.plans.append(Plan(rcpt={0: BAD_RCPT}))
        await house.keep(3, campaign="a")

        took_s = await house.until(lambda: nothing_left(house), step_s=1)

        assert took_s < 300
        assert await house.statuses() == ["sent"] * 3


async def test_wrong_password_is_tried_ever_less_often(tmp_path: Path) -> None:
    """One login an hour in the end, not one a minute: a lock-out helps nobody."""
    async with open_house(tmp_path) as house:
        refused = Refused(said(Stage.AUTH, "535 Authentication Credentials Invalid"))
        house.upstream.failures.extend([refused] * 1000)
        await house.keep(1)
        await house.until(lambda: house.holds.account_held("ses"))
        before = len(house.upstream.failures)

        for _ in range(12):
            await house.pass_time(3600)

        tries = before - len(house.upstream.failures)
        assert 12 <= tries <= 20
        [held] = [one for one in await house.spool.holds() if one.key == account_key("ses")]
        assert held.probes >= 12


async def test_mail_in_doubt_is_no_probe(tmp_path: Path) -> None:
    """The operator wants it never twice, also when the account's probe finds nothing else."""
    settings = config.Upstream(in_doubt="hold")
    async with open_house(tmp_path, upstream=settings) as house:
        house.upstream.plans.append(Plan(lost=Stage.DOT))
        await house.keep(1)
        await house.until(lambda: count(house, State.PARKED) == 1)
        await house.until(lambda: house.holds.held(in_doubt_key("ses")))
        hold(house, account_key("ses"), Source.BREAKER, house.clock.wall_ms() + 1000)

        await house.pass_time(7200)

        assert len(house.upstream.mails) == 1
        assert await house.statuses() == ["parked"]


async def test_parked_mail_frees_an_account_if_nothing_else_waits(tmp_path: Path) -> None:
    """Else a held account whose only mail is a held sender's would be held for ever."""
    async with open_house(tmp_path) as house:
        await parked(house, 1)
        hold(house, account_key("ses"), Source.BREAKER, house.clock.wall_ms() + 1000)

        await house.until(lambda: nothing_left(house), step_s=1)

        assert list(accepted(house).values()) == [1]
        assert not house.holds.account_held("ses")


# -- Windows and reads ---------------------------------------------------------------------


async def test_held_sender_does_not_hide_the_mail_behind_it(tmp_path: Path) -> None:
    """More than a window of it is put away, and the stream goes on with the next."""
    async with open_house(tmp_path, rate=FAST) as house:
        hold(house, account_key("ses"))
        await asyncio.gather(
            *(house.keep(1, campaign="a", sender=SENDER) for _ in range(700)),
        )
        await house.keep(1, campaign="a", sender="other@lists.example.com")
        hold(house, KEY)
        house.holds.lift(account_key("ses"), Source.OPERATOR)
        house.dispatcher.wake()

        await house.until(lambda: not count(house))

        assert count(house, State.PARKED) == 700
        assert len(house.upstream.sent) == 1


async def test_mail_that_arrives_during_a_read_of_its_lane_is_sent(tmp_path: Path) -> None:
    """The read did not see it, and nobody else comes by to wake the lane."""
    armed = False

    async def read(spool: Spool, *words: object, **more: object) -> list[Due]:
        nonlocal armed
        found: list[Due] = await spool.read_due(*words, **more)  # type: ignore[arg-type]
        if armed and not found:
            armed = False
            await house.keep(1)
        return found

    async with open_house(tmp_path, wrap=altered(read_due=read)) as house:
        await house.pass_time(1)
        armed = True
        house.dispatcher._lanes.has_more([StreamKey(PRIORITY, "")])
        house.dispatcher._feed.poke()
        await house.until(lambda: bool(house.kept))

        await house.until(lambda: nothing_left(house), within_s=60)

        assert await house.statuses() == ["sent"]


async def test_spool_that_cannot_be_read_for_a_while_is_read_again(tmp_path: Path) -> None:
    """Every lane that was to be read, not only the one that failed."""
    failures = 2

    async def read(spool: Spool, *words: object, **more: object) -> list[Due]:
        nonlocal failures
        if failures:
            failures -= 1
            raise SpoolBroken("disk I/O error")
        return await spool.read_due(*words, **more)  # type: ignore[arg-type]

    async with open_house(tmp_path) as house:
        hold(house, account_key("ses"))
        await house.keep(2, campaign="a")
        await house.keep(2, campaign="b")
        kept = await house.keep(2)
    async with open_house(tmp_path, wrap=altered(read_due=read)) as house:
        await house.until(lambda: nothing_left(house), within_s=60)

        assert failures == 0
        assert len(house.upstream.sent) == 6
        assert kept[0].recipients[0].address in accepted(house)


async def test_bug_in_reading_a_lane_does_not_end_the_relay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged with its traceback and tried again after a pause; the mail is sent."""
    failures = 2

    async def look(spool: Spool, *words: object) -> int | None:
        nonlocal failures
        if failures:
            failures -= 1
            raise ZeroDivisionError
        return await spool.next_due_at(*words)  # type: ignore[arg-type]

    async with open_house(tmp_path, wrap=altered(next_due_at=look)) as house:
        await house.keep(1)
        await house.until(lambda: not failures and nothing_left(house), within_s=60)

        assert await house.statuses() == ["sent"]
    told = [one for one in caplog.records if one.message == "reading for a lane failed"]
    assert len(told) == 2
    assert all(one.exc_info for one in told)


async def test_bug_in_reading_a_lane_is_counted() -> None:
    """Each time, and the next try waits for the pause."""
    clock, counted, tries = ManualClock(), list[str](), []

    class Broken:
        def depth(self) -> dict[object, int]:
            return {}

        async def next_due_at(self, *_: object) -> None:
            tries.append(clock.monotonic())
            raise ZeroDivisionError

    feed = Feed(
        "ses",
        cast("Spool", Broken()),
        Lanes({}),
        clock,
        lambda: None,
        on_failure=counted.append,
    )
    running = asyncio.ensure_future(feed.run())
    await clock.advance(RETRY_S - 0.5)
    assert len(tries) == 1
    await clock.advance(RETRY_S)
    running.cancel()
    await asyncio.wait([running])

    assert counted == ["dispatcher", "dispatcher"]
    assert tries[1] - tries[0] >= RETRY_S


async def test_deferred_mail_comes_back_behind_a_full_window(tmp_path: Path) -> None:
    """The lane holds more than memory shows, and each is sent once."""
    async with open_house(tmp_path, rate=FAST, latency_s=0) as house:
        house.upstream.plans.append(Plan(dot=LATER))
        await asyncio.gather(*(house.keep(1, campaign="a") for _ in range(900)))

        await house.until(lambda: nothing_left(house), step_s=0.2)

        assert set(accepted(house).values()) == {1}
        assert len(accepted(house)) == 900
        deferred, last = house.upstream.mails[0], house.upstream.mails[-1]
        assert last.recipients == deferred.recipients
        assert last.at - deferred.at >= 59


async def test_spool_is_asked_only_when_there_is_a_reason(tmp_path: Path) -> None:
    """Not for each message what falls due next, and nothing at all while nothing happens."""
    asked: Counter[str] = Counter()

    async def read(spool: Spool, *words: object, **more: object) -> list[Due]:
        asked["due"] += 1
        return await spool.read_due(*words, **more)  # type: ignore[arg-type]

    async def look(spool: Spool, *words: object) -> int | None:
        asked["next"] += 1
        return await spool.next_due_at(*words)  # type: ignore[arg-type]

    whole = altered(read_due=read, next_due_at=look)
    async with open_house(tmp_path, wrap=whole, rate=FAST) as house:
        house.upstream.plans.extend([Plan(dot=LATER)] * 2)
        await house.keep(100, campaign="a")
        await house.until(lambda: count(house) == 2)
        assert asked["next"] <= 5
        await house.until(lambda: nothing_left(house), step_s=1)
        await house.pass_time(10)
        before = asked.total()

        await house.pass_time(3600)

        assert asked.total() == before


async def test_content_that_cannot_be_read_is_tried_again_with_a_pause(tmp_path: Path) -> None:
    """A disk in trouble is not hammered, the mail keeps its attempts, the session comes back."""
    reads = 0

    async def read(spool: Spool, content_id: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads <= 3:
            raise SpoolBroken("disk I/O error")
        return await spool.read_content(content_id)

    async with open_house(tmp_path, wrap=altered(read_content=read)) as house:
        await house.keep(1)

        took_s = await house.until(lambda: nothing_left(house))

        assert took_s >= 3
        [fate] = (await house.fates()).values()
        assert (fate.status, fate.attempts) == ("sent", 1)
        assert house.upstream.snapshot().busy == 0
        assert house.rooms.shaper.snapshot().under_way == 0


async def test_probe_that_cannot_be_read_gives_its_session_back(tmp_path: Path) -> None:
    """A failure between session and envelope leaks neither session nor booking."""
    failures = 5

    async def read(spool: Spool, *words: object, **more: object) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise SpoolBroken("disk I/O error")
        return await spool.read_parked(*words, **more)  # type: ignore[arg-type]

    async with open_house(tmp_path, wrap=altered(read_parked=read)) as house:
        await parked(house, 1)
        await house.until(lambda: not failures, step_s=1)
        await house.pass_time(2)

        assert house.upstream.snapshot().busy == 0
        await house.until(lambda: nothing_left(house), step_s=1)
        assert house.rooms.shaper.snapshot().under_way == 0


# -- Settlements ---------------------------------------------------------------------------


async def test_contradicted_settlement_is_given_up_and_the_mail_not_sent_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Our own mistake: logged, tried a few times, in nobody's way, and no second copy."""
    tries = 0

    async def settle(spool: Spool, settlement: Settlement) -> int | None:
        nonlocal tries
        if settlement.envelope.id == house.kept[0].id:
            tries += 1
            raise SpoolError("recipient 0 cannot be settled: it is unknown")
        return await spool.settle(settlement)

    async with open_house(tmp_path, wrap=altered(settle=settle)) as house:
        hold(house, account_key("ses"))
        await house.keep(3, campaign="a")
        await release(house, account_key("ses"))
        await house.until(lambda: count(house) == 1)
        await house.pass_time(60)
        house.dispatcher.reread()
        await house.pass_time(60)

        assert tries == 3
        assert sorted(accepted(house).values()) == [1, 1, 1]
        assert house.dispatcher.doing == "waiting: all mail is held or not due yet"
    assert "settlement refused" in caplog.messages


async def test_settlement_that_failed_for_anothers_fault_is_written_the_next_time(
    tmp_path: Path,
) -> None:
    """All jobs of a batch fail together when the writer stumbles over one."""
    failures = 1

    async def settle(spool: Spool, settlement: Settlement) -> int | None:
        nonlocal failures
        if failures:
            failures -= 1
            raise SpoolError("the spool's writer stopped")
        return await spool.settle(settlement)

    async with open_house(tmp_path, wrap=altered(settle=settle)) as house:
        await house.keep(1)

        await house.until(lambda: nothing_left(house))

        assert await house.statuses() == ["sent"]
        assert list(accepted(house).values()) == [1]


async def test_lifted_hold_is_written_even_if_the_first_try_fails(tmp_path: Path) -> None:
    """Else the mail parked under it would wait for the next start, held by nobody."""
    failures = 2

    async def drop(spool: Spool, key: str, source: Source) -> bool:
        nonlocal failures
        if failures:
            failures -= 1
            raise SpoolBroken("disk I/O error")
        return await spool.drop_hold(key, source)

    async with open_house(tmp_path, wrap=altered(drop_hold=drop)) as house:
        await parked(house, 3)

        await house.until(lambda: nothing_left(house), step_s=1)

        assert await house.statuses() == ["sent"] * 3
        assert await house.spool.holds() == []


async def test_surprise_in_a_conclusion_is_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows how far it came: tried again later and flagged, and the others go on."""
    judged, failures = Breaker.judged, 1

    def judge(self: Breaker, *words: object, **more: object) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise KeyError("our own mistake")
        return judged(self, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Breaker, "judged", judge)
    async with open_house(tmp_path) as house:
        await house.keep(1, campaign="a")
        await house.until(lambda: not failures)
        await house.keep(1, campaign="b")
        await house.until(lambda: count(house) == 1)
        assert house.rooms.metrics.totals["failures"] == 1

        await house.until(lambda: nothing_left(house), step_s=5)

        fates = list((await house.fates()).values())
        told = [(fate.status, fate.in_doubt) for fate in fates]
        assert told == [("sent", True), ("sent", False)]
    assert "attempt not concluded" in caplog.messages


async def test_surprise_upon_surprise_ends_one_attempt_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What may have been sent stays leased until the next start; the relay goes on."""

    async def settle(spool: Spool, settlement: Settlement) -> int | None:
        if settlement.envelope.campaign == "a":
            raise KeyError("our own mistake")
        return await spool.settle(settlement)

    async with open_house(tmp_path, wrap=altered(settle=settle)) as house:
        await house.keep(1, campaign="a")
        await house.until(lambda: "attempt lost, leased until the next start" in caplog.messages)
        await house.keep(2, campaign="b")
        await house.until(lambda: count(house) == 1)
        house.dispatcher.reread()
        await house.pass_time(5)

        assert sorted(accepted(house).values()) == [1, 1, 1]


# -- Upstreams -----------------------------------------------------------------------------


async def test_each_upstream_sends_its_own_mail(tmp_path: Path) -> None:
    """Two dispatchers over one spool and one set of holds; one unreachable, the other sends."""
    async with open_house(tmp_path) as house:
        settings = config.Upstream(name="other")
        outside = FakeUpstream(house.clock, latency_s=0.1)
        rooms = replace(
            house.rooms,
            upstream=outside,
            shaper=Shaper(settings.rate),
            quota=Quota(settings.quota),
            breaker=Breaker(settings.breaker, "other", house.holds),
        )
        whole = config.Config()
        other = Dispatcher(settings, whole.retry, whole.lanes, rooms)
        running = asyncio.ensure_future(other.run())
        hold(house, account_key("ses"))
        await house.keep(3, campaign="a", upstream="ses")
        await house.keep(3, campaign="a", upstream="other")
        other.reread()

        await house.until(lambda: len(outside.sent) == 3)
        assert house.upstream.sent == []
        house.holds.lift_all(account_key("ses"))
        house.dispatcher.reread()
        await house.until(lambda: nothing_left(house))

        assert len(house.upstream.sent) == len(outside.sent) == 3
        assert await house.statuses() == ["sent"] * 6
        other.drain()
        await house.until(running.done)
        await running


async def test_time_in_which_the_upstream_is_unreachable_does_not_age_mail(tmp_path: Path) -> None:
    """A reset is a day too old, and yet nobody could have sent it."""
    async with open_house(tmp_path) as house:
        house.upstream.failures.extend([Unreachable("no route to host")] * 100_000)
        await house.keep(1)
        await house.until(lambda: house.dispatcher.doing.startswith("unreachable"))
        house.clock.step_wall(25 * 3_600_000)
        await house.pass_time(1)

        house.upstream.failures.clear()
        await house.until(lambda: nothing_left(house))

        assert await house.statuses() == ["sent"]
        reachable_at = house.clock.wall_ms()
        day_later = reachable_at + 25 * 3_600_000
        assert house.rooms.ageing.expired(reachable_at, 24, ["unreachable:ses"], day_later)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(mail=said(Stage.MAIL, "421 Too many concurrent SMTP connections")),
        Plan(dot=said(Stage.DOT, "421 Maximum message count per session reached")),
    ],
)
async def test_cap_of_the_upstream_costs_no_attempt_and_no_rate(tmp_path: Path, plan: Plan) -> None:
    """421 is about sessions: the same mail goes on another."""
    rate = config.Rate(start_per_s=5, ceiling_per_s=5)
    async with open_house(tmp_path, rate=rate) as house:
        house.upstream.plans.extend([plan] * 3)
        await house.keep(3, campaign="a")

        await house.until(lambda: nothing_left(house))

        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 3
        assert house.rooms.shaper.snapshot().rate_per_s == 5


async def test_connection_cap_at_the_greeting_holds_nothing(tmp_path: Path) -> None:
    """The pool lowers its ceiling; mail waits for a session."""
    async with open_house(tmp_path) as house:
        cap = Refused(said(Stage.CONNECT, "421 Too many concurrent SMTP connections"))
        house.upstream.failures.extend([cap] * 5)
        await house.keep(3, campaign="a")

        await house.until(lambda: nothing_left(house))

        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 3
        assert house.holds.all() == []


# -- The end -------------------------------------------------------------------------------


async def test_drain_does_not_wait_for_a_session(tmp_path: Path) -> None:
    """The upstream may be down for days."""
    async with open_house(tmp_path, sessions_max=0) as house:
        await house.keep(1)
        await house.until(lambda: bool(house.upstream._waiters))

        house.dispatcher.drain()
        drained_at = house.clock.monotonic()

    assert house.clock.monotonic() - drained_at < 1
    assert house.upstream.mails == []
    assert count(house) == 1


async def test_drain_does_not_wait_for_a_moment(tmp_path: Path) -> None:
    """At one message in a hundred seconds: the booking is given back, and the session, too."""
    slow = config.Rate(start_per_s=0.01, floor_per_s=0.01, ceiling_per_s=0.01)
    async with open_house(tmp_path, rate=slow) as house:
        await house.keep(2, campaign="a")
        await house.until(lambda: len(house.upstream.sent) == 1)
        await house.until(lambda: house.upstream.snapshot().busy == 1)

        house.dispatcher.drain()
        drained_at = house.clock.monotonic()

    assert house.clock.monotonic() - drained_at < 1
    assert len(house.upstream.mails) == 1
    assert house.upstream.snapshot().busy == 0
    assert house.rooms.shaper.snapshot().under_way == 0

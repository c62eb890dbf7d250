"""What a wrong login costs, over however many connections, and what it leaves in the log."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from typing import TYPE_CHECKING

import pytest

from relay import guesses
from relay.listener import Users, auth, logins, users
from relay.listener.client import WRONG_LOGINS_MAX
from relay.service.logs import LogfmtFormatter
from tests.fakes.clock import ManualClock
from tests.fakes.dialogue import MESSAGE, PATIENCE_S, House, Talk, listening
from tests.fakes.passwords import cheap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

FAR_AWAY = ("192.0.2.0/24",)
"""Not loopback: our clients are strangers."""

FAIL2BAN = re.compile(r'msg="wrong login" peer=(?P<host>\S+) user=')
"""As a ``failregex`` would have it, with <HOST> for the group."""

SECRET = "tanstaaftanstaaf"


def given(name: str, password: str) -> str:
    return f"AUTH PLAIN {base64.b64encode(f'{chr(0)}{name}{chr(0)}{password}'.encode()).decode()}"


WRONG, RIGHT = given("listmonk", "canary-guess"), given("listmonk", "secret one")


@pytest.fixture(autouse=True)
def cheap_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_NOBODY", cheap(""))


@pytest.fixture
def known(tmp_path: Path) -> Users:
    path = tmp_path / "users"
    users.put(path, "listmonk", cheap("secret one"))
    users.put(path, "cram", users.Plain(SECRET))
    return Users.load(path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each user whose password was really looked at, in order."""
    seen: list[str] = []
    look = auth.Passwords.is_right

    async def is_right(self: auth.Passwords, name: str, password: str) -> bool:
        seen.append(name)
        return await look(self, name, password)

    monkeypatch.setattr(auth.Passwords, "is_right", is_right)
    return seen


async def until_somebody_sleeps(clock: ManualClock) -> None:
    """Return once a login waits for the clock; hashing wakes the loop from a thread."""
    async with asyncio.timeout(PATIENCE_S):
        while not clock._waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def cost_s(talk: Talk, clock: ManualClock, guess: str = WRONG) -> tuple[float, str]:
    """How long, on the listener's clock, the answer to a guess takes; and the answer."""
    await talk.say(f"C: {guess}")
    answer = asyncio.create_task(talk.hear())
    begun = clock.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while not answer.done():
            await asyncio.sleep(0.005)
            if clock._waiting and not answer.done():
                await clock.advance(1)
    return clock.monotonic() - begun, await answer


async def test_wrong_login_costs_a_stranger_more_each_time_and_then_the_connection(
    known: Users,
) -> None:
    """2, 4, 8, 16 seconds and 535; the fifth on one connection ends it with 421."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, allow_networks=FAR_AWAY) as house:
        talk = await house.connect()
        costs = [await cost_s(talk, clock) for _ in range(WRONG_LOGINS_MAX)]
        await talk.say("S: <closed>")

    assert [round(seconds) for seconds, _ in costs] == [2, 4, 8, 16, 30]
    assert [text[:9] for _, text in costs] == ["535 5.7.8"] * 4 + ["421 4.7.0"]


async def test_guess_from_a_network_of_ours_costs_two_seconds_and_never_more(
    known: Users,
) -> None:
    """None ends the connection, and the right password is taken at once."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, auth="required") as house:
        talk = await house.connect()
        costs = [
            await cost_s(talk, clock, given("listmonk", f"guess {n}"))
            for n in range(WRONG_LOGINS_MAX + 2)
        ]
        await talk.say(f"C: {RIGHT}\nS: 235 *\n{MESSAGE}")

    assert [round(seconds) for seconds, _ in costs] == [2] * len(costs)


async def test_listmonk_with_a_wrong_password_is_not_in_its_own_way(known: Users) -> None:
    """It brings the same pair over all its connections: after the first, each is told at once.

    So the right password, once it is set, waits behind nobody. A stranger's repetition costs him
    as much as any other guess.
    """
    clock = ManualClock()
    async with listening(users=known, clock=clock, auth="required") as house:
        first, _ = await cost_s(await house.connect(), clock)
        for answer in await guessing(house, WRONG, 20):
            assert (await answer).startswith("535 ")
        await house.say(f"C: {RIGHT}\nS: 235 *\n{MESSAGE}")
    async with listening(users=known, clock=clock, allow_networks=FAR_AWAY) as house:
        talk = await house.connect()
        costs = [(await cost_s(talk, clock))[0] for _ in range(3)]

    assert round(first) == 2
    assert [round(seconds) for seconds in costs] == [2, 4, 8]


async def test_mistake_is_no_mistake_any_more_once_the_user_is_changed(
    known: Users, tmp_path: Path
) -> None:
    """The pair is remembered with the entry that it was found wrong against."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, auth="required") as house:
        talk = await house.connect()
        await cost_s(talk, clock)
        users.put(tmp_path / "users", "listmonk", cheap("canary-guess"))

        await talk.say(f"C: {WRONG}\nS: 235 *")


async def test_mistakes_remembered_are_bounded(
    known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten, and costs again."""
    monkeypatch.setattr(auth, "REMEMBERED_MAX", 2)
    passwords = auth.Passwords(known)

    for guess in ("one", "two", "three"):
        assert not await passwords.is_right("listmonk", guess)

    assert len(passwords._wrong) == 2
    assert not passwords.is_old_mistake("listmonk", "one")
    assert passwords.is_old_mistake("listmonk", "three")


async def test_who_may_send_anyway_is_told_at_once(known: Users) -> None:
    """Without ``auth = "required"`` a guess from our own networks gains nothing."""
    async with listening(users=known, clock=ManualClock()) as house:
        await house.say(f"C: {WRONG}\nS: 535 *\n" * (WRONG_LOGINS_MAX + 2))


async def guessing(house: House, guess: str, connections: int) -> list[asyncio.Task[str]]:
    talks = [await house.connect() for _ in range(connections)]
    for talk in talks:
        await talk.say(f"C: {guess}")
    return [asyncio.create_task(talk.hear()) for talk in talks]


async def test_many_connections_guess_no_faster_than_one(known: Users, looks: list[str]) -> None:
    """Of twenty guesses that come at once one is looked at, the next after the wait."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, allow_networks=FAR_AWAY) as house:
        answers = await guessing(house, WRONG, 20)
        for looked_at, wait_s in enumerate((2, 4, 8, 16, 30, 30), 1):
            await until_somebody_sleeps(clock)
            assert len(looks) == looked_at
            await clock.advance(wait_s - 0.01)
            assert len(looks) == looked_at
            await clock.advance(0.01)
        for answer in answers:
            answer.cancel()


async def test_crowd_of_origins_guesses_no_faster_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too many to be told apart, they stand in one queue."""
    monkeypatch.setattr(guesses, "ORIGINS_MAX", 0)
    clock, queue, looks = ManualClock(), logins.Queue(logins.STRANGERS), list[str]()

    async def wait(patiently: Callable[[], Awaitable[object]]) -> object:
        return await patiently()

    async def guess(origin: str) -> bool:
        async def check() -> bool:
            looks.append(origin)
            return False

        return await queue.look(origin, clock, wait, check)

    crowd = [asyncio.create_task(guess(f"192.0.2.{n}")) for n in range(9)]
    for looked_at, wait_s in enumerate((2, 4, 8, 16, 30, 30), 1):
        await clock.advance(wait_s - 0.01)
        assert len(looks) == looked_at
        await clock.advance(0.01)
    for one in crowd:
        one.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


async def test_turns_are_forgotten_with_the_last_who_waits() -> None:
    """A thousand addresses that came once leave nothing behind but their accounts."""
    queue, clock = logins.Queue(logins.FRIENDS), ManualClock()

    async def wait(_: Callable[[], Awaitable[object]]) -> object:
        return None

    async def check() -> bool:
        return False

    for n in range(1000):
        await queue.look(f"192.0.2.{n}", clock, wait, check)

    assert len(queue._turns) == 0
    assert len(queue._guesses._accounts) <= guesses.ORIGINS_MAX


async def test_hanging_up_does_not_shorten_the_wait(known: Users, looks: list[str]) -> None:
    """A guesser that takes no answer for a wrong one gains no time by it."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, allow_networks=FAR_AWAY) as house:
        first = await house.connect()
        await first.say(f"C: {WRONG}")
        await until_somebody_sleeps(clock)
        await first.close()
        async with asyncio.timeout(PATIENCE_S):
            await house.listener._all_gone.wait()

        second, cost = await house.connect(), 0.0
        await second.say(f"C: {RIGHT}")
        answer = asyncio.create_task(second.hear())
        while len(looks) < 2:
            await asyncio.sleep(0.001)
            await clock.advance(0.1)
            cost += 0.1
        assert (await answer).startswith("235 ")

    assert cost >= 1.9


async def test_client_that_leaves_the_queue_is_forgotten(known: Users, looks: list[str]) -> None:
    """Its guess is never looked at, its place is free; the clock need not move for that."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, auth="required") as house:
        answers = await guessing(house, WRONG, 5)
        await until_somebody_sleeps(clock)
        for answer in answers:
            answer.cancel()
        for talk in house.talks:
            await talk.close()

        async with asyncio.timeout(PATIENCE_S):
            await house.listener._all_gone.wait()

    assert looks == ["listmonk"]


async def test_drain_does_not_wait_for_guessers(known: Users) -> None:
    """A restart in the middle of an attack is as quick as any."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, allow_networks=FAR_AWAY) as house:
        answers = await guessing(house, WRONG, 5)
        await until_somebody_sleeps(clock)

        async with asyncio.timeout(PATIENCE_S):
            await house.listener.drain(grace_s=2 * PATIENCE_S)

        assert [await answer for answer in answers] == ["<closed>"] * 5


async def test_right_login_behind_wrong_ones_comes_to_its_turn(known: Users) -> None:
    """And whoever is behind it waits for nothing any more: the origin is cleared."""
    clock = ManualClock()
    async with listening(users=known, clock=clock, auth="required") as house:
        [wrong] = await guessing(house, WRONG, 1)
        await until_somebody_sleeps(clock)
        right = await guessing(house, RIGHT, 10)

        await clock.advance(2)

        assert (await wrong).startswith("535 ")
        assert {(await one)[:4] for one in right} == {"235 "}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("listmonk", "listmonk"),
        ("canary-typed-in-the-wrong-field", "***"),
        ("alice@example.com", "a***@example.com"),
        ('x" peer=192.0.2.99 y', "***"),
        ("x@y\r\nmsg=z", r'"x***@y\r\nmsg=z"'),
    ],
)
async def test_wrong_login_is_logged_for_fail2ban(
    known: Users, caplog: pytest.LogCaptureFixture, name: str, shown: str
) -> None:
    """One line, with the peer before anything that the peer can choose.

    Never what was guessed, nor a name that is no user's: people type passwords there.
    """
    async with listening(users=known) as house:
        with caplog.at_level(logging.WARNING, "relay"):
            await house.say(f"C: {given(name, 'canary-guess')}\nS: 535 *")

    [record] = [one for one in caplog.records if one.message == "wrong login"]
    line = LogfmtFormatter().format(record)
    matched = FAIL2BAN.search(line)
    assert matched is not None
    assert matched["host"] == "127.0.0.1"
    assert f"user={shown} mechanism=PLAIN" in line
    assert "canary" not in line
    assert "\n" not in line


async def test_each_wrong_login_is_counted(known: Users) -> None:
    """``relay_listener_refusals_total{code="535"}`` is the metric for it."""
    async with listening(users=known) as house:
        await house.say(f"C: {WRONG}\nS: 535 *\nC: {WRONG}\nS: 535 *")

    assert house.counts.refusals == [535, 535]

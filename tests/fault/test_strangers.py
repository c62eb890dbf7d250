"""Strangers who hold connections, and Listmonk beside them.

``127.0.0.1`` is the friend here; strangers come from other addresses of the loopback network.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from relay.listener import Users, users
from tests.fakes.clock import ManualClock
from tests.fakes.dialogue import MESSAGE, PATIENCE_S, House, Talk, listening
from tests.fakes.passwords import cheap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FRIENDS = ("127.0.0.1/32",)
LOGIN = f"""
    C: AUTH PLAIN {base64.b64encode(bytes((0,)) + b"listmonk" + bytes((0,)) + b"secret").decode()}
    S: 235 *
"""
WRONG = (
    f"C: AUTH PLAIN {base64.b64encode(bytes((0,)) + b'listmonk' + bytes((0,)) + b'no').decode()}"
)


@pytest.fixture
def known(tmp_path: Path) -> Users:
    users.put(tmp_path / "users", "listmonk", cheap("secret"))
    return Users.load(tmp_path / "users")


@pytest.fixture(autouse=True)
def few_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.listener.slots.STRANGERS_MIN", 2)


@asynccontextmanager
async def guarded(**listen: Any) -> AsyncIterator[House]:  # noqa: ANN401  # any key of [listen]
    async with listening(**{"allow_networks": FRIENDS, **listen}) as house:
        yield house


async def call(house: House, host: str, *, greeted: bool = True) -> Talk:
    """A connection from that address."""
    talk = Talk(
        *await asyncio.open_connection("127.0.0.1", house.port, local_addr=(host, 0), limit=4096)
    )
    house.talks.append(talk)
    if greeted:
        await talk.say("S: 220 relay.test *")
    return talk


async def is_closed(talk: Talk) -> None:
    """Return once the server has gone, with FIN or RST."""
    with suppress(ConnectionResetError):
        assert await talk.hear() == "<closed>"


async def test_strangers_have_a_share_and_friends_find_the_rest() -> None:
    """Of eight places two are for strangers, however many come; six friends are served."""
    async with guarded(connections_max=8) as house:
        strangers = [await call(house, "127.0.0.2") for _ in range(10)]
        for talk in strangers[:8]:
            await is_closed(talk)
        friends = [await house.connect() for _ in range(6)]
        for talk in (*friends, *strangers[8:]):
            await talk.in_sync()

        assert house.listener.connections == 8


async def test_friend_pushes_a_stranger_out_when_all_is_taken() -> None:
    """The seventh friend need not wait, nor the eighth; the ninth waits for a friend to go."""
    async with guarded(connections_max=8) as house:
        strangers = [await call(house, "127.0.0.2") for _ in range(2)]
        friends = [await house.connect() for _ in range(8)]
        for talk in strangers:
            await is_closed(talk)
        ninth = await house.connect(greeted=False)
        greeting = asyncio.create_task(ninth.hear())
        for talk in friends:
            await talk.in_sync()
        assert not greeting.done()

        await friends[0].close()
        assert (await greeting).startswith("220 ")


async def test_who_has_logged_in_is_a_stranger_no_longer(known: Users) -> None:
    """Its place is not in the strangers' share, and no stranger can push it out."""
    async with guarded(users=known, auth="required", connections_max=8) as house:
        listmonk = [await call(house, "127.0.0.9") for _ in range(2)]
        for talk in listmonk:
            await talk.say(LOGIN)
        crowd = [await call(house, f"127.0.0.{n}") for n in range(10, 30)]
        for talk in crowd[:-2]:
            await is_closed(talk)
        for talk in listmonk:
            await talk.say(MESSAGE)

    assert len(house.spool.kept) == 2


async def test_crowd_from_one_address_pushes_out_nobody_but_itself(known: Users) -> None:
    """However fast it comes: a client that is slow with its login is there to the end of it."""
    async with guarded(users=known, auth="required", connections_max=16) as house:
        listmonk = await call(house, "127.0.0.9")
        for _ in range(30):
            await call(house, "127.0.0.2")
        await listmonk.say(LOGIN + MESSAGE)

    assert len(house.spool.kept) == 1


async def test_trickle_of_bytes_does_not_keep_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute from the connection, not from the last byte; whole commands count as little."""
    monkeypatch.setattr("relay.listener.connection.STRANGER_MAX_S", 0.3)
    async with guarded() as house:
        slow, busy = await call(house, "127.0.0.2"), await call(house, "127.0.0.2")
        friend = await house.connect()
        until = asyncio.get_running_loop().time() + PATIENCE_S

        async def drip(talk: Talk, data: bytes) -> None:
            with suppress(ConnectionError):
                while asyncio.get_running_loop().time() < until:
                    await talk.send(data)
                    await asyncio.sleep(0.01)

        drips = [asyncio.create_task(drip(slow, b"N")), asyncio.create_task(drip(busy, b"\r\n"))]
        await is_closed(slow)
        with suppress(ConnectionResetError):
            while await busy.hear() != "<closed>":
                pass
        for one in drips:
            one.cancel()
        await friend.say(MESSAGE)
        assert house.listener.connections == 1


async def test_stranger_has_a_hundred_commands_and_a_friend_as_many_as_he_likes(
    known: Users,
) -> None:
    """Whoever has logged in is a friend in this, too."""
    noops = "C: NOOP\nS: 250 *\n"
    async with guarded(users=known) as house:
        friend = await house.connect()
        await friend.say(noops * 120)
        listmonk = await call(house, "127.0.0.9")
        await listmonk.say(noops * 50 + LOGIN + noops * 100)
        stranger = await call(house, "127.0.0.2")
        await stranger.say(noops * 100 + "C: NOOP\nS: 421 4.7.0 Too many commands *\nS: <closed>")
        await friend.in_sync()
        await listmonk.in_sync()


async def test_stranger_in_the_wait_for_a_wrong_login_gives_its_place_at_once(
    known: Users,
) -> None:
    """The clock stands still: the wait would never end by itself."""
    clock = ManualClock()
    async with guarded(users=known, auth="required", connections_max=2, clock=clock) as house:
        guessers = [await call(house, f"127.0.0.{n}") for n in (2, 3)]
        for talk in guessers:
            await talk.say(WRONG)
        friend = await house.connect()
        for _ in range(20):
            await friend.in_sync()
        await call(house, "127.0.0.4")
        await friend.in_sync()

        assert house.listener.connections == 2


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, Any]:
    """The keys of ``[listen]`` that switch STARTTLS on."""
    certificate = trustme.CA().issue_cert("relay.test")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    return {"tls_cert_file": str(tmp_path / "both.pem")}


async def test_stranger_in_the_handshake_gives_its_place_at_once(
    tls: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The transport is between two worlds then; nothing is logged as a failure."""
    async with guarded(connections_max=2, **tls) as house:
        shaking = [await call(house, "127.0.0.2") for _ in range(2)]
        for talk in shaking:
            await talk.say("C: STARTTLS\nS: 220 *")
            await talk.send(b"\x16\x03\x01")
        friends = [await house.connect() for _ in range(2)]
        for talk in friends:
            await talk.in_sync()
        for talk in shaking:
            await is_closed(talk)

    assert not house.counts.failures
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_link_that_dies_in_the_handshake_leaves_no_place_taken(
    loop: str, tls: dict[str, Any]
) -> None:
    """RST, FIN and junk. Neither loop tells its protocol of a RST there: every place was lost."""

    async def play() -> None:
        async with guarded(connections_max=2, **tls) as house:
            for data, linger in ((b"\x16\x03", True), (b"\x16\x03", False), (b"x" * 99, False)) * 3:
                talk = await call(house, "127.0.0.2")
                await talk.say("C: STARTTLS\nS: 220 *")
                await talk.send(data)
                if linger:
                    door = talk.writer.get_extra_info("socket")
                    door.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await talk.close()
            async with asyncio.timeout(PATIENCE_S):
                await house.listener._all_gone.wait()

    if loop == "uvloop":
        pytest.importorskip("uvloop").run(play())
    else:
        asyncio.run(play())


REST_S = 0.5


@dataclass
class Crowd:
    """Strangers who come again and again, each in a manner of its own."""

    house: House
    is_over: bool = False
    came: int = 0

    async def member(self, n: int) -> None:
        host, chance = f"127.0.0.{100 + n % 100}", Random(n)
        while not self.is_over:
            talk = await call(self.house, host, greeted=False)
            self.house.talks.pop()
            self.came += 1
            with suppress(OSError, AssertionError, TimeoutError):
                async with asyncio.timeout(chance.random()):
                    await self._bother(talk, chance)
            talk.writer.transport.abort()
            await talk.close()
            # All of them share one core with the relay; it is the places that are tried here.
            await asyncio.sleep(chance.random() * REST_S)

    async def _bother(self, talk: Talk, chance: Random) -> None:
        await talk.hear()
        manner = chance.randrange(5)
        if manner == 0:
            await talk.hear()
        elif manner == 1:
            await talk.say("C: EHLO x\n" + WRONG)
            await talk.hear()
        elif manner == 2:
            while True:
                await talk.send(b"N")
                await asyncio.sleep(0.01)
        elif manner == 3:
            await talk.send(b"AUTH LOGIN\r\n" + b"x" * 20_000)
            await talk.hear()
        else:
            await talk.send(b"NOOP\r\n" * 50)
            await talk.hear()


async def pool(house: House, host: str, rounds: int, messages: int) -> int:
    """One connection of a Listmonk's, opened anew each round; the messages it was told 250 for."""
    sent = 0
    for _ in range(rounds):
        talk = await call(house, host)
        await talk.say(LOGIN)
        for _ in range(messages):
            await talk.say(MESSAGE)
            sent += 1
        house.talks.remove(talk)
        await talk.close()
    return sent


async def all_places_are_free(house: House, connections_max: int) -> None:
    """None was lost on the way, or given back twice."""
    async with asyncio.timeout(PATIENCE_S):
        await house.listener._all_gone.wait()
    talk = await house.connect()
    (client,) = house.listener._connections
    slots = client._house.slots
    assert (slots._free._value, slots.strangers) == (connections_max - 1, 0)
    await talk.close()


@pytest.mark.parametrize(
    ("strangers", "connections_max", "rounds"),
    [(40, 60, 12), pytest.param(300, 500, 40, marks=pytest.mark.slow)],
)
async def test_listmonk_gets_its_mail_through_a_crowd(
    strangers: int, connections_max: int, rounds: int, known: Users
) -> None:
    """From the relay's own machine, and from another, where it begins as one of the strangers."""
    async with guarded(users=known, auth="required", connections_max=connections_max) as house:
        crowd = Crowd(house)
        members = [asyncio.create_task(crowd.member(n)) for n in range(strangers)]
        begun = asyncio.get_running_loop().time()
        sent = await asyncio.gather(
            *(pool(house, host, rounds, 5) for host in ("127.0.0.1", "127.0.0.9") for _ in range(5))
        )
        took_s = asyncio.get_running_loop().time() - begun
        crowd.is_over = True
        await asyncio.gather(*members)
        await all_places_are_free(house, connections_max)

    print(f"strangers: {crowd.came} came in {took_s:.1f} s; sent {sum(sent)}, kept all")
    assert sent == [5 * rounds] * 10
    assert len(house.spool.kept) == sum(sent)
    assert not house.counts.failures

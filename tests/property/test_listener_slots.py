"""Places for friends and strangers, whoever comes and goes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.listener import slots
from relay.listener.slots import Slots

if TYPE_CHECKING:
    from relay.listener.connection import Connection


def still() -> float:
    """A clock for which everybody has only just come."""
    return 0.0


@dataclass(eq=False)
class Guest:
    """What a connection is to the slots; its place comes free when it is told to go."""

    origin: str
    room: Room
    is_out: bool = False
    is_friend: bool = False

    def push_out(self) -> None:
        assert not self.is_friend, "a friend was pushed out"
        assert not self.is_out
        if self.room.is_by_count:
            here = Counter(one.origin for one in self.room.strangers)
            assert here[self.origin] == max(here.values()), "another origin has more"
        self.is_out = True
        self.room.slots.leave(cast("Connection", self))


@dataclass
class Room:
    slots: Slots
    is_by_count: bool = True
    """All strangers are young and unknown, so that only their number tells their origins apart."""
    guests: list[Guest] = field(default_factory=list)

    @property
    def inside(self) -> list[Guest]:
        return [one for one in self.guests if not one.is_out]

    @property
    def strangers(self) -> list[Guest]:
        return [one for one in self.inside if not one.is_friend]

    async def come(self, origin: str) -> Guest:
        guest = Guest(origin, self, is_friend=not origin)
        async with asyncio.timeout(2):
            await self.slots.take()
        self.guests.append(guest)
        self.slots.seat(cast("Connection", guest), origin)
        return guest

    def log_in(self, guest: Guest) -> None:
        guest.is_friend = True
        self.slots.befriend(cast("Connection", guest))

    def go(self, guest: Guest) -> None:
        guest.is_out = True
        self.slots.leave(cast("Connection", guest))


@settings(deadline=None)  # the machine may be busy
@example(4, [("come", 1), ("come", 1), ("log in", 0), ("come", 1), ("come", 2)])
@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from(["come", "log in", "go"]), st.integers(0, 8)), max_size=60),
)
def test_strangers_keep_to_their_share_and_friends_to_their_places(
    connections_max: int, steps: list[tuple[str, int]]
) -> None:
    """Never more strangers than their share; only they are pushed out; who comes gets in.

    Whoever is pushed out is of an origin than which none has more.
    """

    async def play() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slots, "STRANGERS_MIN", 2)
            room = Room(Slots(connections_max, still))
        for step, n in steps:
            inside = room.inside
            has_place = len(inside) < connections_max or any(not one.is_friend for one in inside)
            if step == "come" and has_place:
                newcomer = await room.come(("", "a", "b", "c")[n % 4])
                assert not newcomer.is_out
            elif inside and step == "log in":
                room.is_by_count = False
                room.log_in(inside[n % len(inside)])
            elif inside and step == "go":
                room.go(inside[n % len(inside)])
            assert len(room.inside) <= connections_max
            assert room.slots.strangers == len(room.strangers) <= room.slots.strangers_max
            assert room.slots.are_taken == (len(room.inside) == connections_max)

    asyncio.run(play())


async def test_longest_here_goes_first_where_all_have_the_same() -> None:
    """Also when the longest here is of an origin whose first has left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "STRANGERS_MIN", 3)
        room = Room(Slots(3, still))
    first, second, third = [await room.come(origin) for origin in "aba"]
    room.go(first)
    fourth = await room.come("c")
    await room.come("d")

    assert second.is_out
    assert not third.is_out
    assert not fourth.is_out


async def test_pool_that_comes_at_once_outlasts_those_who_sit() -> None:
    """Strangers of as many addresses as there are places, and then ten connections of one."""
    room = Room(Slots(50, lambda: now), is_by_count=False)
    now = 0.0
    sitters = [await room.come(f"sitter {n}") for n in range(50)]
    now = 60.0

    pool = [await room.come("listmonk") for _ in range(10)]

    assert not any(one.is_out for one in pool)
    assert [one.is_out for one in sitters] == [True] * 10 + [False] * 40


async def test_known_address_goes_last() -> None:
    """Somebody has logged in from there before: the next that come from there are kept."""
    room = Room(Slots(50, still), is_by_count=False)
    room.log_in(await room.come("listmonk"))
    pool = [await room.come("listmonk") for _ in range(10)]
    for n in range(60):
        await room.come(f"other {n}")

    assert not any(one.is_out for one in pool)


async def test_newcomer_is_kept_also_where_all_others_are_known() -> None:
    """It may be Listmonk's first connection from there; then it is the first to go itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "STRANGERS_MIN", 3)
        room = Room(Slots(9, still), is_by_count=False)
    room.log_in(await room.come("known"))
    known = [await room.come("known") for _ in range(3)]

    newcomer = await room.come("new")
    assert not newcomer.is_out
    assert [one.is_out for one in known] == [True, False, False]

    await room.come("newer")
    assert newcomer.is_out
    assert [one.is_out for one in known] == [True, False, False]


@pytest.mark.parametrize(
    ("connections_max", "strangers_max"), [(1, 1), (20, 20), (60, 50), (500, 125), (4000, 1000)]
)
def test_share_is_a_quarter_but_enough_for_one_pool(
    connections_max: int, strangers_max: int
) -> None:
    """A Listmonk on another machine opens all its connections at once, and each is a stranger."""
    assert Slots(connections_max, still).strangers_max == strangers_max

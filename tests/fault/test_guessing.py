"""Guessing a password in real time: how many are looked at, and what the time tells."""

from __future__ import annotations

import asyncio
import base64
import random
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from relay.guesses import Patience
from relay.listener import Users, auth, users
from tests.fakes.dialogue import Talk, listening

if TYPE_CHECKING:
    from pathlib import Path

FAR_AWAY = ("192.0.2.0/24",)
"""Not loopback: our clients are strangers."""

GUESSERS, ATTACK_S = 50, 40.0
LOOKS_MAX = 5
"""At 0, 2, 6, 14 and 30 s: the waits are 2, 4, 8, 16 and 30 s."""

ROUNDS = 60
RATIO_MAX = 1.5
"""Between the quickest fifths of the three kinds of name (the rest waits for other programs); a
check without its hash takes a hundredth."""


def guess(name: str, password: str) -> str:
    return f"AUTH PLAIN {base64.b64encode(f'{chr(0)}{name}{chr(0)}{password}'.encode()).decode()}"


@pytest.fixture
def known(tmp_path: Path) -> Users:
    path = tmp_path / "users"
    users.put(path, "listmonk", users.scrypt("secret one"))
    users.put(path, "cram", users.Plain("tanstaaftanstaaf"))
    return Users.load(path)


@pytest.mark.slow
async def test_fifty_connections_guess_no_faster_than_one(
    known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hangs up after a second without an answer and comes again with the next guess."""
    looks: list[float] = []
    look = auth.Passwords.is_right

    async def is_right(self: auth.Passwords, name: str, password: str) -> bool:
        looks.append(time.monotonic())
        return await look(self, name, password)

    monkeypatch.setattr(auth.Passwords, "is_right", is_right)
    tries = 0
    async with listening(users=known, allow_networks=FAR_AWAY) as house:

        async def guesser(number: int) -> None:
            nonlocal tries
            while True:
                talk = await Talk.to(house.port)
                tries += 1
                try:
                    async with asyncio.timeout(1):
                        await talk.hear()
                        await talk.say(f"C: {guess('listmonk', f'{number} {tries}')}")
                        await talk.hear()
                except TimeoutError:
                    pass
                finally:
                    await talk.close()

        guessers = [asyncio.create_task(guesser(n)) for n in range(GUESSERS)]
        await asyncio.wait(guessers, timeout=ATTACK_S)
        for one in guessers:
            one.cancel()
        await asyncio.gather(*guessers, return_exceptions=True)

    print(f"\n{GUESSERS} guessers, {ATTACK_S:.0f} s: {tries} tries, {len(looks)} looked at")
    assert tries > 10 * LOOKS_MAX
    assert len(looks) <= LOOKS_MAX


@pytest.mark.slow
async def test_time_does_not_tell_who_is_a_user(
    known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hashed user, a plain one and nobody: 535 after the same time, each in random order."""
    monkeypatch.setattr(auth, "STRANGERS", Patience(first_s=0, longest_s=0))
    took: dict[str, list[float]] = {"listmonk": [], "cram": [], "nobody": []}
    async with listening(users=known, allow_networks=FAR_AWAY) as house:
        for name in random.sample(list(took) * ROUNDS, 3 * ROUNDS):
            talk = await house.connect()
            begun = time.perf_counter()
            await talk.say(f"C: {guess(name, 'wrong')}\nS: 535 *")
            took[name].append(time.perf_counter() - begun)
            await talk.close()
            house.talks.clear()

    quick = {name: statistics.quantiles(times, n=5)[0] for name, times in took.items()}
    shown = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in quick.items())
    print(f"\ntime to 535: {shown}")
    assert max(quick.values()) / min(quick.values()) <= RATIO_MAX

"""Everything that goes wrong around a relay in an ordinary year, one function each.

``FAULTS`` is the table: each lasts a few seconds at most, and leaves the surroundings as
good as they were. What it may cost in doubled mail it writes into ``Scene.twice_max``.
"""

from __future__ import annotations

import asyncio
import base64
import faulthandler
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from relay import control
from relay.dispatcher.books import UNSETTLED_MAX
from relay.twin import Cut, Fault, Say, Stage, Stall, Trickle, texts, weather
from tests.fakes.running import PATIENCE_S
from tests.fakes.spool_file import query

if TYPE_CHECKING:
    import random

    from relay.twin import Twin
    from tests.fakes.running import RunningRelay
    from tests.fakes.steady import SteadyClient

RATES = (80.0, 120.0, 200.0)
"""Limits that the upstream moves between; the least of them is above the intake."""
CROWD = 20
"""Strangers that come at one time."""
_WRONG = base64.b64encode(b"\0listmonk\0wrong").decode()


@dataclass
class Scene:
    """Who is on stage, and how much may have been sent twice so far."""

    relay: RunningRelay
    twin: Twin
    client: SteadyClient
    rng: random.Random
    lasting_s: float = 3.0
    """How long a fault lasts that lasts."""
    twice_max: int = field(default=0, init=False)

    def may_double(self) -> None:
        """P3: what is under way now may come twice."""
        self.twice_max += self.twin.ledger.sessions_open + UNSETTLED_MAX

    async def weather(self, fault: Fault) -> None:
        """``fault`` for as long as a fault lasts."""
        self.twin.fault = fault
        await asyncio.sleep(self.lasting_s)
        self.twin.fault = None


async def wait_no_longer(relay: RunningRelay) -> None:
    """Restart it, and have all that waits for its time (ten minutes, if in doubt) sent now."""
    assert await relay.stop() == 0
    for table in ("envelope", "recipient"):
        query(relay.folder, f"UPDATE {table} SET due_at = 0 WHERE state = 0")
    await relay.start()
    await until_empty(relay)


async def until_empty(relay: RunningRelay) -> None:
    """Return once nothing waits any more."""
    async with asyncio.timeout(PATIENCE_S):
        while waiting(await ask(relay, "status")):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.05)


def take_minutes() -> None:
    """Lift pytest's own limit (``faulthandler_timeout``) for the long form of a test."""
    faulthandler.cancel_dump_traceback_later()


def waiting(figures: dict[str, Any]) -> int:
    """Recipients that are still to go."""
    return sum(stream["waiting"] for stream in figures["streams"])


async def ask(relay: RunningRelay, command: str, **words: object) -> dict[str, Any]:
    """What a running relay answers on its control socket."""
    socket = control.socket_path(relay.spool)
    answer = await asyncio.to_thread(partial(control.ask, socket, command, **words))
    assert answer is not None, relay.log[-3000:]
    return answer


# -- The process ---------------------------------------------------------------------------


async def kill(scene: Scene) -> None:
    scene.may_double()
    await scene.relay.kill()
    await scene.relay.start()


async def terminate(scene: Scene) -> None:
    assert await scene.relay.stop() == 0
    await scene.relay.start()


async def hang_up(scene: Scene) -> None:
    for _ in range(10):
        os.kill(scene.relay.pid, signal.SIGHUP)
        await asyncio.sleep(0.01)


# -- The upstream --------------------------------------------------------------------------


async def restart_twin(scene: Scene) -> None:
    scene.may_double()
    await scene.twin.stop()
    await asyncio.sleep(scene.lasting_s / 2)
    await scene.twin.start()


async def cut_links(scene: Scene) -> None:
    scene.may_double()
    cuts = [Cut(reset=reset, done=done) for reset in (True, False) for done in (True, False)]
    await scene.weather(
        weather.either(
            *(
                weather.sometimes(scene.rng, {stage: (0.02, scene.rng.choice(cuts))})
                for stage in Stage
            )
        )
    )


async def stall(scene: Scene) -> None:
    """Longer than the relay waits at any stage but the dot."""
    scene.may_double()
    late = Stall(scene.lasting_s)
    await scene.weather(weather.sometimes(scene.rng, dict.fromkeys(Stage, (0.03, late))))


async def trickle(scene: Scene) -> None:
    await scene.weather(weather.sometimes(scene.rng, dict.fromkeys(Stage, (0.5, Trickle()))))


async def garble(scene: Scene) -> None:
    await scene.weather(
        weather.sometimes(
            scene.rng,
            {
                Stage.MAIL: (0.05, Say("what?")),
                Stage.RCPT: (0.05, Say("299 huh")),
                Stage.DATA: (0.05, Say("\x00\xff 250", close=True)),
                Stage.EHLO: (0.2, Say("hello yourself")),
            },
        )
    )


async def throttle(scene: Scene) -> None:
    await scene.weather(weather.at(Stage.DOT, Say(texts.RATE)))


async def defer_a_few(scene: Scene) -> None:
    """Fewer than trip a breaker."""
    await scene.weather(weather.first(5, weather.at(Stage.DOT, Say(texts.TEMPORARY_454))))


async def defer_all(scene: Scene) -> None:
    """A storm: breakers trip, and their probes come after a minute."""
    await scene.weather(weather.at(Stage.DOT, Say(texts.TEMPORARY_451)))


async def refuse_sessions(scene: Scene) -> None:
    full = weather.at(Stage.CONNECT, Say(texts.CONNECTIONS_SPENT, close=True))
    spent = weather.sometimes(scene.rng, {Stage.MAIL: (0.1, Say(texts.SESSION_SPENT, close=True))})
    await scene.weather(weather.either(full, spent))


async def refuse_logins(scene: Scene) -> None:
    """The key is revoked: the account is held, and probed after a minute."""
    scene.twin.credentials_valid = False
    await scene.weather(weather.at(Stage.MAIL, Cut()))
    scene.twin.credentials_valid = True


async def delay_logins(scene: Scene) -> None:
    away = weather.at(Stage.AUTH, Say(texts.AUTH_TEMPORARY))
    ends = weather.sometimes(scene.rng, {Stage.MAIL: (0.2, Cut(reset=True))})
    await scene.weather(weather.either(away, ends))


async def change_rate(scene: Scene) -> None:
    scene.twin.set_rate(scene.rng.choice(RATES))


# -- The clients' side ---------------------------------------------------------------------


async def cut_clients(scene: Scene) -> None:
    scene.client.cut()


async def vanish(scene: Scene) -> None:
    """A crowd that leaves in mid-body."""
    await _crowd(scene, _leave_in_mid_body)


async def guess(scene: Scene) -> None:
    """A crowd with wrong passwords."""
    await _crowd(scene, _guess)


async def loiter(scene: Scene) -> None:
    """A crowd that says nothing."""
    await _crowd(scene, _loiter)


async def babble(scene: Scene) -> None:
    """A crowd that does not speak SMTP."""
    await _crowd(scene, _babble)


async def _crowd(scene: Scene, behave: _Behaviour) -> None:
    async def come(number: int) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", scene.relay.smtp_port)
        except OSError:
            return
        try:
            async with asyncio.timeout(scene.lasting_s * 3):
                await behave(scene, reader, writer, number)
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()

    await asyncio.gather(*(come(number) for number in range(CROWD)))


async def _leave_in_mid_body(
    scene: Scene, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
) -> None:
    await reader.readline()
    for line in ("EHLO x", "MAIL FROM:<a@example.com>", f"RCPT TO:<gone{number}@x.org>", "DATA"):
        writer.write(line.encode() + b"\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
    writer.write(b"Subject: x\r\n\r\n" + b"half a line" * scene.rng.randrange(2000))
    await writer.drain()


async def _guess(
    scene: Scene, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
) -> None:
    await reader.readline()
    for _ in range(3):
        writer.write(f"AUTH PLAIN {_WRONG}\r\n".encode())
        assert not (await reader.readline()).startswith(b"2")


async def _loiter(
    scene: Scene, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
) -> None:
    await asyncio.sleep(scene.lasting_s)


async def _babble(
    scene: Scene, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
) -> None:
    writer.write(scene.rng.randbytes(5000))
    await writer.drain()
    while await reader.read(1 << 16):
        pass


_Behaviour = Callable[[Scene, asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """A fault, how often it comes next to others, and what it would disturb."""

    strike: Callable[[Scene], Awaitable[None]]
    weight: int = 2
    ends_process: bool = False
    takes_minutes: bool = False
    """Until all is well again: a breaker's probe comes after a minute."""


FAULTS = (
    Kind(kill, weight=4, ends_process=True),
    Kind(terminate, weight=4, ends_process=True),
    Kind(hang_up),
    Kind(restart_twin),
    Kind(cut_links),
    Kind(stall),
    Kind(trickle, weight=1),
    Kind(garble),
    Kind(throttle),
    Kind(defer_a_few),
    Kind(defer_all, weight=1, takes_minutes=True),
    Kind(refuse_sessions),
    Kind(refuse_logins, weight=1, takes_minutes=True),
    Kind(delay_logins),
    Kind(change_rate),
    Kind(cut_clients),
    Kind(vanish),
    Kind(guess),
    Kind(loiter),
    Kind(babble),
)

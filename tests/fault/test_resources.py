"""The machine runs out of file descriptors or memory, and a real relay has to live with it."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from relay.config import Config, Upstream
from relay.service import descriptors
from tests.fakes.machine import FAST_START, FAST_TWIN, MIB, Load
from tests.fakes.running import RunningRelay, relay_and_twin

WITH_FEW_DESCRIPTORS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
from relay.cli import main
main()
"""


def open_descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize("clients", [60, pytest.param(400, marks=pytest.mark.slow)])
async def test_p1_clients_wait_for_descriptors_and_none_is_refused(
    tmp_path: Path, clients: int
) -> None:
    """Sixty descriptors: the spool and the upstream have theirs, clients wait in the backlog."""
    program = ("-c", WITH_FEW_DESCRIPTORS.format(60))
    settings = {"program": program, "upstream": FAST_START}
    async with relay_and_twin(tmp_path, FAST_TWIN, **settings) as (relay, twin):
        load = Load(relay, twin, count=3 * clients, connections=clients)
        load.start()
        await load.accepted(2 * clients)

        assert open_descriptors(relay.pid) < 60
        assert await load.audited() == 0
        assert "few file descriptors" in relay.log
        assert "Too many open files" not in relay.log
        assert load.told.given_up == []


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 4096), (500, 150, 50)),  # Enough.
        ((256, 4096), (500, 150, 50)),  # The soft limit may be raised.
        ((256, 300), (126, 94, 31)),
        ((256, 256), (104, 78, 26)),
        ((60, 60), (6, 4, 1)),
        ((40, 40), (2, 1, 1)),  # Less than the reserve: mail moves all the same.
    ],
)
def test_clients_and_sessions_share_what_descriptors_there_are(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], expected: tuple[int, int, int]
) -> None:
    """Half each at most; neither gets more than it was to have."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    upstreams = tuple(
        Upstream(name=name, sessions_max=sessions) for name, sessions in (("a", 150), ("b", 50))
    )

    fitted = descriptors.fit(Config(upstreams=upstreams))

    found = (fitted.listen.connections_max, *(one.sessions_max for one in fitted.upstreams))
    assert found == expected


def has_ended(relay: RunningRelay) -> bool:
    return relay._running is not None and relay._running.returncode is not None


def in_doubt(relay: RunningRelay) -> set[str]:
    """Envelopes whose session broke after the dot: they wait ten minutes, as they should."""
    return set(re.findall(r"envelope in doubt.* envelope=(\w+)", relay.log))


def memory_bytes(pid: int) -> int:
    """The address space of a process, which is what RLIMIT_AS bounds."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.slow)])
async def test_p1_without_memory_no_250_is_untrue(tmp_path: Path, rounds: int) -> None:
    """A large message that finds no memory is refused for now or cut; the process may end."""
    async with relay_and_twin(tmp_path, FAST_TWIN, upstream=FAST_START) as (relay, twin):
        outcomes, ended = [], 0
        for n in range(rounds):
            small = Load(relay, twin, count=100, seed=2 * n, refusals_allowed=("451 4.3.0",))
            large = Load(
                relay,
                twin,
                count=8,
                seed=2 * n + 1,
                body_bytes=8 * MIB,
                connections=4,
                refusals_allowed=("451 4.3.0",),
            )
            small.start()
            await small.accepted(50)

            _, hard = resource.prlimit(relay.pid, resource.RLIMIT_AS)
            room = memory_bytes(relay.pid) + (4 + 4 * n) * MIB
            resource.prlimit(relay.pid, resource.RLIMIT_AS, (room, hard))
            small.crashed()
            large.crashed()
            large.start()
            await large.told_all(lambda: has_ended(relay))
            ended += has_ended(relay)
            if has_ended(relay):
                relay._running = None
                await relay.start()
            resource.prlimit(relay.pid, resource.RLIMIT_AS, (hard, hard))

            doubted = await small.missing(lambda: in_doubt(relay))
            doubted |= await large.missing(lambda: in_doubt(relay))
            figures = await relay.status()
            assert sum(one["waiting"] for one in figures["streams"]) >= len(doubted)
            small.check_words()
            large.check_words()
            outcomes.append(f"{len(large.told.accepted)}/{len(large.told.refusals)}")
        print(f"\nmemory: rounds {rounds}, process ended {ended}, large kept/refused {outcomes}")

"""A relay that lives through a bad hour: nothing lost, nothing grown.

    RELAY_SOAK_S=3600 .venv/bin/python -m pytest -m slow -s tests/fault/test_soak.py

Mail comes in at a steady pace while one fault after the other strikes (``fakes.trouble``).
In the last two thirds the process is left alive, so that its memory and descriptors can be
compared: like with like, that is between faults, with next to no backlog.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from relay.mailer import make_mail
from relay.twin import Farewell, Latency, TwinConfig, by_relay_id
from tests.fakes.process import rss_bytes
from tests.fakes.running import PATIENCE_S, relay_and_twin
from tests.fakes.spool_file import query
from tests.fakes.steady import SteadyClient
from tests.fakes.trouble import (
    FAULTS,
    Kind,
    Scene,
    ask,
    guess,
    take_minutes,
    wait_no_longer,
    waiting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from relay.mailer import Mail

SOAK_S = float(os.environ.get("RELAY_SOAK_S", "300"))
CI_S = 6.0
PER_S = 50.0
CAMPAIGNS = (
    "14fe7a64-ac40-4cd4-9783-6a526bb85fd0",
    "476027c3-265e-46a5-9409-e510ec694745",
    "",
)
"""The last is transactional mail."""
WARMING = next(kind for kind in FAULTS if kind.strike is guess)
FLAT_MIN_S = 1800
"""A shorter run is all warm-up: its memory is shown, and proves nothing."""
SAMPLES_MIN = 20
RSS_CHANGE_MAX = 0.10
FDS_CHANGE_MAX = 3
"""Of the descriptors that are neither a client's nor a session's."""
CALM_MAX_S = 120.0
"""A minute's hold at 50/s is 3,000 mails, worked off at what the limit leaves, 30/s or more."""
BACKLOG_MAX = 300
"""Six seconds of intake, and what is in doubt and waits its ten minutes."""

UPSTREAM = """
connect_timeout_s = 2
reply_timeout_s = 2
dot_timeout_s = 60
[upstream.rate]
start_per_s = 150
[retry]
first_s = 1
max_s = 5
"""
TWIN = TwinConfig(
    rate_per_s=200,
    latency=Latency(rtt_s=0.01, accept_median_s=0.02, accept_p99_s=0.2, refuse_s=0.01),
    session_messages=(50, 150),
    session_age_s=(20, 60),
    session_end=Farewell.ANY,
    quota=0,
    seed=1,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one calm moment."""

    at_s: float
    rss_mb: float
    fds: int
    own_fds: int
    """Without those of clients and sessions."""


@dataclass
class Soak:
    """One run: what struck, and what the process was like in between."""

    scene: Scene
    lasting_s: float
    gap_s: tuple[float, float]
    began: float = field(default_factory=time.monotonic)
    struck: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    _stays: bool = field(default=False, init=False)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began

    def is_over(self) -> bool:
        return self.age_s >= self.lasting_s

    def kinds(self) -> list[Kind]:
        """What may strike now."""
        is_early = self.age_s < self.lasting_s / 3
        is_long = self.lasting_s >= FLAT_MIN_S
        # What takes minutes is over before the end, so that the last samples are calm ones.
        may_take_minutes = is_long and self.age_s < self.lasting_s * 0.7
        return [
            kind
            for kind in FAULTS
            if (is_early or not kind.ends_process) and (may_take_minutes or not kind.takes_minutes)
        ]

    def next_kind(self) -> Kind:
        """By chance, of those that have come the least often for their weight.

        The process first, since it is left alone later. When that begins, wrong passwords:
        what a check with scrypt takes, 16 MiB a thread, malloc may keep for good.
        """
        if not self._stays and self.age_s >= self.lasting_s / 3:
            self._stays = True
            return WARMING
        shares = {kind: self.struck[kind.strike.__name__] / kind.weight for kind in self.kinds()}
        least = min(shares.values())
        due = [kind for kind, share in shares.items() if share == least]
        return self.scene.rng.choice([kind for kind in due if kind.ends_process] or due)

    async def rage(self) -> None:
        """One fault after the other, and a look at the process before each."""
        rng = self.scene.rng
        while not self.is_over():
            await asyncio.sleep(rng.uniform(*self.gap_s))
            await self.calm_down()
            await self.look()
            kind = self.next_kind()
            self.struck[kind.strike.__name__] += 1
            await kind.strike(self.scene)

    async def calm_down(self) -> None:
        """Let the process that stays work off what the last fault has kept back, if it can soon.

        Without it one fault would come into the backlog of another for the rest of the run, and
        no two moments could be compared.
        """
        if not self._stays:
            return
        until = time.monotonic() + CALM_MAX_S
        while time.monotonic() < until and not self.is_over():
            if is_calm(await self.status()):
                return
            await asyncio.sleep(1)

    async def look(self) -> None:
        """Take a sample, if all is calm and the process is the one that stays."""
        if self.age_s < self.lasting_s / 3:
            self.samples.clear()
            return
        figures = await self.status()
        if not is_calm(figures):
            return
        pid = self.scene.relay.pid
        fds = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  (not a folder that blocks)
        sessions = sum(one["sessions_open"] for one in figures["upstreams"])
        sample = Sample(self.age_s, rss_bytes(pid) / 1e6, fds, fds - sessions)
        self.samples.append(sample)
        if self.lasting_s > 60:
            print(f"{sample.at_s:6.0f} s {sample.rss_mb:6.1f} MB {fds} fds", flush=True)

    async def status(self) -> dict[str, Any]:
        return await ask(self.scene.relay, "status")

    def early_and_late(self) -> tuple[list[Sample], list[Sample]]:
        """A quarter of the samples each, behind a fifth of them to get warm in."""
        warm = self.samples[len(self.samples) // 5 :]
        quarter = max(1, len(warm) // 4)
        return warm[:quarter], warm[-quarter:]


def is_calm(figures: dict[str, Any]) -> bool:
    return not figures["holds"] and waiting(figures) <= BACKLOG_MAX


def small_mails() -> Iterator[Mail]:
    rng = random.Random(1)
    for number in count():
        yield make_mail(rng, number, campaign=rng.choice(CAMPAIGNS), body_bytes=600)


async def settle_all(soak: Soak) -> None:
    """Fair weather until nothing waits; the ten minutes of what is in doubt are cut short."""
    relay, twin = soak.scene.relay, soak.scene.twin
    twin.fault = None
    twin.set_rate(max(200.0, twin.rate_per_s))
    async with asyncio.timeout(PATIENCE_S * 5):
        while not is_calm(await soak.status()):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.5)
    await wait_no_longer(relay)


@pytest.mark.parametrize(
    ("lasting_s", "gap_s"),
    [(CI_S, (0.05, 0.1)), pytest.param(SOAK_S, (7.0, 17.0), marks=pytest.mark.slow)],
)
async def test_p1_to_p4_hold_through_a_bad_hour(
    tmp_path: Path, lasting_s: float, gap_s: tuple[float, float]
) -> None:
    """Lost 0, one outcome each, few twice; memory and descriptors of the process stay flat."""
    if lasting_s > 60:
        take_minutes()
    users = tmp_path / "users"
    users.write_text("listmonk:plain:right\n")
    users.chmod(0o600)
    settings = {
        "listen": f'users_file = "{users}"',
        "upstream": UPSTREAM,
        "log_level": "warning",
    }
    async with relay_and_twin(tmp_path, TWIN, **settings) as (relay, twin):
        client = SteadyClient("127.0.0.1", relay.smtp_port)
        is_long = lasting_s > 60
        scene = Scene(relay, twin, client, random.Random(2), lasting_s=3.0 if is_long else 0.3)
        soak = Soak(scene, lasting_s, gap_s)
        sending = asyncio.ensure_future(client.send_at(PER_S, small_mails(), soak.is_over))
        await soak.rage()
        async with asyncio.timeout(PATIENCE_S):  # A relay that takes nothing is no calm one.
            told = await sending
        await settle_all(soak)

        accepted = dict(told.accepted)
        arrived = {record.message_id for record in twin.ledger.records}
        doubled = sum(n - 1 for n in twin.ledger.twice(by_relay_id).values())
        print(table(soak, len(accepted), len(arrived), doubled))
        assert not told.refusals
        assert not told.given_up
        assert accepted.keys() - arrived == set()
        assert doubled <= scene.twice_max
        assert outcomes(relay.folder) == Counter(dict.fromkeys(arrived, 1))
        assert len(accepted) >= lasting_s * PER_S * 0.8
        if lasting_s >= FLAT_MIN_S:
            hold_flat(soak)


def outcomes(folder: Path) -> Counter[object]:
    """How many outcomes each Message-ID has; every one of them is *sent*."""
    rows = query(folder, "SELECT message_id, outcome FROM outcome")
    assert {outcome for _, outcome in rows} == {"sent"}
    return Counter(message_id for message_id, _ in rows)


def hold_flat(soak: Soak) -> None:
    """The bars of the nightly form."""
    early, late = soak.early_and_late()
    # Else the run was never calm, and there is nothing to compare.
    assert len(soak.samples) >= SAMPLES_MIN
    assert late[-1].at_s >= soak.lasting_s * 0.9
    assert rss(late) <= rss(early) * (1 + RSS_CHANGE_MAX)
    assert abs(own_fds(late) - own_fds(early)) <= FDS_CHANGE_MAX


def rss(samples: list[Sample]) -> float:
    return median(sample.rss_mb for sample in samples)


def own_fds(samples: list[Sample]) -> float:
    return median(sample.own_fds for sample in samples)


def fds(samples: list[Sample]) -> float:
    return median(sample.fds for sample in samples)


def table(soak: Soak, accepted: int, arrived: int, doubled: int) -> str:
    """The run in one line, and its faults in another."""
    early, late = soak.early_and_late()
    told = soak.scene.client.told
    kinds = ", ".join(f"{name} {n}" for name, n in sorted(soak.struck.items()))
    lost = len(
        dict(told.accepted).keys() - {one.message_id for one in soak.scene.twin.ledger.records}
    )
    memory = (
        ""
        if not early
        else (
            f"RSS {rss(early):.1f} -> {rss(late):.1f} MB ({rss(late) / rss(early) - 1:+.1%}), "
            f"descriptors {fds(early):.0f} -> {fds(late):.0f} "
            f"(own {own_fds(early):.0f} -> {own_fds(late):.0f}), samples {len(soak.samples)}"
        )
    )
    return (
        f"\nsoak {soak.lasting_s / 60:.1f} min: accepted {accepted}, delivered {arrived}, "
        f"lost {lost}, twice {doubled} (bound {soak.scene.twice_max}), {memory}\n"
        f"faults {soak.struck.total()}: {kinds}\n"
    )

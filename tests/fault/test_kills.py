"""kill -9 at each stage of a message's life, and an audit after each kill.

One twin, one client and one spool live through many relays. Each relay dies at a wanted place
in its own code (``victim``) or at a random moment from outside; then the files it left are
copied and looked into before the next one starts.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from relay.dispatcher.books import UNSETTLED_MAX
from relay.envelope import id_text
from relay.mailer import Client, make_mail
from relay.twin import NO_LATENCY, Latency, Twin, TwinConfig, by_relay_id
from tests.fakes.dead import CAMPAIGN, FAST, Left, fill, trapped
from tests.fakes.running import PATIENCE_S, RunningRelay, free_ports
from tests.fakes.spool_file import query
from tests.fault import victim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WEATHER = TwinConfig(
    rate_per_s=250,
    noise=0.05,
    session_messages=(10, 30),
    latency=Latency(rtt_s=0.005, accept_median_s=0.02, accept_p99_s=0.2, refuse_s=0.01),
    quota=0,
    seed=1,
)
"""Each life of a relay has its throttles and its ended sessions, which cost no attempt."""
EAGER = "[upstream.rate]\nstart_per_s = 400"
BACKLOG_MAX = 300
"""Mail in the spool at which the client pauses, so that the audits stay short."""
ROUND = 20
"""Messages that the client sends before it looks at the backlog again."""
CALLS_MAX = {
    "relay.dispatcher.feed:Feed._read": 2,
    "relay.spool.upkeep:checkpoint": 8,
    "relay.spool.batch:checkpoint": 30,
}
"""The latest call that is the fatal one, where it is not ``CALLS_OFTEN``."""
CALLS_OFTEN = 40
DELAY_MAX_S = 0.01
"""The longest that a kill comes after the call began, for the moment ``during``."""
OUTSIDE_MAX_S = 2.0
"""The longest that a relay lives that is killed from outside: half of it is its start."""
WORK_MAX_S = 0.3
"""The longest that a relay works that is asked to stop, and killed in the midst of that."""
LATEST_S = 8.0
"""A trap that nothing has sprung by then is no use: the kill then comes from outside."""
STOP_MAX_S = 30
"""Dispatch must have stopped by then, on a busy machine, too: sending 200 takes a second."""
OUTSIDE = " (from outside)"
AIMED = (
    ("intake",),
    ("dispatch",),
    ("settle",),
    ("commit",),
    ("checkpoint",),
    ("start", "stop"),
    ("outside",),
)


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill and what the audit found."""

    stage: str
    how: str
    accepted: int
    """Messages that the client was told 250 for since the kill before."""
    sent: frozenset[str]
    """What the twin accepted from this relay."""
    exposed: int
    """Of these, what the spool does not know: they will go twice."""
    bound: int


@dataclass
class Campaign:
    """A client that never stops, a twin, and relays that die one after the other."""

    relay: RunningRelay
    twin: Twin
    client: Client
    chance: random.Random
    copy: Path
    kills: list[Kill] = field(default_factory=list)
    enough: bool = False
    feeding: asyncio.Future[None] = field(init=False)
    _told: int = 0
    _sent: int = 0

    async def feed(self) -> None:
        """Send until it is enough, as long as the backlog is short."""
        number = 0
        while not self.enough:
            if len(self.client.told.accepted) - len(self.twin.ledger.records) > BACKLOG_MAX:
                await asyncio.sleep(0.02)
                continue
            rng = random.Random(number)
            numbers = range(number, number + ROUND)
            await self.client.send(
                make_mail(rng, n, campaign=CAMPAIGN, body_bytes=1000) for n in numbers
            )
            number += ROUND

    async def kill_in(self, stage: str) -> None:
        """Let one relay live until it dies in that stage, then audit what it left."""
        how = self._arm(stage)
        self.twin.ledger.sessions_peak = 0
        await (self._start_and_stop if stage == "stop" else self.relay.spawn)()
        limit_s = self.chance.random() * OUTSIDE_MAX_S if stage == "outside" else LATEST_S
        ending = asyncio.ensure_future(self.relay.ended())
        done, _ = await asyncio.wait([ending], timeout=limit_s)
        if not done:
            self.relay.signal(signal.SIGKILL)
            how += OUTSIDE
        assert await ending == -signal.SIGKILL, self.relay.log[-3000:]
        async with asyncio.timeout(PATIENCE_S):
            while self.twin.ledger.sessions_open:  # noqa: ASYNC110  # what was sent still arrives
                await asyncio.sleep(0.005)
        self._audit(stage, how)

    async def _start_and_stop(self) -> None:
        """Ask it to stop, politely, once it has been at work for a while."""
        await self.relay.start()
        await asyncio.sleep(self.chance.random() * WORK_MAX_S)  # The moment is the point.
        self.relay.signal(signal.SIGTERM)

    def _arm(self, stage: str) -> str:
        """Choose where and when; returns it in words."""
        target, moment, calls, delay_s = "", "", 0, 0.0
        if stage != "outside":
            target = self.chance.choice(victim.STAGES[stage])
            moment = self.chance.choice(victim.MOMENTS)
            most = 1 if stage in {"start", "stop"} else CALLS_MAX.get(target, CALLS_OFTEN)
            calls = self.chance.randint(1, most)
            delay_s = self.chance.random() ** 2 * DELAY_MAX_S
        self.relay.program = trapped(target, moment, calls, delay_s)
        return f"{moment} call {calls} of {target or 'nothing'}"

    def _audit(self, stage: str, how: str) -> None:
        told, records = self.client.told, list(self.twin.ledger.records)
        left = Left.of(self.relay.spool, self.copy)
        accepted = {queue_id for _, queue_id in told.accepted}
        arrived = {record.relay_id for record in records}
        sent = frozenset(record.relay_id for record in records[self._sent :])
        bound = self.twin.ledger.sessions_peak + UNSETTLED_MAX
        kill = Kill(
            stage, how, len(told.accepted) - self._told, sent, len(sent & left.waiting), bound
        )
        self._told, self._sent = len(told.accepted), len(records)
        self.kills.append(kill)

        assert left.sound, how
        assert accepted - left.waiting - left.ended == set(), f"lost (P1) {how}"
        assert left.waiting & left.ended == set(), f"two fates (P2) {how}"
        assert left.ended <= arrived, f"settled and not sent (P2) {how}"
        assert kill.exposed <= bound, f"too many to go twice (P3) {how}"
        assert left.attempts == 0, f"attempts spent by a crash (P4) {how}"

    async def finish(self) -> None:
        """A relay that nobody kills sends the rest; then the last audit, of the whole."""
        self.enough, self.relay.program = True, ("-m", "relay")
        await self.relay.start()
        async with asyncio.timeout(PATIENCE_S):
            await self.feeding
            while query(self.relay.folder, "SELECT 1 FROM envelope LIMIT 1"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await self.relay.stop() == 0

        accepted = {queue_id for _, queue_id in self.client.told.accepted}
        arrived = {record.relay_id for record in self.twin.ledger.records}
        rows = query(self.relay.folder, "SELECT envelope_id, outcome, attempts FROM outcome")
        assert not self.client.told.refusals
        assert not self.client.told.given_up
        assert accepted - arrived == set(), "lost (P1)"
        # The key of the table is the recipient, so that two outcomes of one cannot be (P2).
        assert sorted(id_text(int(str(row[0]))) for row in rows) == sorted(arrived)
        assert {row[1:] for row in rows} == {("sent", 1)}, "P4"
        aimed = [kill for kill in self.kills if kill.stage != "outside"]
        assert 2 * sum(not kill.how.endswith(OUTSIDE) for kill in aimed) >= len(aimed), "bad aim"
        for kill, twice in zip(self.kills, self.doubles(), strict=True):
            assert twice <= kill.exposed <= kill.bound, f"P3 {kill.how}"

    def doubles(self) -> list[int]:
        """How many messages went twice because of each kill: each sent before it, and again."""
        later: Counter[str] = Counter()
        last = [record.relay_id for record in list(self.twin.ledger.records)[self._sent :]]
        for one in last:
            later[one] += 1
        by_kill = []
        for kill in reversed(self.kills):
            by_kill.append(sum(bool(later[one]) for one in kill.sent))
            later.update(kill.sent)
        return by_kill[::-1]

    def table(self) -> str:
        """A line for each stage."""
        throttled, sessions = self.twin.ledger.total.throttled, self.twin.ledger.sessions_opened
        lines = [
            f"no attempt was spent by {throttled} throttles, nor by {sessions} sessions' ends",
            "stage       kills  in time  accepted  lost  twice max/all  at most",
        ]
        doubles = self.doubles()
        for stage in dict.fromkeys(kill.stage for kill in self.kills):
            mine = [(k, n) for k, n in zip(self.kills, doubles, strict=True) if k.stage == stage]
            accepted, twice = sum(k.accepted for k, _ in mine), [n for _, n in mine]
            sprung = sum(not k.how.endswith(OUTSIDE) for k, _ in mine)
            lines.append(
                f"{stage:<12}{len(mine):>5}{sprung:>9}{accepted:>10}{0:>6}"
                f"{max(twice):>10}/{sum(twice):<4}{max(k.bound for k, _ in mine):>8}"
            )
        return "\n".join(lines)


@asynccontextmanager
async def campaign(folder: Path) -> AsyncIterator[Campaign]:
    """A campaign that is being sent while relays come and go."""
    copy = folder / "copy"
    copy.mkdir()
    twin = Twin(WEATHER)
    relay = RunningRelay(
        folder, await twin.start(), folder / "relay.db", upstream=EAGER, log_level="warning"
    )
    relay.smtp_port, relay.http_port = free_ports(2)
    client = Client("127.0.0.1", relay.smtp_port, attempts=100_000, retry_delay_s=0.02)
    seed = random.randrange(1 << 32)
    print(f"\nseed {seed}")
    running = Campaign(relay, twin, client, random.Random(seed), copy)
    running.feeding = asyncio.ensure_future(running.feed())
    try:
        yield running
    finally:
        running.feeding.cancel()
        await asyncio.wait([running.feeding])
        if relay._running is not None:
            await relay.kill()
        await twin.stop()


@pytest.mark.parametrize(
    ("stages", "kills"),
    [
        pytest.param(sum(AIMED, ()), 1, id="each stage once"),
        *(pytest.param(stages, 35, id=stages[0], marks=pytest.mark.slow) for stages in AIMED),
    ],
)
async def test_p1_p2_p3_p4_kill_9_at_any_stage_loses_nothing(
    tmp_path: Path, stages: tuple[str, ...], kills: int
) -> None:
    """After each kill and at the end: lost 0, one fate each, doubles within the bound."""
    async with campaign(tmp_path) as running:
        for _ in range(kills):
            for stage in stages:
                await running.kill_in(stage)
        await running.finish()

        print(running.table())


async def test_p3_a_disk_that_hangs_bounds_what_goes_twice(tmp_path: Path) -> None:
    """Nothing can be settled any more: dispatch stops by itself, one batch later at most."""
    twin = Twin(TwinConfig(rate_per_s=2000, latency=NO_LATENCY, seed=1, quota=0))
    relay = RunningRelay(
        tmp_path, await twin.start(), tmp_path / "relay.db", upstream=FAST, log_level="warning"
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    try:
        accepted = await fill(relay, 2 * UNSETTLED_MAX)
        await relay.command("resume")
        relay.words, relay.program = (), trapped("relay.spool.settling:settle", "stall", 1, 0)
        await relay.start()
        async with asyncio.timeout(STOP_MAX_S):
            while "cannot be noted down" not in (await relay.status())["upstreams"][0]["doing"]:
                pass
        at_most = twin.ledger.sessions_peak + UNSETTLED_MAX
        await relay.kill()
        left = Left.of(relay.spool, copy)
        exposed = len({record.relay_id for record in twin.ledger.records} & left.waiting)
        relay.program = ("-m", "relay")
        await relay.start()
        await relay.until_sent(twin, len(accepted) + exposed)
        assert await relay.stop() == 0

        assert UNSETTLED_MAX <= exposed <= at_most
        assert sum(twin.ledger.copies(by_relay_id).values()) == len(accepted) + exposed
        assert {record.relay_id for record in twin.ledger.records} == accepted
        print(f"\na disk that hangs: twice {exposed}, at most {at_most}")
    finally:
        if relay._running is not None:
            await relay.kill()
        await twin.stop()


def test_victims_targets_exist() -> None:
    """A function that was renamed must not silently be spared."""
    for targets in victim.STAGES.values():
        for target in targets:
            holder, name = victim.place_of(target)

            assert callable(getattr(holder, name))

"""A scenario of the twin played to a real ``relay serve``, and what came of it.

The relay runs in a process of its own, over TLS, and is asked again after seconds where it
would wait for minutes (``impatient``). It never runs dry: all mail is there from the start.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.mailer import Client, make_mail
from tests.fakes.running import PATIENCE_S, RunningRelay
from tests.fakes.spool_file import query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from relay.mailer import Told
    from relay.twin import Audit, Counts, Scenario, Twin

BODY_BYTES = 300
CONNECTIONS = 4
AHEAD = 200
"""Mails beyond what the limit has room for, so that there is always one more."""
PATIENT, IMPATIENT = ("-m", "relay"), ("-m", "tests.fakes.impatient")


@dataclass(frozen=True)
class Scene:
    """A relay at work before a twin that plays; times are the twin's, monotonic seconds."""

    relay: RunningRelay
    twin: Twin
    client: Client

    @property
    def began_at(self) -> float:
        """When the first message was accepted."""
        return self.twin.ledger.records[0].at

    async def send(self, mails: int, first: int = 0) -> None:
        """Have the relay take so many mails of one campaign."""
        rng = random.Random(first)
        await self.client.send(
            make_mail(rng, first + n, campaign="c", body_bytes=BODY_BYTES) for n in range(mails)
        )

    async def until(self, claim: Callable[[], bool]) -> None:
        """Return once the claim about the twin holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not claim():  # noqa: ASYNC110  # sockets and another process give no event
                await asyncio.sleep(0.02)

    async def end(self) -> Ended:
        """Stop the relay, which finishes what is under way; what is on its disk then."""
        assert await self.relay.stop() == 0
        return Ended(self.twin, self.client.told, self.relay.folder)


@dataclass(frozen=True)
class Ended:
    """What a run came to, by the client's, the twin's and the spool's word."""

    twin: Twin
    told: Told
    folder: Path

    @property
    def total(self) -> Counts:
        return self.twin.ledger.total

    @property
    def audit(self) -> Audit:
        return self.twin.audit()

    def promises_broken(self) -> list[str]:
        """What must hold whatever the upstream does, and did not; empty if all is well."""
        arrived = {record.message_id for record in self.twin.ledger.records}
        waiting = self._column("SELECT message_id FROM envelope WHERE state IN (0, 1)")
        accepted = {message_id for message_id, _ in self.told.accepted}
        claims = {
            "refused by the relay": len(self.told.refusals),
            "lost or given up by the client": len(self.told.lost_at_dot + self.told.given_up),
            "neither arrived nor on the queue": len(accepted - arrived - waiting),
            "arrived and still on the queue": len(arrived & waiting),
            "arrived twice": len(self.twin.ledger.twice()),
            "ended other than sent": len(self._column(_ENDED_BADLY)),
            "dead or quarantined": len(self._column("SELECT id FROM envelope WHERE state > 1")),
            "charged with an attempt": len(self._column(_CHARGED)),
            "sessions broken by the twin": self.twin.ledger.broken,
        }
        return [f"{many} {claim}" for claim, many in claims.items() if many]

    def holds(self) -> set[object]:
        """The keys that are held at the end."""
        return self._column("SELECT key FROM hold")

    def _column(self, sql: str) -> set[object]:
        return {row[0] for row in query(self.folder, sql)}


_ENDED_BADLY = "SELECT message_id FROM outcome WHERE outcome <> 'sent' OR in_doubt"
_CHARGED = """SELECT message_id FROM outcome WHERE attempts <> 1
    UNION ALL SELECT envelope_id FROM recipient WHERE attempts <> 0"""


@asynccontextmanager
async def playing(
    folder: Path, scenario: Scenario, *, program: tuple[str, ...] = IMPATIENT
) -> AsyncIterator[Scene]:
    """A relay before the scenario's twin, taking mail; both are gone afterwards."""
    twin = scenario.twin(replace(scenario.config, seed=1))
    relay = RunningRelay(folder, await twin.start(), folder / "relay.db", program=program)
    try:
        await relay.start()
        client = Client("127.0.0.1", relay.smtp_port, connections=CONNECTIONS)
        yield Scene(relay, twin, client)
    finally:
        if relay._running is not None:
            await relay.kill()
        await twin.stop()


def mails_for(scenario: Scenario, lasting_s: float) -> int:
    """More than the account has room for in that time, its bucket full at the start."""
    config = scenario.config
    rates = [config.rate_per_s, *(rate for _, rate in config.rate_changes)]
    return round(max(rates) * (lasting_s + 1)) + AHEAD


async def play_for(folder: Path, scenario: Scenario, lasting_s: float) -> Ended:
    """The scenario for that long from the first connection on, under a load that never ends."""
    async with playing(folder, scenario) as scene:
        sending = asyncio.create_task(scene.send(mails_for(scenario, lasting_s)))
        await scene.until(lambda: scene.twin.ledger.sessions_opened > 0)
        ends_at = time.monotonic() + lasting_s
        await sending
        await asyncio.sleep(max(0.0, ends_at - time.monotonic()))
        return await scene.end()

"""``pause``, ``resume``, ``rate`` and ``serve --paused``: a real relay, running and stopped."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from click.testing import CliRunner

from relay.cli import main
from relay.mailer import Client, make_mail
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.running import relay_and_twin

if TYPE_CHECKING:
    from pathlib import Path

    from relay.mailer import Told

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
STEADY = TwinConfig(rate_per_s=40, latency=NO_LATENCY)


async def ask(folder: Path, *words: str, code: int = 0) -> str:
    """What the command prints, on either stream; it ends with ``code``."""
    told = await asyncio.to_thread(
        CliRunner().invoke, main, [*words, "-c", str(folder / "relay.toml")]
    )
    assert told.exit_code == code, told.output
    return told.output


async def send(port: int, count: int, *, first: int = 0) -> Told:
    rng = random.Random(first)
    mails = [make_mail(rng, n, campaign=CAMPAIGN) for n in range(first, first + count)]
    told = await Client("127.0.0.1", port).send(mails)
    assert len(told.accepted) == count
    return told


async def until_quiet(folder: Path) -> None:
    """Return once nothing is under way any more."""
    async with asyncio.timeout(60):
        while True:
            figures = json.loads(await ask(folder, "status", "--json"))
            if not figures["upstreams"][0]["sessions_busy"]:
                return


async def test_pause_stops_a_campaign_over_a_restart_and_resume_goes_on(tmp_path: Path) -> None:
    """Nothing reaches SES while paused, mail is taken all the same, and all arrives once."""
    async with relay_and_twin(tmp_path, STEADY) as (relay, twin):
        await send(relay.smtp_port, 120)
        await relay.until_sent(twin, 5)

        said = await ask(tmp_path, "pause", "--reason", "typo")
        await until_quiet(tmp_path)
        sent = twin.ledger.total.attempts
        again = await ask(tmp_path, "pause")
        await send(relay.smtp_port, 10, first=1000)
        figures = json.loads(await ask(tmp_path, "status", "--json"))

        assert said == "paused: ses; mail is taken, nothing is sent until relay resume\n"
        assert again.startswith("was paused already: ses;")
        assert figures["paused"] is True
        assert [hold["reason"] for hold in figures["holds"]] == ["typo"]
        assert twin.ledger.total.attempts == sent < 120

        assert await relay.stop() == 0
        await relay.start()
        assert json.loads(await ask(tmp_path, "status", "--json"))["paused"] is True
        assert "nothing is sent until relay resume" in relay.log
        assert twin.ledger.total.attempts == sent

        assert await ask(tmp_path, "resume") == "resumed: ses\n"
        await relay.until_sent(twin, 130)
        assert await ask(tmp_path, "resume") == "was not paused\n"
        assert not twin.ledger.twice()


async def test_storm_of_pause_and_resume_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Thirty times in a throttled campaign, a crash while paused in its midst: each arrives once.

    Nothing is under way when the crash comes, so that not even P3's few may come twice.
    """
    async with relay_and_twin(tmp_path, replace(STEADY, rate_per_s=8, burst=2)) as (relay, twin):
        told = await send(relay.smtp_port, 80)
        for n in range(30):
            await ask(tmp_path, "pause")
            if n == 15:
                await until_quiet(tmp_path)
                await relay.kill()
                await relay.start()
                assert json.loads(await ask(tmp_path, "status", "--json"))["paused"] is True
            await ask(tmp_path, "resume")
        await relay.until_sent(twin, 80)
        await relay.until_empty()

        arrived = [record.message_id for record in twin.ledger.records]
        assert sorted(arrived) == sorted(message_id for message_id, _ in told.accepted)
        assert twin.ledger.total.throttled > 0


async def test_serve_paused_lets_nothing_out_until_resumed_offline(tmp_path: Path) -> None:
    """Mail that waited before the start stays, too; the pause outlives the flag."""
    async with relay_and_twin(tmp_path, STEADY, words=("--paused",)) as (relay, twin):
        await send(relay.smtp_port, 5)
        relay.words = ()
        assert await relay.stop() == 0

        await relay.start()
        assert json.loads(await ask(tmp_path, "status", "--json"))["paused"] is True
        assert await relay.stop() == 0
        assert twin.ledger.total.attempts == 0

        answer = json.loads(await ask(tmp_path, "resume", "--json"))
        assert answer == {"resumed": ["ses"], "still_held": []}
        await relay.start()
        await relay.until_sent(twin, 5)
        assert not twin.ledger.twice()


async def test_pause_on_a_stopped_relay_holds_at_the_next_start(tmp_path: Path) -> None:
    """The spool carries the wish; a relay that never ran has none, and none is made."""
    async with relay_and_twin(tmp_path, STEADY) as (relay, twin):
        assert await relay.stop() == 0
        assert (await ask(tmp_path, "pause")).startswith("paused: ses;")
        await relay.start()
        await send(relay.smtp_port, 3)
        figures = json.loads(await ask(tmp_path, "status", "--json"))

        assert figures["paused"] is True
        assert twin.ledger.total.attempts == 0


async def test_resume_leaves_what_a_breaker_holds_and_names_it(tmp_path: Path) -> None:
    """Wrong credentials are not mended by resuming."""
    refusing = TwinConfig(credentials_valid=False, latency=NO_LATENCY)
    async with relay_and_twin(tmp_path, refusing) as (relay, twin):
        await send(relay.smtp_port, 1)
        async with asyncio.timeout(60):
            while not json.loads(await ask(tmp_path, "status", "--json"))["holds"]:
                pass
        await ask(tmp_path, "pause")

        said = await ask(tmp_path, "resume")

        assert said.startswith("resumed: ses\nstill held: account:ses\n  ")
        assert "535" in said
        assert twin.ledger.total.accepted == 0


async def test_rate_shows_and_sets_running_and_stopped(tmp_path: Path) -> None:
    """A told rate is at work at once, is kept, and is there at the next start."""
    async with relay_and_twin(tmp_path, STEADY) as (relay, _):
        assert "limit not known yet" in await ask(tmp_path, "rate")
        said = await ask(tmp_path, "rate", "set", "33")
        assert said.startswith(
            "ses  idle; last known 33.0/s ± 3.3\n  limit 33.0/s ± 3.3, set by an"
        )
        assert "configured: start 10/s" in said

        assert await relay.stop() == 0
        (stopped,) = json.loads(await ask(tmp_path, "rate", "--json"))
        assert stopped["limit_per_s"] == 33
        await ask(tmp_path, "rate", "set", "44", "--upstream", "ses")
        await relay.start()
        (running,) = json.loads(await ask(tmp_path, "rate", "--json"))
        assert running["limit_per_s"] == 44


async def test_nonsense_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    """By the command line where it can know, else by the relay."""
    async with relay_and_twin(tmp_path, STEADY):
        assert "wanted ses" in await ask(tmp_path, "pause", "--upstream", "eu", code=70)
        assert "wanted ses" in await ask(tmp_path, "resume", "--upstream", "eu", code=70)
        assert "floor_per_s" in await ask(tmp_path, "rate", "set", "0.1", code=70)
        assert "wanted recipients" in await ask(tmp_path, "rate", "set", "inf", code=70)
        await ask(tmp_path, "rate", "set", "-1", code=2)
        assert "after the word" in await ask(tmp_path, "rate", "--json", "set", "5", code=2)
        assert "limit not known yet" in await ask(tmp_path, "rate")

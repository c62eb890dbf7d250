"""Each change of a learned limit: one log line, one event, one count, and soon on disk."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from relay import config
from relay.cli import main
from relay.clock import SystemClock
from relay.errors import SpoolBroken
from relay.figures import EventFigures
from relay.mailer import Client, make_mail
from relay.metrics import Metrics
from relay.service.limits import EVENTS_MAX, SAVE_S, Limits
from relay.service.memory import Memory, account_of
from relay.service.rates import Rates
from relay.shaper import Cause, Shaper
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.clock import ManualClock
from tests.fakes.figures import figures, upstream
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import open_spool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from relay.spool import Spool

UPSTREAM = config.Upstream()
CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"


class Watched:
    """One shaper with its memory, watched."""

    def __init__(self, spool: Spool, clock: ManualClock) -> None:
        self.clock, self.spool, self.metrics = clock, spool, Metrics()
        self.shaper = Shaper(UPSTREAM.rate)
        self.memory = Memory(UPSTREAM, self.shaper, spool, clock)
        self.limits = Limits({"ses": self.memory}, spool, clock, self.metrics)

    def move(self, per_s: float, cause: Cause = Cause.AWS) -> None:
        known = {"limit_per_s": per_s, "confidence": 0.9}
        self.shaper.restore(self.clock.monotonic(), known, cause)

    def counted(self) -> dict[str, float]:
        """Changes that were counted, by cause."""
        text = self.metrics.exposition(figures()).decode()
        return {
            sample.labels["cause"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "relay_shaper_limit_changes_total" and sample.value
        }

    async def on_disk(self) -> float | None:
        kept: Any = (await self.spool.state("shaper:ses") or {}).get("limit_per_s")
        return None if kept is None else round(float(kept), 3)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    clock = ManualClock()
    async with open_spool(folder, clock) as spool:
        yield Watched(spool, clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == "limit changed"]


async def test_each_change_is_one_line_one_event_and_one_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However often somebody looks."""
    caplog.set_level(logging.INFO, "relay")
    async with watched(tmp_path) as one:
        one.move(14.0)
        one.limits.note()
        await one.clock.advance(30)
        one.move(28.0, Cause.OPERATOR)
        moved_at = one.clock.wall_ms()
        await one.clock.advance(7)
        one.limits.note()
        one.limits.note()

        events = one.limits.events

        assert [event.text for event in events] == [
            "limit 14.0/s, not known before: told by AWS",
            "limit 28.0/s, was 14.0/s: set by an operator",
        ]
        assert (events[1].upstream, events[1].at) == ("ses", moved_at)
        assert one.counted() == {"aws": 1, "operator": 1}
        _, line = lines(caplog)
        assert line.__dict__["upstream"] == "ses"
        assert line.__dict__["before_per_s"] == pytest.approx(14)
        assert line.__dict__["after_per_s"] == pytest.approx(28)
        assert line.__dict__["cause"] == "set by an operator"


async def test_events_are_bounded_and_the_latest_stay(tmp_path: Path) -> None:
    """In memory and in the spool, also over a restart."""
    async with watched(tmp_path) as one:
        for n in range(EVENTS_MAX + 20):
            one.move(10.0 + 5 * (n % 2) + n)
            one.limits.note()
        await one.limits.save()

        again = Watched(one.spool, one.clock)
        await again.limits.recall()

        assert len(again.limits.events) == EVENTS_MAX
        assert again.limits.events == one.limits.events
        kept = await one.spool.state("events")
        assert len(json.dumps(kept)) < 40_000


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"events": None},
        {"events": "x"},
        {"events": [1, None, {"at": "x"}, {"at": 1, "upstream": "ses"}, ["at"]]},
    ],
)
async def test_rubbish_among_the_events_is_left_out(tmp_path: Path, kept: dict[str, Any]) -> None:
    """No relay refuses to start for that; what is an event is shown."""
    async with watched(tmp_path) as one:
        good = {"at": 5, "upstream": "ses", "text": "x" * 10_000}
        if isinstance(kept.get("events"), list):
            kept = {"events": [*kept["events"], good]}
        await one.spool.put_state("events", kept)

        await one.limits.recall()

        wanted = (EventFigures(at=5, upstream="ses", text="x" * 500),)
        assert one.limits.events == (wanted if isinstance(kept.get("events"), list) else ())


async def test_changed_limit_is_on_disk_within_seconds_and_not_each_second(tmp_path: Path) -> None:
    """A kill -9 costs seconds of learning; a search that changes it each second, few writes."""
    async with watched(tmp_path) as one:
        running = asyncio.ensure_future(one.limits.run())
        seen = set()
        try:
            for n in range(40):
                one.move(10.0 + n)
                await until_passed(one.clock, 1.0)
                seen.add(await one.on_disk())
        finally:
            running.cancel()

        assert len(one.limits.events) == 40
        # Not one write a second, and never more than SAVE_S behind.
        assert 3 <= len(seen - {None}) <= 40 / SAVE_S + 1
        assert max(kept for kept in seen if kept) >= 10 + 39 - SAVE_S - 1


async def test_change_that_could_not_be_written_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk in trouble costs a line in the log, and neither the event nor the watching."""
    async with watched(tmp_path) as one:
        write, refused = one.spool.put_state, asyncio.Event()

        async def refuse(key: str, value: dict[str, object]) -> None:
            if key == "events":
                refused.set()
                raise SpoolBroken("disk I/O error")
            await write(key, value)

        monkeypatch.setattr(one.spool, "put_state", refuse)
        running = asyncio.ensure_future(one.limits.run())
        one.move(14.0)
        while not refused.is_set():
            await until_passed(one.clock, 1.0)
        monkeypatch.undo()

        async with asyncio.timeout(30):
            while not (kept := await one.spool.state("events")):
                assert not running.done()
                await until_passed(one.clock, 1.0)
        running.cancel()

    assert "limit 14.0/s, not known before: told by AWS" in str(kept)
    assert [record.getMessage() for record in caplog.records] == ["learned limit not written"]
    assert one.metrics.totals["failures"] == 0


@pytest.mark.parametrize(("per_s", "bound"), [(30, "ceiling_per_s = 20"), (1, "floor_per_s = 2")])
async def test_word_that_the_file_forbids_changes_nothing(
    tmp_path: Path, per_s: float, bound: str
) -> None:
    """It is refused with the bound; a limit that could never be used would be shown else."""
    narrow = replace(UPSTREAM, rate=config.Rate(ceiling_per_s=20, floor_per_s=2))
    async with watched(tmp_path) as one:
        rates = Rates([narrow], {"ses": one.memory}, one.limits, lambda _: upstream(), one.clock)

        with pytest.raises(ValueError, match=bound):
            await rates.told({"per_s": per_s})

        assert one.shaper.snapshot().limit_per_s is None
        assert one.limits.events == ()


async def until_passed(clock: ManualClock, seconds: float) -> None:
    """Virtual time, with moments of real time for the spool's threads."""
    await clock.advance(seconds)
    await asyncio.sleep(0.01)


# -- A real relay --------------------------------------------------------------------------


async def ask(folder: Path, *words: str) -> str:
    told = await asyncio.to_thread(
        CliRunner().invoke, main, [*words, "-c", str(folder / "relay.toml")]
    )
    assert told.exit_code == 0, told.output
    return told.output


async def send(port: int, count: int) -> None:
    rng = random.Random(count)
    mails = [make_mail(rng, n, campaign=CAMPAIGN, body_bytes=200) for n in range(count)]
    assert len((await Client("127.0.0.1", port).send(mails)).accepted) == count


async def test_learned_limit_is_shown_everywhere_and_survives_a_kill(tmp_path: Path) -> None:
    """status, rate, /metrics' source, log and events tell one story; a kill -9 loses none of it."""
    limit = TwinConfig(rate_per_s=60, latency=NO_LATENCY)
    async with relay_and_twin(tmp_path, limit) as (relay, twin):
        await ask(tmp_path, "rate", "set", "55")
        await send(relay.smtp_port, 400)
        await relay.until_sent(twin, 100)
        figures = await relay.status()
        [upstream], events = figures["upstreams"], figures["events"]
        said = (upstream["phase"], "held ", "session-bound")
        assert upstream["rate_words"].startswith(said)
        assert events[0]["text"] == "limit 55.0/s, not known before: set by an operator"
        assert relay.log.count('msg="limit changed"') >= len(events)
        assert 'cause="set by an operator"' in relay.log
        assert 'msg="sending rate" upstream=ses rate="' in relay.log

        await relay.kill()
        stopped = await ask(tmp_path, "rate")
        assert "limit not known" not in stopped
        assert "set by an operator" in stopped or "remembered" in stopped
        shown = await ask(tmp_path, "status")
        assert "limit 55.0/s, not known before: set by an operator" in shown
        await ask(tmp_path, "rate", "set", "58")
        shown = await ask(tmp_path, "status")
        assert "limit 58.0/s" in shown
        assert "remembered" not in shown  # To look at what is kept is no event.

        await relay.start()
        (running,) = json.loads(await ask(tmp_path, "rate", "--json"))
        assert running["limit_per_s"] == pytest.approx(58, rel=0.1)
        assert "remembered from an earlier run" in relay.log


@pytest.mark.parametrize(
    ("rule", "limit_per_s", "least", "most"),
    [
        ("ceiling_per_s = 20\nstart_per_s = 20", 200, 0, 21),
        ("floor_per_s = 60\nstart_per_s = 60", 200, 48, 999),
        ("use_max = 0.5", 40, 0, 30),
    ],
)
async def test_bounds_of_the_file_hold_on_the_wire(
    tmp_path: Path, rule: str, limit_per_s: float, least: float, most: float
) -> None:
    """Against what an earlier run has learned, and is sure of: 40/s."""
    account = config.Upstream(host="127.0.0.1", username="sandbox")
    known = {"limit_per_s": 40.0, "confidence": 0.999, "at_ms": SystemClock().wall_ms()}
    async with open_spool(tmp_path) as spool:
        await spool.put_state("shaper:ses", {**known, "account": account_of(account)})
    wide = TwinConfig(rate_per_s=limit_per_s, latency=NO_LATENCY)
    async with relay_and_twin(tmp_path, wide, upstream=f"[upstream.rate]\n{rule}") as (relay, twin):
        loop = asyncio.get_running_loop()
        await send(relay.smtp_port, 150)
        await relay.until_sent(twin, 10)
        begun_at, first = loop.time(), twin.ledger.total.accepted

        await relay.until_sent(twin, first + 60)

        took_s = loop.time() - begun_at
        [upstream] = (await relay.status())["upstreams"]
    assert least <= 60 / took_s <= most, upstream

"""The wall clock under a running relay is set, by an hour or by a decade, and was never set."""

from __future__ import annotations

import asyncio
import os
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from relay.ageing import GRACE_MS, Ageing
from relay.clock import SystemClock
from relay.spool import Rescheduled
from relay.twin import Say, Stage, texts, weather
from tests.fakes.clock import ManualClock
from tests.fakes.machine import FAST_START, FAST_TWIN, Load
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import keep, open_spool, query, read, settle

if TYPE_CHECKING:
    from pathlib import Path

HOUR_MS = 3_600_000
YEAR_MS = 8766 * HOUR_MS
BEFORE_2038_MS = (2**31 - 2) * 1000
LOOKS_S = 0.3
"""How often the relay looks at its clock here, instead of every ten seconds."""

WITH_ANOTHER_CLOCK = """
import mmap, struct
import relay.clock, relay.service.upkeep
control = open({control!r}, "rb")
shown = mmap.mmap(control.fileno(), 8, access=mmap.ACCESS_READ)
true_ms = relay.clock.SystemClock.wall_ms
relay.clock.SystemClock.wall_ms = lambda self: true_ms(self) + struct.unpack("q", shown[:])[0]
relay.service.upkeep.CLOCK_S = {looks_s}
from relay.cli import main
main()
"""


class Offset:
    """By how much the relay's wall clock is wrong."""

    def __init__(self, folder: Path) -> None:
        self._control = folder / "clock"
        self.program = (
            "-c",
            WITH_ANOTHER_CLOCK.format(control=str(self._control), looks_s=LOOKS_S),
        )
        self.set(0)

    def set(self, offset_ms: int) -> None:
        descriptor = os.open(self._control, os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(descriptor, struct.pack("q", offset_ms), 0)
        finally:
            os.close(descriptor)

    def show(self, wall_ms: int) -> None:
        """Let the clock show that moment now."""
        self.set(wall_ms - SystemClock().wall_ms())


COURSES = {
    "an hour back": [0, -HOUR_MS],
    "half a minute back, and again": [0, -30_000, -60_000, -90_000],
    "an hour ahead": [0, HOUR_MS],
    "ten years ahead and back": [0, 10 * YEAR_MS, 0],
    "ten years back and ahead": [0, -10 * YEAR_MS, 0],
    "all ways": [0, HOUR_MS, -HOUR_MS, 10 * YEAR_MS, -10 * YEAR_MS, 0],
}
IN_CI = {"all ways"}


@pytest.mark.parametrize(
    "course",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in COURSES],
)
async def test_p2_p4_clock_that_is_set_delays_and_expires_nothing(
    tmp_path: Path, course: str
) -> None:
    """Deferred mail waits its seconds, not the step's; all goes out, none of it too old."""
    offset = Offset(tmp_path)
    upstream = f"{FAST_START}\n[retry]\nfirst_s = 2\njitter = 0"
    settings = {"program": offset.program, "upstream": upstream}
    async with relay_and_twin(tmp_path, FAST_TWIN, **settings) as (relay, twin):
        twin.fault = weather.first(8, weather.at(Stage.DOT, Say(texts.TEMPORARY_454)))
        load = Load(relay, twin, count=300)
        load.start()
        steps = COURSES[course]
        for n, (before, after) in enumerate(pairwise(steps), 1):
            await load.accepted(300 * n // len(steps))
            assert before != after
            offset.set(after)
            await asyncio.sleep(2 * LOOKS_S)  # The relay may look at it before the next step.

        async with asyncio.timeout(30):
            assert await load.audited() == 0
        assert "envelope expired" not in relay.log
        assert "Traceback" not in relay.log


@pytest.mark.parametrize(
    "wall_ms",
    [
        pytest.param(0, id="1970"),
        pytest.param(BEFORE_2038_MS, id="2038", marks=pytest.mark.slow),
        pytest.param(BEFORE_2038_MS + 100 * YEAR_MS, id="2138", marks=pytest.mark.slow),
    ],
)
async def test_p2_p4_clock_that_was_never_set_costs_nothing(tmp_path: Path, wall_ms: int) -> None:
    """Mail of 1970, and across 2^31 seconds, goes out; also after a start on the right day."""
    offset = Offset(tmp_path)
    offset.show(wall_ms)
    settings = {"program": offset.program, "upstream": FAST_START, "words": ("--paused",)}
    async with relay_and_twin(tmp_path, FAST_TWIN, **settings) as (relay, twin):
        load = Load(relay, twin, count=100)
        load.start()
        await load.accepted(50)
        assert await relay.stop() == 0
        offset.set(0)
        relay.words = ()
        await relay.start()
        await relay.command("resume")

        async with asyncio.timeout(30):
            assert await load.audited() == 0
        assert "envelope expired" not in relay.log
        assert "Traceback" not in relay.log


def test_p2_mail_of_before_the_clock_was_set_is_as_old_as_the_process() -> None:
    """Its queue is long, so that it still waits when nothing is excused any more."""
    started_at = 1_800_000_000_000
    ageing = Ageing(started_at)

    assert not ageing.expired(5000, 24, (), started_at + GRACE_MS)
    assert not ageing.expired(5000, 24, (), started_at + 24 * HOUR_MS)
    assert ageing.expired(5000, 24, (), started_at + 24 * HOUR_MS + 1)


@pytest.mark.parametrize("back_ms", [1000, 30_000, HOUR_MS, 10 * YEAR_MS])
async def test_p4_deferred_mail_follows_a_clock_that_is_set_back(
    tmp_path: Path, back_ms: int
) -> None:
    """It is due after the seconds that it had left, whatever the step; parked mail as well."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        soon, late = await keep(spool), await keep(spool, cost=2)
        before_ms = clock.wall_ms()
        await settle(spool, soon, Rescheduled(n=0, due_at=before_ms + 60_000, attempts=1))
        await settle(spool, late, Rescheduled(n=1, due_at=before_ms + HOUR_MS, attempts=1))
        clock.step_wall(-back_ms)
        now_ms = clock.wall_ms()

        await spool.clamp_due(now_ms + 2 * HOUR_MS, back_ms)

        assert {one.envelope.id for one in await read(spool, now_ms + 60_000)} == {soon.id, late.id}
        assert [one.envelope.id for one in await read(spool, now_ms + 59_999)] == [late.id]
    times = query(tmp_path, "SELECT due_at FROM recipient ORDER BY due_at")
    assert times[1:] == [(now_ms + 60_000,), (now_ms + HOUR_MS,)]

"""What sending has come to is said in the log: once for each change, and never too often."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.service.phases import APART_S, LOOK_S, Phases
from tests.fakes.clock import ManualClock
from tests.fakes.figures import upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay.figures import UpstreamFigures


class Watched:
    """Upstreams whose figures a test sets, and the lines that are said of them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "relay")
        self._caplog = caplog
        self.clock = ManualClock()
        self.shown: tuple[UpstreamFigures, ...] = ()
        self.failed: list[str] = []
        self.phases = Phases(lambda: self.shown, self.clock, self.failed.append)

    async def show(self, *upstreams: UpstreamFigures, for_s: float = 2 * APART_S) -> None:
        """Let the figures stand for a while, looked at each second."""
        self.shown = upstreams
        for _ in range(round(for_s / LOOK_S)):
            self.phases.note()
            await self.clock.advance(LOOK_S)

    def said(self) -> list[tuple[str, str, int]]:
        """Upstream, words and level of each line."""
        return [
            (record.__dict__["upstream"], record.__dict__["rate"], record.levelno)
            for record in self._caplog.records
            if record.getMessage() == "sending rate"
        ]

    def words(self) -> list[str]:
        return [words for _, words, _ in self.said()]


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Iterator[Watched]:
    one = Watched(caplog)
    yield one
    assert one.failed == []


async def test_each_phase_is_said_once_in_the_words_of_status(watched: Watched) -> None:
    """From the search to holding; that it goes on holding is no news."""
    for phase in ("searching", "settling", "holding", "holding"):
        await watched.show(upstream(phase=phase, rate_words=f"{phase} as status says"))

    assert watched.said() == [
        ("ses", "searching as status says", logging.INFO),
        ("ses", "settling as status says", logging.INFO),
        ("ses", "holding as status says", logging.INFO),
    ]


async def test_probes_and_rests_are_no_news(watched: Watched) -> None:
    """A mail a minute would make lines of the one, a limit that is held of the other."""
    for phase in ("idle", "holding", "probing", "holding", "idle", "probing", "idle"):
        await watched.show(upstream(phase=phase, rate_words=phase))

    assert watched.words() == ["holding"]


async def test_sessions_that_hold_sending_back_are_a_warning(watched: Watched) -> None:
    """Somebody has to look at that; its end is said as well."""
    await watched.show(upstream(phase="searching", rate_words="searching"))
    await watched.show(upstream(phase="searching", rate_words="bound", session_bound=True))
    await watched.show(upstream(phase="searching", rate_words="searching"))

    assert [level for _, _, level in watched.said()] == [
        logging.INFO,
        logging.WARNING,
        logging.INFO,
    ]


async def test_phases_that_flicker_are_said_seldom(watched: Watched) -> None:
    """A line in ``APART_S`` and upstream at most."""
    for n in range(60):
        phase = ("searching", "holding")[n % 2]
        await watched.show(upstream(phase=phase, rate_words=phase), for_s=LOOK_S)

    assert 3 <= len(watched.said()) <= 60 * LOOK_S / APART_S + 1


async def test_upstreams_are_said_each_for_itself(watched: Watched) -> None:
    """What one does is no news of another."""
    one, other = upstream(rate_words="holding"), upstream(name="other", rate_words="holding too")

    await watched.show(one)
    await watched.show(one, other)

    assert [(name, words) for name, words, _ in watched.said()] == [
        ("ses", "holding"),
        ("other", "holding too"),
    ]


async def test_spent_quota_is_a_warning_and_its_end_a_line(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """Each once, with what was used of it; a new day's end is said again."""
    fresh, spent = (upstream(phase="idle", quota_used=n) for n in (300, 400))
    for one in (fresh, spent, fresh, spent):
        await watched.show(replace(one, quota_spent_at=5 if one is spent else None))

    assert [
        (record.levelno, record.getMessage(), record.__dict__["used"]) for record in caplog.records
    ] == [
        (logging.WARNING, "daily quota spent", 400),
        (logging.INFO, "daily quota has room again", 300),
        (logging.WARNING, "daily quota spent", 400),
    ]


async def test_watching_goes_on_after_a_surprise(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and counted, and the next look is taken."""
    watched, looks = Watched(caplog), []

    def figures() -> tuple[UpstreamFigures, ...]:
        looks.append(watched.clock.monotonic())
        if len(looks) == 1:
            raise ZeroDivisionError
        return (upstream(rate_words="holding"),)

    phases = Phases(figures, watched.clock, watched.failed.append)
    running = asyncio.ensure_future(phases.run())
    await watched.clock.advance(3 * LOOK_S)
    running.cancel()

    assert len(looks) == 3
    assert watched.failed == ["service"]
    assert watched.words() == ["holding"]

"""What the relay does with AWS's word: a start for the shaper, lines in log and status."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from relay import config, control
from relay.cli.status import _lines
from relay.service import accounts
from relay.service.accounts import EVERY_S, FIRST_S, Accounts
from relay.service.relay import Relay
from relay.shaper import Cause, Shaper
from relay.twin import Policy
from tests.fakes.aws import (
    ACCOUNT_ID,
    KEY_ID,
    OTHER_KEY_ID,
    US_EAST,
    FakeAws,
    Said,
    error_v1,
    error_v2,
    fake_aws,
    only_ask,
)
from tests.fakes.clock import ManualClock
from tests.fakes.rawsmtp import OPEN, playing
from tests.fakes.spool_file import ROOMY, open_spool, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DENIED = error_v2("AccessDeniedException")


def said(rate: float, **more: object) -> Said:
    """What GetAccount answers."""
    quota = {"Max24HourSend": 50_000.0, "MaxSendRate": rate, "SentLast24Hours": 12.0}
    standing = {"SendingEnabled": True, "ProductionAccessEnabled": True}
    whole = {"SendQuota": quota, **standing, "EnforcementStatus": "HEALTHY", **more}
    return Said(200, json.dumps(whole))


@dataclass
class Asking:
    """An ``Accounts`` that runs, on a clock turned by hand, and the AWS that it asks."""

    aws: FakeAws
    accounts: Accounts
    shapers: dict[str, Shaper]
    clock: ManualClock
    failures: list[str]
    days: list[tuple[str, int | None, int | None]]
    """What was said of an account's day: upstream, size, used."""

    @property
    def limit_per_s(self) -> float | None:
        return self.shapers["ses"].snapshot().limit_per_s

    @property
    def wait_s(self) -> float:
        """Until the next question."""
        [at] = [at for at, _, future in self.clock._waiting if not future.done()]
        return at - self.clock.monotonic()

    async def poll(self, after_s: float = EVERY_S, questions: int = 1) -> None:
        """Pass the time and wait until what was asked then is answered and heard."""
        wanted = len(self.aws.asked) + questions
        await self.clock.advance(after_s)
        await until(lambda: len(self.aws.asked) >= wanted)
        # Heard, once it sleeps until the next question.
        await until(lambda: any(not future.done() for _, _, future in self.clock._waiting))


def ses(**more: object) -> config.Upstream:
    return replace(config.Upstream(host=US_EAST, username=KEY_ID), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def asking(
    folder: Path,
    patch: pytest.MonkeyPatch,
    first: Said,
    *upstreams: config.Upstream,
    key_id: str | None = KEY_ID,
) -> AsyncIterator[Asking]:
    """It runs inside the block, and has not asked yet."""
    ours, clock, failures = upstreams or (ses(),), ManualClock(), list[str]()
    days = list[tuple[str, int | None, int | None]]()
    with fake_aws(v2=first, v1=error_v1("AccessDenied")) as aws:
        only_ask(aws.url, folder, patch, key_id)
        async with open_spool(folder, clock) as spool:
            shapers = {one.name: Shaper(one.rate) for one in ours}
            made = Accounts(
                *(ours, shapers, spool, clock, failures.append),
                on_day=lambda name, of: days.append((name, of.max_24_h, of.sent_24_h)),
            )
            await made.restore()
            running = asyncio.create_task(made.run())
            try:
                yield Asking(aws, made, shapers, clock, failures, days)
                await made.save()
            finally:
                running.cancel()
                await asyncio.wait([running])


# -- The day -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "days"),
    [(KEY_ID, [("ses", 50_000, 12)] * 2), ("AKIAIOSFODNN7EXAMPLE", []), ("sandbox", [])],
)
async def test_day_is_told_to_the_quota_only_of_an_account_that_is_surely_ours(
    username: str,
    days: list[tuple[str, int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The full day of another account, whose credentials lie about, stops nobody."""
    ours = ses(username=username)
    async with asking(tmp_path, monkeypatch, said(14.0), ours) as relay:
        await relay.poll(FIRST_S)
        await relay.poll()

        assert relay.accounts.figures_of("ses") is not None
        assert relay.days == days


# -- A start for the shaper ----------------------------------------------------------------


async def test_number_starts_the_shaper_and_then_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after the start an ignorant shaper begins at AWS's number; measurements stand then."""
    async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
        shaper = relay.shapers["ses"]
        await relay.poll(FIRST_S)
        started = relay.limit_per_s
        [change] = shaper.changes()
        shaper.restore(relay.clock.monotonic(), {"limit_per_s": 9.0, "confidence": 0.99})
        await relay.poll()

        assert started == pytest.approx(14, rel=0.01)
        assert change.cause is Cause.AWS
        assert relay.limit_per_s == pytest.approx(9, rel=0.01)


@pytest.mark.parametrize(("told", "limit"), [(50.0, 50.0), (5.0, 5.0), (14.05, 9.0)])
async def test_changed_number_is_used_at_once(
    told: float, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised or lowered in mid-campaign, it is the new start; the same number is none."""
    async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
        await relay.poll(FIRST_S)
        learned = {"limit_per_s": 9.0, "confidence": 0.99}
        relay.shapers["ses"].restore(relay.clock.monotonic(), learned)
        relay.aws.v2 = said(told)
        await relay.poll()

        assert relay.limit_per_s == pytest.approx(limit, rel=0.01)


async def test_answer_without_a_number_makes_the_last_one_no_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14, nothing, 50: that was a raise from 14, and is used."""
    async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
        await relay.poll(FIRST_S)
        for answer in (said(14.0, SendQuota={}), said(50.0)):
            relay.aws.v2 = answer
            await relay.poll()

        assert relay.limit_per_s == pytest.approx(50, rel=0.01)


async def test_change_while_the_relay_was_stopped_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS's number outlives a restart, so that a learned limit yields to a raise, only to that."""
    limits = []
    for told in (14.0, 14.0, 50.0):
        async with asking(tmp_path, monkeypatch, said(told)) as relay:
            learned = {"limit_per_s": 9.0, "confidence": 0.99}
            relay.shapers["ses"].restore(relay.clock.monotonic(), learned)
            await relay.poll(FIRST_S)
            limits.append(relay.limit_per_s)

    assert limits == pytest.approx([9, 9, 50], rel=0.01)


async def test_ceiling_and_floor_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``relay.toml`` allows is never left on AWS's word."""
    low = ses(name="low", rate=config.Rate(start_per_s=2, ceiling_per_s=5))
    high = ses(name="high", rate=config.Rate(start_per_s=30, floor_per_s=20))

    async with asking(tmp_path, monkeypatch, said(14.0), low, high) as relay:
        await relay.poll(FIRST_S)

        assert relay.shapers["low"].snapshot().rate_per_s <= 5
        assert relay.shapers["high"].snapshot().rate_per_s >= 20


async def test_upstreams_of_one_region_are_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS takes one a second; the twin on loopback is not asked about at all."""
    ours = (ses(name="a"), ses(name="b"), ses(name="twin", host="127.0.0.1"))

    async with asking(tmp_path, monkeypatch, said(14.0), *ours) as relay:
        await relay.poll(FIRST_S)

        assert len(relay.aws.asked) == 1
        assert [relay.accounts.figures_of(one) is None for one in ("a", "b", "twin")] == [
            *(False, False),
            True,
        ]


async def test_number_of_another_account_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The SMTP user's key is of one account, the credentials on the machine of another."""
    caplog.set_level(logging.INFO)
    ours = (ses(name="ses", username="AKIA" + OTHER_KEY_ID[4:]), ses(name="same"))

    async with asking(tmp_path, monkeypatch, said(14.0), *ours) as relay:
        await relay.poll(FIRST_S)

        assert relay.limit_per_s is None
        assert relay.accounts.figures_of("ses") is None
        assert relay.shapers["same"].snapshot().limit_per_s == pytest.approx(14, rel=0.01)
    [line] = [one for one in caplog.records if one.msg == "AWS says nothing of the account"]
    assert line.__dict__["upstreams"] == "ses"
    assert ACCOUNT_ID not in str(line.__dict__)


# -- Silence -------------------------------------------------------------------------------


async def test_silence_is_one_line_and_ever_fewer_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No right to ask: waits that double, one INFO line, no failure; an answer ends it."""
    caplog.set_level(logging.DEBUG)

    async with asking(tmp_path, monkeypatch, DENIED) as relay:
        await relay.poll(FIRST_S, questions=2)
        waits = [relay.wait_s]
        for _ in range(2):
            await relay.poll(waits[-1], questions=2)
            waits.append(relay.wait_s)
        relay.aws.v2 = said(14.0)
        await relay.poll(waits[-1])
        waits.append(relay.wait_s)

        assert waits == pytest.approx([600, 1200, 2400, EVERY_S])
        assert relay.limit_per_s == pytest.approx(14, rel=0.01)
        assert relay.failures == []
    ours = [one for one in caplog.records if one.name.startswith("relay.service.accounts")]
    assert [(one.levelname, one.msg) for one in ours] == [
        ("INFO", "AWS says nothing of the account"),
        ("INFO", "AWS says of the account"),
    ]
    assert not [one for one in caplog.records if one.name.startswith(("boto", "urllib3"))]


async def test_without_the_extra_nobody_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """boto3 cannot be imported: one line, and the loop is over until the next start."""
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "relay.aws.vendor", None)

    async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
        await relay.clock.advance(FIRST_S)
        await until(lambda: bool(caplog.records))
        await relay.clock.advance(10 * EVERY_S)

        assert relay.aws.asked == []
    [line] = caplog.records
    assert (line.levelname, line.__dict__["why"]) == ("INFO", "the extra [aws] is not installed")


async def test_surprise_is_counted_and_asking_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours costs one poll; its text is not logged, since credentials are near."""

    def surprise(*_: object) -> bool:
        raise KeyError("hunter2")

    with monkeypatch.context() as broken:
        broken.setattr(accounts, "prior", surprise)
        async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
            await relay.poll(FIRST_S)
            await until(lambda: bool(relay.failures))
            broken.undo()
            only_ask(relay.aws.url, tmp_path, monkeypatch)
            await relay.poll(2 * EVERY_S)

            assert relay.failures == ["aws"]
            assert relay.limit_per_s == pytest.approx(14, rel=0.01)
    assert "KeyError" in str([one.__dict__ for one in caplog.records])
    assert "hunter2" not in str([one.__dict__ for one in caplog.records])


# -- What people see -----------------------------------------------------------------------


async def test_trouble_is_said_once_when_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Paused between two polls: one warning, not one a poll; again if it comes back."""
    caplog.set_level(logging.WARNING)
    paused = said(14.0, SendingEnabled=False)

    async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
        await relay.poll(FIRST_S)
        for answer in (paused, paused, said(14.0), paused):
            relay.aws.v2 = answer
            await relay.poll()

    troubles = [one.__dict__["trouble"] for one in caplog.records]
    assert troubles == ["AWS has paused sending for this account"] * 2


async def test_credentials_are_in_no_log_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At debug level, with every other library listening: neither secret nor key ID."""
    caplog.set_level(logging.DEBUG)

    async with asking(tmp_path, monkeypatch, said(14.0)) as relay:
        await relay.poll(FIRST_S)
        shown = str(relay.accounts.figures_of("ses")) + str(
            [one.__dict__ for one in caplog.records]
        )

    assert "wJalrXUtnFEMI" not in shown
    assert KEY_ID not in shown


@asynccontextmanager
async def whole_relay(folder: Path, clock: ManualClock) -> AsyncIterator[asyncio.Task[None]]:
    """A relay for an account at SES, with no mail; ends drained."""
    whole = replace(
        config.Config(),
        listen=config.Listen(port=0),
        dashboard=config.Dashboard(port=0),
        spool=replace(ROOMY, path=str(folder / "relay.db")),
        upstreams=(ses(),),
    )
    async with open_spool(folder, clock, whole.spool) as spool:
        relay = Relay(whole, spool, clock, {"ses": "password"})
        running = asyncio.create_task(relay.run())
        started = asyncio.create_task(relay.ready.wait())
        await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        try:
            yield running
        finally:
            relay.drain()
            await running


async def status(folder: Path) -> dict[str, Any]:
    path = control.socket_path(folder / "relay.db")
    figures = await asyncio.to_thread(partial(control.ask, path, "status"))
    assert figures is not None
    return figures


async def test_status_shows_what_the_twin_says_of_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: API of the double of SES, boto3, relay, control socket, ``relay status``."""
    twin_config = replace(
        OPEN, api_port=0, rate_per_s=14, quota=200, quota_used=7, policy=Policy(sandbox=True)
    )
    clock = ManualClock()
    async with playing(twin_config) as twin:
        only_ask(f"http://127.0.0.1:{twin.api_port}", tmp_path, monkeypatch)
        async with whole_relay(tmp_path, clock):
            before = await status(tmp_path)
            await clock.advance(FIRST_S)
            figures = before
            async with asyncio.timeout(30):
                while not figures["upstreams"][0]["aws"]:
                    figures = await status(tmp_path)
            await clock.advance(200)
            text = "\n".join(_lines(await status(tmp_path)))

    assert before["upstreams"][0]["aws"] is None
    assert figures["upstreams"][0]["aws"]["production_access"] is False
    assert figures["upstreams"][0]["limit_per_s"] == pytest.approx(14, rel=0.01)
    assert figures["upstreams"][0]["quota_left"] == 193
    assert "  AWS says  at most 14.0/s, 7 sent in 24 h of 200, HEALTHY, as of 3 min ago\n" in text
    assert "  AWS SAYS  sandbox account: only verified recipients, 200 a day, 1/s\n" in text


async def test_limit_that_was_raised_while_the_relay_was_stopped_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay keeps what AWS said and brings it back: else the old limit would be searched on."""
    clock, figures = ManualClock(), dict[str, Any]()
    for told in (14.0, 28.0):
        with fake_aws(said(told)) as aws:
            only_ask(aws.url, tmp_path, monkeypatch)
            async with whole_relay(tmp_path, clock), asyncio.timeout(30):
                await clock.advance(FIRST_S)
                figures = await status(tmp_path)
                while not figures["upstreams"][0]["aws"]:
                    figures = await status(tmp_path)

    assert figures["upstreams"][0]["limit_per_s"] == pytest.approx(28, rel=0.01)


async def test_stop_does_not_wait_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS is mute while the relay is drained: it ends at once all the same."""
    clock = ManualClock()
    with fake_aws() as aws:
        aws.is_mute.set()
        only_ask(aws.url, tmp_path, monkeypatch)

        async with whole_relay(tmp_path, clock) as running:
            await clock.advance(FIRST_S)
            await until(aws.heard.is_set)

        assert running.done()
        assert not aws.ended.is_set()

"""The named scenarios, on a clock that is turned by hand."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.twin import (
    NO_LATENCY,
    SCENARIOS,
    Cut,
    Farewell,
    Say,
    Stage,
    Transaction,
    Twin,
    TwinConfig,
    certificate_files,
    play,
)
from tests.fakes.clock import ManualClock
from tests.fakes.rawsmtp import MESSAGE, dialled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOGIN = "AUTH PLAIN AHNhbmRib3gAc2FuZGJveA=="
RATE = "454 Throttling failure: Maximum sending rate exceeded."
QUOTA = "454 Throttling failure: Daily message quota exceeded."


def _bare(name: str, *, auth: bool = False) -> TwinConfig:
    """The scenario's settings without TLS, latency and idle cut."""
    return replace(
        SCENARIOS[name].config,
        tls="none",
        auth_required=auth,
        latency=NO_LATENCY,
        idle_s=0,
        seed=1,
    )


@asynccontextmanager
async def staged(
    name: str, clock: ManualClock, config: TwinConfig | None = None
) -> AsyncIterator[Twin]:
    """The scenario's twin, listening inside the block."""
    twin = SCENARIOS[name].twin(config or _bare(name), clock=clock)
    await twin.start()
    try:
        yield twin
    finally:
        await twin.stop()


async def _attempt(twin: Twin, content: bytes = MESSAGE, *recipients: str) -> str:
    """The reply to a message on a session of its own; 250 without its id."""
    async with dialled(twin.port) as client:
        reply = await client.message(*recipients, content=content)
    return "250" if reply.startswith("250 Ok ") else reply


def _codes(replies: list[str]) -> dict[str, int]:
    return {code: sum(reply[:3] == code for reply in replies) for code in ("250", "454")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_is_told_in_one_short_sentence(name: str) -> None:
    """It has to fit into a line of ``--list``, and its steps into a minute."""
    scenario = SCENARIOS[name]
    times = [at for at, _ in scenario.steps]

    assert scenario.words.endswith(".")
    assert len(scenario.words) <= 90
    assert times == sorted(times)
    assert all(at <= 60 for at in [*times, *(at for at, _ in scenario.config.rate_changes)])


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"expired-credentials", "slow"}))
async def test_scenario_begins_well_over_tls(name: str) -> None:
    """A client of the standard library can log in and send its first message."""

    def send(port: int) -> bytes:
        context = ssl.create_default_context(cafile=str(certificate_files()[0]))
        for _ in range(20):
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=15) as client:
                    client.starttls(context=context)
                    client.login("sandbox", "sandbox")
                    client.sendmail("a@example.com", ["b@example.com"], MESSAGE)
                    return b"sent"
            except (OSError, smtplib.SMTPException):
                if name != "links":
                    raise
        return b"never"

    config = replace(SCENARIOS[name].config, latency=NO_LATENCY, seed=1)
    async with staged(name, ManualClock(), config) as twin:
        assert await asyncio.to_thread(send, twin.port) == b"sent"

    assert twin.ledger.total.accepted == 1
    assert twin.ledger.broken == 0


async def test_play_starts_a_twin_with_its_own_settings() -> None:
    """What most tests of a relay want: a name, and a port."""
    twin = await play(SCENARIOS["caps"])

    assert twin.port > 0
    assert twin.config.session_end is Farewell.ANY
    await twin.stop()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("paused", "554 Message rejected: Sending paused for this account."),
        ("denied", "554 Access denied: User "),
        ("unverified", "554 Message rejected: Email address is not verified."),
    ],
)
async def test_trouble_of_the_account_comes_and_goes(name: str, text: str) -> None:
    """All is well for ten seconds from the first connection, then not for twenty."""
    clock = ManualClock()
    async with staged(name, clock) as twin:
        await clock.advance(100)
        replies = []
        for pause_s in (9.9, 0.1, 19.9, 0.1):
            replies.append(await _attempt(twin))
            await clock.advance(pause_s)
        replies.append(await _attempt(twin))

    assert [reply.startswith(text) for reply in replies] == [False, False, True, True, False]
    assert replies[0] == replies[1] == replies[4] == "250"


async def test_expired_credentials_are_renewed() -> None:
    """535 for twenty seconds, on the same session good after that."""
    clock = ManualClock()

    async with (
        staged("expired-credentials", clock, _bare("expired-credentials", auth=True)) as twin,
        dialled(twin.port) as client,
    ):
        assert (await client.ask(LOGIN))[:3] == "535"
        await clock.advance(19.9)
        assert (await client.ask(LOGIN))[:3] == "535"
        await clock.advance(0.1)
        assert (await client.ask(LOGIN))[:3] == "235"


@pytest.mark.parametrize(
    ("name", "rates"), [("raise", [14, 14, 28, 56]), ("cut", [40, 40, 20, 10])]
)
async def test_limit_changes_on_the_way(name: str, rates: list[float]) -> None:
    """At 15 and at 30 seconds after the first message."""
    clock = ManualClock()
    async with staged(name, clock) as twin:
        await _attempt(twin)
        found = []
        for pause_s in (14.9, 0.1, 15, 0):
            found.append(twin.rate_per_s)
            await clock.advance(pause_s)

    assert found == rates


async def test_quota_is_spent_and_comes_back_within_the_minute() -> None:
    """The 401st recipient hears 454; thirty seconds later the first ones are a day old."""
    clock = ManualClock(monotonic=10_000.0)
    many = [f"r{n}@example.org" for n in range(50)]
    async with staged("quota", clock) as twin:
        replies = []
        for _ in range(9):
            replies.append(await _attempt(twin, MESSAGE, *many))
            await clock.advance(2.1)
        await clock.advance(35)
        replies.append(await _attempt(twin, MESSAGE, *many))

    assert replies == ["250"] * 8 + [QUOTA, "250"]


async def test_sandboxed_account_refuses_strangers() -> None:
    """A recipient outside example.com is named after the dot."""
    async with staged("sandbox", ManualClock()) as twin:
        refused = await _attempt(twin, MESSAGE, "b@stranger.example")
        taken = await _attempt(twin, MESSAGE, "b@example.com")

    assert refused.startswith("554 Message rejected: Email address is not verified.")
    assert "b@stranger.example" in refused
    assert taken == "250"


async def test_headers_are_what_counts() -> None:
    """A header twice, and a configuration set that nobody made."""
    async with staged("headers", ManualClock()) as twin:
        twice = await _attempt(twin, b"From: c@example.com\r\n" + MESSAGE)
        nameless = await _attempt(twin, b"X-SES-CONFIGURATION-SET: mine\r\n" + MESSAGE)

    assert twice == "554 Transaction failed: Duplicate header 'From'."
    assert nameless.startswith("554 ")
    assert "mine" in nameless


@pytest.mark.parametrize(
    ("name", "accepted"), [("window", 50), ("effective", 40), ("charged", 50), ("sigv2", 14)]
)
async def test_account_admits_its_share_at_once(name: str, accepted: int) -> None:
    """Of sixty messages in no time so many pass."""
    async with staged(name, ManualClock(), replace(_bare(name), session_age_s=None)) as twin:
        replies = [await _attempt(twin) for _ in range(60)]

    assert _codes(replies) == {"250": accepted, "454": 60 - accepted}


def _weather(name: str, stage: Stage, clock: ManualClock, n: int) -> list[object]:
    """What strikes at ``stage`` in ``n`` questions, a tenth of a second apart."""
    twin = SCENARIOS[name].twin(_bare(name), clock=clock)
    fault = twin.fault
    assert fault is not None
    actions: list[object] = []
    for _ in range(n):
        actions.append(fault(stage, Transaction(session=1)))
        clock._pass(0.1)
    return actions


@pytest.mark.parametrize(
    ("stage", "texts"),
    [
        (Stage.DOT, {"454 Temporary service failure", "451 Temporary service failure"}),
        (Stage.AUTH, {"454 Temporary authentication failure"}),
        (Stage.MAIL, set()),
    ],
)
def test_temporary_failures_come_in_bursts(stage: Stage, texts: set[str]) -> None:
    """Each wording has three of every twenty seconds."""
    actions = _weather("temporary", stage, ManualClock(), 400)

    said = [action.text for action in actions if isinstance(action, Say)]
    assert set(said) == texts
    assert len(said) == pytest.approx(60 * len(texts), abs=2 * len(texts))


@pytest.mark.parametrize("stage", Stage)
def test_links_break_at_every_stage(stage: Stage) -> None:
    """Rarely; at the dot with both outcomes, and TLS also meets garbage."""
    actions = {action for action in _weather("links", stage, ManualClock(), 20_000) if action}

    wanted: set[object] = {Cut(reset=True)}
    if stage is Stage.DOT:
        wanted.add(Cut(reset=True, done=True))
    if stage is Stage.TLS:
        wanted.add(Say("HTTP/1.1 400 Bad Request"))
    assert actions == wanted


def test_outage_cuts_everything_and_ends() -> None:
    """From ten to twenty seconds after the first connection, again half a minute later."""
    actions = _weather("outage", Stage.CONNECT, ManualClock(), 600)

    struck = {n // 10 for n, action in enumerate(actions) if action}
    assert struck <= {*range(9, 21), *range(39, 51)}
    assert len([action for action in actions if action]) == pytest.approx(200, abs=4)

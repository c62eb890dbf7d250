"""What the twin offers at EHLO, whom it lets in, and how its replies travel."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import time
from dataclasses import replace
from typing import Literal

import pytest

from relay.twin import NO_LATENCY, Latency, Stage, TwinConfig, certificate_files, delay
from tests.fakes.rawsmtp import OPEN, dialled, playing

HEAD, TAIL = "250-email-smtp.amazonaws.com\n250-8BITMIME\n", "250-AUTH PLAIN LOGIN\n250 Ok"
STARTTLS = "250-STARTTLS\n"
SIZE = "250-SIZE 10485760\n"
LOGIN = "AUTH PLAIN AHNhbmRib3gAc2FuZGJveA=="


@pytest.mark.parametrize(
    ("profile", "before", "after"),
    [
        ("2025", STARTTLS, ""),
        ("2020", SIZE + STARTTLS, SIZE),
        ("odd", STARTTLS, STARTTLS),
    ],
)
async def test_profile_says_what_is_offered_before_and_in_tls(
    profile: Literal["2025", "2020", "odd"], before: str, after: str
) -> None:
    """Every byte of both replies."""
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    config = replace(OPEN, tls="starttls", ehlo=profile)

    async with playing(config) as twin, dialled(twin.port) as client:
        assert await client.ask("EHLO x") == HEAD + before + TAIL
        await client.ask("STARTTLS")
        await client.writer.start_tls(context, server_hostname="localhost")
        assert await client.ask("EHLO x") == HEAD + after + TAIL
        assert (await client.ask("STARTTLS"))[:3] == "454"


@pytest.mark.parametrize("profile", ["2025", "2020", "odd"])
async def test_what_ses_does_not_offer_is_in_no_profile(
    profile: Literal["2025", "2020", "odd"],
) -> None:
    """As smtplib reads the reply; SIZE only in the old one."""

    def features(port: int) -> set[str]:
        with smtplib.SMTP("127.0.0.1", port, timeout=15) as client:
            client.ehlo()
            return set(client.esmtp_features)

    async with playing(replace(OPEN, ehlo=profile)) as twin:
        found = await asyncio.to_thread(features, twin.port)

    assert found - {"ok"} == {"8bitmime", "auth"} | ({"size"} if profile == "2020" else set())


async def test_credentials_can_expire_and_come_back() -> None:
    """535 for the right password, while a session that was let in before goes on."""
    async with playing(replace(OPEN, auth_required=True)) as twin, dialled(twin.port) as old:
        assert (await old.ask(LOGIN))[:3] == "235"
        twin.credentials_valid = False
        async with dialled(twin.port) as new:
            assert await new.ask(LOGIN) == "535 Authentication Credentials Invalid"
            assert (await old.message())[:3] == "250"
            twin.credentials_valid = True
            assert (await new.ask(LOGIN))[:3] == "235"


async def test_credentials_can_be_bad_from_the_start() -> None:
    """As with a key that was deleted."""
    config = replace(OPEN, auth_required=True, credentials_valid=False)

    async with playing(config) as twin, dialled(twin.port) as client:
        assert await client.ask(LOGIN) == "535 Authentication Credentials Invalid"


async def test_bytewise_replies_are_as_many_pieces_as_bytes() -> None:
    """Each byte is a write of its own, and the dialogue is the same."""
    async with playing(replace(OPEN, bytewise=True)) as twin, dialled(twin.port) as client:
        assert await client.ask("EHLO x") == HEAD + TAIL
        (session,) = twin._shared.sessions
        written = session._link._records
        assert await client.ask("NOOP") == "250 Ok"
        assert session._link._records == written + len("250 Ok\r\n")
        assert (await client.message())[:3] == "250"
        assert await client.ask("QUIT") == "221 Bye"
        assert await client.is_closed()


def _bytewise(port: int) -> tuple[int, int, int]:
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    with smtplib.SMTP("127.0.0.1", port, timeout=15) as client:
        started, _ = client.starttls(context=context)
        authenticated, _ = client.login("sandbox", "sandbox")
        client.mail("a@example.com")
        client.rcpt("b@example.org")
        accepted, _ = client.data(b"Subject: x\r\n\r\nx\r\n")
        return started, authenticated, accepted


async def test_odd_bytewise_twin_serves_smtplib() -> None:
    """The standard library's client gets through it, TLS and login included."""
    config = TwinConfig(ehlo="odd", bytewise=True, latency=NO_LATENCY)

    async with playing(config) as twin:
        assert await asyncio.to_thread(_bytewise, twin.port) == (220, 235, 250)


async def test_stalls_hit_their_share_of_the_replies() -> None:
    """At a share of one every reply is late, at none no reply is."""
    stalling = replace(NO_LATENCY, stall_share=1.0, stall_s=(0.05, 0.06))

    async with playing(replace(OPEN, latency=stalling)) as twin, dialled(twin.port) as client:
        start = time.monotonic()
        for _ in range(3):
            await client.ask("NOOP")

        assert time.monotonic() - start >= 3 * 0.049


class Chance:
    """Draws what it was told to."""

    def __init__(self, *draws: float) -> None:
        self._draws = iter(draws)

    def random(self) -> float:
        return next(self._draws)

    def gauss(self) -> float:
        return next(self._draws)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._draws)


@pytest.mark.parametrize(
    ("stage", "is_yes", "draws", "seconds"),
    [
        (Stage.MAIL, True, (0.0, 0.5), 0.08),
        (Stage.MAIL, True, (1.0, 0.5), 0.12),
        (Stage.MAIL, True, (0.5, 0.05, 0.5), 0.1 + 3),
        (Stage.DOT, True, (0.5, 0.0, 0.5), 0.1 + 0.15),
        (Stage.DOT, False, (0.5, 0.5), 0.1 + 0.03),
    ],
    ids=["early", "late", "stalled", "accepted", "refused"],
)
def test_wait_is_the_sum_of_its_parts(
    stage: Stage, draws: tuple[float, ...], seconds: float, *, is_yes: bool
) -> None:
    """Round trip with its jitter, the dot's own time, and a stall for one reply in ten."""
    latency = Latency(rtt_s=0.1, jitter=0.2, stall_share=0.1, stall_s=(2, 4))

    found = delay.reply_s(latency, stage, is_yes=is_yes, chance=Chance(*draws))  # type: ignore[arg-type]

    assert found == pytest.approx(seconds)

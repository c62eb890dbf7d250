"""TLS and logins of the twin, as the standard library's ``smtplib`` finds them."""

from __future__ import annotations

import asyncio
import math
import smtplib
import socket
import ssl
import time
from dataclasses import replace
from typing import Literal

import pytest

from relay.twin import (
    NO_LATENCY,
    Cut,
    Say,
    Stage,
    Stall,
    Twin,
    TwinConfig,
    certificate_files,
    weather,
)
from tests.fakes.rawsmtp import MESSAGE, OPEN, PATIENCE_S, RawSmtp, dialled, playing

STARTTLS = TwinConfig(latency=NO_LATENCY, idle_s=0, seed=1)
IMPLICIT = replace(STARTTLS, tls="implicit")


def _trusting() -> ssl.SSLContext:
    """A client that trusts our certificate and nothing else, as strictly as Python can be."""
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def _send(client: smtplib.SMTP) -> str:
    """One message; returns the text of its 250."""
    client.mail("a@example.com")
    client.rcpt("b@example.org")
    code, text = client.data(MESSAGE)
    assert code == 250
    return text.decode()


def _starttls(port: int, host: str) -> tuple[set[str], set[str], str]:
    with smtplib.SMTP(host, port, timeout=15) as client:
        client.ehlo()
        before = set(client.esmtp_features)
        code, text = client.starttls(context=_trusting())
        assert (code, text) == (220, b"Ready to start TLS")
        client.ehlo()
        after = set(client.esmtp_features)
        assert client.login("sandbox", "sandbox")[0] == 235
        return before, after, _send(client)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_starttls_login_and_mail_by_smtplib(host: str) -> None:
    """A strict client verifies the certificate by address and by name; TLS is offered once."""
    async with playing(STARTTLS) as twin:
        before, after, text = await asyncio.to_thread(_starttls, twin.port, host)

    assert "starttls" in before
    assert "starttls" not in after
    assert text == f"Ok {twin.ledger.records[0].id}"


async def test_implicit_tls_by_smtplib() -> None:
    """TLS from the first byte."""

    def send(port: int) -> str:
        with smtplib.SMTP_SSL("127.0.0.1", port, timeout=15, context=_trusting()) as client:
            client.login("sandbox", "sandbox")
            return _send(client)

    async with playing(IMPLICIT) as twin:
        text = await asyncio.to_thread(send, twin.port)

    assert text == f"Ok {twin.ledger.records[0].id}"


async def test_untrusting_client_gives_up_and_harms_nobody() -> None:
    """A client that does not know our CA ends the handshake; the next one is served."""

    def distrust(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=15) as client:
            client.starttls(context=ssl.create_default_context())

    async with playing(STARTTLS) as twin:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(distrust, twin.port)
        await asyncio.to_thread(_starttls, twin.port, "127.0.0.1")

    assert twin.ledger.tls_failures <= 1  # with TLS 1.3 the server may be done before the alert
    assert twin.ledger.broken == 0
    assert twin.ledger.sessions_open == 0


async def test_garbage_instead_of_a_handshake_ends_that_session_only() -> None:
    """Plain text after 220 is no ClientHello."""
    async with playing(STARTTLS) as twin:
        async with dialled(twin.port) as client:
            assert await client.ask("STARTTLS") == "220 Ready to start TLS"
            client.send(b"EHLO in the clear\r\n" * 10)
            assert b"250" not in await _rest(client)
        await asyncio.to_thread(_starttls, twin.port, "127.0.0.1")

    assert twin.ledger.tls_failures == 1
    assert twin.ledger.broken == 0
    assert twin.ledger.sessions_open == 0


async def _rest(client: RawSmtp) -> bytes:
    """All that still comes before the end: a TLS alert, nothing, or a reset."""
    try:
        return await client.reader.read()
    except ConnectionResetError:
        return b""


async def test_what_is_sent_after_starttls_in_the_clear_is_dropped() -> None:
    """Commands smuggled in before the handshake are never run inside it (RFC 3207)."""
    async with (
        playing(replace(STARTTLS, auth_required=False)) as twin,
        dialled(twin.port) as client,
    ):
        client.send(b"STARTTLS\r\nMAIL FROM:<evil@x.org>\r\n")
        assert await client.reply() == "220 Ready to start TLS"
        await client.writer.start_tls(_trusting(), server_hostname="localhost")

        assert await client.ask("MAIL FROM:<good@x.org>") == "250 Ok"
        assert await client.ask("STARTTLS") == (
            "454 TLS not available due to temporary reason: TLS already active"
        )


async def test_login_before_tls_is_forgotten_in_it() -> None:
    """With TLS the session starts anew: what the clear part said does not count."""
    config = replace(OPEN, tls="starttls", auth_required=True)

    async with playing(config) as twin, dialled(twin.port) as client:
        assert await client.ask("STARTTLS") == "220 Ready to start TLS"
        await client.writer.start_tls(_trusting(), server_hostname="localhost")

        assert await client.ask("MAIL FROM:<a@x.org>") == "530 Authentication required"


async def test_wrong_password_is_535_and_the_session_lives() -> None:
    """The library's own error, then a login that succeeds on the same session."""

    def attempt(port: int) -> tuple[int, bytes | str]:
        with smtplib.SMTP_SSL("127.0.0.1", port, timeout=15, context=_trusting()) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError) as error:
                client.login("sandbox", "wrong")
            client.login("sandbox", "sandbox")
            _send(client)
        return error.value.smtp_code, error.value.smtp_error

    async with playing(IMPLICIT) as twin:
        assert await asyncio.to_thread(attempt, twin.port) == (
            535,
            b"Authentication Credentials Invalid",
        )


async def test_stop_cuts_sessions_in_any_state_and_start_takes_the_same_port() -> None:
    """Greeted, in a body, in a TLS handshake: all are cut at once, and the port comes back."""
    twin = Twin(replace(STARTTLS, auth_required=False))
    port = await twin.start()

    async with dialled(port) as greeted, dialled(port) as shaking, dialled(port) as safe:
        assert await shaking.ask("STARTTLS") == "220 Ready to start TLS"
        await safe.ask("STARTTLS")
        await safe.writer.start_tls(_trusting(), server_hostname="localhost")
        await safe.envelope()
        await twin.stop()
        await twin.stop()
        for client in (greeted, shaking, safe):
            assert await client.is_closed()

    assert twin.ledger.sessions_open == 0
    assert await twin.start() == port
    async with dialled(port) as again:
        assert await again.ask("QUIT") == "221 Bye"
    await twin.stop()


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
@pytest.mark.parametrize("turns", range(6))
async def test_stop_cuts_a_link_that_is_just_being_accepted(
    turns: int, tls: Literal["none", "starttls", "implicit"]
) -> None:
    """Whatever turn of the loop it has come to, no session is left once ``stop`` is back."""
    twin = Twin(replace(OPEN, tls=tls))
    port = await twin.start()

    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S):
        for _ in range(turns):
            await asyncio.sleep(0)
        await twin.stop()
        for _ in range(10):
            await asyncio.sleep(0)

        assert twin.ledger.sessions_open == 0


async def test_own_certificate_is_used_when_configured() -> None:
    """A pair given by path takes the place of ours."""
    cert, key = certificate_files()

    async with playing(replace(STARTTLS, cert_file=str(cert), key_file=str(key))) as twin:
        await asyncio.to_thread(_starttls, twin.port, "127.0.0.1")

    with pytest.raises(FileNotFoundError):
        Twin(replace(STARTTLS, cert_file="missing.pem"))


def test_public_certificate_can_vouch_for_loopback_only() -> None:
    """Even if somebody trusted it, its public key could not pass for anybody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate_files()[0])
    (cert,) = context.get_ca_certs()

    assert cert["subjectAltName"] == (
        ("DNS", "localhost"),
        ("IP Address", "127.0.0.1"),
        ("IP Address", "0:0:0:0:0:0:0:1"),
    )
    text = certificate_files()[1].read_text()
    assert "protects nothing" in text


SECURE = replace(OPEN, tls="starttls")


async def _hello(client: RawSmtp) -> None:
    """Begin TLS as a client that trusts the twin; raises what the handshake raises."""
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    assert await client.ask("STARTTLS") == "220 Ready to start TLS"
    async with asyncio.timeout(PATIENCE_S):
        await client.writer.start_tls(context, server_hostname="localhost")


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_handshake_can_meet_garbage(tls: Literal["starttls", "implicit"]) -> None:
    """Plain text in ServerHello's place: OpenSSL calls it a wrong version."""
    fault = weather.at(Stage.TLS, Say("HTTP/1.1 400 Bad Request"))

    async with playing(replace(OPEN, tls=tls), fault=fault) as twin:
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong version|record layer"):
            await _secure_client(twin.port, tls)
        twin.fault = None
        await _secure_client(twin.port, tls)

    assert twin.ledger.tls_failures == 1
    assert twin.ledger.broken == 0
    assert twin.ledger.sessions_open == 0


async def _secure_client(port: int, tls: str) -> None:
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    if tls == "implicit":
        async with dialled(port, tls=context):
            return
    async with dialled(port) as client:
        await _hello(client)
        assert await client.ask("NOOP") == "250 Ok"


@pytest.mark.parametrize("is_reset", [False, True])
async def test_handshake_can_meet_the_end_of_the_link(*, is_reset: bool) -> None:
    """After 220 the link goes, without a single byte of TLS."""
    async with (
        playing(SECURE, fault=weather.at(Stage.TLS, Cut(reset=is_reset))) as twin,
        dialled(twin.port) as client,
    ):
        assert await client.ask("STARTTLS") == "220 Ready to start TLS"
        assert await client.is_reset() is is_reset

    assert twin.ledger.tls_failures == 1


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_handshake_can_come_late(tls: Literal["starttls", "implicit"]) -> None:
    """ClientHello is kept meanwhile, and the session goes on."""
    async with playing(replace(OPEN, tls=tls), fault=weather.at(Stage.TLS, Stall(0.1))) as twin:
        start = time.monotonic()
        await _secure_client(twin.port, tls)

        assert time.monotonic() - start >= 0.09

    assert twin.ledger.tls_failures == 0


async def test_handshake_can_hang_and_the_client_that_leaves_is_noticed() -> None:
    """Nothing ever comes; a client that gives up frees its place."""
    async with playing(SECURE, fault=weather.at(Stage.TLS, Stall(math.inf))) as twin:
        async with dialled(twin.port) as client:
            assert await client.ask("STARTTLS") == "220 Ready to start TLS"
            client.send(b"\x16\x03\x01 perhaps a ClientHello")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 0.2)
        async with asyncio.timeout(PATIENCE_S):
            while twin.ledger.sessions_open:  # noqa: ASYNC110 - the twin has no event for it
                await asyncio.sleep(0.01)

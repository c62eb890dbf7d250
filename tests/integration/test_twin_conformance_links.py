"""The twin against facts/ses-smtp.md 7.1 and 7.4 to 7.7, driven by Python's own smtplib.

How a session begins, how long it takes and how it ends. The number in a test's name is that of
the line. Nothing of the relay takes part, so that a misreading of SES in our own client cannot
hide one here.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import smtplib
import socket
import ssl
import time
from dataclasses import replace
from typing import Any

import pytest

from relay.twin import (
    Cut,
    Farewell,
    Latency,
    Say,
    Stage,
    Stall,
    Trickle,
    Twin,
    weather,
)
from tests.fakes.stdlib_client import (
    CONTENT,
    OPEN,
    PATIENCE_S,
    READER,
    SENDER,
    Client,
    drive,
    reply_text,
)
from tests.fakes.tls import kind_of, trusting

AUTH = "AUTH PLAIN LOGIN"
SIZE = "SIZE 10485760"
SPENT = "421 Connection closed by server. Maximum message count per session reached."


async def test_7_5_age_ends_a_session_without_a_word() -> None:
    """7.5: between transactions the link is gone, and smtplib sees the server disconnect."""

    def use(client: Client) -> bool:
        assert client.sock is not None
        return client.sock.recv(1) == b""

    silent, _ = await drive(replace(OPEN, session_age_s=(0.3, 0.3)), use)

    assert silent


async def test_7_7_accepted_without_an_answer_is_noted() -> None:
    """7.7, after the dot, the other outcome: in the ledger, and among the unanswered."""

    def use(client: Client) -> None:
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            client.message()

    _, twin = await drive(OPEN, use, fault=weather.at(Stage.DOT, Cut(reset=True, done=True)))

    (record,) = twin.ledger.records
    assert twin.ledger.unanswered == {record.id}


@pytest.mark.parametrize(
    ("profile", "before", "after"),
    [
        ("2025", ["8BITMIME", "STARTTLS", AUTH, "Ok"], ["8BITMIME", AUTH, "Ok"]),
        ("2020", ["8BITMIME", SIZE, "STARTTLS", AUTH, "Ok"], ["8BITMIME", SIZE, AUTH, "Ok"]),
        ("odd", ["8BITMIME", "STARTTLS", AUTH, "Ok"], ["8BITMIME", "STARTTLS", AUTH, "Ok"]),
    ],
)
async def test_7_1_ehlo_profiles_line_by_line(
    profile: Any,  # noqa: ANN401  # a Literal
    before: list[str],
    after: list[str],
) -> None:
    """7.1: the whole EHLO reply before and after TLS, so that nothing else is offered.

    No PIPELINING, SMTPUTF8, CHUNKING or DSN; SIZE in the profile of 2020 alone.
    """

    def use(client: Client) -> tuple[list[str], str, list[str]]:
        clear = client.say("EHLO localhost")[4:].split("\n")
        code, text = client.starttls(context=trusting())
        inside = client.say("EHLO localhost")[4:].split("\n")
        return clear, f"{code} {text.decode()}", inside

    (clear, go_on, inside), _ = await drive(replace(OPEN, tls="starttls", ehlo=profile), use)

    assert clear == ["email-smtp.amazonaws.com", *before]
    assert go_on == "220 Ready to start TLS"
    assert inside == ["email-smtp.amazonaws.com", *after]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
async def test_7_1_each_mechanism_logs_in(mechanism: str) -> None:
    """7.1: PLAIN with its initial response (smtplib cannot read ``334 Ok``), LOGIN by prompts."""

    def use(client: Client) -> tuple[int, bytes]:
        client.user, client.password = "sandbox", "sandbox"
        if mechanism == "PLAIN":
            return client.auth("PLAIN", client.auth_plain, initial_response_ok=True)
        return client.auth("LOGIN", client.auth_login, initial_response_ok=False)

    found, _ = await drive(replace(OPEN, auth_required=True), use)

    assert found == (235, b"Authentication successful.")


async def test_7_1_plain_without_initial_response_is_asked_for_it() -> None:
    """7.1 and section 1: the challenge is ``334 Ok``."""

    def use(client: Client) -> list[str]:
        response = base64.b64encode(b"\0sandbox\0sandbox").decode()
        return [client.say("AUTH PLAIN"), client.say(response)]

    found, _ = await drive(replace(OPEN, auth_required=True), use)

    assert found == ["334 Ok", "235 Authentication successful."]


async def test_7_1_implicit_tls_takes_mail() -> None:
    """7.1: TLS from the first byte; smtplib's own ``sendmail``, as anybody uses it."""
    twin = Twin(replace(OPEN, tls="implicit", auth_required=True))
    port = await twin.start()

    def play() -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP_SSL(
            "localhost",
            port,
            local_hostname="localhost",
            context=trusting(),
            timeout=PATIENCE_S,
        ) as client:
            client.login("sandbox", "sandbox")
            return client.sendmail(SENDER, [READER], CONTENT)

    try:
        refused = await asyncio.to_thread(play)
    finally:
        await twin.stop()

    assert refused == {}
    assert twin.ledger.total.accepted == 1


async def test_7_4_replies_take_their_time() -> None:
    """7.4: round trips, the accept and a stall add up; the message is accepted all the same."""
    slow = Latency(rtt_s=0.02, jitter=0.5, accept_median_s=0.05, accept_p99_s=0.05)

    def use(client: Client) -> tuple[float, str]:
        started = time.monotonic()
        return -started + (client.message() and time.monotonic()), ""

    (seconds, _), twin = await drive(
        replace(OPEN, latency=slow), use, fault=weather.at(Stage.DOT, Stall(0.1))
    )

    assert seconds >= 0.1 + 0.05 + 4 * 0.01
    assert twin.ledger.total.accepted == 1


async def test_7_5_connection_above_the_cap_is_refused_until_one_ends() -> None:
    """7.5: with two allowed the third gets 421 at its greeting; QUIT makes room."""
    twin = Twin(replace(OPEN, connections_max=2))
    port = await twin.start()
    clients = []
    try:
        for _ in range(2):
            clients += [await asyncio.to_thread(Client, port)]
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            await asyncio.to_thread(Client, port)
        assert await asyncio.to_thread(clients[0].quit) == (221, b"Bye")
        async with asyncio.timeout(PATIENCE_S):
            while twin.ledger.sessions_open > 1:  # noqa: ASYNC110  # a ledger has no events
                await asyncio.sleep(0)
        clients.append(await asyncio.to_thread(Client, port))
    finally:
        for client in clients:
            client.close()
        await twin.stop()

    assert refused.value.smtp_code == 421
    assert reply_text(refused.value) == "Too many concurrent SMTP connections"


@pytest.mark.parametrize(
    ("farewell", "endings"),
    [
        (Farewell.CLOSE_NOTIFY, {"goodbye"}),
        (Farewell.FIN, {"no goodbye"}),
        (Farewell.USER_CANCELED, {"no goodbye"}),
        (Farewell.RESET, {"no goodbye", "reset"}),
    ],
)
async def test_7_5_session_that_is_used_up_ends_in_every_way(
    farewell: Farewell, endings: set[str]
) -> None:
    """7.5: 421 at the next MAIL, which RST may overtake; then TLS says goodbye, or does not.

    A client on OpenSSL cannot tell the alert from a bare FIN; the record itself is looked at in
    test_twin_ends.
    """
    context = trusting()

    def use(client: Client) -> tuple[str, str]:
        client.starttls(context=context)
        client.ehlo()
        assert client.message()[1].startswith("250 Ok")
        assert isinstance(client.sock, ssl.SSLSocket)
        client.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # not in typeshed
        try:
            reply = client.say(f"MAIL FROM:<{SENDER}>")
            return reply, "goodbye" if client.sock.recv(1) == b"" else "more"
        except ssl.SSLError as error:
            return SPENT, "no goodbye" if kind_of(error) is ssl.SSLEOFError else str(error)
        except (smtplib.SMTPServerDisconnected, ConnectionError):
            return SPENT, "reset"

    config = replace(OPEN, tls="starttls", session_messages=(1, 1), session_end=farewell)
    (reply, ending), twin = await drive(config, use)

    assert reply == SPENT
    assert ending in endings
    assert twin.ledger.total.accepted == 1


async def test_7_6_idle_session_is_told_and_cut() -> None:
    """7.6: the 451 comes unasked, smtplib takes it for the reply to MAIL, then all is over."""

    def use(client: Client) -> str:
        assert client.sock is not None
        assert client.sock.recv(1, socket.MSG_PEEK)
        reply = client.say(f"MAIL FROM:<{SENDER}>")
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            client.noop()
        return reply

    found, _ = await drive(replace(OPEN, idle_s=0.2), use)

    assert found == "451 4.4.2 Timeout waiting for data from client."


# CPython's SSLSocket leaves its socket open if the peer's RST is there before the handshake
# begins (ssl.py, _create: recv raises and nothing closes); smtplib has no hand on it.
@pytest.mark.filterwarnings("ignore:.*<ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("stage", [one for one in Stage if one is not Stage.OTHER])
async def test_7_7_links_die_at_any_stage(stage: Stage, reset: bool) -> None:
    """7.7: smtplib finds the server gone; what was not accepted is not in the ledger."""
    config = replace(OPEN, tls="starttls", auth_required=True)
    twin = Twin(config, fault=weather.at(stage, Cut(reset=reset)))
    port = await twin.start()

    def play() -> None:
        client = Client(port)
        try:
            client.ehlo()
            client.starttls(context=trusting())
            client.login("sandbox", "sandbox")
            assert client.rset() == (250, b"Ok")
            client.message()
        finally:
            client.close()

    try:
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            await asyncio.to_thread(play)
    finally:
        await twin.stop()

    assert twin.ledger.total.accepted == 0


async def test_7_7_faults_come_by_chance() -> None:
    """7.7: a third of the messages, in bursts or alone, as a seed has it; the others pass."""
    busy = "451 Temporary service failure"
    fault = weather.sometimes(random.Random(3), {Stage.DOT: (0.33, Say(busy))})

    def use(client: Client) -> list[str]:
        replies = []
        for _ in range(200):
            replies.append(client.message()[1])
            client.say("RSET")
        return replies

    replies, twin = await drive(OPEN, use, fault=fault)

    assert 40 <= replies.count(busy) <= 90
    assert twin.ledger.total.accepted == 200 - replies.count(busy)


async def test_7_7_credentials_are_refused_for_a_while() -> None:
    """7.7: 535 until they are good again, on the same connection."""

    def use(client: Client) -> list[int]:
        codes = []
        for _ in range(3):
            try:
                codes.append(client.login("sandbox", "sandbox")[0])
            except smtplib.SMTPAuthenticationError as error:
                codes.append(error.smtp_code)
        return codes

    # smtplib's login tries PLAIN and, refused, LOGIN: two commands a call.
    fault = weather.first(4, weather.at(Stage.AUTH, Say("535 Authentication Credentials Invalid")))
    found, _ = await drive(replace(OPEN, auth_required=True), use, fault=fault)

    assert found == [535, 535, 235]


async def test_7_7_tls_fails_in_other_words() -> None:
    """7.7: what follows 220 is no ServerHello."""
    fault = weather.at(Stage.TLS, Say("HTTP/1.1 400 Bad Request"))

    def use(client: Client) -> None:
        with pytest.raises(ssl.SSLError):
            client.starttls(context=trusting())

    await drive(replace(OPEN, tls="starttls"), use, fault=fault)


async def test_7_7_connect_is_refused_and_works_again() -> None:
    """7.7: nobody listens; afterwards on the same port all is well."""
    twin = Twin(OPEN)
    port = await twin.start()
    await twin.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(Client, port)

    assert await twin.start() == port
    client = await asyncio.to_thread(Client, port)
    client.close()
    await twin.stop()


async def test_7_7_greeting_that_never_comes_is_for_the_client_to_time_out() -> None:
    """7.7: the link is there, and nobody speaks."""
    twin = Twin(OPEN, fault=weather.at(Stage.CONNECT, Stall(math.inf)))
    port = await twin.start()
    try:
        with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected), match="timed out"):
            await asyncio.to_thread(Client, port, 0.2)
    finally:
        await twin.stop()

    assert twin.ledger.sessions_opened == 1


async def test_7_7_reply_beyond_the_clients_patience_is_accepted_all_the_same() -> None:
    """7.7: smtplib gives up; the message counts, and nobody was told."""

    def use(client: Client) -> None:
        assert client.sock is not None
        client.sock.settimeout(0.3)
        with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected)):
            client.message()

    _, twin = await drive(OPEN, use, fault=weather.at(Stage.DOT, Stall(PATIENCE_S)))

    (record,) = twin.ledger.records
    assert twin.ledger.unanswered == {record.id}


@pytest.mark.parametrize("gap_s", [0.0, 0.002])
async def test_7_7_replies_come_byte_by_byte(gap_s: float) -> None:
    """7.7: smtplib puts them together; by fault, and by the setting for all replies."""
    by_fault, _ = await drive(OPEN, Client.message, fault=lambda *_: Trickle(gap_s))
    by_setting, _ = await drive(replace(OPEN, bytewise=True), Client.message)

    assert by_fault[1].startswith("250 Ok 0100")
    assert by_setting[1].startswith("250 Ok 0100")

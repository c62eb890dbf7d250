"""How sessions of the twin end: by their cap, their age or their silence, and in which way."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from relay.loops import loop_factory
from relay.twin import Farewell, TwinConfig, certificate_files
from relay.twin.session import REST_S
from tests.fakes.rawsmtp import OPEN, PATIENCE_S, dialled, playing
from tests.fakes.tls import kind_of, trusting

if TYPE_CHECKING:
    from relay.twin import Twin

IDLE = "451 4.4.2 Timeout waiting for data from client."
ENDS = [
    (Farewell.CLOSE_NOTIFY, None, [(1, 0)]),
    (Farewell.FIN, ssl.SSLEOFError, []),
    (Farewell.USER_CANCELED, ssl.SSLEOFError, [(1, 90)]),
]
"""Each way, the error that a client of OpenSSL meets, and the alerts that came before it."""

_ALERT = 21


class Secure:
    """A blocking TLS client that notes its end, and the alerts that came before it."""

    def __init__(self, twin: Twin, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.alerts: list[tuple[int, int]] = []
        self.ended_by: type[Exception] | None = None
        context = trusting()
        context.maximum_version = newest
        context._msg_callback = self._note  # type: ignore[attr-defined]
        plain = socket.create_connection(("127.0.0.1", twin.port), timeout=PATIENCE_S)
        if twin.config.tls == "starttls":
            assert plain.recv(1000).startswith(b"220 ")
            plain.sendall(b"STARTTLS\r\n")
            assert plain.recv(1000) == b"220 Ready to start TLS\r\n"
        self._link = context.wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False
        )
        if twin.config.tls == "implicit":
            assert self._link.recv(1000).startswith(b"220 ")

    def _note(self, *event: object) -> None:
        _, way, _, kind, _, data = event
        if way == "read" and kind == _ALERT:
            assert isinstance(data, bytes)
            self.alerts.append((data[0], data[1]))

    def last_words(self, commands: bytes) -> str:
        """The last line of all that comes in answer to ``commands``, until the end."""
        heard = b""
        with self._link:
            self._link.sendall(commands)
            try:
                while data := self._link.recv(1000):
                    heard += data
            except OSError as error:
                self.ended_by = kind_of(error)
        return heard.decode().splitlines()[-1] if heard else ""


def _secure(tls: Literal["implicit", "starttls"], way: Farewell) -> TwinConfig:
    return replace(OPEN, tls=tls, session_end=way)


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
@pytest.mark.parametrize(("way", "error", "alerts"), ENDS)
async def test_tls_session_ends_as_clients_of_ses_have_seen_it(
    tls: Literal["implicit", "starttls"],
    way: Farewell,
    error: type[Exception] | None,
    alerts: list[tuple[int, int]],
) -> None:
    """After QUIT: close_notify, nothing, or an alert that OpenSSL reads and ignores."""
    async with playing(_secure(tls, way)) as twin:
        client = await asyncio.to_thread(Secure, twin)
        last = await asyncio.to_thread(client.last_words, b"NOOP\r\nNOOP\r\nQUIT\r\n")

    assert last == "221 Bye"
    assert client.ended_by is error
    assert client.alerts == alerts
    assert twin.ledger.broken == 0
    assert twin.ledger.sessions_open == 0


@pytest.mark.parametrize(("way", "error", "alerts"), ENDS[1:])
def test_ways_to_end_are_the_same_on_the_loop_of_the_command_line(
    way: Farewell, error: type[Exception] | None, alerts: list[tuple[int, int]]
) -> None:
    """TLS of uvloop is another one; where it is not installed this is the test above again."""

    async def run() -> Secure:
        async with playing(_secure("implicit", way)) as twin:
            client = await asyncio.to_thread(Secure, twin)
            assert await asyncio.to_thread(client.last_words, b"NOOP\r\nQUIT\r\n") == "221 Bye"
        return client

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        client = runner.run(run())

    assert client.ended_by is error
    assert client.alerts == alerts


async def test_alert_needs_tls_1_3(caplog: pytest.LogCaptureFixture) -> None:
    """Before it other keys are in force: the end comes alone, and the log says why."""
    async with playing(_secure("implicit", Farewell.USER_CANCELED)) as twin:
        client = await asyncio.to_thread(Secure, twin, ssl.TLSVersion.TLSv1_2)
        last = await asyncio.to_thread(client.last_words, b"QUIT\r\n")

    assert last == "221 Bye"
    assert (client.ended_by, client.alerts) == (ssl.SSLEOFError, [])
    assert "no alert in this version of TLS" in caplog.text


async def test_alert_needs_cryptography(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the package the end comes alone as well: the twin runs with Python only."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)

    async with playing(_secure("implicit", Farewell.USER_CANCELED)) as twin:
        client = await asyncio.to_thread(Secure, twin)
        await asyncio.to_thread(client.last_words, b"QUIT\r\n")

    assert (client.ended_by, client.alerts) == (ssl.SSLEOFError, [])
    assert "no alert without the package cryptography" in caplog.text


@pytest.mark.parametrize("tls", ["implicit", "none"])
async def test_session_can_end_with_rst(tls: Literal["implicit", "none"]) -> None:
    """Beneath TLS, too: asyncio's clients tell it from FIN."""
    config = replace(OPEN, tls=tls, session_end=Farewell.RESET)
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))

    async with (
        playing(config) as twin,
        dialled(twin.port, tls=context if tls == "implicit" else None) as client,
    ):
        client.send(b"QUIT\r\n")

        with pytest.raises(ConnectionResetError):
            await client.reader.read()


@pytest.mark.parametrize("way", [way for way, _, _ in ENDS])
async def test_plain_session_ends_with_fin(way: Farewell) -> None:
    """Without TLS there is no goodbye to leave out."""
    async with (
        playing(replace(OPEN, session_end=way)) as twin,
        dialled(twin.port) as client,
    ):
        assert await client.ask("QUIT") == "221 Bye"
        assert not await client.is_reset()


async def test_each_session_draws_its_own_end() -> None:
    """Of forty sessions some end in each of the four ways, never in "any"."""
    async with playing(replace(OPEN, session_end=Farewell.ANY)) as twin:
        ways = set()
        for _ in range(40):
            async with dialled(twin.port):
                ways |= {session._link._farewell for session in twin._shared.sessions}

    assert ways == set(Farewell) - {Farewell.ANY}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "maximum",
            "421 Connection closed by server. Maximum message count per session reached.",
        ),
        ("too-many", "421 Connection closed by server. Too many messages in one session"),
    ],
)
async def test_session_that_is_spent_says_so_in_either_wording(
    words: Literal["maximum", "too-many"], text: str
) -> None:
    """Both were seen; the link ends after either."""
    config = replace(OPEN, session_messages=(1, 1), session_text=words, session_end=Farewell.FIN)

    async with playing(config) as twin, dialled(twin.port) as client:
        await client.message()

        assert await client.ask("MAIL FROM:<a@example.com>") == text
        assert await client.is_closed()


def _talk_on(link: socket.socket) -> None:
    for _ in range(1_000):
        link.sendall(b"NOOP\r\n" * 1_000)


async def test_idle_cut_is_said_unasked_and_what_is_sent_later_meets_rst() -> None:
    """451, FIN, and then there is nobody any more."""

    def idle(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as link:
            heard = b""
            while data := link.recv(1000):
                heard += data
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                _talk_on(link)
        return heard

    async with playing(replace(OPEN, idle_s=0.1)) as twin:
        heard = await asyncio.to_thread(idle, twin.port)

    assert heard.decode().splitlines()[1:] == [IDLE]


@pytest.mark.parametrize(("way", "error", "alerts"), ENDS)
async def test_idle_session_ends_in_its_way(
    way: Farewell, error: type[Exception] | None, alerts: list[tuple[int, int]]
) -> None:
    """The cut for silence is an end like any other, beneath TLS, too."""
    async with playing(replace(_secure("implicit", way), idle_s=0.3)) as twin:
        client = await asyncio.to_thread(Secure, twin)
        last = await asyncio.to_thread(client.last_words, b"")

    assert last == IDLE
    assert (client.ended_by, client.alerts) == (error, alerts)


AGING = replace(OPEN, session_age_s=(0.3, 0.3))


async def test_old_session_is_closed_without_a_word() -> None:
    """Nothing is said, nothing is counted."""
    async with playing(AGING) as twin, dialled(twin.port) as client:
        assert await client.is_closed()

    assert not twin.ledger.total.refused


async def test_session_is_not_closed_within_a_transaction() -> None:
    """However old it is, the message is taken; its end comes after that."""
    now = asyncio.get_running_loop().time

    async with playing(AGING) as twin, dialled(twin.port) as client:
        await client.ask("MAIL FROM:<a@example.com>")
        end = now() + 0.6
        while now() < end:
            assert await client.ask("RCPT TO:<b@example.org>") == "250 Ok"
            await asyncio.sleep(1.5 * REST_S)
        await client.ask("DATA")
        client.send(b"\r\n.\r\n")

        assert (await client.reply())[:3] == "250"
        assert await client.is_closed()

    assert twin.ledger.total.accepted == 1


async def test_old_session_is_not_closed_on_the_heels_of_a_reply() -> None:
    """A client that goes on talking gets its replies: what it just heard is safely read."""
    now = asyncio.get_running_loop().time

    async with playing(AGING) as twin, dialled(twin.port) as client:
        end = now() + 0.6
        while now() < end:
            assert await client.ask("NOOP") == "250 Ok"
            await asyncio.sleep(0)
        assert await client.is_closed()


async def test_old_session_that_never_rests_ends_at_mail_and_loses_nothing() -> None:
    """Each 250 has been read before the link goes: only MAIL stays without a reply."""
    accepted = 0
    config = replace(AGING, rate_per_s=1e6, session_messages=(10**6, 10**6))

    async with playing(config) as twin, dialled(twin.port) as client:
        while await client.ask("MAIL FROM:<a@example.com>"):
            await client.ask("RCPT TO:<b@example.org>")
            await client.ask("DATA")
            client.send(b"\r\n.\r\n")
            assert (await client.reply())[:3] == "250"
            accepted += 1

    assert accepted > 0
    assert twin.ledger.total.accepted == accepted
    assert not twin.ledger.unanswered


async def test_each_session_draws_its_age() -> None:
    """Of many all have one within the range, and they differ."""
    async with playing(replace(OPEN, session_age_s=(50, 60))) as twin:
        ages = []
        for _ in range(5):
            async with dialled(twin.port):
                now = asyncio.get_running_loop().time()
                ages += [session._dies_at - now for session in twin._shared.sessions]

    assert all(49 <= age <= 60 for age in ages)
    assert max(ages) - min(ages) > 0.1


def test_first_bytes_of_a_fast_client_are_not_lost_to_tls() -> None:
    """ClientHello that is there before the session is passed on, whatever the loop."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    async def run() -> bytes:
        async with playing(replace(OPEN, tls="implicit")) as twin:
            with socket.create_connection(("127.0.0.1", twin.port), timeout=PATIENCE_S) as link:
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                link.sendall(outgoing.read())  # before the loop has turned once
                return await asyncio.to_thread(link.recv, 5)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        head = runner.run(run())

    assert head[:1] == b"\x16"  # a record of the handshake: ServerHello

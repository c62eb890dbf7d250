"""From nothing to a session: TLS, login, and every way to be turned away."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import ssl
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import uvloop

from relay import config
from relay.errors import ConfigError, Unreachable
from relay.reply import Stage
from relay.upstream import Pool, Refused, link
from relay.upstream.opening import Access
from relay.upstream.session import SmtpSession
from tests.fakes.clock import ManualClock
from tests.fakes.script_server import (
    Action,
    Bytewise,
    Close,
    Cut,
    Raw,
    ScriptServer,
    Stall,
    certificates,
)

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

PLAIN = config.Upstream(host="127.0.0.1", tls="none", reply_timeout_s=5, connect_timeout_s=5)
SECRET = "BH7/secret+="


async def opened(
    server: ScriptServer, upstream: config.Upstream, password: str = ""
) -> SmtpSession:
    access = Access.build(replace(upstream, port=server.port), password)
    return await SmtpSession.open(access, ManualClock())


async def served(server: ScriptServer, upstream: config.Upstream, password: str = "") -> None:
    """Open, send one mail, close."""
    session = await opened(server, upstream, password)
    attempt = await session.send("a@example.com", ["b@example.com"], b"Subject: x\r\n\r\nx\r\n")
    await session.quit(5)
    assert attempt.final is not None
    assert attempt.final.code == 250


@pytest.fixture
def trusting(tmp_path: Path) -> config.Upstream:
    """An upstream at 127.0.0.1 that trusts the tests' own authority and nobody else."""
    return replace(PLAIN, tls="starttls", ca_file=certificates().ca_file(tmp_path))


async def test_starttls_comes_before_anything_but_ehlo(trusting: config.Upstream) -> None:
    """EHLO, STARTTLS, EHLO again (RFC 3207 §4.2), then AUTH and mail, all over TLS >= 1.2."""
    upstream = replace(trusting, username="AKIA")
    async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
        await served(server, upstream, SECRET)

        verbs = [line.split()[0] for line in server.dialogue]
        assert verbs == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", ".", "QUIT"]
        assert server.tls_versions == ["TLSv1.3"]


async def test_implicit_tls_is_encrypted_from_the_first_byte(trusting: config.Upstream) -> None:
    """Port 465's way: no STARTTLS, even where it is offered."""
    upstream = replace(trusting, tls="implicit")
    async with ScriptServer(tls=certificates().server("127.0.0.1"), implicit=True) as server:
        await served(server, upstream)

        assert server.count("STARTTLS") == 0


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_host_name_is_what_the_certificate_is_checked_against(
    trusting: config.Upstream, tls: Literal["starttls", "implicit"]
) -> None:
    """The name of the config, though its addresses are what is connected to."""
    upstream = replace(trusting, host="localhost", tls=tls)
    context = certificates().server("localhost")
    async with ScriptServer(tls=context, implicit=tls == "implicit") as server:
        await served(server, upstream)


async def test_peer_without_starttls_is_not_trusted(trusting: config.Upstream) -> None:
    """Nothing goes out in plain text: no AUTH, no MAIL; the connection is closed."""
    upstream = replace(trusting, username="AKIA")
    async with ScriptServer() as server:
        server.always("EHLO", "250-script.example\n250-AUTH PLAIN LOGIN\n250 Ok")

        with pytest.raises(Unreachable, match="STARTTLS") as caught:
            await opened(server, upstream, SECRET)

        assert not caught.value.trusted
        await server.until(lambda: server.open_now == 0)
        assert [line.split()[0] for line in server.dialogue] == ["EHLO"]


async def test_starttls_must_be_offered_and_not_only_mentioned(trusting: config.Upstream) -> None:
    """The greeting line of the EHLO reply is a name, not an extension."""
    async with ScriptServer() as server:
        server.always("EHLO", "250-STARTTLS\n250 8BITMIME")

        with pytest.raises(Unreachable) as caught:
            await opened(server, trusting)

        assert not caught.value.trusted


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("wrong", ["name", "authority"])
async def test_peer_that_cannot_prove_itself_is_not_trusted(
    trusting: config.Upstream, tls: Literal["starttls", "implicit"], wrong: str
) -> None:
    """Another's certificate or an unknown authority: no session, no password, no mail."""
    upstream = replace(trusting, tls=tls, username="AKIA")
    context = certificates().server("other.example" if wrong == "name" else "127.0.0.1")
    if wrong == "authority":
        upstream = replace(upstream, ca_file="")
    async with ScriptServer(tls=context, implicit=tls == "implicit") as server:
        with pytest.raises(Unreachable, match="certificate") as caught:
            await opened(server, upstream, SECRET)

        assert not caught.value.trusted
        assert server.count("AUTH") == 0


async def test_peer_that_talks_plain_text_where_tls_belongs_is_not_trusted(
    trusting: config.Upstream,
) -> None:
    """Port 587 in the place of 465, or somebody in between."""
    async with ScriptServer() as server:
        with pytest.raises(Unreachable, match="TLS") as caught:
            await opened(server, replace(trusting, tls="implicit"))

        assert not caught.value.trusted


async def test_peer_that_knows_only_tls_1_1_is_not_trusted(trusting: config.Upstream) -> None:
    """Its alert ends the opening; a blocking server here, as asyncio's would not send one."""
    context = certificates().server("127.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    def serve() -> str:
        connection, _ = listening.accept()
        try:
            context.wrap_socket(connection, server_side=True)
        except ssl.SSLError as error:
            return error.reason
        finally:
            connection.close()
        return "shaken hands"

    with socket.create_server(("127.0.0.1", 0)) as listening:
        upstream = replace(trusting, tls="implicit", port=listening.getsockname()[1])
        serving = asyncio.create_task(asyncio.to_thread(serve))

        with pytest.raises(Unreachable, match="TLS") as caught:
            await SmtpSession.open(Access.build(upstream, ""), ManualClock())

        assert await serving == "UNSUPPORTED_PROTOCOL"
        assert not caught.value.trusted


async def test_own_context_refuses_what_is_older_than_tls_1_2(trusting: config.Upstream) -> None:
    """Whatever the machine's OpenSSL allows by default."""
    context = link.tls_context(trusting)

    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


async def test_bytes_injected_before_tls_are_fatal(trusting: config.Upstream) -> None:
    """What a man in the middle puts behind the 220 must not be read after it (CVE-2011-0411)."""
    async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
        server.script("STARTTLS", Raw(b"220 Ready\r\n250-evil\r\n250 AUTH PLAIN\r\n"))

        with pytest.raises(Unreachable, match="injected") as caught:
            await opened(server, trusting)

        assert not caught.value.trusted


async def test_extensions_offered_before_tls_are_forgotten(trusting: config.Upstream) -> None:
    """AUTH and SIZE from the plain-text EHLO count for nothing (RFC 3207 §4.2)."""
    upstream = replace(trusting, username="AKIA")
    async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
        server.script("EHLO", "250-x\n250-STARTTLS\n250-SIZE 10\n250 AUTH PLAIN")
        server.script("EHLO", "250-x\n250 AUTH LOGIN")

        await served(server, upstream, SECRET)

        assert server.count("AUTH LOGIN") == 1
        assert "MAIL FROM:<a@example.com>" in server.dialogue


async def test_plain_text_is_for_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tls = "none"``: where the name really led is looked at before a word is said."""
    monkeypatch.setattr(link, "is_loopback", lambda _: False)
    async with ScriptServer() as server:
        with pytest.raises(Unreachable, match="loopback") as caught:
            await opened(server, PLAIN)

        assert not caught.value.trusted
        await server.until(lambda: server.open_now == 0)
        assert server.dialogue == []


@pytest.mark.parametrize(
    ("peername", "wanted"),
    [
        (("127.0.0.1", 587), True),
        (("127.8.8.8", 587), True),
        (("::1", 587, 0, 0), True),
        (("::ffff:127.0.0.1", 587, 0, 0), True),
        (("192.0.2.7", 587), False),
        (("::ffff:192.0.2.7", 587, 0, 0), False),
        (("fe80::1%eth0", 587, 0, 2), False),
        (None, False),
    ],
)
def test_loopback_is_told_from_the_rest(peername: tuple[str, ...] | None, wanted: bool) -> None:
    """IPv4, IPv6, and IPv4 in IPv6's clothes; what is unknown is not loopback."""
    assert link.is_loopback(peername) is wanted


async def test_login_prefers_plain() -> None:
    """AUTH PLAIN with its initial response (RFC 4954 §4), one round trip."""
    upstream = replace(PLAIN, username="AKIA")
    async with ScriptServer() as server:
        await served(server, upstream, SECRET)

        words = server.dialogue[1].split()
        assert words[:2] == ["AUTH", "PLAIN"]
        assert base64.b64decode(words[2]) == f"\0AKIA\0{SECRET}".encode()


async def test_login_falls_back_to_login() -> None:
    """AUTH LOGIN in three steps when PLAIN is not on offer, also with the old ``AUTH=`` form."""
    upstream = replace(PLAIN, username="AKIA")
    async with ScriptServer() as server:
        server.always("EHLO", "250-script.example\n250 AUTH=LOGIN")

        await served(server, upstream, SECRET)

        assert server.dialogue[1] == "AUTH LOGIN"
        assert [base64.b64decode(line) for line in server.dialogue[2:4]] == [
            b"AKIA",
            SECRET.encode(),
        ]


async def test_login_without_a_known_method_is_unreachable() -> None:
    """Trusted, for it is a peer's fault: no password was shown."""
    upstream = replace(PLAIN, username="AKIA")
    async with ScriptServer() as server:
        server.always("EHLO", "250-script.example\n250 AUTH CRAM-MD5")

        with pytest.raises(Unreachable, match="AUTH") as caught:
            await opened(server, upstream, SECRET)

        assert caught.value.trusted


@pytest.mark.parametrize(
    ("prefix", "answer", "stage"),
    [
        ("GREETING", "421 Too many concurrent SMTP connections", Stage.CONNECT),
        ("GREETING", Close("554 go away"), Stage.CONNECT),
        ("EHLO", "502 never heard of it", Stage.EHLO),
        ("STARTTLS", "454 TLS not available", Stage.STARTTLS),
        ("AUTH", "535 Authentication Credentials Invalid", Stage.AUTH),
        ("AUTH", "454 Temporary authentication failure", Stage.AUTH),
    ],
)
async def test_no_is_told_with_its_stage(
    trusting: config.Upstream, prefix: str, answer: Action, stage: Stage
) -> None:
    """454 at AUTH and 454 at the dot are different things: the stage goes with the reply."""
    upstream = replace(trusting, username="AKIA")
    async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
        server.script(prefix, answer)

        with pytest.raises(Refused) as caught:
            await opened(server, upstream, SECRET)

        text = answer if isinstance(answer, str) else "554 go away"
        assert (caught.value.reply.stage, str(caught.value.reply)) == (stage, text)
        await server.until(lambda: server.open_now == 0)


@pytest.mark.parametrize("prefix", ["GREETING", "EHLO", "STARTTLS", "AUTH"])
@pytest.mark.parametrize(
    "answer", [Close(), Cut(), Stall(), Raw(b"HTTP/1.1 400\r\n"), Raw(b"221 Bye\r\n")], ids=str
)
async def test_opening_that_is_lost_on_the_way_is_unreachable(
    trusting: config.Upstream, prefix: str, answer: Action
) -> None:
    """Cut, silent, not SMTP or out of step: trusted, and no connection is left behind."""
    timeout_s = 0.7 if answer == Stall() else 5
    upstream = replace(
        trusting, username="AKIA", reply_timeout_s=timeout_s, connect_timeout_s=timeout_s
    )
    async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
        server.script(prefix, answer)

        with pytest.raises(Unreachable) as caught:
            await opened(server, upstream, SECRET)

        assert caught.value.trusted
        await server.until(lambda: server.open_now == 0)


async def test_greeting_may_come_byte_by_byte() -> None:
    """And in several lines, as some banners do."""
    async with ScriptServer() as server:
        server.script("GREETING", Bytewise("220-hello\n220 there"))

        await served(server, PLAIN)


async def test_silent_tls_handshake_is_given_up(trusting: config.Upstream) -> None:
    """A peer that takes the connection and is silent: ``connect_timeout_s``, then Unreachable."""
    upstream = replace(trusting, tls="implicit", connect_timeout_s=0.3)
    async with ScriptServer() as server:
        server.script("GREETING", Stall())

        with pytest.raises(Unreachable, match=r"0\.3 s") as caught:
            await opened(server, upstream)

        assert caught.value.trusted


async def test_refused_connection_is_unreachable() -> None:
    """Nobody listens: trusted, and the text names the error."""
    async with ScriptServer() as server:
        pass

    with pytest.raises(Unreachable, match="no connection") as caught:
        await opened(server, PLAIN)

    assert caught.value.trusted


async def test_name_is_resolved_at_each_opening_and_all_addresses_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dead address costs its share of the time, not the mail; nothing is pinned."""
    asked: list[tuple[object, ...]] = []
    silent = socket.create_server(("127.0.0.1", 0))

    async def found(*query: object, **_: object) -> list[tuple[object, ...]]:
        asked.append(query)
        ports = (closed.port, server.port)
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port)) for port in ports]

    async with ScriptServer() as closed:
        pass
    async with ScriptServer() as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
        upstream = replace(PLAIN, host="ses.example", port=587)
        access = Access.build(upstream, "")

        for _ in range(2):
            session = await SmtpSession.open(access, ManualClock())
            await session.quit(5)

        assert asked == [("ses.example", 587)] * 2
        assert server.connections == 2
    silent.close()


async def test_address_that_swallows_packets_does_not_use_up_the_time(
    monkeypatch: pytest.MonkeyPatch, trusting: config.Upstream
) -> None:
    """The first of two is silent in its handshake: it gets half, the second still works."""

    async def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        ports = (silent.getsockname()[1], server.port)
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port)) for port in ports]

    upstream = replace(trusting, tls="implicit", connect_timeout_s=2)
    context = certificates().server("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with ScriptServer(tls=context, implicit=True) as server:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)

            await served(server, upstream)


async def test_name_that_cannot_be_resolved_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS trouble holds no mail as suspicious: it is a matter of waiting."""

    async def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)

    with pytest.raises(Unreachable, match="name resolution") as caught:
        await SmtpSession.open(Access.build(PLAIN, ""), ManualClock())

    assert caught.value.trusted


async def test_cancelled_opening_leaves_no_connection(trusting: config.Upstream) -> None:
    """At every step of the dialogue."""
    upstream = replace(trusting, username="AKIA")
    for prefix in ("GREETING", "EHLO", "STARTTLS", "AUTH"):
        async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
            server.script(prefix, Stall())
            task = asyncio.create_task(opened(server, upstream, SECRET))
            reached = prefix if prefix != "GREETING" else ""
            await server.until(
                lambda server=server, reached=reached: (  # type: ignore[misc]
                    server.connections == 1 and (not reached or server.count(reached) > 0)
                )
            )

            task.cancel()

            with pytest.raises(asyncio.CancelledError):
                await task
            await server.until(lambda server=server: server.open_now == 0)  # type: ignore[misc]


@pytest.mark.parametrize("content", ["", "no certificate here"])
def test_unusable_ca_file_is_a_config_error(tmp_path: Path, content: str) -> None:
    """Missing or not PEM: said at start, by key, not at the first connection."""
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)

    with pytest.raises(ConfigError) as caught:
        Access.build(config.Upstream(ca_file=str(path)), "")

    assert caught.value.key == "upstream.ca_file"


async def test_password_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not in a repr, not in an error, not in the log, not even with asyncio's debugging."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    upstream = replace(PLAIN, username="AKIA")
    shown = base64.b64encode(f"\0AKIA\0{SECRET}".encode()).decode()
    async with ScriptServer() as server:
        server.script("AUTH", "535 Authentication Credentials Invalid")
        access = Access.build(replace(upstream, port=server.port), SECRET)
        pool = Pool(upstream, SECRET, clock=ManualClock())

        with pytest.raises(Refused) as caught:
            await SmtpSession.open(access, ManualClock())

        for text in (repr(access), repr(pool), repr(caught.value), caplog.text):
            assert SECRET not in text
            assert shown not in text


def test_session_works_on_uvloop(trusting: config.Upstream) -> None:
    """The loop that the service runs on: STARTTLS, AUTH, a big content, a lost session."""

    async def main() -> None:
        upstream = replace(trusting, username="AKIA")
        async with ScriptServer(tls=certificates().server("127.0.0.1")) as server:
            await served(server, upstream, SECRET)
            session = await opened(server, upstream, SECRET)
            attempt = await session.send("a@example.com", ["b@example.com"], b"x\r\n" * 1_000_000)
            assert attempt.final is not None
            server.script(".", Cut())
            with pytest.raises(Exception, match="at dot"):
                await session.send("a@example.com", ["b@example.com"], b"x\r\n")
            assert not session.alive
            await asyncio.sleep(0)

    uvloop.run(main())

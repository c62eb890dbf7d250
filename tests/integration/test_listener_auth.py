"""Logging in, TLS, and who may send."""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from relay import config
from relay.clock import SystemClock
from relay.errors import AddressBusy, ConfigError
from relay.guesses import Patience
from relay.listener import Listener, Users, auth, users
from tests.fakes.dialogue import MESSAGE, PATIENCE_S, Talk, listening
from tests.fakes.spool import FakeSpool

if TYPE_CHECKING:
    from pathlib import Path

STRANGERS = ("192.0.2.0/24",)
"""Not loopback: our clients are strangers."""

PLAIN = base64.b64encode(b"\0listmonk\0secret one").decode()
WRONG = base64.b64encode(b"\0listmonk\0bad").decode()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wrong login costs is tried in test_listener_logins.py."""
    for patience in ("FRIENDS", "STRANGERS"):
        monkeypatch.setattr(auth, patience, Patience(first_s=0, longest_s=0))


@pytest.fixture(scope="module")
def hashed() -> users.Scrypt:
    return users.scrypt("secret one")


@pytest.fixture
def users_file(tmp_path: Path, hashed: users.Scrypt) -> Path:
    path = tmp_path / "users"
    users.put(path, "listmonk", hashed)
    return path


@pytest.fixture
def known(users_file: Path) -> Users:
    return Users.load(users_file)


@pytest.fixture
def known_plain(tmp_path: Path, hashed: users.Scrypt) -> Users:
    path = tmp_path / "with-plain"
    users.put(path, "listmonk", hashed)
    users.put(path, "cram", users.Plain("tanstaaftanstaaf"))
    return Users.load(path)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    """The keys of ``[listen]`` that switch STARTTLS on."""
    certificate = authority.issue_cert("relay.test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(str(cert), append=number > 0)
    return {"tls_cert_file": str(cert), "tls_key_file": str(key)}


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def ehlo(*offers: str) -> str:
    lines = ["relay.test", "8BITMIME", "SIZE 41943040", "PIPELINING", "ENHANCEDSTATUSCODES"]
    lines += offers
    answers = [f"S: 250-{line}" for line in lines[:-1]] + [f"S: 250 {lines[-1]}"]
    return "\n".join(["C: EHLO localhost", *answers, ""])


@pytest.mark.parametrize(
    "script",
    [
        f"C: AUTH PLAIN {PLAIN}",
        f"C: auth plain {PLAIN}",
        f"C: AUTH PLAIN\nS: 334 *\nC: {PLAIN}",
        "C: AUTH PLAIN " + b64("other\0listmonk\0secret one"),
        (
            f"C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: {b64('listmonk')}\n"
            f"S: 334 UGFzc3dvcmQ6\nC: {b64('secret one')}"
        ),
        f"C: AUTH LOGIN {b64('listmonk')}\nS: 334 UGFzc3dvcmQ6\nC: {b64('secret one')}",
    ],
)
async def test_login_as_listmonk_does_it(known: Users, script: str) -> None:
    """PLAIN and LOGIN, with an initial response or not; without TLS too, on a private net."""
    async with listening(users=known, auth="required") as house:
        await house.say(f"{ehlo('AUTH PLAIN LOGIN')}{script}\nS: 235 2.7.0 *\n{MESSAGE}")

    envelope = house.spool.kept[0].envelopes[0]
    assert envelope.auth_user == "listmonk"
    assert b" with ESMTPA\r\n" in house.spool.kept[0].content


async def test_login_is_forgotten_by_nobody(known: Users) -> None:
    """It holds for all messages of the connection, over RSET and a new EHLO; not twice."""
    async with listening(users=known, auth="required") as house:
        await house.say(
            f"""
            C: AUTH PLAIN {PLAIN}
            S: 235 *
            C: AUTH PLAIN {PLAIN}
            S: 503 5.5.1 *
            C: RSET
            S: 250 *
            {ehlo("AUTH PLAIN LOGIN")}
            {MESSAGE}
            {MESSAGE}
            """
        )

    assert [kept.envelopes[0].auth_user for kept in house.spool.kept] == ["listmonk"] * 2


async def test_cram_md5_needs_a_plain_secret(known: Users, known_plain: Users) -> None:
    """Offered only if some user has one; Listmonk, which does not ask, is told what to do."""
    async with listening(users=known) as house:
        await house.say(
            ehlo("AUTH PLAIN LOGIN") + "C: AUTH CRAM-MD5\nS: 504 5.5.4 *relay user add --cram NAME*"
        )

    async with listening(users=known_plain, auth="required") as house:
        talk = await house.connect()
        heard = await talk.say(ehlo("AUTH PLAIN LOGIN CRAM-MD5") + "C: AUTH CRAM-MD5\nS: 334 *")
        challenge = base64.b64decode(heard[-1].split()[1])
        answer = hmac.new(b"tanstaaftanstaaf", challenge, "md5").hexdigest()
        await talk.say(f"C: {b64('cram ' + answer)}\nS: 235 *\n{MESSAGE}")

    assert house.spool.kept[0].envelopes[0].auth_user == "cram"


async def test_refused_login_leaves_listmonk_in_step(known: Users) -> None:
    """535 with a text that says what to do; the stray * gets one 500; then QUIT."""
    async with listening(users=known, auth="required") as house:
        await house.say(
            f"""
            C: AUTH PLAIN {WRONG}
            S: 535 5.7.8 *Listmonk's SMTP settings*relay user add NAME
            C: *
            S: 500 *
            C: QUIT
            S: 221 *
            S: <closed>
            """
        )


@pytest.mark.parametrize(
    "script",
    [
        f"C: AUTH PLAIN {b64('just one part')}\nS: 501 5.5.2 *",
        "C: AUTH PLAIN !!\nS: 501 5.5.2 *",
        "C: AUTH PLAIN\nS: 334 *\nC: *\nS: 501 5.7.0 *",
        "C: AUTH PLAIN =\nS: 501 5.5.2 *",
        "C: AUTH LOGIN /w==\nS: 334 *\nC: eA==\nS: 501 5.5.2 *",
        "C: AUTH LOGIN\nS: 334 *\nC: *\nS: 501 5.7.0 *",
        f"C: AUTH LOGIN {b64('nobody')}\nS: 334 *\nC: {b64('x')}\nS: 535 5.7.8 *",
        "C: AUTH CRAM-MD5 eA==\nS: 501 5.5.2 *",
        "C: AUTH CRAM-MD5\nS: 334 *\nC: eA==\nS: 501 5.5.2 *",
        f"C: AUTH CRAM-MD5\nS: 334 *\nC: {b64('cram ' + '0' * 32)}\nS: 535 5.7.8 *--cram*",
        f"C: AUTH CRAM-MD5\nS: 334 *\nC: {b64('listmonk ' + '0' * 32)}\nS: 535 5.7.8 *--cram*",
        "C: AUTH DIGEST-MD5\nS: 504 5.5.4 *LOGIN*",
        "C: AUTH\nS: 501 5.5.4 *",
        "C: AUTH PLAIN a b\nS: 501 5.5.4 *",
        f"C: AUTH LOGIN\nS: 334 *\nC: {'x' * 20_000}\nS: 500 5.5.2 *\nC: *\nS: 501 5.7.0 *",
    ],
)
async def test_login_that_fails_is_answered_once(known_plain: Users, script: str) -> None:
    """Whatever is wrong with it, the dialogue goes on, and the mail is still refused."""
    async with listening(users=known_plain, auth="required") as house:
        await house.say(f"{script}\nC: MAIL FROM:<a@b>\nS: 530 5.7.0 *relay user add NAME")


async def test_login_is_refused_within_a_transaction(known: Users) -> None:
    """RFC 4954 4; the transaction goes on."""
    async with listening(users=known) as house:
        await house.say(
            f"C: MAIL FROM:<a@b>\nS: 250 *\nC: AUTH PLAIN {PLAIN}\nS: 503 5.5.1 *\n"
            "C: RCPT TO:<c@d>\nS: 250 *"
        )


async def test_user_added_to_a_running_relay_can_log_in(
    users_file: Path, known: Users, hashed: users.Scrypt
) -> None:
    """The file is read again when it changes; a broken one changes nothing."""
    script = f"C: AUTH PLAIN {b64(chr(0) + 'new' + chr(0) + 'secret one')}\n"
    async with listening(users=known) as house:
        await house.say(script + "S: 535 *")
        users.put(users_file, "new", hashed)
        await house.say(script + "S: 235 *")
        users_file.write_text("nonsense")  # noqa: ASYNC240
        await house.say(script + "S: 235 *")


async def test_strangers_are_told_what_would_let_them_in(known: Users) -> None:
    """Not an open relay: refused at MAIL, with the line of relay.toml; a login opens the door."""
    refusal = 'S: {} Not an open relay: 127.0.0.1 is not*add "127.0.0.1" to allow_networks{}'
    async with listening(allow_networks=STRANGERS) as house:
        await house.say("C: MAIL FROM:<a@b>\n" + refusal.format("550 5.7.1", ""))

    async with listening(users=known, allow_networks=STRANGERS) as house:
        await house.say(
            "C: MAIL FROM:<a@b>\n"
            + refusal.format("530 5.7.0", ", or log in")
            + f"\nC: AUTH PLAIN {PLAIN}\nS: 235 *\n"
            + MESSAGE
        )


async def test_logged_in_stranger_has_no_idle_limit(
    known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has logged in is no stranger."""
    async with listening(users=known, allow_networks=STRANGERS) as house:
        monkeypatch.setattr("relay.listener.connection.STRANGER_MAX_S", 0.3)
        friend = await house.connect()
        await friend.say(f"C: AUTH PLAIN {PLAIN}\nS: 235 *")
        # Whoever comes later is silent for less time when the limit strikes.
        await (await house.connect()).say("S: <closed>")
        await friend.in_sync()


async def starttls_dialogue(tls: dict[str, Any], trust: ssl.SSLContext, known: Users) -> None:
    async with listening(users=known, **tls) as house:
        talk = await house.connect()
        await talk.say(
            f"""
            {ehlo("STARTTLS", "AUTH PLAIN LOGIN")}
            C: STARTTLS now
            S: 501 5.5.4 *
            C: AUTH PLAIN {PLAIN}
            S: 235 *
            C: MAIL FROM:<a@b>
            S: 250 *
            C: STARTTLS
            S: 220 2.0.0 *
            """
        )
        await talk.encrypt(trust)
        await talk.say(
            f"""
            C: RCPT TO:<c@d>
            S: 503 5.5.1 *
            {ehlo("AUTH PLAIN LOGIN")}
            C: STARTTLS
            S: 503 5.5.1 *
            {MESSAGE}
            C: AUTH PLAIN {PLAIN}
            S: 235 *
            {MESSAGE}
            """
        )
        drained = asyncio.create_task(house.listener.drain())
        await talk.say("S: <closed>")
        await drained

    first, second = house.spool.kept
    assert (first.envelopes[0].auth_user, second.envelopes[0].auth_user) == ("", "listmonk")
    assert b" with ESMTPS\r\n" in first.content
    assert b" with ESMTPSA\r\n" in second.content


async def test_starttls_forgets_all_that_came_before(
    tls: dict[str, Any], trust: ssl.SSLContext, known: Users
) -> None:
    """RFC 3207: EHLO, login and transaction begin anew; drained between messages."""
    await starttls_dialogue(tls, trust, known)


@pytest.mark.skipif(sys.platform != "linux", reason="uvloop is a dependency on Linux only")
def test_starttls_works_under_uvloop_too(
    tls: dict[str, Any], trust: ssl.SSLContext, known: Users
) -> None:
    """The loop that ``serve`` runs on; aiosmtpd's own STARTTLS does not work there."""
    import uvloop  # noqa: PLC0415 - not everywhere

    uvloop.run(starttls_dialogue(tls, trust, known))


async def test_commands_injected_before_the_handshake_are_dropped(
    tls: dict[str, Any], trust: ssl.SSLContext
) -> None:
    """CVE-2011-0411: what came in the clear after STARTTLS is never obeyed."""
    async with listening(**tls) as house:
        talk = await house.connect()
        await talk.say(r"C~ STARTTLS\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<v@y>\r\n")
        await talk.say("S: 220 *")
        await talk.encrypt(trust)
        await talk.say("C: RCPT TO:<c@d>\nS: 503 5.5.1 *")
        await talk.in_sync()


async def test_tls_required_refuses_mail_and_login_in_the_clear(
    tls: dict[str, Any], trust: ssl.SSLContext, known: Users
) -> None:
    """530 until STARTTLS, which the text names; AUTH is not even offered."""
    async with listening(users=known, tls_required=True, **tls) as house:
        talk = await house.connect()
        await talk.say(
            f"""
            {ehlo("STARTTLS")}
            C: MAIL FROM:<a@b>
            S: 530 5.7.0 *STARTTLS*
            C: AUTH PLAIN {PLAIN}
            S: 530 5.7.0 *STARTTLS*
            C: NOOP
            S: 250 *
            C: STARTTLS
            S: 220 *
            """
        )
        await talk.encrypt(trust)
        await talk.say(ehlo("AUTH PLAIN LOGIN") + MESSAGE)


async def test_tls_before_1_2_is_refused(tls: dict[str, Any], trust: ssl.SSLContext) -> None:
    """And a failed handshake ends the connection without a word."""
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trust.maximum_version = ssl.TLSVersion.TLSv1_1
    trust.set_ciphers("DEFAULT:@SECLEVEL=0")
    async with listening(**tls) as house:
        talk = await house.connect()
        await talk.say("C: STARTTLS\nS: 220 *")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await talk.encrypt(trust)
        async with asyncio.timeout(PATIENCE_S):
            await house.listener._all_gone.wait()


async def test_client_that_leaves_in_the_handshake_is_forgotten(tls: dict[str, Any]) -> None:
    """The connection ends, the listener goes on."""
    async with listening(**tls) as house:
        talk = await house.connect()
        await talk.say("C: STARTTLS\nS: 220 *")
        await talk.close()
        async with asyncio.timeout(PATIENCE_S):
            await house.listener._all_gone.wait()
        await house.say("C: NOOP\nS: 250 *")


async def refused_start(
    table: config.Listen, sockets: list[socket.socket] | None = None
) -> ConfigError:
    listener = Listener(table, FakeSpool(), None, clock=SystemClock(), sockets=sockets or [])
    with pytest.raises(ConfigError) as caught:
        await listener.start()
    return caught.value


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_bad_certificate_is_a_config_error_at_start(
    tmp_path: Path, content: str | None
) -> None:
    """Missing, empty, or something else: named with its key, before anything is open."""
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)

    error = await refused_start(config.Listen(port=0, tls_cert_file=str(path)))

    assert error.key == "listen.tls_cert_file"
    assert str(path) in error.found


async def test_open_relay_is_refused_at_start() -> None:
    """On any address beyond loopback, also of a socket that is open already, and a mapped one."""
    for host in ("0.0.0.0", "::"):
        error = await refused_start(config.Listen(host=(host,), port=0))
        assert error.key == "listen.allow_networks"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as door:
            door.bind((host, 0))
            error = await refused_start(config.Listen(), [door])
        assert error.key == "listen.allow_networks"

    with socket.socket(socket.AF_UNIX) as door:
        assert (await refused_start(config.Listen(), [door])).key == "listen.host"


async def test_address_that_is_taken_leaves_none_of_the_others_open() -> None:
    """No fault of the configuration's: it may be free at the next start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen = config.Listen(host=("127.0.0.2", "127.0.0.1"), port=port)

        with pytest.raises(AddressBusy, match=f"listen.port {port} on 127.0.0.2, 127.0.0.1 is"):
            await Listener(listen, FakeSpool(), None, clock=SystemClock()).start()

        socket.create_server(("127.0.0.2", port)).close()


async def test_address_of_another_machine_is_a_config_error() -> None:
    """192.0.2.0/24 is nobody's (RFC 5737), so certainly not ours."""
    error = await refused_start(config.Listen(host=("192.0.2.1",), port=0))

    assert error.key == "listen.host"


async def test_every_host_is_listened_on() -> None:
    """Several addresses share the port; IPv6 peers are known by their networks too."""
    async with listening(host=("127.0.0.1", "127.0.0.2", "::1")) as house:
        places = [door.getsockname()[:2] for door in house.listener.sockets]
        assert [host for host, _ in places] == ["127.0.0.1", "127.0.0.2", "::1"]
        assert len({port for _, port in places}) == 1
        for host, port in places:
            talk = Talk(*await asyncio.open_connection(host, port))
            await talk.say("S: 220 *\n" + MESSAGE)
            await talk.close()


async def test_allowed_network_or_required_login_lets_it_start(known: Users) -> None:
    """Beyond loopback it says who may send, and then it listens."""
    for keys in ({"allow_networks": ("10.0.0.0/8",)}, {"auth": "required"}):
        async with listening(users=known, host=("0.0.0.0",), **keys) as house:
            await (await house.connect()).say("C: MAIL FROM:<a@b>\nS: 5?0 *".replace("?", "*"))

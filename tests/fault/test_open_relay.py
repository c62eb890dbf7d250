"""Not an open relay: what a stranger on another machine can try, and what comes of it.

The other machine is a network namespace at the end of a virtual cable (``tests.fakes.netns``);
without root these tests are skipped, with the reason.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from relay import config
from relay.clock import SystemClock
from relay.errors import ConfigError
from relay.guesses import Patience
from relay.listener import Listener, Users, auth, users
from tests.fakes import netns
from tests.fakes.dialogue import MESSAGE, Counts, House, Talk, listening
from tests.fakes.netns import (
    FRIEND,
    FRIENDS_NET,
    HERE,
    HERE_6,
    HERE_TOO,
    STRANGER,
    STRANGER_6,
    OtherMachine,
    two_machines,
)
from tests.fakes.passwords import cheap
from tests.fakes.running import relay_and_twin
from tests.fakes.spool import FakeSpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "-")

EXIT_CONFIG = 78
LOOPBACK_ONLY = ("127.0.0.0/8", "::1/128")
FRIENDS = (*LOOPBACK_ONLY, FRIENDS_NET)


def plain(*parts: str) -> str:
    return base64.b64encode("\0".join(parts).encode()).decode()


OPENINGS = {
    "as localhost": ["EHLO localhost"],
    "as our own address": [f"EHLO [{HERE}]", "RSET"],
    "in the name of a friend": [f"HELO [{FRIEND}]"],
    "without a greeting": [],
    "by Postfix's XCLIENT": ["EHLO x", "XCLIENT ADDR=127.0.0.1 NAME=localhost LOGIN=listmonk"],
    "by Postfix's XFORWARD": ["EHLO x", "XFORWARD ADDR=127.0.0.1 SOURCE=LOCAL"],
    "by the PROXY protocol": ["PROXY TCP4 127.0.0.1 127.0.0.1 2525 2525", "EHLO x"],
    "by the PROXY protocol's second version": [
        "\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\x09\xdd\x09\xdd"
    ],
    "by a header of HTTP": ["POST / HTTP/1.1", "X-Forwarded-For: 127.0.0.1", ""],
    "as an authorised user without a password": [
        "EHLO x",
        f"AUTH PLAIN {plain('listmonk', '', '')}",
    ],
    "as anonymous": ["EHLO x", "AUTH ANONYMOUS YQ==", "AUTH EXTERNAL ="],
    "with an empty password": ["EHLO x", f"AUTH PLAIN {plain('', 'listmonk', '')}"],
    "through a login called off": ["EHLO x", "AUTH LOGIN", "bGlzdG1vbms=", "*"],
}
"""What is said first, in the hope of being taken for somebody else."""

ENDED_BY_PROXY = ["500 5.5.2 Command not recognized"] * 3 + ["221 2.0.0 Bye"]

SENDERS = [
    "<root@localhost>",
    "<>",
    f"<postmaster@[{HERE}]>",
    "<news@lists.example.com> AUTH=<listmonk>",
    "<news@lists.example.com> SMTPUTF8 BODY=8BITMIME",
    "news@lists.example.com",
]
RECIPIENTS = [
    "<victim@example.com>",
    "<victim%example.com@relay.test>",
    "<victim%example.com>",
    "<@relay.test:victim@example.com>",
    "<@relay.test,@other.test:victim@example.com>",
    '<"victim@example.com"@relay.test>',
    '<"victim@example.com">',
    "<example.com!victim>",
    "<victim@example.com@relay.test>",
    f"<victim%example.com@[{HERE}]>",
    "<postmaster>",
]
"""Each was once a way through some server (percent hack, source routes, bang paths, quotes)."""


@pytest.fixture
def other() -> Iterator[OtherMachine]:
    with two_machines() as there:
        yield there


@pytest.fixture
def known(tmp_path: Path) -> Users:
    path = tmp_path / "users"
    users.put(path, "listmonk", cheap("secret one"))
    return Users.load(path)


@asynccontextmanager
async def calling(
    there: OtherMachine, port: int, host: str = HERE, caller: str = STRANGER
) -> AsyncIterator[Talk]:
    """A dialogue from the other machine."""
    link = await asyncio.to_thread(there.call, host, port, caller)
    talk = Talk(*await asyncio.open_connection(sock=link))
    try:
        yield talk
    finally:
        await talk.close()


async def attempt(talk: Talk, opening: list[str], sender: str = SENDERS[0]) -> list[str]:
    """Every recipient and a message, whatever the answers; all of them."""
    await talk.hear()  # the greeting
    lines = [*opening, f"MAIL FROM:{sender}", *(f"RCPT TO:{one}" for one in RECIPIENTS)]
    lines += ["DATA", "Subject: buy", "", "this", ".", "RSET", "QUIT"]
    await talk.send("".join(f"{line}\r\n" for line in lines).encode("latin-1"))
    heard: list[str] = []
    while (answer := await talk.hear()) != "<closed>":
        heard.append(answer)
    return heard


async def nothing_gets_through(house: House, there: OtherMachine, **call: str) -> list[str]:
    """All ways in are tried, and none leads to DATA; the refusals."""
    refusals: list[str] = []
    for opening, sender in product(OPENINGS.values(), SENDERS):
        async with calling(there, house.port, **call) as talk:
            heard = await attempt(talk, opening, sender)
        assert not [one for one in heard if one.startswith(("354", "235")) or "queued" in one]
        refused = [answer for answer in heard if answer.startswith(("530", "550"))]
        # The second version of PROXY ends the dialogue: there is a QUIT in it, for this very end.
        assert refused or heard == ENDED_BY_PROXY
        refusals += refused
    assert len(refusals) >= len(SENDERS) * (len(OPENINGS) - 1)
    assert not house.spool.kept
    return refusals


async def test_by_default_a_stranger_cannot_even_connect(other: OtherMachine) -> None:
    """The relay listens on loopback only."""
    async with listening() as house:
        with pytest.raises(ConnectionRefusedError):
            async with calling(other, house.port):
                pass


async def test_stranger_is_refused_where_other_networks_are_allowed(other: OtherMachine) -> None:
    """550, with the line of relay.toml that would let the address in; whatever it pretends."""
    async with listening(host=("0.0.0.0",), allow_networks=FRIENDS) as house:
        refusals = await nothing_gets_through(house, other)

    wanted = f"Not an open relay: {STRANGER} is not in allow_networks; in relay.toml under [listen]"
    assert {answer[:9] for answer in refusals} == {"550 5.7.1"}
    assert all(wanted in answer and f'add "{STRANGER}"' in answer for answer in refusals)


async def test_friend_gets_through_beside_a_stranger(other: OtherMachine) -> None:
    """The same machine by another address: the network that was named is let in, no other."""
    async with listening(host=("0.0.0.0",), allow_networks=FRIENDS) as house:
        async with calling(other, house.port, HERE_TOO, FRIEND) as talk:
            await talk.say(f"S: 220 *\n{MESSAGE}")
        async with calling(other, house.port, HERE_TOO, STRANGER) as talk:
            await talk.say("S: 220 *\nC: MAIL FROM:<a@b>\nS: 550 5.7.1 *")

        assert len(house.spool.kept) == 1


async def test_stranger_is_refused_until_he_logs_in(
    other: OtherMachine, known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """530 with ``auth = "required"``, for friends as well; then the password opens the door."""
    for patience in ("FRIENDS", "STRANGERS"):
        monkeypatch.setattr(auth, patience, Patience(first_s=0, longest_s=0))
    keys: dict[str, Any] = {"host": ("0.0.0.0",), "auth": "required", "allow_networks": FRIENDS}
    async with listening(users=known, **keys) as house:
        for call in ({}, {"host": HERE_TOO, "caller": FRIEND}):
            refusals = await nothing_gets_through(house, other, **call)
            assert {answer[:9] for answer in refusals} == {"530 5.7.0"}

        async with calling(other, house.port) as talk:
            login = f"C: AUTH PLAIN {plain('', 'listmonk', 'secret one')}\nS: 235 *\n"
            await talk.say(f"S: 220 *\n{login}{MESSAGE}")
        assert len(house.spool.kept) == 1


async def test_stripped_starttls_gets_nobody_in(
    other: OtherMachine, known: Users, tmp_path: Path
) -> None:
    """With ``tls_required`` neither mail nor a login is taken in the clear, from whomever.

    So whoever strips the offer out of a dialogue neither reads nor sends anything by it.
    """
    keys: dict[str, Any] = {"tls_required": True, "auth": "required", **certificate(tmp_path)}
    async with listening(users=known, host=("0.0.0.0",), allow_networks=FRIENDS, **keys) as house:
        for call in ({}, {"host": HERE_TOO, "caller": FRIEND}):
            refusals = await nothing_gets_through(house, other, **call)
            assert all("STARTTLS" in answer for answer in refusals)
        async with calling(other, house.port) as talk:
            await talk.say(
                f"S: 220 *\nC: AUTH PLAIN {plain('', 'listmonk', 'secret one')}\nS: 530 5.7.0 *"
            )


def certificate(folder: Path) -> dict[str, str]:
    issued = trustme.CA().issue_cert("relay.test")
    cert, key = folder / "cert.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    return {"tls_cert_file": str(cert), "tls_key_file": str(key)}


async def test_ipv6_stranger_is_refused_and_told_his_address(other: OtherMachine) -> None:
    """As any other."""
    async with listening(host=("::",), allow_networks=FRIENDS) as house:
        refusals = await nothing_gets_through(house, other, host=HERE_6, caller=STRANGER_6)

    assert all(f'add "{STRANGER_6}" to allow_networks' in answer for answer in refusals)


def door(host: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket as systemd would hand it over; IPv6 ones take IPv4 as well (BindIPv6Only=both)."""
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    if ":" in host:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind((host, 0))
    return one


@asynccontextmanager
async def listening_at(one: socket.socket, **keys: Any) -> AsyncIterator[House]:  # noqa: ANN401
    """A listener at a socket that was opened elsewhere."""
    spool, counts = FakeSpool(), Counts()
    table = config.Listen(**{"hostname": "relay.test", **keys})
    listener = Listener(table, spool, None, clock=SystemClock(), observer=counts, sockets=[one])
    await listener.start()
    try:
        yield House(listener, spool, counts)
    finally:
        await listener.drain(grace_s=1)


async def test_ipv4_through_an_ipv6_socket_is_judged_as_ipv4(other: OtherMachine) -> None:
    """``::ffff:10.77.0.2`` is no IPv6 friend, and the friend's mapped address still is a friend."""
    keys = {"allow_networks": (*FRIENDS, "fd77::/64")}
    async with listening_at(door("::"), **keys) as house:
        refusals = await nothing_gets_through(house, other)
        assert all(f'add "{STRANGER}"' in answer for answer in refusals)

        async with calling(other, house.port, HERE_TOO, FRIEND) as talk:
            await talk.say(f"S: 220 *\n{MESSAGE}")
        assert len(house.spool.kept) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", HERE, HERE_6])
async def test_inherited_socket_is_judged_by_what_it_is_bound_to(
    other: OtherMachine, host: str
) -> None:
    """``listen.host`` says 127.0.0.1 all the while; the listener does not start."""
    with door(host) as one, pytest.raises(ConfigError) as caught:
        async with listening_at(one):
            pass

    assert caught.value.key == "listen.allow_networks"
    assert f"a socket bound to {host}" in caught.value.found
    assert "anybody could send" in caught.value.wanted


async def test_inherited_socket_on_loopback_is_fine(other: OtherMachine) -> None:
    """And the other machine does not reach it."""
    async with listening_at(door("127.0.0.1")) as house:
        with pytest.raises(ConnectionRefusedError):
            other.call(HERE, house.port)


BECOME = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does: descriptors from 3 on, for the process of this number (sd_listen_fds(3))."""


def toml(folder: Path, listen: str) -> Path:
    path = folder / "relay.toml"
    path.write_text(
        f"[listen]\nport = 0\n{listen}\n[dashboard]\nport = 0\n"
        f'[spool]\npath = "{folder / "relay.db"}"\nfree_min_bytes = 1\n'
    )
    return path


def refused_start(folder: Path, listen: str, inherited: socket.socket | None = None) -> str:
    """What ``relay serve`` says when it does not start, as it must not."""
    words = [sys.executable, "-m", "relay", "serve", "-c", str(toml(folder, listen))]
    if inherited is not None:
        words = [sys.executable, "-c", BECOME, str(inherited.fileno()), *words]
    done = subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        pass_fds=[] if inherited is None else [inherited.fileno()],
    )
    assert done.returncode == EXIT_CONFIG, done
    return done.stderr


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", HERE, HERE_6])
async def test_relay_does_not_start_where_strangers_could_send(tmp_path: Path, host: str) -> None:
    """Exit code 78, with the key to change."""
    said = await asyncio.to_thread(refused_start, tmp_path, f'host = "{host}"')

    assert "listen.allow_networks" in said
    assert 'or auth = "required"' in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_relay_does_not_start_at_an_inherited_socket_that_strangers_reach(
    tmp_path: Path, other: OtherMachine, host: str
) -> None:
    """Though ``listen.host`` is 127.0.0.1: exit code 78."""
    with door(host) as one:
        one.listen()
        said = await asyncio.to_thread(refused_start, tmp_path, 'host = "127.0.0.1"', one)

    assert "listen.allow_networks" in said
    assert f"a socket bound to {host}" in said


@pytest.mark.usefixtures("other")
async def test_inherited_socket_that_is_not_for_tcp_is_refused(tmp_path: Path) -> None:
    """A Unix or UDP socket: exit code 78, and what relay.socket should say."""
    with socket.socket(socket.AF_UNIX) as unix, door("127.0.0.1", socket.SOCK_DGRAM) as udp:
        unix.bind(str(tmp_path / "door"))
        unix.listen()
        heard = [await asyncio.to_thread(refused_start, tmp_path, "", one) for one in (unix, udp)]

    assert "a socket of AF_UNIX and SOCK_STREAM from systemd" in heard[0]
    assert "a socket of AF_INET and SOCK_DGRAM from systemd" in heard[1]
    assert all("ListenStream= with a port" in said for said in heard)


@pytest.mark.usefixtures("other")
async def test_inherited_connection_is_refused() -> None:
    """``Accept=yes`` in relay.socket would start a relay for each client."""
    with door("127.0.0.1") as one:
        one.listen()
        with (
            socket.create_connection(one.getsockname()),
            one.accept()[0] as accepted,
            pytest.raises(ConfigError) as caught,
        ):
            async with listening_at(accepted):
                pass

    assert caught.value.found == "a connection from systemd"
    assert "Accept=no" in caught.value.wanted


async def test_whole_relay_sends_on_a_friends_mail_and_nothing_of_a_strangers(
    tmp_path: Path, other: OtherMachine
) -> None:
    """Audited at the other end: what arrives upstream is the one message of the friend."""
    listen = f'host = "0.0.0.0"\nallow_networks = ["127.0.0.0/8", "{FRIENDS_NET}"]'
    async with relay_and_twin(tmp_path, listen=listen) as (relay, twin):
        async with calling(other, relay.smtp_port) as talk:
            heard = await attempt(talk, ["EHLO localhost"])
        async with calling(other, relay.smtp_port, HERE_TOO, FRIEND) as talk:
            await talk.say(f"S: 220 *\n{MESSAGE}")
        await relay.until_sent(twin, 1)
        figures = await relay.until_empty()

        assert not [answer for answer in heard if answer.startswith("354")]
        assert figures["totals"]["received"] == 1
        assert twin.ledger.total.accepted == 1

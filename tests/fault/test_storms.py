"""Storms around the process: signals by the dozen, and clients by the hundred.

.venv/bin/python -m pytest -m slow -s tests/fault/test_storms.py
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from relay.mailer import Client, Mail, make_mail
from relay.twin import Latency, Twin, TwinConfig
from tests.fakes.process import cpu_s, rss_bytes
from tests.fakes.running import PATIENCE_S, RunningRelay, relay_and_twin
from tests.fakes.spool_file import query, until
from tests.fakes.trouble import until_empty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from relay.mailer import Told

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
TWIN = TwinConfig(
    rate_per_s=200,
    latency=Latency(rtt_s=0.005, accept_median_s=0.05, accept_p99_s=0.3, refuse_s=0.01),
    quota=0,
    seed=1,
)
UPSTREAM = "idle_close_s = 0.5\n[upstream.rate]\nstart_per_s = 100"
ROOM = "connections_max = 600"
"""For 500 of one kind and Listmonk's own."""
SLOW, VANISHING, AT_ONCE = 500, 2000, 50
BYTE_S = 0.5
"""Between two bytes of one slow client."""
MUTE = 4
"""Of the slow clients, those that never read; each makes the kernel take megabytes of answers."""
LOOK_S = 0.3
"""A relay that used next to no CPU for so long has no question left that it could answer."""
SLOWER_MAX = 3.0
"""How many times as long Listmonk may need beside a crowd: two cores carry all sides here."""
SLACK_S = 1.5
"""And so much more, for a busy machine; where a crowd rules it is half a minute."""
GROWTH_MAX_BYTES = 60_000_000
"""What a crowd may cost in memory: 500 connections with full buffers."""


def some_mail(count: int, first: int = 0) -> list[Mail]:
    rng = random.Random(first)
    return [make_mail(rng, first + n, campaign=CAMPAIGN, body_bytes=600) for n in range(count)]


async def check_all_arrived(
    relay: RunningRelay, twin: Twin, told: Told, mails: Sequence[Mail]
) -> None:
    """Each accepted mail came once, and no other outcome is known of it (P1, P2, P3)."""
    await until_empty(relay)
    arrived = [record.message_id for record in twin.ledger.records]
    sent = [mail.message_id for mail in mails]
    assert not told.refusals
    assert not told.given_up
    assert dict(told.accepted).keys() | set(told.lost_at_dot) == set(sent)
    assert dict(told.accepted).keys() - set(arrived) == set()
    assert len(arrived) == len(set(arrived))
    rows = query(relay.folder, "SELECT outcome, attempts FROM outcome")
    assert set(rows) == {("sent", 1)}
    assert len(rows) == len(arrived)


# -- Signals -------------------------------------------------------------------------------


async def storm(relay: RunningRelay, what: signal.Signals, count: int, gap_s: float) -> int:
    """Send so many signals, fewer if the process ends; how many there were."""
    pid = relay.pid
    for n in range(count):
        try:
            os.kill(pid, what)
        except ProcessLookupError:
            return n
        await asyncio.sleep(gap_s)
    return count


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT])
async def test_p3_end_that_is_asked_for_politely_loses_and_doubles_nothing(
    tmp_path: Path, what: signal.Signals
) -> None:
    """One SIGTERM, or one Ctrl-C, in mid-run: drained, exit 0; the next start sends the rest."""
    mails = some_mail(120)
    async with relay_and_twin(tmp_path, TWIN, upstream=UPSTREAM) as (relay, twin):
        client = Client("127.0.0.1", relay.smtp_port, attempts=1000)
        sending = asyncio.ensure_future(client.send(mails))
        await relay.until_sent(twin, 40)

        await storm(relay, what, 1, 0)
        assert await relay.ended() == 0
        await relay.start()

        await check_all_arrived(relay, twin, await sending, mails)


async def test_p3_storm_of_sigterm_is_one_sigterm(tmp_path: Path) -> None:
    """Fifty of them while it drains: what is under way is finished, nothing comes twice."""
    mails = some_mail(120)
    async with relay_and_twin(tmp_path, TWIN, upstream=UPSTREAM) as (relay, twin):
        client = Client("127.0.0.1", relay.smtp_port, attempts=1000)
        sending = asyncio.ensure_future(client.send(mails))
        await relay.until_sent(twin, 40)

        ending = asyncio.ensure_future(relay.ended())
        signals = await storm(relay, signal.SIGTERM, 50, 0.002)
        code = await ending
        await relay.start()

        assert signals > 10
        # The last of them may come when Python itself is on its way out, with all written.
        assert code in (0, -signal.SIGTERM)
        assert relay.log.count('msg="relay stopped"') == 1
        await check_all_arrived(relay, twin, await sending, mails)


async def test_p1_storm_of_sighup_is_survived(tmp_path: Path) -> None:
    """Two hundred in mid-run: the process stays, says what it did, and loses nothing."""
    mails = some_mail(300)
    async with relay_and_twin(tmp_path, TWIN, upstream=UPSTREAM) as (relay, twin):
        client = Client("127.0.0.1", relay.smtp_port, attempts=1)
        pid = relay.pid
        sending = asyncio.ensure_future(client.send(mails))
        await relay.until_sent(twin, 20)

        assert await storm(relay, signal.SIGHUP, 200, 0.005) == 200

        await check_all_arrived(relay, twin, await sending, mails)
        assert relay.pid == pid
        assert len(client.told.accepted) == len(mails)
        assert "reload" in relay.log
        assert await relay.stop() == 0


# -- Crowds --------------------------------------------------------------------------------


@asynccontextmanager
async def links(relay: RunningRelay, count: int) -> AsyncIterator[list[socket.socket]]:
    """Plain sockets that no loop reads from; what they stand for is up to who holds them."""
    loop, opened = asyncio.get_running_loop(), list[socket.socket]()
    try:
        for _ in range(count):
            link = socket.socket()
            opened.append(link)
            link.setblocking(False)
            # Else the kernel takes megabytes of answers in our place, and nothing ever waits.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(link, ("127.0.0.1", relay.smtp_port))
        yield opened
    finally:
        for link in opened:
            link.close()


async def trickle(crowd: list[socket.socket], done: asyncio.Event) -> None:
    """A message, byte by byte, from each of them."""
    head = b"EHLO x\r\nMAIL FROM:<slow@example.com>\r\nRCPT TO:<slow@example.org>\r\nDATA\r\n"
    at = 0
    while not done.is_set():
        byte = head[at : at + 1] or b"x"
        for number, link in enumerate(crowd):
            link.send(byte)
            if number % 10 == 0:
                await asyncio.sleep(BYTE_S * 10 / len(crowd))
        at += 1


async def fill(relay: RunningRelay, crowd: list[socket.socket]) -> None:
    """Ask without end and read no answer, until the relay takes no more questions."""
    questions, used_s = b"EHLO x\r\n" * 10_000, -1.0
    while cpu_s(relay.pid) - used_s > LOOK_S * 0.1:
        used_s = cpu_s(relay.pid)
        for link in crowd:
            try:
                link.send(questions)
            except BlockingIOError:
                pass
        await asyncio.sleep(LOOK_S)


async def timed(relay: RunningRelay, mails: list[Mail]) -> float:
    """How long Listmonk takes to be rid of its mail, in seconds; all of it must be taken."""
    began = time.monotonic()
    told = await Client("127.0.0.1", relay.smtp_port, attempts=1).send(mails)
    assert len(told.accepted) == len(mails)
    return time.monotonic() - began


async def test_500_slow_clients_do_not_slow_listmonk_down(tmp_path: Path) -> None:
    """They trickle, or never read answers: Listmonk's mail is taken at its usual speed."""
    async with relay_and_twin(tmp_path, TWIN, listen=ROOM, upstream=UPSTREAM) as (relay, twin):
        alone_s = await timed(relay, some_mail(300))
        before = rss_bytes(relay.pid)
        done = asyncio.Event()
        async with links(relay, SLOW) as crowd, asyncio.TaskGroup() as tasks:
            await fill(relay, crowd[-MUTE:])
            tasks.create_task(trickle(crowd[:-MUTE], done))
            beside_s = await timed(relay, some_mail(300, 300))
            grown = rss_bytes(relay.pid) - before
            done.set()
        await relay.until_sent(twin, 600)

        print(
            f"\n{SLOW} slow clients: 300 mails in {alone_s:.2f} s alone, {beside_s:.2f} s beside"
            f" them, memory {grown / 1e6:+.1f} MB"
        )
        assert beside_s < alone_s * SLOWER_MAX + SLACK_S
        assert grown < GROWTH_MAX_BYTES
        assert twin.ledger.total.accepted == 600


STOPS = (
    b"",
    b"EH",
    b"EHLO x\r\n",
    b"EHLO x\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@exa",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nSubject: x\r\n\r\n.",
    b"\x16\x03\x01\x02\x00",
)
"""How far somebody comes before he vanishes."""


async def vanish(relay: RunningRelay, number: int) -> None:
    """Connect, say something or nothing, and end with RST or FIN."""
    loop = asyncio.get_running_loop()
    with socket.socket() as link:
        link.setblocking(False)
        await loop.sock_connect(link, ("127.0.0.1", relay.smtp_port))
        await loop.sock_sendall(link, STOPS[number % len(STOPS)])
        if number % 3 == 0:
            await loop.sock_recv(link, 100)
        if number % 2:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # of a process, not of a folder


async def test_2000_clients_that_vanish_leave_nothing_behind(tmp_path: Path) -> None:
    """At whatever step they go: descriptors and memory come back, Listmonk notices nothing."""
    async with relay_and_twin(tmp_path, TWIN, upstream=UPSTREAM) as (relay, twin):
        await timed(relay, some_mail(50))
        await relay.until_sent(twin, 50)
        await until(lambda: not twin.ledger.sessions_open, PATIENCE_S)
        before, memory = descriptors(relay.pid), rss_bytes(relay.pid)

        sending = asyncio.ensure_future(timed(relay, some_mail(200, 50)))
        for first in range(0, VANISHING, AT_ONCE):
            await asyncio.gather(*(vanish(relay, first + n) for n in range(AT_ONCE)))
        took_s = await sending
        await relay.until_sent(twin, 250)
        await until(lambda: not twin.ledger.sessions_open, PATIENCE_S)
        await until(lambda: descriptors(relay.pid) <= before, PATIENCE_S)
        grown = rss_bytes(relay.pid) - memory

        print(
            f"\n{VANISHING} vanished: 200 mails beside them in {took_s:.2f} s,"
            f" memory {grown / 1e6:+.1f} MB"
        )
        assert twin.ledger.total.accepted == 250
        assert grown < GROWTH_MAX_BYTES
        assert "Traceback" not in relay.log

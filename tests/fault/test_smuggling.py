"""SMTP smuggling: in through the listener, out to an upstream that believes anything.

A false end is what some server somewhere takes for the end of a message and another does not
(CVE-2023-51764, CVE-2023-51765, CVE-2023-51766, CVE-2024-27305); behind it stands a whole
forged transaction. It must stay content: one message comes in, one goes out, with CRLF as its
only line end, and the upstream's stream holds one transaction however credulously it is read.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.clock import SystemClock
from relay.reply import Reply, Stage
from relay.twin import NO_LATENCY, TwinConfig
from relay.upstream.opening import Access
from relay.upstream.session import SmtpSession
from tests.fakes.clock import ManualClock
from tests.fakes.mail import envelope
from tests.fakes.running import relay_and_twin
from tests.fakes.smtp_grammar import ENDS, FORGED, Session
from tests.fakes.smtp_model import content_of
from tests.fakes.smtp_play import FRIEND, Case, Score, play, watched
from tests.fakes.spool_file import open_spool
from tests.fakes.wire import Loop, Shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

HEAD = (
    b"From: news@lists.example.com\r\nSubject: smuggler\r\nMessage-ID: <%d@lists.example.com>\r\n"
)
TRANSACTION = b"MAIL FROM:<news@lists.example.com>\r\nRCPT TO:<reader@example.org>\r\nDATA\r\n"
PLACES = ("first", "in the header", "after text", "after a line", "last")
PATIENCE_S = 30


def letter(n: int, end: bytes, place: str) -> bytes:
    """What goes over the wire between 354 and the real end, which is part of it."""
    head, text = HEAD % n, b"\r\nDear reader\r\n"
    forged = end + FORGED
    bodies = {
        # No CRLF before it: the one that ended the DATA command stands there.
        "first": end.removeprefix(b"\r\n") + b"\r\n" + head + text + forged,
        # Another Subject there, and SES refuses it.
        "in the header": head + b"X-Odd: x" + end + FORGED.partition(b"Subject")[0] + text,
        "after text": head + b"\r\nDear reader" + forged,
        "after a line": head + text + forged,
        "last": head + text + FORGED + end,
    }
    return bodies[place].removesuffix(b"\r\n") + b"\r\n.\r\n"


def corpus() -> Iterator[tuple[str, bytes, bytes]]:
    """(name, false end, letter); a letter that has a real end inside is none of them."""
    for n, end in enumerate(ENDS):
        for m, place in enumerate(PLACES):
            made = letter(10 * n + m, end, place)
            if (b"\r\n" + made).index(b"\r\n.\r\n") == len(made) - 3:
                yield f"{end!r} {place}", end, made


CORPUS = list(corpus())


def cuts_near(wire: bytes, end: bytes) -> list[int]:
    """Each byte of the false end, and of the real one."""
    at = wire.find(end)
    return [*range(at, at + len(end) + 2), *range(len(wire) - 6, len(wire))]


@pytest.mark.parametrize(
    "everywhere", ["", *(pytest.param(place, marks=pytest.mark.slow) for place in PLACES)]
)
def test_false_end_ends_nothing_wherever_the_packet_is_cut(everywhere: str) -> None:
    """In: one message, kept as RFC 5321 says, and the forged one is part of it.

    A third of the letters cut at the ends, or all with their false end in one place cut
    ``everywhere``.
    """
    letters = [one for one in CORPUS if one[0].endswith(everywhere)] if everywhere else CORPUS[::3]
    score, case = Score(), Case(FRIEND, has_users=False, auth="none", tls=False)

    async def play_all() -> None:
        shop = Shop(tls=False, listen=config.Listen())
        for name, end, made in letters:
            wire = TRANSACTION + made
            for cut in range(1, len(wire)) if everywhere else cuts_near(wire, end):
                two = Session([wire[:cut], wire[cut:], b"NOOP\r\n"], False, 0, False)
                try:
                    await play(shop, case, two, score)
                except BaseException as error:
                    error.add_note(f"{name}, cut at {cut}: {wire!r}")
                    raise
                (kept,) = shop.spool.kept
                assert b"forged@evil.example" in kept.content
                assert not has_bare_ending(kept.content)
                shop.forget()

    with watched(score), asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(play_all())

    print(f"smuggling in: {len(letters)} letters, {score.sessions} cuts, {score.accepted} kept")
    assert score.accepted == score.sessions > 10 * len(letters) > 900


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b"x\r\r\n.\r\n", b"x\r\n\r\n"),
        (b"x\n\r\n.\r\n", b"x\r\n\r\n"),
        (b"\r\r\n.\r\n", b"\r\n\r\n"),
        (b".\r\n", b""),
        (b"\0\r\n.\r\n", b"\0\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
    ],
)
def test_real_end_ends_the_message_whatever_stands_before_it(wire: bytes, content: bytes) -> None:
    """CRLF . CRLF is the end by any reading; what follows is commands, and is answered as such."""
    score, case = Score(), Case(FRIEND, has_users=False, auth="none", tls=False)

    async def play_all() -> None:
        shop = Shop(tls=False, listen=config.Listen())
        whole = TRANSACTION + wire + b"NOOP\r\n"
        for cut in range(1, len(whole)):
            two = Session([whole[:cut], whole[cut:]], False, 0, False)
            await play(shop, case, two, score)
            (kept,) = shop.spool.kept
            assert below_trace(kept.content) == content
            shop.forget()

    with watched(score), asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(play_all())


def below_trace(content: bytes) -> bytes:
    """Without the field that the relay puts before what it was given."""
    return content.partition(b"\r\n id ")[2].partition(b"\r\n")[2]


def has_bare_ending(content: bytes) -> bool:
    return re.search(rb"\r(?!\n)|(?<!\r)\n", content) is not None


# All the way: sockets, spool file, TLS, twin.


async def test_one_message_in_is_one_message_out(tmp_path: Path) -> None:
    """Through a real relay and spool to the twin: as many as were sent, each as it was meant.

    What an older version may have stored, with bare CR and LF in it, goes the same way.
    """
    whole_head = [made for name, _, made in CORPUS[::7] if not name.endswith("first")]
    stored = [made.removesuffix(b".\r\n") for made in whole_head]
    clock = SystemClock()
    async with open_spool(tmp_path, clock) as spool:
        for raw in stored:
            old = envelope(spool.new_id(), received_at=clock.wall_ms())
            await spool.append([old], raw)
    settings = TwinConfig(rate_per_s=1e6, quota=0, latency=NO_LATENCY, keep_content=True)
    rate = "[upstream.rate]\nstart_per_s = 1000"
    async with relay_and_twin(tmp_path, settings, upstream=rate) as (relay, twin):
        await send_over_sockets(relay.smtp_port)
        await relay.until_sent(twin, len(CORPUS) + len(stored))
        await relay.until_empty()

        told = {below_trace(record.content or b"") for record in twin.ledger.records}
        for name, _, made in CORPUS:
            # NUL, which no mail may hold, is kept by the spool and not passed on.
            assert content_of(made).replace(b"\0", b"") in told, name
        assert len(twin.ledger.records) == len(CORPUS) + len(stored)
        assert twin.ledger.total.attempts == len(twin.ledger.records)
        assert not twin.ledger.total.refused
        for record in twin.ledger.records:
            assert "forged" not in record.sender + "".join(record.recipients)
            assert record.content is not None
            assert not has_bare_ending(record.content)


async def send_over_sockets(port: int) -> None:
    """All letters on one connection, each cut in two within its false end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(PATIENCE_S):
        await reader.readline()
        for _, end, made in CORPUS:
            for command in TRANSACTION.splitlines(keepends=True):
                writer.write(command)
                assert (await reader.readline())[:1] in {b"2", b"3"}
            cut = made.find(end.removeprefix(b"\r\n")) + 1
            for part in (made[:cut], made[cut:]):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            assert (await reader.readline()).startswith(b"250 2.0.0 Ok: queued")
        writer.close()
        await writer.wait_closed()


# Out: to an upstream that keeps all it is sent.


@dataclass
class Tape:
    """An upstream that answers ordinarily, and remembers every byte after each 354."""

    commands: list[bytes] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await self._talk(reader, writer)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.over.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 tape\r\n")
        while line := await reader.readline():
            self.commands.append(line)
            if line == b"DATA\r\n":
                writer.write(b"354 go\r\n")
                # By RFC 5321; the test reads it again in worse ways.
                raw = b"\r\n"
                while not raw.endswith(b"\r\n.\r\n"):
                    raw += await reader.read(1 << 16)
                self.contents.append(raw)
            writer.write(b"250 Ok\r\n")


@asynccontextmanager
async def taping() -> AsyncIterator[tuple[Tape, SmtpSession]]:
    tape = Tape()
    server = await asyncio.start_server(tape.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = config.Upstream(host="127.0.0.1", port=port, tls="none")
    session = await SmtpSession.open(Access.build(settings, ""), ManualClock())
    try:
        yield tape, session
    finally:
        session.abort()
        server.close()
        async with asyncio.timeout(PATIENCE_S):
            await tape.over.wait()


CREDULOUS = re.compile(rb"(?:\r\n|\r|\n)[.](?=\r|\n)")
"""An end, as the union of all servers reads it: a lone dot between line ends of any kind."""


async def test_content_of_any_age_has_one_end_for_the_most_credulous_upstream() -> None:
    """Stored with CRLF alone, or as it came from the wire: the only lone dot is the last line."""
    contents = [content_of(made) for _, _, made in CORPUS]
    contents += [made.removesuffix(b".\r\n") for _, _, made in CORPUS]
    async with taping() as (tape, session), asyncio.timeout(PATIENCE_S):
        for content in contents:
            session._attempts = 0  # One session for all of them.
            attempt = await session.send("news@lists.example.com", ["r@example.org"], content)
            assert attempt.final == Reply(Stage.DOT, 250, "Ok")

    assert len(tape.contents) == len(contents)
    assert len(tape.commands) == 1 + 3 * len(contents)
    for raw in tape.contents:
        assert not has_bare_ending(raw)
        assert b"\0" not in raw
        assert [match.end() for match in CREDULOUS.finditer(raw)] == [len(raw) - 2]

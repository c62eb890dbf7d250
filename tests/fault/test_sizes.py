"""Messages too big, too many and without end: bounded while they are read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import pytest

from relay import config
from relay.listener.allowance import STEP_BYTES
from relay.listener.body import BodyReader
from relay.listener.intake import RECIPIENTS_MAX
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.dialogue import MESSAGE, PATIENCE_S, House, Talk, listening
from tests.fakes.running import relay_and_twin
from tests.fakes.wire import Loop, Shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

BEGUN = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
LINE = b"x" * 998 + b"\r\n"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def in_memory(play: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(play())  # type: ignore[arg-type]  # a coroutine


@pytest.mark.parametrize("factor", [1.5, 1.99])
def test_message_a_little_too_big_is_read_to_its_end(factor: float) -> None:
    """Its client hears 552 after the dot, as Listmonk wants it, and goes on as if nothing was."""

    async def play() -> None:
        shop = Shop(listen=config.Listen(size_max_bytes=100_000))
        caller = shop.enter()
        assert b"354" in await caller.send(BEGUN)
        for _ in range(int(factor * 100)):
            assert await caller.send(LINE) == b""
        assert (await caller.send(b".\r\n")).startswith(b"552 5.3.4 ")
        assert b"250 2.0.0 Ok: queued" in await caller.send(BEGUN + b"x\r\n.\r\n")
        await caller.leave(cut=False)
        assert len(shop.spool.kept) == 1
        assert shop.house.allowance.used_bytes == 0

    in_memory(play)


@pytest.mark.parametrize("chunk_bytes", [1_000, 40_000])
def test_message_without_end_is_cut_off_at_twice_the_size(chunk_bytes: int) -> None:
    """552 at once, and no byte after it is read: whoever sends for ever, sends to nobody."""

    async def play() -> None:
        shop = Shop(listen=config.Listen(size_max_bytes=100_000))
        caller = shop.enter()
        await caller.send(BEGUN)
        answer, sent_bytes = b"", 0
        while not answer and sent_bytes < 1_000_000:
            answer = await caller.send(LINE * (chunk_bytes // len(LINE)))
            sent_bytes += chunk_bytes
        assert answer.startswith(b"552 5.3.4 Message too big")
        assert caller.wire.is_closed
        assert 200_000 < sent_bytes <= 200_000 + chunk_bytes
        await caller.leave(cut=False)
        assert not shop.spool.kept
        assert shop.house.allowance.used_bytes == 0

    in_memory(play)


@pytest.mark.parametrize(
    "size_max_bytes", [1_000_000, pytest.param(41_943_040, marks=pytest.mark.slow)]
)
async def test_gigabyte_is_refused_early(size_max_bytes: int) -> None:
    """Over a real socket: the sender is stopped, the 552 is there to read, and memory is not."""
    gigabyte, loop = 1_000_000_000, asyncio.get_running_loop()
    async with listening(size_max_bytes=size_max_bytes) as house, raw_talk(house) as door:
        # Not by streams: they forget what was heard before a reset.
        await loop.sock_sendall(door, BEGUN)
        while b"354" not in await loop.sock_recv(door, 4096):
            pass
        (client,) = house.listener._connections
        allowance, most = client._house.allowance, 0
        before_bytes, sent_bytes = resident_bytes(), 0
        with contextlib.suppress(ConnectionError):
            while sent_bytes < gigabyte:
                await loop.sock_sendall(door, LINE * 64)
                sent_bytes += 64 * len(LINE)
                most = max(most, allowance.used_bytes)
        grown_bytes = resident_bytes() - before_bytes
        assert (await loop.sock_recv(door, 4096)).startswith(b"552 5.3.4 Message too big")
        await house.say(MESSAGE)

        print(f"1 GB: stopped after {sent_bytes / 1e6:.1f} MB; {most / 1e6:.1f} MB held at most")
        assert sent_bytes < 2 * size_max_bytes + 16_000_000  # what sockets hold comes on top
        assert most <= size_max_bytes * 1.5 + 2 * STEP_BYTES
        assert grown_bytes < size_max_bytes * 1.5 + 16_000_000
        assert allowance.used_bytes == 0
        assert len(house.spool.kept) == 1


@pytest.mark.parametrize("declared", ["1000001", "9" * 20, "9" * 5_000])
async def test_size_that_is_declared_is_refused_at_mail(declared: str) -> None:
    """Before a byte of it is sent (RFC 1870 §6.1)."""
    async with listening(size_max_bytes=1_000_000) as house:
        await house.say(f"C: MAIL FROM:<a@b> SIZE={declared}\nS: 552 5.3.4 *\n" + MESSAGE)


@pytest.mark.parametrize(
    "declared", ["", "-1", "+5", "1e9", "0x10", "9_000_000", "\u0663", "x" * 99]
)
async def test_size_that_is_no_number_declares_nothing(declared: str) -> None:
    """A message is not lost for it; its real size counts."""
    async with listening(size_max_bytes=1_000_000) as house:
        await house.say(f"C: MAIL FROM:<a@b> SIZE={declared}\nS: 250 *\n" + MESSAGE)

    assert not house.counts.refusals


async def test_ten_thousand_recipients_are_taken_and_no_more() -> None:
    """In one transaction: 200 envelopes of one content; the next one hears 452, and is told why."""
    people = [f"reader{n}@example.com" for n in range(RECIPIENTS_MAX + 1)]
    async with listening() as house:
        talk = await house.connect()
        answers = asyncio.create_task(replies(talk, len(people) + 3))
        await talk.send(b"MAIL FROM:<a@b>\r\n")
        await talk.send(b"".join(f"RCPT TO:<{one}>\r\n".encode() for one in people))
        await talk.send(b"DATA\r\nx\r\n.\r\n")
        heard = await answers

    assert heard[1:-3] == ["250 2.1.5 Ok"] * RECIPIENTS_MAX
    assert heard[-3].startswith("452 4.5.3 Too many recipients")
    assert heard[-1].startswith("250 2.0.0 Ok: queued")
    (kept,) = house.spool.kept
    assert [one.cost for one in kept.envelopes] == [50] * (RECIPIENTS_MAX // 50)
    assert [r.address for one in kept.envelopes for r in one.recipients] == people[:-1]


@contextlib.asynccontextmanager
async def raw_talk(house: House) -> AsyncIterator[socket.socket]:
    with socket.socket() as door:
        door.setblocking(False)
        async with asyncio.timeout(120):
            await asyncio.get_running_loop().sock_connect(door, ("127.0.0.1", house.port))
            yield door


async def replies(talk: Talk, count: int) -> list[str]:
    return [await talk.hear() for _ in range(count)]


@pytest.mark.slow
async def test_ten_thousand_recipients_are_delivered(tmp_path: Path) -> None:
    """Each of them once, by a real relay."""
    people = [f"reader{n}@example.com" for n in range(RECIPIENTS_MAX)]
    settings = TwinConfig(rate_per_s=1e6, quota=0, latency=NO_LATENCY)
    rate = "[upstream.rate]\nstart_per_s = 5000"
    async with relay_and_twin(tmp_path, settings, upstream=rate) as (relay, twin):
        talk = await Talk.to(relay.smtp_port)
        answers = asyncio.create_task(replies(talk, len(people) + 4))
        await talk.send(b"MAIL FROM:<news@lists.example.com>\r\n")
        await talk.send(b"".join(f"RCPT TO:<{one}>\r\n".encode() for one in people))
        await talk.send(b"DATA\r\nFrom: news@lists.example.com\r\nSubject: x\r\n\r\nx\r\n.\r\n")
        assert (await answers)[-1].startswith("250 2.0.0 Ok: queued")
        await talk.close()
        await relay.until_empty()

        told = [person for record in twin.ledger.records for person in record.recipients]
        print(f"10,000 recipients: {len(twin.ledger.records)} messages at the twin")
        assert sorted(told) == sorted(people)


class Weighed(BodyReader):
    """A body that tells what all of them hold, after each chunk."""

    __slots__ = ("__weakref__",)
    alive: ClassVar[WeakSet[Weighed]] = WeakSet()
    weights: ClassVar[list[int]] = []

    def feed(self, data: bytes) -> bytes | None:
        rest = super().feed(data)
        self.alive.add(self)
        self.weights.append(sum(one.held_bytes for one in self.alive))
        return rest


async def test_bodies_under_attack_stay_within_the_memory_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twenty senders of big bodies stop before the end, and hold what they have until they go.

    Memory stays below ``body_bytes_max`` and one message; then all honest mail is kept.
    """
    cap, size_max = 4 * STEP_BYTES, 4 * STEP_BYTES
    body = LINE * (3 * STEP_BYTES // len(LINE))
    monkeypatch.setattr("relay.listener.client.BodyReader", Weighed)
    async with listening(body_bytes_max=cap, size_max_bytes=size_max) as house:
        Weighed.weights.clear()

        async def begin() -> Talk:
            talk = await house.connect()
            await talk.say("C: MAIL FROM:<a@b>\nS: 250 *\nC: RCPT TO:<c@d>\nS: 250 *\nC: DATA")
            return talk

        async def deliver() -> None:
            talk = await begin()
            async with asyncio.timeout(60):
                assert (await talk.reader.readline()).startswith(b"354")
                await talk.send(body + b".\r\n")
                assert (await talk.reader.readline()).startswith(b"250")
            await talk.close()

        attackers = [await begin() for _ in range(20)]
        for talk in attackers:
            talk.writer.write(body)  # as much of it as is taken
        for _ in range(50):
            await house.say("C: NOOP\nS: 250 *")  # time to read all of it, if it did
        held_bytes = max(Weighed.weights)
        honest = [asyncio.create_task(deliver()) for _ in range(20)]
        for talk in attackers:
            reset(talk)
        await asyncio.gather(*honest)

        assert cap // 2 < held_bytes <= cap + size_max
        # What the senders that were cut off held is freed a moment after it may be used again.
        assert max(Weighed.weights) <= cap + 2 * size_max
        await until_none_is_held(house)
        assert len(house.spool.kept) == 20


def test_body_holds_no_more_than_its_share_however_much_comes_at_once() -> None:
    """Eight have used up one step each, there is no more, and then 60 kB come for each of them.

    One leads, and the others leave theirs unread until it is their turn; no byte is lost.
    """
    cap, size_max = 8 * STEP_BYTES, 2 * STEP_BYTES
    first, second = LINE * (STEP_BYTES // len(LINE)), LINE * 60

    async def play() -> None:
        shop = Shop(listen=config.Listen(body_bytes_max=cap, size_max_bytes=size_max))
        Weighed.weights.clear()
        callers = [shop.enter() for _ in range(8)]
        for caller in callers:
            assert b"354" in await caller.send(BEGUN)
            assert await caller.send(first) == b""
        for caller in callers:
            caller.wire.send(second)
        assert await callers[0].hear() == b""
        assert max(Weighed.weights) <= shop.house.allowance.used_bytes == cap + STEP_BYTES
        for caller in callers:
            caller.wire.send(b".\r\n")
        for caller in callers:
            assert b"250 2.0.0 Ok: queued" in await caller.hear()
            await caller.leave(cut=False)
        assert all(kept.content.endswith(first + second) for kept in shop.spool.kept)
        assert len(shop.spool.kept) == 8
        assert shop.house.allowance.used_bytes == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.listener.client.BodyReader", Weighed)
        in_memory(play)


async def until_none_is_held(house: House) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await house.listener._all_gone.wait()
    talk = await house.connect()
    (client,) = house.listener._connections
    assert client._house.allowance.used_bytes == 0
    await talk.close()


def reset(talk: Talk) -> None:
    door: socket.socket = talk.writer.get_extra_info("socket")
    door.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    talk.writer.transport.abort()

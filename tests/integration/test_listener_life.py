"""Stalls, leaving clients, limits, and the end: what a connection goes through in time."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.errors import SpoolFull
from relay.listener import Listener, intake
from relay.listener.allowance import STEP_BYTES
from relay.listener.listener import ACCEPT_RETRY_S
from tests.fakes.clock import ManualClock
from tests.fakes.dialogue import BEGIN, MESSAGE, PATIENCE_S, House, Talk, content_of, listening
from tests.fakes.spool import FakeSpool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from relay.envelope import Envelope

MAIL = "C: MAIL FROM:<a@b>\n"
RCPT = "S: 250 2.1.0 Ok\nC: RCPT TO:<c@d>\nS: 250 2.1.5 Ok\n"
HELLO = "    C: hello\n    C: .\n"


async def until(wait: Awaitable[object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await wait


async def all_gone(house: House) -> None:
    """Return when the listener has no connection left."""
    await until(house.listener._all_gone.wait())


async def test_p1_250_is_said_only_after_the_commit() -> None:
    """The answer to the dot waits for the spool, and nothing else does."""
    async with listening() as house:
        house.spool.hold_commits()
        talk, other = await house.connect(), await house.connect()
        await talk.say(BEGIN + HELLO)
        await house.spool.seen_waiting(1)

        answer = asyncio.create_task(talk.hear())
        await other.say("C: EHLO x\n" + "S: 250*\n" * 5 + MAIL + RCPT + "C: DATA\nS: 354 *")
        assert not answer.done()
        assert house.spool.kept == []

        house.spool.let_commits_go()
        assert (await answer).startswith("250 2.0.0 Ok: queued as ")
        assert len(house.spool.kept) == 1


async def test_mail_stalls_until_there_is_room() -> None:
    """No room: the answer to MAIL is late, and then good. Nothing is refused."""
    async with listening() as house:
        house.spool.fill()
        talk = await house.connect()
        await talk.say("C: EHLO x\n" + "S: 250*\n" * 5 + MAIL)
        await house.spool.seen_waiting(1)
        assert house.counts.stalls == [True]

        house.spool.free()
        await talk.say(RCPT + "C: DATA\nS: 354 *\n" + HELLO + "S: 250 *")

    assert house.counts.stalls == [True, False]
    assert house.counts.refusals == []


async def test_stall_at_mail_ends_with_452_after_stall_max_s() -> None:
    """The only 4xx that a full disk ever causes; the connection stays usable."""
    async with listening(stall_max_s=0.01) as house:
        house.spool.fill()
        talk = await house.connect()
        await talk.say(MAIL + "S: 452 4.3.1 *")
        house.spool.free()
        await talk.say(MESSAGE)

    assert house.counts.stalls == [True, False]


async def test_stall_at_the_dot_is_waited_for() -> None:
    """Room that went between MAIL and the dot: the dot is late, and then good."""
    async with listening() as house:
        talk = await house.connect()
        await talk.say(BEGIN)
        house.spool.fill()
        await talk.say(HELLO)
        await house.spool.seen_waiting(1)
        assert house.counts.stalls == [True]

        house.spool.free()
        await talk.say("S: 250 2.0.0 Ok: queued as *")

    assert house.counts.stalls == [True, False]


async def test_stall_at_the_dot_ends_with_452_after_stall_max_s() -> None:
    """And the message is withdrawn: 452 and a copy kept would be one mail twice."""
    async with listening(stall_max_s=0.01) as house:
        talk = await house.connect()
        await talk.say(BEGIN)
        house.spool.fill()
        await talk.say(HELLO + "S: 452 4.3.1 *\nC: .\nS: 500 *")
        house.spool.free()
        await talk.in_sync()

    assert house.spool.kept == []


class FullOnce(FakeSpool):
    """Has room, until the first message comes."""

    was_full = False

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        if not self.was_full:
            self.was_full = True
            raise SpoolFull
        await super().append(envelopes, content)


async def test_spool_that_is_full_after_all_is_waited_for() -> None:
    """``SpoolFull`` is a stall as well, never a refusal."""
    clock, spool = ManualClock(), FullOnce()
    async with listening(spool, clock=clock) as house:
        talk = await house.connect()
        await talk.say(BEGIN + HELLO)
        answer = asyncio.create_task(talk.hear())
        async with asyncio.timeout(PATIENCE_S):
            while not answer.done():
                await clock.advance(intake.FULL_RETRY_S)
                await asyncio.sleep(0.001)

    assert answer.result().startswith("250 ")
    assert len(spool.kept) == 1


@pytest.mark.parametrize("stage", ["mail", "dot"])
async def test_client_that_leaves_in_a_stall_leaves_nothing(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours may pass in a stall, and somebody starts the campaign again: no second copy."""
    monkeypatch.setattr("relay.listener.connection.GONE_GRACE_S", 2 * PATIENCE_S)
    async with listening() as house:
        talk = await house.connect()
        if stage == "mail":
            house.spool.fill()
            await talk.say(MAIL)
        else:
            await talk.say(BEGIN)
            house.spool.fill()
            await talk.say(HELLO)
        await house.spool.seen_waiting(1)

        await talk.close()
        await house.spool.seen_waiting(0)
        house.spool.free()
        await all_gone(house)

    assert house.spool.kept == []
    assert house.counts.stalls == [True, False]


async def test_client_that_is_cut_off_in_a_stall_leaves_nothing() -> None:
    """A reset connection counts as a closed one."""
    async with listening() as house:
        talk = await house.connect()
        house.spool.fill()
        await talk.say(MAIL)
        await house.spool.seen_waiting(1)
        talk.writer.transport.abort()
        await house.spool.seen_waiting(0)
        await all_gone(house)


async def test_message_is_kept_if_its_client_leaves_without_a_stall() -> None:
    """Listmonk was stopped while the commit ran: the message was whole, its reader gets it."""
    async with listening() as house:
        house.spool.hold_commits()
        talk = await house.connect()
        await talk.say(BEGIN + HELLO)
        await house.spool.seen_waiting(1)
        talk.writer.write_eof()
        # A second client's round trip: by then the end of the first has been seen.
        await house.say("C: NOOP\nS: 250 *")

        house.spool.let_commits_go()
        await talk.say("S: 250 *\nS: <closed>")

    assert len(house.spool.kept) == 1


async def test_commit_that_takes_long_is_withdrawn_after_a_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that hangs is a stall, though the spool has room."""
    monkeypatch.setattr("relay.listener.connection.GONE_GRACE_S", 0.01)
    async with listening() as house:
        house.spool.hold_commits()
        talk = await house.connect()
        await talk.say(BEGIN + HELLO)
        await house.spool.seen_waiting(1)
        await talk.close()
        await house.spool.seen_waiting(0)
        house.spool.let_commits_go()
        await all_gone(house)

    assert house.spool.kept == []


async def test_grace_of_one_message_does_not_end_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages in one write and the end after them: both are kept, one after the other."""
    monkeypatch.setattr("relay.listener.connection.GONE_GRACE_S", 0.2)
    two = r"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhello\r\n.\r\n" * 2
    async with listening() as house:
        talk = await house.connect()
        await talk.say("C~ " + two)
        talk.writer.write_eof()
        answer = "S: 250 *\nS: 250 *\nS: 354 *\nS: 250 2.0.0 Ok: queued as *\n"
        await talk.say(answer * 2 + "S: <closed>")

    assert len(house.spool.kept) == 2


class RoomForOne(FakeSpool):
    """Has no room left when the second message comes."""

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        if self.kept:
            self.fill()
        await super().append(envelopes, content)


async def test_client_that_has_left_before_a_stall_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its second message is read when it is gone already; the room goes after that."""
    monkeypatch.setattr("relay.listener.connection.GONE_GRACE_S", 0.2)
    two = r"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhello\r\n.\r\n" * 2
    async with listening(RoomForOne()) as house:
        house.spool.hold_commits()
        talk = await house.connect()
        await talk.say("C~ " + two)
        talk.writer.write_eof()
        await house.spool.seen_waiting(1)
        house.spool.let_commits_go()
        await talk.say("S: 250 *\nS: 250 *\nS: 354 *\nS: 250 2.0.0 Ok: queued as *")
        await talk.say("S: 250 *\nS: 250 *\nS: 354 *")

        await house.spool.seen_waiting(1)
        await house.spool.seen_waiting(0)
        house.spool.free()
        await talk.say("S: <closed>")

    assert len(house.spool.kept) == 1


async def test_only_strangers_have_an_idle_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute without a login ends a stranger's connection; Listmonk's stays open for a day."""
    monkeypatch.setattr("relay.listener.connection.STRANGER_MAX_S", 0.05)
    async with listening() as house, listening(allow_networks=("192.0.2.0/24",)) as strict:
        friend = await house.connect()
        stranger = await strict.connect()
        await stranger.say("S: <closed>")
        await friend.in_sync()


async def test_silence_has_a_limit_for_friends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day between messages, two hours within one."""
    monkeypatch.setattr("relay.listener.connection.IDLE_BETWEEN_S", 0.05)
    async with listening() as house:
        await (await house.connect()).say("S: <closed>")
    monkeypatch.undo()
    monkeypatch.setattr("relay.listener.connection.IDLE_CONTENT_S", 0.05)
    async with listening() as house:
        await (await house.connect()).say(BEGIN + "S: <closed>")


async def test_waiting_for_us_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall counts against nobody: the client cannot speak while we owe it an answer."""
    monkeypatch.setattr("relay.listener.connection.IDLE_BETWEEN_S", 0.05)
    async with listening() as house:
        house.spool.fill()
        talk = await house.connect()
        await talk.say(MAIL)
        await house.spool.seen_waiting(1)
        # Another client's whole idle time passes.
        await (await house.connect()).say("S: <closed>")
        house.spool.free()
        await talk.say("S: 250 *")


async def test_tcp_keepalive_is_on() -> None:
    """Without timeouts it is TCP that finds a client that has vanished."""
    async with listening() as house:
        await house.connect()
        (client,) = house.listener._connections
        connection = client._wire().get_extra_info("socket")

        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 120


async def test_connections_beyond_the_limit_wait_and_are_served() -> None:
    """The third client is neither refused nor greeted until another leaves."""
    async with listening(connections_max=2) as house:
        first, second = await house.connect(), await house.connect()
        waiting = [await house.connect(greeted=False) for _ in range(3)]
        greetings = [asyncio.create_task(talk.hear()) for talk in waiting]
        await first.in_sync()
        await second.in_sync()
        assert house.listener.connections == 2
        assert not any(greeting.done() for greeting in greetings)

        await first.close()
        await until(greetings[0])
        await second.close()
        await until(greetings[1])
        await waiting[0].say(MESSAGE + "C: QUIT\nS: 221 *\nS: <closed>")
        await until(greetings[2])

    assert sum(house.counts.connections) == 0
    assert house.counts.connections.count(1) == 5


async def test_bodies_share_the_memory_and_the_next_waits_before_its_354() -> None:
    """``body_bytes_max`` is taken by one body: the other client waits, and is then served."""
    async with listening(body_bytes_max=STEP_BYTES) as house:
        first, second = await house.connect(), await house.connect()
        await first.say(BEGIN)
        await second.say(MAIL + RCPT + "C: DATA")
        go_ahead = asyncio.create_task(second.hear())
        await house.say(MAIL + "S: 250 *")  # a whole dialogue passes
        assert not go_ahead.done()

        await first.say(HELLO + "S: 250 *")
        assert (await go_ahead).startswith("354 ")
        await second.say(HELLO + "S: 250 *")

    assert len(house.spool.kept) == 2


async def test_body_takes_memory_as_it_grows_and_gives_it_back() -> None:
    """Step by step, whatever becomes of the message."""
    async with listening() as house:
        talk = await house.connect()
        (client,) = house.listener._connections
        allowance = client._house.allowance
        await talk.say(BEGIN)
        assert allowance.used_bytes == STEP_BYTES

        await talk.send(b"x" * (2 * STEP_BYTES + 1))
        async with asyncio.timeout(PATIENCE_S):
            while allowance.used_bytes < 3 * STEP_BYTES:  # noqa: ASYNC110 - it has no event for this
                await asyncio.sleep(0.001)
        talk.writer.write_eof()
        await talk.say("S: <closed>")
        assert allowance.used_bytes == 0


async def test_client_that_leaves_while_it_waits_for_memory_gives_its_turn_away() -> None:
    """Three wait; the middle one goes; the others are served."""
    async with listening(body_bytes_max=STEP_BYTES) as house:
        first, second, third = [await house.connect() for _ in range(3)]
        await first.say(BEGIN)
        for talk in (second, third):
            await talk.say(MAIL + RCPT + "C: DATA")
        await second.close()
        async with asyncio.timeout(PATIENCE_S):
            while house.listener.connections > 2:  # noqa: ASYNC110 - it has no event for this
                await asyncio.sleep(0.001)
        await first.say(HELLO + "S: 250 *")
        await third.say("S: 354 *\n" + HELLO + "S: 250 *")


async def test_bodies_bigger_than_the_memory_do_not_block_each_other() -> None:
    """Each of four wants more than there is, all at once: one after the other gets through."""
    big = b"Subject: big\r\n\r\n" + b"x" * 78 + b"\r\n" * (4 * STEP_BYTES // 2)
    async with listening(body_bytes_max=2 * STEP_BYTES) as house:

        async def deliver(talk: Talk) -> None:
            await talk.say(BEGIN)
            await talk.send(big + b".\r\n", chunk_bytes=50_000)
            await talk.say("S: 250 *")

        talks = [await house.connect() for _ in range(4)]
        async with asyncio.timeout(60):
            await asyncio.gather(*map(deliver, talks))

    assert [content_of(house.spool, n) for n in range(4)] == [big] * 4


async def test_drain_answers_what_is_under_way_and_closes_the_rest() -> None:
    """Idle is closed at once; at the dot, in the content, before DATA: finished first."""
    async with listening() as house:
        idle, begun, content, dot = [await house.connect() for _ in range(4)]
        await begun.say(MAIL + RCPT)
        await content.say(BEGIN + "C: half")
        house.spool.hold_commits()
        await dot.say(BEGIN + HELLO)
        await house.spool.seen_waiting(1)

        drained = asyncio.create_task(house.listener.drain())
        await idle.say("S: <closed>")
        await begun.say("C: DATA\nS: 354 *\n" + HELLO)
        await content.say(HELLO)
        await house.spool.seen_waiting(3)
        assert not drained.done()
        house.spool.let_commits_go()
        for talk in (begun, content, dot):
            await talk.say("S: 250 2.0.0 Ok: queued as *\nS: <closed>")
        await until(drained)

    assert len(house.spool.kept) == 3
    assert house.counts.refusals == []
    assert house.listener.connections == 0


async def test_drain_cuts_a_stall_at_mail() -> None:
    """A connection that is cut there is tried again; to wait for room could take a day."""
    async with listening() as house:
        house.spool.fill()
        talk = await house.connect()
        await talk.say(MAIL)
        await house.spool.seen_waiting(1)

        await until(house.listener.drain(grace_s=2 * PATIENCE_S))
        await talk.say("S: <closed>")


async def test_drain_obeys_the_commands_that_have_come_already() -> None:
    """A pipelining client has its whole batch answered."""
    async with listening() as house:
        house.spool.hold_commits()
        talk = await house.connect()
        await talk.say(BEGIN + r"C~ x\r\n.\r\nRSET\r\nNOOP\r\n")
        await house.spool.seen_waiting(1)

        drained = asyncio.create_task(house.listener.drain())
        house.spool.let_commits_go()
        await talk.say("S: 250 *\nS: 250 2.0.0 Ok\nS: 250 2.0.0 Ok\nS: <closed>")
        await until(drained)


async def test_drain_ends_after_its_grace() -> None:
    """A client that never goes on cannot keep the relay from stopping; its message is not kept."""
    async with listening() as house:
        silent, dot = await house.connect(), await house.connect()
        await silent.say(BEGIN + "C: half")
        house.spool.hold_commits()
        await dot.say(BEGIN + HELLO)
        await house.spool.seen_waiting(1)

        await until(house.listener.drain(grace_s=0.01))

        assert house.listener.connections == 0
        await silent.say("S: <closed>")
        await dot.say("S: <closed>")

    assert house.spool.kept == []


async def test_nobody_is_accepted_after_the_drain_began() -> None:
    """The sockets are closed first."""
    async with listening() as house:
        port = house.port
        await house.listener.drain()

        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_sockets_that_are_open_already_are_used() -> None:
    """As systemd hands them in."""
    door = socket.create_server(("127.0.0.1", 0))
    listener = Listener(
        config.Listen(hostname="relay.test"),
        FakeSpool(),
        None,
        clock=ManualClock(),
        sockets=[door],
    )
    await listener.start()

    talk = Talk(*await asyncio.open_connection(*door.getsockname()))
    await talk.say("S: 220 relay.test *\n" + MESSAGE)
    await talk.close()
    await listener.drain()


async def test_connection_that_cannot_be_set_up_does_not_make_the_relay_deaf(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No file descriptor left, or a bug: it is logged, and the next client is served."""
    clock, tries = ManualClock(), []

    async def connect_accepted_socket(factory: object, _sock: socket.socket) -> None:
        tries.append(factory)
        raise OSError(24, "Too many open files")

    async with listening(clock=clock, connections_max=1) as house:
        monkeypatch.setattr(
            asyncio.get_running_loop(), "connect_accepted_socket", connect_accepted_socket
        )
        lost = await house.connect(greeted=False)
        await lost.say("S: <closed>")
        monkeypatch.undo()
        await clock.advance(ACCEPT_RETRY_S)
        await house.say(MESSAGE)

    assert len(tries) == 1
    assert "connection not accepted" in caplog.messages
    assert house.counts.failures == ["listener"]
    assert house.counts.connections == [1, -1, 1, -1]


async def test_surprise_within_a_message_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of a letter must never be read as commands."""

    def feed(_self: object, _data: bytes) -> None:
        raise ValueError

    async with listening() as house:
        monkeypatch.setattr("relay.listener.body.BodyReader.feed", feed)
        talk = await house.connect()
        await talk.say(BEGIN + "C: MAIL FROM:<evil@x>\nS: 451 4.3.0 *\nS: <closed>")


async def test_client_that_does_not_read_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers do not pile up without bound: no command is read while they cannot be sent."""
    count, is_full = 50_000, asyncio.Event()
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)
    async with listening() as house:
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", house.port))
        talk = Talk(*await asyncio.open_connection(sock=narrow, limit=4096))
        house.talks.append(talk)
        await talk.say("S: 220 *")
        (client,) = house.listener._connections
        wire, pause_writing = client._wire(), client.pause_writing
        wire.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def pause() -> None:
            pause_writing()
            is_full.set()

        monkeypatch.setattr(client, "pause_writing", pause)
        talk.writer.write(b"NOOP\r\n" * count)
        await until(is_full.wait())
        for _ in range(20):
            await house.say("C: NOOP\nS: 250 *")  # time enough to read on, if it did
        assert wire.get_write_buffer_size() < 1 << 17

        async with asyncio.timeout(60):
            answers = await talk.reader.readexactly(count * len(b"250 2.0.0 Ok\r\n"))
        assert answers == b"250 2.0.0 Ok\r\n" * count
        await talk.in_sync()

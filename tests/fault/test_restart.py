"""Restarts under a service manager: none is refused, no pooled connection dies, no mail is lost.

``ServiceManager`` stands in for systemd: it holds the listening socket and the descriptor store.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import signal
import ssl
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from relay.listener.listener import DRAIN_GRACE_S
from relay.mailer import Connection, Lost, Mail, Told, make_mail
from relay.twin import NO_LATENCY, TwinConfig, by_relay_id
from tests.fakes.running import PATIENCE_S, free_ports, relay_and_twin
from tests.fakes.service_manager import ServiceManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fakes.running import RunningRelay

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
ANSWER_MAX_S = 60
"""For an answer that comes at once, on a machine that is busy."""
FAST = TwinConfig(rate_per_s=2000, latency=NO_LATENCY, seed=1, quota=0)


def mail(n: int) -> Mail:
    return make_mail(random.Random(n), n, campaign=CAMPAIGN, body_bytes=2_000)


def under(manager: ServiceManager) -> dict[str, Any]:
    [http_port] = free_ports(1)
    return {"program": manager.program, "smtp_port": manager.port, "http_port": http_port}


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not claim():  # noqa: ASYNC110  # another process's doing
            await asyncio.sleep(0.01)


async def test_idle_connections_live_on_over_restarts(tmp_path: Path) -> None:
    """One connection, four relays: the client sends on it as if nothing had been."""
    told = Told()
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, twin):
            connection = await Connection.open("127.0.0.1", manager.port)
            for n in range(3):
                assert await connection.send(mail(n), told)
                await restart(relay, manager, clients=1)
            assert await connection.send(mail(3), told)
            connection.close()
            await relay.until_sent(twin, 4)

            assert len(told.accepted) == 4
            assert not told.refusals
            assert twin.ledger.twice(by_relay_id) == {}


async def restart(relay: RunningRelay, manager: ServiceManager, *, clients: int) -> None:
    """Stop, see so many connections kept, start, see that they were taken over."""
    assert await relay.stop() == 0
    await until(lambda: manager.clients == clients)
    await relay.start()
    await until(lambda: not manager.stored)


@pytest.mark.parametrize(
    ("restarts", "seconds"), [(2, 4), pytest.param(20, 60, marks=pytest.mark.slow)]
)
async def test_p1_pool_at_500_a_second_notices_no_restart(
    tmp_path: Path, restarts: int, seconds: int
) -> None:
    """A client that tries each mail once sees no connection refused or lost, and no mail lost."""
    pool = Pool(connections=20, rate_per_s=500)
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, twin):
            sending = asyncio.ensure_future(pool.send(manager.port, 500 * seconds))
            for n in range(restarts):
                due = 500 * seconds * (n + 0.5) / (restarts + 0.5)
                await until(lambda due=due: pool.sent > due)  # type: ignore[misc]
                await restart_under_load(relay, manager)
            await sending
            await relay.until_empty()

            arrived = {record.message_id for record in twin.ledger.records}
            print(
                f"\nrestarts {restarts}: sent {pool.sent}, connections lost {pool.failures}, "
                f"longest wait {pool.wait_max_s:.2f} s, taken over {taken_over(relay)}, lost "
                f"{pool.sent - len(arrived)}, twice {len(twin.ledger.twice(by_relay_id))}"
            )
            assert pool.failures == []
            assert pool.told.refusals == []
            assert pool.sent == len(pool.told.accepted) == 500 * seconds
            assert {message_id for message_id, _ in pool.told.accepted} == arrived
            assert twin.ledger.twice(by_relay_id) == {}
            assert sum(taken_over(relay)) >= restarts * 10


async def restart_under_load(relay: RunningRelay, manager: ServiceManager) -> None:
    assert await relay.stop() == 0
    await relay.start()
    await until(lambda: not manager.stored)


def taken_over(relay: RunningRelay) -> list[int]:
    """Connections that each start went on with."""
    return [int(n) for n in re.findall(r'msg="connections taken over".* clients=(\d+)', relay.log)]


class Pool:
    """Connections that are opened once and used for good; a lost one is written down."""

    def __init__(self, *, connections: int, rate_per_s: float) -> None:
        self._connections, self._rate_per_s = connections, rate_per_s
        self.told = Told()
        self.failures: list[str] = []
        self.sent = 0
        self.wait_max_s = 0.0

    async def send(self, port: int, total: int) -> None:
        """``total`` mails, each due at its time, each tried once."""
        numbers, began = count(), time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._connections):
                tasks.create_task(self._work(port, total, numbers, began))

    async def _work(self, port: int, total: int, numbers: Iterator[int], began: float) -> None:
        connection: Connection | None = None
        told = replace(self.told)
        while (n := next(numbers)) < total:
            await asyncio.sleep(began + n / self._rate_per_s - time.monotonic())
            asked = time.monotonic()
            try:
                connection = connection or await Connection.open("127.0.0.1", port)
                await connection.send(mail(n), told)
            except (Lost, OSError) as error:
                self.failures.append(repr(error))
                connection = None
            self.sent += 1
            self.wait_max_s = max(self.wait_max_s, time.monotonic() - asked)
        if connection is not None:
            connection.close()


async def test_p1_message_under_way_is_answered_before_the_relay_ends(tmp_path: Path) -> None:
    """SIGTERM in mid-content: the old relay says 250, the new one takes the next message."""
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, twin):
            connection = await Connection.open("127.0.0.1", manager.port)
            await begin_content(connection)
            stopping = asyncio.ensure_future(relay.stop())
            await until(lambda: "relay stopping" in relay.log)
            await connection.write(b"world\r\n.\r\n")

            code, _ = await connection.reply()
            assert code == 250
            assert await stopping == 0
            assert manager.clients == 1
            await connection.write(b"RSET\r\nNOO")  # nobody is there to read it
            await relay.start()
            await connection.write(b"P\r\n")

            async with asyncio.timeout(ANSWER_MAX_S):
                assert [(await connection.reply())[0] for _ in range(2)] == [250, 250]
            assert await connection.send(mail(1), Told())
            connection.close()
            await relay.until_sent(twin, 2)


async def begin_content(connection: Connection) -> None:
    for line, code in (
        ("MAIL FROM:<news@lists.example.com>", 250),
        ("RCPT TO:<reader@example.com>", 250),
        ("DATA", 354),
    ):
        assert (await connection.command(line))[0] == code
    await connection.write(b"Subject: hello\r\n\r\n")


async def test_p1_stalled_mail_is_taken_by_the_next_relay(tmp_path: Path) -> None:
    """No room, so MAIL waits; the operator mends it and restarts: the same MAIL gets its 250."""
    told = Told()
    with ServiceManager.running(tmp_path) as manager:
        small = under(manager) | {"free_min": "1\nsize_max_bytes = 1_048_576"}
        # Paused, so that no room comes back by sending.
        small["words"] = ("--paused",)
        async with relay_and_twin(tmp_path, FAST, **small) as (relay, _):
            connection = await Connection.open("127.0.0.1", manager.port)
            mails = (make_mail(random.Random(n), n, body_bytes=60_000) for n in range(50))
            sending = asyncio.ensure_future(send_all(connection, mails, told))
            await until(lambda: "spool has no room" in relay.log)
            assert await relay.stop() == 0
            assert manager.clients == 1
            taken = len(told.accepted)
            assert 0 < taken < 50

            relay.free_min = 1
            await relay.start()
            async with asyncio.timeout(ANSWER_MAX_S):
                await sending

            assert len(told.accepted) == 50
            assert not told.refusals
            connection.close()


async def send_all(connection: Connection, mails: Iterator[Mail], told: Told) -> None:
    for one in mails:
        await connection.send(one, told)


async def test_half_a_command_is_not_lost_between_two_relays(tmp_path: Path) -> None:
    """What the old relay had read and not obeyed is obeyed by the new one."""
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, _):
            connection = await Connection.open("127.0.0.1", manager.port)
            assert (await connection.command("NOOP"))[0] == 250
            await connection.write(b"VR")
            assert await relay.stop() == 0
            await relay.start()
            await connection.write(b"FY somebody\r\n")

            async with asyncio.timeout(ANSWER_MAX_S):
                assert (await connection.reply())[0] == 252
            connection.close()


@pytest.mark.parametrize("changed", ["other:plain:secret", "listmonk:plain:new"])
async def test_login_lives_on_unless_the_user_or_password_is_gone(
    tmp_path: Path, changed: str
) -> None:
    """A pooled connection never logs in twice; whom the file no longer lets in is out, though.

    Also where the change came while he was connected.
    """
    users = tmp_path / "users"
    users.write_text("listmonk:plain:secret\n")
    users.chmod(0o600)
    words = f'auth = "required"\nusers_file = "{users}"'
    with ServiceManager.running(tmp_path) as manager:
        settings = under(manager) | {"listen": words}
        async with relay_and_twin(tmp_path, FAST, **settings) as (relay, _):
            connection = await Connection.open("127.0.0.1", manager.port)
            token = base64.b64encode(b"\0listmonk\0secret").decode()
            assert (await connection.command(f"AUTH PLAIN {token}"))[0] == 235
            await restart(relay, manager, clients=1)
            assert (await connection.command("MAIL FROM:<a@example.com>"))[0] == 250
            assert (await connection.command("RSET"))[0] == 250

            users.write_text(f"{changed}\n")
            await restart(relay, manager, clients=1)

            assert (await connection.command("MAIL FROM:<a@example.com>"))[0] == 530
            connection.close()


async def test_login_that_is_never_finished_holds_up_no_restart(tmp_path: Path) -> None:
    """One client in mid-login, one silent where TLS should begin: two seconds, not thirty."""
    users, pem = tmp_path / "users", tmp_path / "cert.pem"
    users.write_text("listmonk:plain:secret\n")
    users.chmod(0o600)
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    words = f'users_file = "{users}"\ntls_cert_file = "{pem}"'
    with ServiceManager.running(tmp_path) as manager:
        settings = under(manager) | {"listen": words}
        async with relay_and_twin(tmp_path, FAST, **settings) as (relay, _):
            silent = [await Connection.open("127.0.0.1", manager.port) for _ in range(2)]
            assert (await silent[0].command("AUTH LOGIN"))[0] == 334
            assert (await silent[1].command("STARTTLS"))[0] == 220
            began = time.monotonic()

            assert await relay.stop() == 0

            assert time.monotonic() - began < DRAIN_GRACE_S / 2
            for one in silent:
                with pytest.raises(Lost):
                    await one.reply()
                one.close()
            await relay.start()


async def test_connections_of_unknown_standing_are_closed_for_their_clients_too(
    tmp_path: Path,
) -> None:
    """A relay of another format follows: the client sees an end, and systemd keeps nothing."""
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, _):
            connection = await Connection.open("127.0.0.1", manager.port)
            assert await relay.stop() == 0
            manager.lose("clients-standing")
            await relay.start()
            await until(lambda: not manager.stored)

            async with asyncio.timeout(ANSWER_MAX_S):
                with pytest.raises(Lost):
                    await connection.reply()
            connection.close()


async def test_encrypted_connections_end_between_messages(tmp_path: Path) -> None:
    """The state of TLS cannot be handed over: the client sees an orderly end, no mail is lost."""
    certificate = trustme.CA().issue_cert("localhost")
    pem = tmp_path / "cert.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    told = Told()
    with ServiceManager.running(tmp_path) as manager:
        settings = under(manager) | {"listen": f'tls_cert_file = "{pem}"'}
        async with relay_and_twin(tmp_path, FAST, **settings) as (relay, twin):
            connection = await Connection.open("127.0.0.1", manager.port, starttls=trusting)
            assert await connection.send(mail(0), told)
            assert await relay.stop() == 0

            assert manager.stored == []
            with pytest.raises(Lost):
                await connection.reply()
            connection.close()
            await relay.start()
            await relay.until_sent(twin, 1)


async def test_failed_start_leaves_the_clients_to_the_next(tmp_path: Path) -> None:
    """What a start that fails has not yet taken is there for the next one.

    systemd tries again by itself, and keeps the store for it, unless the exit code is 78; then
    it drops the store with the failed unit (systemd.service(5), FileDescriptorStorePreserve=).
    """
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, twin):
            connection = await Connection.open("127.0.0.1", manager.port)
            assert (await connection.command("NOOP"))[0] == 250
            assert await relay.stop() == 0
            relay.listen = 'tls_cert_file = "/nowhere/at/all.pem"'
            with pytest.raises(AssertionError, match="tls_cert_file"):
                await relay.start()
            assert relay._running is not None
            assert await relay._running.wait() == 78
            relay._running = None
            assert manager.clients == 1

            relay.listen = ""
            await relay.start()

            assert await connection.send(mail(0), Told())
            connection.close()
            await relay.until_sent(twin, 1)


async def test_without_a_store_connections_are_closed_between_messages(tmp_path: Path) -> None:
    """A unit without FileDescriptorStoreMax=: as if nothing had been offered."""
    with ServiceManager.running(tmp_path, keeps=False) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, _):
            connection = await Connection.open("127.0.0.1", manager.port)
            assert await relay.stop() == 0

            with pytest.raises(Lost):
                await connection.reply()
            connection.close()
            await relay.start()


async def test_client_that_left_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    """Kept connections whose client is gone cost the next relay neither its start nor a slot."""
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, _):
            leaves = [await Connection.open("127.0.0.1", manager.port) for _ in range(3)]
            stays = await Connection.open("127.0.0.1", manager.port)
            assert await relay.stop() == 0
            assert manager.clients == 4
            for one in leaves:
                one.close()
            await relay.start()

            assert await stays.send(mail(0), Told())
            stays.close()
            await until(lambda: not manager.stored)


async def test_clients_wait_in_the_backlog_while_no_relay_runs(tmp_path: Path) -> None:
    """Even after kill -9: a connect succeeds, and the greeting comes from the next relay."""
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, twin):
            await relay.kill()
            opening = asyncio.ensure_future(Connection.open("127.0.0.1", manager.port))
            await relay.start()

            connection = await opening
            assert await connection.send(mail(0), Told())
            connection.close()
            await relay.until_sent(twin, 1)


async def test_service_manager_is_told_each_step(tmp_path: Path) -> None:
    """READY, RELOADING and READY again on SIGHUP, STOPPING; each with a line for people."""
    with ServiceManager.running(tmp_path) as manager:
        async with relay_and_twin(tmp_path, FAST, **under(manager)) as (relay, _):
            assert manager.said[0] == {
                "READY": "1",
                "STATUS": "taking mail; sending 0.0/s; 0 waiting; ses idle; limit not known yet",
            }
            os.kill(relay.pid, signal.SIGHUP)
            await until(lambda: len(manager.said) >= 3)
            assert await relay.stop() == 0
            await until(lambda: "STOPPING" in manager.said[-1])

            assert [next(iter(one)) for one in manager.said] == [
                "READY",
                "RELOADING",
                "READY",
                "STOPPING",
            ]
            assert int(manager.said[1]["MONOTONIC_USEC"]) <= time.monotonic() * 1e6
            assert all(one["STATUS"] for one in manager.said)

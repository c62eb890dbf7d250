"""The upstream is away for long: its name is gone from DNS, or our key was revoked."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from relay.breaker import PROBE_FIRST_MS, PROBE_MAX_MS, Hold, Source, account_key
from relay.mailer import Client, Mail, make_mail
from relay.twin import NO_LATENCY, Twin, TwinConfig, texts
from relay.upstream.pacing import AT_ONCE
from tests.fakes import impostor, own_hosts
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import PATIENCE_S, query, until
from tests.integration.test_service import Living, living, settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "ses.localhost"
MAILS = 30
HOUR_MS = 3_600_000
TWIN = TwinConfig(rate_per_s=100, latency=NO_LATENCY, quota=0, session_age_s=None)


def some_mail(first: int = 0, count: int = MAILS) -> list[Mail]:
    rng = random.Random(first)
    return [make_mail(rng, first + n, body_bytes=200) for n in range(count)]


def missing(mails: list[Mail], twin: Twin) -> set[str]:
    return {mail.message_id for mail in mails} - {one.message_id for one in twin.ledger.records}


def attempts(folder: Path) -> set[tuple[object, ...]]:
    """(outcome, attempts, in doubt) of all that ended."""
    return set(query(folder, "SELECT outcome, attempts, in_doubt FROM outcome"))


@pytest.mark.skipif(not own_hosts.is_possible(), reason="a hosts file of its own takes root")
async def test_p4_name_that_does_not_resolve_costs_nothing(tmp_path: Path) -> None:
    """Gone from the start, then there, gone again, elsewhere: all of it arrives, once."""
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    cert_file, key_file = impostor.good(tmp_path, NAME)
    twin_config = replace(TWIN, cert_file=cert_file, key_file=key_file)
    program = ("-m", "tests.fakes.own_hosts", str(hosts))
    upstream = "session_messages_max = 1"
    async with relay_and_twin(
        tmp_path, twin_config, program=program, host=NAME, upstream=upstream
    ) as (relay, twin):
        client = Client("127.0.0.1", relay.smtp_port)
        first, second = some_mail(), some_mail(MAILS)
        await client.send(first)
        await until(lambda: "session not opened" in relay.log)
        hosts.write_text(f"127.0.0.1 {NAME}\n")
        await until(lambda: not missing(first, twin))
        hosts.write_text("")
        noted = relay.log.count("session not opened")
        await client.send(second)
        await until(lambda: relay.log.count("session not opened") > noted)
        hosts.write_text(f"127.0.0.1 {NAME}\n")
        await until(lambda: not missing(second, twin))

        assert await relay.stop() == 0
        assert len(client.told.accepted) == 2 * MAILS
        assert not twin.ledger.twice()
        assert attempts(tmp_path) == {("sent", 1, 0)}


def account_hold(relay: Living) -> Hold | None:
    return relay.relay._shared.holds.get(account_key("ses"), Source.BREAKER)


def differs(relay: Living, hold: Hold) -> bool:
    return account_hold(relay) != hold


async def turned(relay: Living, claim: Callable[[], bool]) -> None:
    """Turn the clock until the claim holds; sockets have none that could be turned."""
    async with asyncio.timeout(PATIENCE_S):
        while not claim():
            await relay.clock.advance(0.1)
            await asyncio.sleep(0.001)


async def test_p4_revoked_key_holds_for_an_hour_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """535: held with an alarm, asked ever more rarely, at most hourly; then all of it goes."""
    twin = Twin(replace(TWIN, tls="none", password="password", credentials_valid=False))
    port = await twin.start()
    whole = settings(tmp_path, port=port, username="sandbox", tls="none")
    mails, waits_ms = some_mail(), []
    async with living(tmp_path, whole) as relay:
        began_at = relay.clock.wall_ms()
        smtp_port = relay.relay.listener.sockets[0].getsockname()[1]
        client = Client("127.0.0.1", smtp_port, connections=1)
        await client.send(mails)
        await until(lambda: account_hold(relay) is not None)
        while relay.clock.wall_ms() - began_at < HOUR_MS:
            hold = account_hold(relay)
            assert hold is not None
            waits_ms.append(hold.next_probe_at - relay.clock.wall_ms())
            more = some_mail(len(mails), 1)
            await client.send(more)
            mails += more
            await relay.clock.advance(waits_ms[-1] / 1000)
            # The probe itself may have to wait for the pool, which backs off as well.
            await turned(relay, partial(differs, relay, hold))

        logins = twin.ledger.total.refused[texts.AUTH_WRONG]
        assert waits_ms[0] == PROBE_FIRST_MS
        assert waits_ms == sorted(waits_ms)
        assert max(waits_ms) <= PROBE_MAX_MS
        # The first, one for each probe, and those that were on their way to be opened ahead.
        assert logins <= 1 + len(waits_ms) + AT_ONCE
        assert not twin.ledger.records
        alarms = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert any(texts.AUTH_WRONG[4:] in str(vars(record)) for record in alarms)

        twin.credentials_valid = True
        await relay.clock.advance(PROBE_MAX_MS / 1000)
        await turned(relay, lambda: not missing(mails, twin))

        assert account_hold(relay) is None
        await until(lambda: not relay.depth())
    assert len(client.told.accepted) == len(mails)
    assert not twin.ledger.twice()
    assert attempts(tmp_path) == {("sent", 1, 0)}
    print(f"\n535 for an hour: {len(waits_ms)} probes, {logins} logins, lost 0, twice 0")
    await twin.stop()

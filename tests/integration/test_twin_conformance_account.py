"""The twin against facts/ses-smtp.md 7.2, 7.3, 7.9 and 7.10, driven by Python's own smtplib.

What the account allows, what the ledger says of it, ids and the side API; 7.8, the policy, is in
the table of replies. The number in a test's name is that of the line. Nothing of the relay
takes part, so that a misreading of SES in our own client cannot hide one here.
"""

from __future__ import annotations

import asyncio
import json
import re
import smtplib
import urllib.error
import urllib.request
import uuid
from dataclasses import replace
from typing import Any

import pytest

from relay.twin import (
    Foreign,
    Twin,
    message_id_time,
)
from tests.fakes.clock import ManualClock
from tests.fakes.stdlib_client import (
    CONTENT,
    OPEN,
    PATIENCE_S,
    READER,
    SENDER,
    Client,
    advance,
    drive,
)


async def test_7_2_bucket_admits_into_debt_and_refills() -> None:
    """7.2: at 10/s with a burst of 10: ten recipients at once, then debt, then one a tenth."""
    clock, loop = ManualClock(), asyncio.get_running_loop()
    ten = tuple(f"r{n}@example.org" for n in range(10))

    def use(client: Client) -> list[str]:
        replies = [client.message()[1][:3], client.message(readers=ten)[1][:3]]
        replies.append(client.message()[1][:3])
        client.say("RSET")
        advance(loop, clock, 0.15)
        replies.append(client.message()[1][:3])
        client.say("RSET")
        advance(loop, clock, 0.1)
        return [*replies, client.message()[1][:3]]

    found, _ = await drive(replace(OPEN, rate_per_s=10, burst=10), use, clock=clock)

    assert found == ["250", "250", "454", "454", "250"]


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ({}, 20),
        ({"effective": 0.5}, 10),
        ({"rejected_cost": 1}, 1),
        ({"rate_changes": ((1.0, 20.0),)}, 30),
    ],
    ids=str,
)
async def test_7_2_switches_of_the_rate(settings: dict[str, Any], accepted: int) -> None:
    """7.2: 40 tries a second for two seconds at 10/s from an empty bucket, by switch."""
    clock, loop = ManualClock(), asyncio.get_running_loop()

    def use(client: Client) -> None:
        for _ in range(80):
            client.message()
            client.say("RSET")
            advance(loop, clock, 0.025)

    config = replace(OPEN, rate_per_s=10, burst=1, seed=5, **settings)
    _, twin = await drive(config, use, clock=clock)

    assert abs(twin.ledger.total.accepted - accepted) <= max(3, accepted * 0.3)
    assert twin.ledger.total.attempts == 80


async def test_7_2_somebody_else_takes_from_the_same_bucket() -> None:
    """7.2: a stranger's 5/s in bursts of one, beside a client that leaves room for them."""
    clock, loop = ManualClock(), asyncio.get_running_loop()

    def use(client: Client) -> None:
        for _ in range(20):
            client.message()
            advance(loop, clock, 1)

    config = replace(OPEN, rate_per_s=10, foreign=Foreign(rate_per_s=5, burst=1), seed=5)
    _, twin = await drive(config, use, clock=clock)

    assert 60 <= twin.ledger.total.foreign <= 140
    assert twin.ledger.total.accepted == 20


async def test_7_2_noise_refuses_although_there_is_room() -> None:
    """7.2: about a third of the messages, in the words of the rate."""

    def use(client: Client) -> None:
        for _ in range(200):
            client.message()
            client.say("RSET")

    _, twin = await drive(replace(OPEN, noise=0.33, seed=3), use)

    assert 40 <= twin.ledger.total.throttled <= 90
    assert twin.ledger.total.accepted + twin.ledger.total.throttled == 200


async def test_7_3_quota_overshoots_and_comes_back_with_the_virtual_clock() -> None:
    """7.3: 3 of 4 used, a message to three passes; then no more until a day has gone by."""

    def play(client: Client, twin: Twin) -> list[str]:
        three = tuple(f"r{n}@example.org" for n in range(3))
        replies = [client.message(readers=three)[1][:3], client.message(readers=three)[1][:3]]
        replies.append(client.message()[1])
        client.say("RSET")
        twin.skip(86_400 + 3_600)
        return [*replies, client.message()[1][:3]]

    twin = Twin(replace(OPEN, quota=4), clock=ManualClock())
    client = await asyncio.to_thread(Client, await twin.start())
    try:
        await asyncio.to_thread(client.ehlo)
        found = await asyncio.to_thread(play, client, twin)
    finally:
        client.close()
        await twin.stop()

    assert found == ["250", "250", "454 Throttling failure: Daily message quota exceeded.", "250"]


async def test_7_9_ledger_holds_what_was_accepted() -> None:
    """7.9: envelope, size, hash and headers of each message; audits of loss and doubles."""

    def use(client: Client) -> None:
        for _ in range(2):
            client.message(content=f"Message-ID: <1@x>\r\nX-Listmonk-Campaign: c\r\n{CONTENT}")

    _, twin = await drive(OPEN, use)

    first = twin.ledger.records[0]
    assert (first.sender, first.recipients, first.campaign) == (SENDER, (READER,), "c")
    assert first.size_bytes == len(f"Message-ID: <1@x>\r\nX-Listmonk-Campaign: c\r\n{CONTENT}")
    assert twin.ledger.twice() == {("<1@x>", READER): 2}
    assert twin.audit().lost([("<1@x>", READER), ("<2@x>", READER)]) == {("<2@x>", READER)}
    assert twin.ledger.refused_share() == 0


async def test_7_2_fixed_window_opens_anew_with_each_second() -> None:
    """7.2: two a second of the clock: the third waits for the turn, not for half a second."""
    clock, loop = ManualClock(), asyncio.get_running_loop()

    def use(client: Client) -> list[str]:
        def tried() -> str:
            reply = client.message()[1][:3]
            client.say("RSET")
            return reply

        replies = [tried(), tried(), tried()]
        advance(loop, clock, 0.9)
        replies.append(tried())
        advance(loop, clock, 0.1)
        return [*replies, tried()]

    found, _ = await drive(replace(OPEN, rate_per_s=2, window=True), use, clock=clock)

    assert found == ["250", "250", "454", "454", "250"]


async def test_7_2_bucket_is_shared_by_several_credentials() -> None:
    """7.2: what one user of the account has taken is not there for another."""
    config = replace(
        OPEN,
        auth_required=True,
        rate_per_s=0.001,
        burst=1,
        other_users=(("second", "secret"),),
    )
    twin = Twin(config)
    port = await twin.start()

    def play(user: str, password: str) -> str:
        client = Client(port)
        try:
            client.login(user, password)
            return client.message()[1][:3]
        finally:
            client.close()

    try:
        first = await asyncio.to_thread(play, "sandbox", "sandbox")
        second = await asyncio.to_thread(play, "second", "secret")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            await asyncio.to_thread(play, "second", "sandbox")
    finally:
        await twin.stop()

    assert (first, second) == ("250", "454")


async def test_7_3_simulator_counts_for_the_rate_alone() -> None:
    """7.3 and section 3: mail to the simulator leaves the quota as it is."""
    simulator = ("success@simulator.amazonses.com",)

    def use(client: Client) -> list[str]:
        return [client.message(readers=simulator)[1][:3] for _ in range(3)]

    found, _ = await drive(replace(OPEN, quota=1), use)

    assert found == ["250", "250", "250"]


async def test_7_9_audits_measure_rate_refusals_use_and_recovery() -> None:
    """7.9: 40 tries a second at 10/s, from the fifth second on at 20/s."""
    clock, loop = ManualClock(), asyncio.get_running_loop()

    def use(client: Client) -> None:
        for _ in range(400):
            client.message()
            client.say("RSET")
            advance(loop, clock, 0.025)

    config = replace(OPEN, rate_per_s=10, burst=5, rate_changes=((5.0, 20.0),))
    _, twin = await drive(config, use, clock=clock)

    total, audit = twin.ledger.total, twin.audit()
    seconds = twin.ledger.seconds.values()
    assert total.attempts == 400
    assert twin.ledger.refused_share() == total.throttled / 400 > 0.3
    assert sum(one.accepted for one in seconds) == total.accepted
    assert sum(one.throttled for one in seconds) == total.throttled
    assert 19 <= twin.ledger.rate_peak(1) <= 25
    assert 14 <= twin.ledger.rate_peak(10) <= 16
    assert 2.4 <= twin.ledger.rate_peak(60) <= 2.7
    assert 0.9 <= audit.use(1000, 1010) <= 1.05
    ((_, recovery_s),) = audit.recoveries()
    assert recovery_s is not None
    assert recovery_s < 1


async def test_7_9_audits_leave_out_what_a_stranger_took() -> None:
    """7.9: the limit had ten a second; what others got in of it was not offered to us."""
    clock, loop = ManualClock(), asyncio.get_running_loop()

    def use(client: Client) -> None:
        for _ in range(20):
            client.message()
            advance(loop, clock, 1)

    config = replace(OPEN, rate_per_s=10, foreign=Foreign(rate_per_s=5, burst=1), seed=5)
    _, twin = await drive(config, use, clock=clock)

    taken = sum(amount for at, amount in twin.ledger.foreign if 1000 <= at < 1019)
    assert taken > 0
    assert twin.audit().offered(1000, 1019) == pytest.approx(190 - taken)


async def test_7_10_ids_tell_the_time_and_are_unique() -> None:
    """7.10: region, 12 hex digits of the ms of acceptance, UUID4, six zeros; 60 in all."""
    clock = ManualClock()

    def use(client: Client) -> list[str]:
        return [client.message()[1] for _ in range(5)]

    found, _ = await drive(OPEN, use, clock=clock)

    for reply in found:
        shape = re.fullmatch(r"250 Ok 0100([0-9a-f]{12})-([0-9a-f-]{36})-000000", reply)
        assert shape is not None, reply
        assert int(shape[1], 16) == clock.wall_ms() == message_id_time(reply[7:])
        assert uuid.UUID(shape[2]).version == 4
    assert len(set(found)) == 5


async def test_7_10_side_api_tells_limits_late_and_once_a_second() -> None:
    """7.10: GetAccount and GetSendQuota; counters lag a minute; a second call is throttled."""
    clock = ManualClock()
    config = replace(OPEN, rate_per_s=14, quota=50_000, api_port=0, api_lag_s=60)
    twin = Twin(config, clock=clock)
    client = await asyncio.to_thread(Client, await twin.start())

    def asked(path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{twin.api_port}{path}"
        request = urllib.request.Request(url, headers={"Authorization": "AWS4"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    quota = "/?Action=GetSendQuota"
    try:
        await asyncio.to_thread(client.ehlo)
        await asyncio.to_thread(client.message)
        account = await asyncio.to_thread(asked, "/v2/email/account")
        early = await asyncio.to_thread(asked, quota)
        again = await asyncio.to_thread(asked, quota)
        await clock.advance(61)
        late = await asyncio.to_thread(asked, quota)
    finally:
        client.close()
        await twin.stop()

    told = json.loads(account[1])["SendQuota"]
    assert (told["MaxSendRate"], told["Max24HourSend"]) == (14, 50_000)
    assert early[0] == 200
    assert "<SentLast24Hours>0.0<" in early[1]
    assert again[0] == 400
    assert "Throttling" in again[1]
    assert "<SentLast24Hours>1.0<" in late[1]

"""The twin against facts/ses-smtp.md 7, driven by Python's own smtplib.

The number in a test's name is that of the line.
Nothing of the relay takes part, so that a misreading of SES in our own client cannot hide
one here.
"""

from __future__ import annotations

import asyncio
import json
import smtplib
import ssl
import time
import urllib.request
from dataclasses import replace
from typing import Any

import pytest

from relay.twin import (
    Cut,
    Farewell,
    Foreign,
    Latency,
    Stage,
    Stall,
    Trickle,
    Twin,
    certificate_files,
    message_id_time,
    texts,
    weather,
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


@pytest.mark.parametrize(
    ("profile", "before", "after"),
    [
        ("2025", ["8BITMIME", "STARTTLS", "AUTH"], ["8BITMIME", "AUTH"]),
        ("2020", ["8BITMIME", "SIZE", "STARTTLS", "AUTH"], ["8BITMIME", "SIZE", "AUTH"]),
        ("odd", ["8BITMIME", "STARTTLS", "AUTH"], ["8BITMIME", "STARTTLS", "AUTH"]),
    ],
)
async def test_7_1_ehlo_profiles_starttls_and_login(
    profile: Any,  # noqa: ANN401  # a Literal
    before: list[str],
    after: list[str],
) -> None:
    """7.1: what is offered before and after TLS; login PLAIN and LOGIN; a message with an id.

    PIPELINING, SMTPUTF8, CHUNKING, DSN and, but for 2020, SIZE are not offered.
    """
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))

    def use(client: Client) -> tuple[list[str], list[str], str]:
        def offered() -> list[str]:
            return sorted(name.upper() for name in client.esmtp_features if name != "ok")

        clear = offered()
        client.starttls(context=context)
        client.ehlo()
        inside = offered()
        client.login("sandbox", "sandbox")
        return clear, inside, client.message()[1]

    config = replace(OPEN, tls="starttls", auth_required=True, ehlo=profile)
    (clear, inside, reply), twin = await drive(config, use)

    assert (clear, inside) == (sorted(before), sorted(after))
    assert reply == f"250 Ok {twin.ledger.records[0].id}"


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
        ({"window": True}, 20),
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

    assert found == ["250", "250", texts.QUOTA, "250"]


async def test_7_4_replies_take_their_time() -> None:
    """7.4: round trip, accept and stall all delay; the message is accepted all the same."""
    slow = Latency(rtt_s=0.02, jitter=0.5, accept_median_s=0.05, accept_p99_s=0.06)

    started = time.monotonic()
    (stage, reply), _ = await drive(
        replace(OPEN, latency=slow), Client.message, fault=weather.at(Stage.DOT, Stall(0.1))
    )
    assert time.monotonic() - started >= 0.1 + 4 * 0.01

    assert (stage, reply[:6]) == (Stage.DOT, "250 Ok")


async def test_7_5_age_ends_a_session_without_a_word() -> None:
    """7.5: between transactions the link is gone, and smtplib sees the server disconnect."""

    def use(client: Client) -> bool:
        assert client.sock is not None
        return client.sock.recv(1) == b""

    silent, _ = await drive(replace(OPEN, session_age_s=(0.3, 0.3)), use)

    assert silent


async def test_7_6_idle_session_is_told_and_cut() -> None:
    """7.6: 451 comes unasked, and is what smtplib reads as the reply to its next command."""

    def use(client: Client) -> str:
        assert client.sock is not None
        return client.sock.recv(1000).decode()

    found, _ = await drive(replace(OPEN, idle_s=0.2), use)

    assert found == "451 4.4.2 Timeout waiting for data from client.\r\n"


@pytest.mark.parametrize("stage", [Stage.EHLO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT])
async def test_7_7_links_die_at_any_stage(stage: Stage) -> None:
    """7.7: smtplib finds the server gone; what was not accepted is not in the ledger."""

    def use(client: Client) -> str:
        try:
            client.ehlo_or_helo_if_needed()
            client.message()
        except (smtplib.SMTPServerDisconnected, ConnectionError):
            return "gone"
        return "there"

    fault = weather.at(stage, Cut(reset=True))
    if stage is Stage.EHLO:
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            await drive(OPEN, use, fault=fault)
        return
    found, twin = await drive(OPEN, use, fault=fault)

    assert found == "gone"
    assert twin.ledger.total.accepted == 0


async def test_7_7_accepted_without_an_answer_is_noted() -> None:
    """7.7, after the dot, the other outcome: in the ledger, and among the unanswered."""

    def use(client: Client) -> None:
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            client.message()

    _, twin = await drive(OPEN, use, fault=weather.at(Stage.DOT, Cut(reset=True, done=True)))

    (record,) = twin.ledger.records
    assert twin.ledger.unanswered == {record.id}


async def test_7_7_replies_come_byte_by_byte() -> None:
    """7.7: smtplib puts them together; by fault, and by the setting for all replies."""
    by_fault, _ = await drive(OPEN, Client.message, fault=lambda *_: Trickle(0.0))
    by_setting, _ = await drive(replace(OPEN, bytewise=True), Client.message)

    assert by_fault[1].startswith("250 Ok 0100")
    assert by_setting[1].startswith("250 Ok 0100")


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


async def test_7_10_ids_tell_the_time_and_the_side_api_the_limits() -> None:
    """7.10: 60 characters with the ms of acceptance; GetAccount by HTTP."""
    clock = ManualClock()
    twin = Twin(replace(OPEN, rate_per_s=14, quota=50_000, api_port=0), clock=clock)
    client = await asyncio.to_thread(Client, await twin.start())
    request = urllib.request.Request(
        f"http://127.0.0.1:{twin.api_port}/v2/email/account", headers={"Authorization": "AWS4"}
    )
    try:
        await asyncio.to_thread(client.ehlo)
        _, reply = await asyncio.to_thread(client.message)
        answer = await asyncio.to_thread(
            lambda: urllib.request.urlopen(request, timeout=PATIENCE_S).read()
        )
    finally:
        client.close()
        await twin.stop()

    ses_id = reply.removeprefix("250 Ok ")
    assert len(ses_id) == 60
    assert message_id_time(ses_id) == clock.wall_ms()
    quota = json.loads(answer)["SendQuota"]
    assert (quota["MaxSendRate"], quota["Max24HourSend"]) == (14, 50_000)


@pytest.mark.parametrize("farewell", Farewell)
async def test_7_5_session_that_is_used_up_ends_in_every_way(farewell: Farewell) -> None:
    """7.5: 421 at the next MAIL, or nothing after RST; then the link is gone."""
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))

    def use(client: Client) -> str:
        client.starttls(context=context)
        client.ehlo()
        assert client.message()[1].startswith("250 Ok")
        try:
            reply = client.message()[1]
        except (smtplib.SMTPServerDisconnected, OSError):
            return "gone"
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            client.noop()
        return reply

    config = replace(OPEN, tls="starttls", session_messages=(1, 1), session_end=farewell, seed=1)
    found, twin = await drive(config, use)

    may_be_lost = farewell in {Farewell.RESET, Farewell.ANY}
    assert found == texts.SESSION_SPENT or (may_be_lost and found == "gone")
    assert twin.ledger.total.accepted == 1

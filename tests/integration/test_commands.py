"""``status``, ``find``, ``queue``, ``campaign``: of a running relay and of a stopped one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from relay import config
from relay.ageing import Ageing
from relay.breaker import Hold, Source
from relay.cli import main
from relay.cli._running import _is_there
from relay.cli.status import _lines
from relay.clock import SystemClock
from relay.envelope import Outcome
from relay.errors import RelayError
from relay.mailer import Client, make_mail
from relay.spool import Finished, Settlement, Spool, State
from tests.fakes.figures import event, figures, hold, room, stream, upstream
from tests.fakes.mail import envelope
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import park

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
SENDER = "news@lists.example.com"
NOBODY = 65_534


def relay(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "-c", str(folder / "relay.toml")])


async def ask(folder: Path, *words: str, code: int = 0) -> str:
    """What the command prints, on either stream; it ends with ``code``."""
    told = await asyncio.to_thread(relay, folder, *words)
    assert told.exit_code == code, told.output
    return told.output


# -- Of a running relay --------------------------------------------------------------------


async def test_commands_steer_a_running_relay(tmp_path: Path) -> None:
    """Hold, look, find, release, and find again: one story as an operator lives it."""
    async with relay_and_twin(tmp_path) as (running, twin):
        assert await ask(tmp_path, "queue", "hold", "account:ses", "--reason", "lunch") == (
            "held: account:ses\n"
        )
        rng = random.Random(1)
        mails = [make_mail(rng, n, campaign=CAMPAIGN) for n in range(3)]
        told = await Client("127.0.0.1", running.smtp_port).send(mails)
        assert len(told.accepted) == 3

        shown = await ask(tmp_path, "status")
        assert re.search("  running for [0-9]+ s, paused\n", shown)
        assert "\nwaiting  3 recipients\n" in shown
        assert f"\n  bulk     {CAMPAIGN}  3 waiting\n" in shown
        assert "HELD  account:ses  by operator for " in shown
        assert ", until released\n  lunch\n" in shown
        assert "since the start  received 3\n" in shown
        as_json = json.loads(await ask(tmp_path, "status", "--json"))
        assert [one["waiting"] for one in as_json["streams"]] == [3]
        assert as_json["paused"] is True

        found = await ask(tmp_path, "find", mails[0].message_id)
        assert "  waiting  " in found
        assert mails[0].message_id in found
        assert await ask(tmp_path, "campaign", "list") == f"{CAMPAIGN}  3 waiting\n"

        await ask(tmp_path, "campaign", "hold", CAMPAIGN.upper(), "--reason", "typo")
        assert await ask(tmp_path, "campaign", "list") == (f"{CAMPAIGN}  3 waiting  HELD: typo\n")
        assert await ask(tmp_path, "queue", "release", "account:ses") == "released: account:ses\n"
        assert twin.ledger.total.accepted == 0

        released = await ask(tmp_path, "campaign", "release", CAMPAIGN, "--json")
        assert json.loads(released) == {
            "key": f"campaign:{CAMPAIGN}",
            "lifted": ["operator"],
            "left": [],
            "returned": 0,
        }
        await running.until_sent(twin, 3)
        sent_ids = {record.message_id: record.id for record in twin.ledger.records}
        await running.until_empty()
        found = await ask(tmp_path, "find", mails[0].message_id)
        assert "  sent  " in found
        assert f"  SES id    {sent_ids[mails[0].message_id]}\n" in found
        assert await ask(tmp_path, "campaign", "list") == "no campaign has mail waiting\n"
        assert await ask(tmp_path, "campaign", "list", "--json") == "[]\n"


async def test_nonsense_is_told_by_a_running_relay(tmp_path: Path) -> None:
    """With what would have been right, exit code 70; nothing found is 1; nothing is held."""
    async with relay_and_twin(tmp_path):
        told = await ask(tmp_path, "queue", "hold", "acount:ses", code=70)
        assert told == (
            "relay: 'acount:ses' is no key of a hold: wanted account:ses, campaign:UUID, "
            "or one from relay status\n"
        )
        await ask(tmp_path, "queue", "hold", "account:other", code=70)
        await ask(tmp_path, "queue", "hold", "sender:other:a@example.com", code=70)
        await ask(tmp_path, "queue", "hold", "campaign:", code=70)
        await ask(tmp_path, "queue", "hold", " ", code=70)
        assert await ask(tmp_path, "find", "nobody@example.com", code=1) == "nothing found\n"
        assert await ask(tmp_path, "find", "nobody@example.com", "--json", code=1) == "[]\n"
        await ask(tmp_path, "find", " ", code=70)
        shown = await ask(tmp_path, "status")

        assert "  running for " in shown
        assert "HELD" not in shown
        assert "\nwaiting  0 recipients\n" in shown


# -- Of a stopped one ----------------------------------------------------------------------


def stopped(folder: Path, work: Callable[[Spool], Awaitable[Any]] | None = None) -> Path:
    """The configuration of a relay that does not run; its spool exists if there is ``work``."""
    (folder / "relay.toml").write_text('[spool]\npath = "relay.db"\nfree_min_bytes = 1\n')
    if work is not None:
        asyncio.run(with_spool(folder, work))
    return folder


async def with_spool(folder: Path, work: Callable[[Spool], Awaitable[Any]]) -> Any:  # noqa: ANN401
    spool = await Spool.open(
        folder / "relay.db",
        config.Spool(free_min_bytes=1),
        clock=SystemClock(),
        create=True,
        ballast_bytes=0,
    )
    try:
        return await work(spool)
    finally:
        await spool.close()


async def three_mails(spool: Spool) -> None:
    """One is sent, one waits, one is parked under its sender."""
    for number in (1, 2, 3):
        kept = envelope(number, campaign=CAMPAIGN)
        await spool.append([kept], b"x")
        if number == 1:
            change = Finished(
                n=0, outcome=Outcome.SENT, reply="250 Ok", code=250, ses_id="ab-1", attempts=2
            )
            await spool.settle(Settlement(envelope=kept, changes=(change,), at=kept.received_at))
    await park(spool, [3], f"sender:ses:{SENDER}")
    await spool.put_hold(Hold(f"sender:ses:{SENDER}", Source.BREAKER, "not verified", 1))


def test_stopped_relay_shows_its_spool(tmp_path: Path) -> None:
    """The same words, read from the file; what only a running one knows is left out."""
    stopped(tmp_path, three_mails)

    told = relay(tmp_path, "status")

    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0] == "the relay is not running"
    assert lines[1] == "waiting  2 recipients"
    assert lines[2].startswith(f"  bulk     {CAMPAIGN}  1 waiting, 1 parked, oldest ")
    assert lines[3].startswith(f"HELD  sender:ses:{SENDER}  by breaker for ")
    assert lines[4] == "  not verified"
    assert lines[5].startswith("spool  ")
    assert json.loads(relay(tmp_path, "status", "--json").output)["started_at"] == 0


@pytest.mark.parametrize("query", ["r1-0@example.org", "<1@lists.example.com>", "ab-1"])
def test_stopped_relay_finds_mail(tmp_path: Path, query: str) -> None:
    """By address, Message-ID and SES id."""
    stopped(tmp_path, three_mails)

    told = relay(tmp_path, "find", query)

    assert told.exit_code == 0, told.output
    assert told.output == (
        "r1-0@example.org  sent  2027-01-15 08:00:00 UTC, 2 attempts\n"
        "  received  2027-01-15 08:00:00 UTC as 0000000000001, bulk\n"
        f"  message   <1@lists.example.com> from {SENDER}\n"
        f"  campaign  {CAMPAIGN}, subscriber unknown\n"
        "  reply     250 Ok\n"
        "  SES id    ab-1\n"
    )
    [found] = json.loads(relay(tmp_path, "find", query, "--json").output)
    assert (found["address"], found["status"]) == ("r1-0@example.org", "sent")


def test_stopped_relay_holds_and_releases(tmp_path: Path) -> None:
    """What is said to it is there at the next start, and held time does not age mail."""
    stopped(tmp_path, three_mails)

    held = relay(tmp_path, "campaign", "hold", CAMPAIGN, "--reason", "typo", "--json")
    freed = relay(tmp_path, "queue", "release", f"sender:ses:{SENDER}")
    again = relay(tmp_path, "queue", "release", f"sender:ses:{SENDER}")

    assert json.loads(held.output) == {"held": f"campaign:{CAMPAIGN}", "waiting": 2}
    assert freed.output == f"released: sender:ses:{SENDER}\n"
    assert again.output == f"was not held: sender:ses:{SENDER}\n"

    async def look(spool: Spool) -> None:
        [kept] = await spool.holds()
        assert (kept.key, kept.source) == (f"campaign:{CAMPAIGN}", Source.OPERATOR)
        assert kept.reason == "typo"
        assert {key.state: count for key, count in spool.depth().items()} == {State.WAITING: 2}
        now_ms = SystemClock().wall_ms()
        ageing = Ageing(0)
        ageing.load(await spool.state("ageing") or {})
        week_ago = now_ms - 7 * 24 * 3_600_000
        assert not ageing.expired(week_ago, 24, [f"sender:ses:{SENDER}"], now_ms)
        assert ageing.expired(week_ago, 24, ["sender:ses:other"], now_ms)

    asyncio.run(with_spool(tmp_path, look))


def test_each_source_lifts_its_own(tmp_path: Path) -> None:
    """An operator's word does not overrule Listmonk's, unless it names it."""

    async def work(spool: Spool) -> None:
        await spool.put_hold(Hold("campaign:c", Source.LISTMONK, "paused there", 1))
        await spool.put_hold(Hold("campaign:c", Source.BREAKER, "refused", 2))

    stopped(tmp_path, work)

    first = relay(tmp_path, "campaign", "release", "c")
    second = relay(tmp_path, "campaign", "release", "c", "--source", "listmonk")

    assert first.output == "still held by listmonk: campaign:c\n"
    assert second.output == "released: campaign:c\n"


def test_wrong_key_is_told_by_a_stopped_relay(tmp_path: Path) -> None:
    """The same text and code as a running one's; a wrong source is the command line's fault."""
    stopped(tmp_path, three_mails)

    told = relay(tmp_path, "queue", "release", "nonsense")

    assert told.exit_code == 70
    assert "'nonsense' is no key of a hold: wanted account:ses" in told.output
    assert relay(tmp_path, "queue", "release", "account:ses", "--source", "me").exit_code == 2


def test_mail_of_an_upstream_that_is_gone_can_still_be_released(tmp_path: Path) -> None:
    """Its keys make no sense to the new configuration, but mail is parked under them."""

    async def work(spool: Spool) -> None:
        await spool.append([envelope(1, upstream="old")], b"x")
        await park(spool, [1], "sender:old:a@example.com")

    stopped(tmp_path, work)

    told = relay(tmp_path, "queue", "release", "sender:old:a@example.com", "--json")

    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["returned"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["find", "a@example.com"],
        ["campaign", "list"],
        ["campaign", "hold", "c"],
        ["campaign", "release", "c"],
        ["queue", "hold", "account:ses"],
        ["queue", "release", "account:ses"],
    ],
)
def test_without_a_spool_nothing_is_created(tmp_path: Path, words: list[str]) -> None:
    """Exit code 74 and the path that was looked at: only ``serve`` creates a spool."""
    stopped(tmp_path)

    told = relay(tmp_path, *words)

    assert told.exit_code == 74, told.output
    assert str(tmp_path / "relay.db") in told.output
    assert "Traceback" not in told.output
    assert [path.name for path in tmp_path.iterdir()] == ["relay.toml"]


def test_spool_that_another_process_owns_is_told(tmp_path: Path) -> None:
    """A relay without its socket (it is starting, or stopping): exit code 75, try again."""
    stopped(tmp_path)

    async def work(_: Spool) -> Result:
        return await asyncio.to_thread(relay, tmp_path, "status")

    told = asyncio.run(with_spool(tmp_path, work))

    assert told.exit_code == 75
    assert "Traceback" not in told.output


# -- What status shows ---------------------------------------------------------------------

NOW = 1_800_000_000_000


def shown(**more: object) -> str:
    values = {"now": NOW, "started_at": NOW - 300_000, **more}
    return "\n".join(_lines(figures(**values).as_json())) + "\n"


def test_status_of_a_relay_at_work() -> None:
    """Rate, limit, sessions, quota and room: the whole page."""
    assert shown(totals={"sent": 3, "bounced": 1}) == (
        "relay 1  running for 5 min\n"
        "ses  sending\n"
        "  holding 14.0/s ± 0.1, confirmed 40 s ago\n"
        "  sent 11.0/s of 12.5/s, refused 25.00%\n"
        "  sessions 7 open, 5 busy, at most 200\n"
        "  quota 900 in 24 h, 100 left\n"
        "waiting  0 recipients\n"
        "spool  10 B used, 50 B free on the disk (intake stalls below 5 B)\n"
        "since the start  bounced 1, sent 3\n"
    )


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        ({"draining": True}, "relay 1  running for 5 min, stopping\n"),
        ({"paused": True}, "relay 1  running for 5 min, paused\n"),
        ({"started_at": NOW - 3 * 86_400_000}, "running for 3 d\n"),
        ({"started_at": NOW - 119_000}, "running for 119 s\n"),
        ({"started_at": NOW + 5_000}, "running for 0 s\n"),
        ({"upstreams": (upstream(rate_words="idle; as told"),)}, "\n  idle; as told\n"),
        (
            {"events": tuple(event("x", at=NOW - 1_000 * n, upstream=f"u{n}") for n in range(7))},
            "\n2 s ago  u2  x\n3 s ago  u3  x\n4 s ago  u4  x\n5 s ago  u5  x\n6 s ago  u6  x\n",
        ),
        ({"upstreams": (upstream(quota_left=None),)}, "  quota 900 in 24 h\n"),
        (
            {"upstreams": (upstream(quota_next_at=NOW + 600_000, quota_spent_at=NOW),)},
            "  quota spent, asking again in 10 min\n",
        ),
        (
            {
                "upstreams": (
                    upstream(
                        quota_next_at=NOW + 600_000,
                        quota_spent_at=NOW,
                        quota_room_at=NOW + 7_200_000,
                    ),
                )
            },
            "  quota spent, asking again in 10 min, room expected in 2 h\n",
        ),
        (
            {"upstreams": (upstream(quota_next_at=NOW + 600_000),)},
            "  quota used but for the priority lane's reserve, more in 10 min\n",
        ),
        (
            {"holds": (hold("campaign:c", since_at=NOW - 7_200_000, next_probe_at=NOW + 60_000),)},
            "HELD  campaign:c  by breaker for 2 h, tried again in 60 s\n  test\n",
        ),
        ({"streams": (stream("", 2, 0, 1),)}, "(no campaign)"),
        ({"streams": (stream("", 2, 0, 1),)}, "  2 waiting, 1 quarantined\n"),
        (
            {"streams": (stream("", 2, 1, oldest_at=NOW - 180_000),)},
            "  2 waiting, 1 parked, oldest 3 min\n",
        ),
        ({"streams": (stream("c", 10, 5),)}, "waiting  15 recipients\n"),
        (
            {"room": room(stalled_s=200.0)},
            "  STALLED for 3 min: clients wait; make room on the disk\n",
        ),
        ({"room": room(free_bytes=1_500_000_000_000)}, "1.5 TB free"),
        ({"unknown_replies": {"451 what": 4}}, "unknown reply  4 x 451 what\n"),
    ],
)
def test_status_says_what_is_in_the_way(figure: dict[str, Any], line: str) -> None:
    """One line each, only if there is something to say."""
    assert line in shown(**figure)
    assert line not in shown()


def test_status_sums_up_what_it_does_not_list() -> None:
    """A hundred campaigns are a page, not a wall."""
    told = shown(streams=tuple(stream(f"c{n:03}", 1, 1) for n in range(30)))

    assert "waiting  60 recipients\n" in told
    assert "c019" in told
    assert "c020" not in told
    assert "  and 10 more streams with 20 recipients\n" in told


def test_folder_that_is_closed_to_us_is_told_in_a_line(tmp_path: Path) -> None:
    """An ordinary user asks for the status of the service's spool: no traceback, what to do."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    user = os.geteuid()
    try:
        if not user:
            os.seteuid(NOBODY)
        with pytest.raises(RelayError, match="run this as root"):
            _is_there(closed / "relay.db")
    finally:
        os.seteuid(user)
        closed.chmod(0o700)

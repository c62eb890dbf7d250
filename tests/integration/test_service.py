"""The life of a whole relay: what it brings back, what it notices, how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from relay import config, control
from relay.breaker import Hold, Source, account_key, sender_key
from relay.envelope import Outcome
from relay.errors import AddressBusy, RelayError, SpoolBroken
from relay.mailer import Client, make_mail
from relay.service import sandbox
from relay.service.relay import TELL_S, Relay
from relay.service.serving import SAME_KEY_S, _first
from relay.service.upkeep import CLOCK_S
from relay.shaper import Cause
from relay.spool import Finished, Rescheduled, Settlement, Spool, State
from relay.twin import Latency, Twin, TwinConfig, certificate_files
from tests.fakes.clock import ManualClock
from tests.fakes.mail import envelope
from tests.fakes.running import PATIENCE_S, RunningRelay, free_ports, relay_and_twin
from tests.fakes.spool_file import ROOMY, open_spool, park, query, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
ACCOUNT = Hold(account_key("ses"), Source.OPERATOR, "test", 1)
SLOW = TwinConfig(latency=Latency(rtt_s=0, accept_median_s=1.0, accept_p99_s=1.01, refuse_s=0))
NEVER = TwinConfig(latency=Latency(rtt_s=0, accept_median_s=300, accept_p99_s=301, refuse_s=0))
HOUR_MS = 3_600_000


@dataclass
class Living:
    """A relay that runs in this loop."""

    relay: Relay
    spool: Spool
    clock: ManualClock
    path: Path
    running: asyncio.Task[None]

    async def ask(self, command: str, **body: object) -> dict[str, Any]:
        """As a command does it."""
        path = control.socket_path(self.path)
        answer = await asyncio.to_thread(partial(control.ask, path, command, **body))
        assert answer is not None
        return answer

    async def ready(self) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.relay.dashboard.port}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    def depth(self) -> Mapping[tuple[str, State], int]:
        return {(key.upstream, key.state): count for key, count in self.spool.depth().items()}


def settings(folder: Path, **upstream: object) -> config.Config:
    ses = replace(config.Upstream(host="127.0.0.1", port=1, tls="none"), **upstream)  # type: ignore[arg-type]
    return replace(
        config.Config(),
        listen=config.Listen(port=0),
        dashboard=config.Dashboard(port=0),
        spool=replace(ROOMY, path=str(folder / "relay.db")),
        upstreams=(ses,),
    )


@asynccontextmanager
async def living(
    folder: Path, whole: config.Config | None = None, clock: ManualClock | None = None
) -> AsyncIterator[Living]:
    """A relay that takes mail, and is drained at the end."""
    whole, clock = whole or settings(folder), clock or ManualClock()
    async with open_spool(folder, clock, whole.spool) as spool:
        relay = Relay(whole, spool, clock, dict.fromkeys(["ses", "other"], "password"))
        running = asyncio.create_task(relay.run())
        started = asyncio.create_task(relay.ready.wait())
        await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if running.done():
            await running
        try:
            yield Living(relay, spool, clock, folder / "relay.db", running)
        finally:
            relay.drain()
            await asyncio.wait([running])
            if not running.cancelled():
                running.result()


@asynccontextmanager
async def before(folder: Path) -> AsyncIterator[Spool]:
    """The spool as an earlier run left it; mail does not go out, since the account is held."""
    async with open_spool(folder) as spool:
        await spool.put_hold(ACCOUNT)
        yield spool


# -- Start ---------------------------------------------------------------------------------


async def test_what_was_learned_and_held_survives_a_restart(tmp_path: Path) -> None:
    """The rate found yesterday is where today begins; holds stay until they are lifted."""
    async with living(tmp_path) as first:
        branch = first.relay._branches["ses"]
        branch.shaper.restore(1.0, {"limit_per_s": 42.0, "burst": None, "confidence": 0.9})
        await first.ask("hold", key="account:ses", reason="lunch")
        await first.ask("hold", key="campaign:c")
        await first.ask("release", key="campaign:c")

    async with living(tmp_path) as second:
        figures = await second.ask("status")

    [upstream] = figures["upstreams"]
    assert upstream["limit_per_s"] == pytest.approx(42, rel=0.05)
    [hold] = figures["holds"]
    assert (hold["key"], hold["source"], hold["reason"]) == ("account:ses", "operator", "lunch")
    assert figures["paused"] is True


async def test_quota_ledger_is_rebuilt_from_the_outcomes(tmp_path: Path) -> None:
    """SES counts yesterday's mail, restart or not."""
    async with before(tmp_path) as spool:
        kept = envelope(1, cost=3)
        await spool.append([kept], b"x")
        changes = tuple(Finished(n=n, outcome=Outcome.SENT) for n in range(3))
        await spool.settle(Settlement(envelope=kept, changes=changes, at=kept.received_at))

    async with living(tmp_path) as relay:
        [upstream] = (await relay.ask("status"))["upstreams"]

    assert upstream["quota_used"] == 3


async def test_surprises_of_every_room_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug that was survived shows in the metrics, whichever loop it was in."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with living(tmp_path) as relay:
        count = partial(
            relay.relay.metrics.registry.get_sample_value, "relay_service_failures_total"
        )
        with monkeypatch.context() as patch:
            patch.setattr("relay.service.relay.room_of", fail)
            with pytest.raises(RelayError, match="surprise"):
                await relay.ask("status")
            patch.setattr("relay.upstream.session.open_link", fail)
            await relay.spool.append([envelope(1)], b"x")
            await until(lambda: count({"room": "upstream"}) is not None)
            relay.spool.on_arrival = fail
            await relay.spool.append([envelope(2)], b"x")
            patch.setattr("relay.listener.client.address.read", fail)
            await talk_to(relay.relay.listener.sockets[0].getsockname()[1])

        rooms = ("control", "upstream", "spool", "listener")
        assert {room: count({"room": room}) for room in rooms} == dict.fromkeys(rooms, 1.0)


async def talk_to(port: int) -> None:
    """Say MAIL and hear that something is wrong."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b"MAIL FROM:<a@example.com>\r\n")
    assert (await reader.readline()).startswith(b"451 ")
    writer.close()
    await writer.wait_closed()


async def test_age_of_the_oldest_mail_is_shown(tmp_path: Path) -> None:
    """By stream in ``status``, by lane in the metrics."""
    async with before(tmp_path) as spool:
        await spool.append([envelope(1, received_at=HOUR_MS)], b"x")

    async with living(tmp_path) as relay:
        figures = relay.relay.figures()
        relay.relay.metrics.exposition(figures)
        age_s = relay.relay.metrics.registry.get_sample_value(
            "relay_spool_oldest_seconds", {"upstream": "ses", "lane": "priority"}
        )
        await park(relay.spool, [1], "account:ses")
        [parked] = relay.relay.figures().streams

    [stream] = figures.streams
    assert stream.oldest_at == HOUR_MS
    assert age_s == (figures.now - HOUR_MS) / 1000
    assert (parked.waiting, parked.oldest_at) == (0, None)


async def test_held_time_survives_a_restart(tmp_path: Path) -> None:
    """Mail held for a month is not expired at the start."""
    async with before(tmp_path):
        pass

    async with living(tmp_path) as relay:
        relay.clock.step_wall(30 * 24 * HOUR_MS)
        now_ms = relay.clock.wall_ms()
        await relay.ask("release", key="account:ses")
        ageing = relay.relay._shared.ageing
        assert not ageing.expired(now_ms - 29 * 24 * HOUR_MS, 24, ["account:ses"], now_ms)
        assert ageing.expired(now_ms - 29 * 24 * HOUR_MS, 24, [], now_ms)


async def test_time_under_a_hold_that_was_lifted_survives_a_restart(tmp_path: Path) -> None:
    """The hold is gone, and the 23 hours under it still make no mail older."""
    async with living(tmp_path) as first:
        begun_ms = first.clock.wall_ms()
        await first.ask("hold", key="account:ses")
        first.clock.step_wall(23 * HOUR_MS)
        await first.ask("release", key="account:ses")

    async with living(tmp_path) as second:
        ageing, later_ms = second.relay._shared.ageing, begun_ms + 30 * HOUR_MS
        assert not ageing.expired(begun_ms, 24, ["account:ses"], later_ms)
        assert ageing.expired(begun_ms, 24, [], later_ms)


async def test_mail_parked_under_a_hold_that_is_gone_waits_again(tmp_path: Path) -> None:
    """A crash between the two writes must not strand it; what is held stays parked."""
    gone, held = sender_key("ses", "gone@example.com"), sender_key("ses", "held@example.com")
    async with before(tmp_path) as spool:
        for number in (1, 2):
            await spool.append([envelope(number)], b"x")
        await park(spool, [1], gone)
        await park(spool, [2], held)
        await spool.put_hold(Hold(held, Source.BREAKER, "not verified", 1))

    async with living(tmp_path) as relay:
        depth = relay.depth()
        keys = await relay.spool.parked_keys()

    assert depth == {("ses", State.WAITING): 1, ("ses", State.PARKED): 1}
    assert keys == [held]


async def test_mail_of_an_upstream_that_is_gone_is_kept_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ERROR with its name: a person must give it back, or move the mail. Dead mail is no matter."""
    async with before(tmp_path) as spool:
        await spool.append([envelope(1, upstream="lost")], b"x")
        dead = envelope(2, upstream="dead")
        await spool.append([dead], b"x")
        bounced = Finished(n=0, outcome=Outcome.BOUNCED)
        await spool.settle(Settlement(envelope=dead, changes=(bounced,), at=1))

    async with living(tmp_path) as relay:
        depth = relay.depth()

    assert depth["lost", State.WAITING] == 1
    told = [one for one in caplog.records if "not configured" in one.message]
    assert [(one.levelno, one.__dict__["upstream"]) for one in told] == [(logging.ERROR, "lost")]


@pytest.mark.parametrize(("max_s", "latest_s"), [(3600, 4320), (60, 600)])
async def test_due_times_of_a_wrong_clock_are_set_back_at_the_start(
    tmp_path: Path, max_s: int, latest_s: int
) -> None:
    """To the longest wait there is; and mail in doubt keeps its ten minutes."""
    now_ms = ManualClock().wall_ms()
    async with before(tmp_path) as spool:
        for number, due_at in ((1, now_ms + 300 * 24 * HOUR_MS), (2, now_ms + 590_000)):
            kept = envelope(number)
            await spool.append([kept], b"x")
            change = Rescheduled(n=0, due_at=due_at, attempts=1)
            await spool.settle(Settlement(envelope=kept, changes=(change,), at=now_ms))

    whole = replace(settings(tmp_path), retry=config.Retry(max_s=max_s, first_s=10))
    async with living(tmp_path, whole):
        pass

    late, soon = query(tmp_path, "SELECT due_at FROM envelope ORDER BY id")
    assert late == (now_ms + latest_s * 1000,)
    assert soon in [(now_ms + 590_000,), (now_ms + 590_001,)]


# -- The clock -----------------------------------------------------------------------------


async def test_change_of_a_limit_is_an_event_within_a_second(tmp_path: Path) -> None:
    """Nobody has to ask for it."""
    async with living(tmp_path) as relay:
        told = {"limit_per_s": 42.0, "confidence": 0.9}
        relay.relay._branches["ses"].shaper.restore(relay.clock.monotonic(), told, Cause.AWS)

        await relay.clock.advance(1)

        [event] = (await relay.ask("status"))["events"]
    assert event["text"] == "limit 42.0/s, not known before: told by AWS"


async def test_what_the_quota_has_not_learned_anew_is_not_written_again(tmp_path: Path) -> None:
    """An idle relay does not wear out the disk."""
    async with living(tmp_path) as relay:
        branch = relay.relay._branches["ses"]
        await branch.save()
        await relay.spool.put_state("quota:ses", {"untouched": True})

        await branch.save()
        assert await relay.spool.state("quota:ses") == {"untouched": True}

        branch.quota.spent(relay.clock.wall_ms())
        await branch.save()
        assert await relay.spool.state("quota:ses") != {"untouched": True}


async def test_change_of_the_last_second_is_an_event_of_the_next_run(tmp_path: Path) -> None:
    """Nobody had looked for it when the relay was stopped."""
    async with living(tmp_path) as first:
        told = {"limit_per_s": 42.0, "confidence": 0.9}
        first.relay._branches["ses"].shaper.restore(first.clock.monotonic(), told, Cause.AWS)

    async with living(tmp_path) as second:
        events = (await second.ask("status"))["events"]

    assert "limit 42.0/s, not known before: told by AWS" in [event["text"] for event in events]


async def test_line_of_systemctl_status_is_kept_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by what no command has changed, and only when it says something else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.setblocking(False)
        async with living(tmp_path) as relay:
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            await relay.clock.advance(TELL_S)
            relay.relay._shared.holds.add(ACCOUNT)
            await relay.clock.advance(3 * TELL_S)
            monkeypatch.undo()

        told = [heard.recv(4096).decode() for _ in range(2)]

        with pytest.raises(BlockingIOError):
            heard.recv(4096)
    assert "account:ses" not in told[0]
    assert "held (account:ses)" in told[1]


async def test_clock_that_is_set_back_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was due in an hour is not due in three; nothing expires for a while."""
    async with before(tmp_path) as spool:
        kept = envelope(1)
        await spool.append([kept], b"x")
        due = Rescheduled(n=0, due_at=kept.received_at + HOUR_MS, attempts=1)
        await spool.settle(Settlement(envelope=kept, changes=(due,), at=kept.received_at))

    async with living(tmp_path) as relay:
        relay.clock.step_wall(-2 * HOUR_MS)
        await relay.clock.advance(CLOCK_S)
        now_ms = relay.clock.wall_ms()
        await until(lambda: due_by(tmp_path, now_ms + 4_320_000))

        # Said after the write, in a turn of the loop of its own.
        await until(lambda: "wall clock was set" in caplog.messages)
        assert not relay.relay._shared.ageing.expired(0, 1, [], now_ms + 500_000)


async def test_clock_that_was_set_back_while_the_relay_was_stopped_is_noticed(
    tmp_path: Path,
) -> None:
    """What was due in an hour when it stopped is due in an hour when it starts."""
    async with before(tmp_path) as spool:
        kept = envelope(1)
        await spool.append([kept], b"x")
    async with living(tmp_path) as first:
        stopped_ms = first.clock.wall_ms()
        due = Rescheduled(n=0, due_at=stopped_ms + HOUR_MS, attempts=1)
        await first.spool.settle(Settlement(envelope=kept, changes=(due,), at=stopped_ms))

    now_ms = stopped_ms - 2 * HOUR_MS
    async with living(tmp_path, clock=ManualClock(wall_ms=now_ms)):
        assert due_by(tmp_path, now_ms + HOUR_MS)


def due_by(folder: Path, latest_ms: int) -> bool:
    [(due_at,)] = query(folder, "SELECT max(due_at) FROM envelope")
    assert isinstance(due_at, int)
    return due_at <= latest_ms


async def test_clock_that_is_set_ahead_expires_nothing(tmp_path: Path) -> None:
    """NTP speaks a minute after boot: mail of before is not suddenly years old."""
    async with living(tmp_path) as relay:
        now_ms = relay.clock.wall_ms()
        await relay.clock.advance(700)
        relay.clock.step_wall(10 * 365 * 24 * HOUR_MS)

        await relay.clock.advance(CLOCK_S)

        ageing = relay.relay._shared.ageing
        later_ms = relay.clock.wall_ms() + 700_000
        assert not ageing.expired(now_ms, 24, [], later_ms)
        assert ageing.expired(now_ms, 24, [], later_ms + 24 * HOUR_MS)


async def test_small_steps_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NTP slews by the second all day long."""
    async with living(tmp_path) as relay:
        for _ in range(5):
            relay.clock.step_wall(30_000)
            await relay.clock.advance(CLOCK_S)

    assert "wall clock was set" not in caplog.messages


async def test_spool_in_trouble_at_a_clock_step_does_not_end_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mail may wait longer than it should; that is no reason to take none."""

    async def fail(*_: object) -> None:
        raise SpoolBroken("disk I/O error")

    async with living(tmp_path) as relay:
        monkeypatch.setattr(Spool, "clamp_due", fail)
        relay.clock.step_wall(-2 * HOUR_MS)

        await relay.clock.advance(CLOCK_S)

        assert not relay.running.done()
    assert "due times not set back, mail may wait" in caplog.messages


# -- Readiness and steering ----------------------------------------------------------------


async def test_readiness_has_its_reasons(tmp_path: Path) -> None:
    """Ready; stalled for want of room; starting and draining besides."""
    async with living(tmp_path) as relay:
        assert await relay.ready() == (200, "ready\n")
        assert relay.relay._not_ready() is None
        relay.relay.ready.clear()
        assert await relay.ready() == (503, "starting\n")
        relay.relay.drain()
        assert relay.relay._not_ready() == "draining"

    full = replace(settings(tmp_path), spool=config.Spool(free_min_bytes=1 << 60))
    full = replace(full, spool=replace(full.spool, path=str(tmp_path / "relay.db")))
    async with living(tmp_path, full) as relay:
        assert await relay.ready() == (503, "stalled: no room in the spool, clients wait\n")


async def test_hold_that_is_lifted_releases_what_is_parked(tmp_path: Path) -> None:
    """The command says how much it was; the next look shows it waiting."""
    key = sender_key("ses", "news@lists.example.com")
    async with before(tmp_path) as spool:
        await spool.append([envelope(1)], b"x")
        await park(spool, [1], key)
        await spool.put_hold(Hold(key, Source.BREAKER, "not verified", 1))

    async with living(tmp_path) as relay:
        answer = await relay.ask("release", key=key)

        assert answer == {"key": key, "lifted": ["breaker"], "left": [], "returned": 1}
        assert relay.depth() == {("ses", State.WAITING): 1}
        assert [hold.key for hold in await relay.spool.holds()] == ["account:ses"]


async def test_each_upstreams_mail_reaches_its_own_twin(tmp_path: Path) -> None:
    """Two accounts in one relay, each with its own pool; paused only if both are held."""
    quick = TwinConfig(latency=Latency(rtt_s=0, accept_median_s=0, accept_p99_s=0, refuse_s=0))
    twins = [Twin(quick), Twin(quick)]
    ca, _ = certificate_files()
    made = config.Upstream(host="127.0.0.1", ca_file=str(ca), username="sandbox")
    both = (
        replace(made, port=await twins[0].start()),
        replace(made, name="other", port=await twins[1].start()),
    )
    whole = replace(settings(tmp_path), upstreams=both)
    async with open_spool(tmp_path, config=whole.spool) as spool:
        passwords = dict.fromkeys(("ses", "other"), twins[0].config.password)
        clock = ManualClock()
        relay = Relay(whole, spool, clock, passwords)
        running = asyncio.create_task(relay.run())
        await relay.ready.wait()
        for name in ("ses", "other"):
            await spool.append(
                [envelope(spool.new_id(), upstream=name)], b"Subject: x\r\n\r\nx\r\n"
            )

        async with asyncio.timeout(PATIENCE_S):
            while sum(twin.ledger.total.accepted for twin in twins) < 2:
                await clock.advance(0.05, rounds=5)
                await asyncio.sleep(0.001)
        assert [twin.ledger.total.accepted for twin in twins] == [1, 1]
        relay._shared.holds.add(ACCOUNT)
        assert not relay.figures().paused
        relay._shared.holds.add(replace(ACCOUNT, key=account_key("other")))
        assert relay.figures().paused

        relay.drain()
        while not running.done():  # Its goodbyes wait on the clock.
            await clock.advance(0.05, rounds=5)
            await asyncio.sleep(0.001)
        await running
    for twin in twins:
        await twin.stop()


# -- The end -------------------------------------------------------------------------------


async def busy(relay: RunningRelay, mails: int, sessions: int = 1) -> None:
    """The relay has taken mail and sends some of it just now."""
    rng = random.Random(mails)
    made = [make_mail(rng, n, campaign=CAMPAIGN) for n in range(mails)]
    told = await Client("127.0.0.1", relay.smtp_port).send(made)
    assert len(told.accepted) == mails
    async with asyncio.timeout(PATIENCE_S):
        while await busy_sessions(relay) < sessions:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.01)


async def busy_sessions(relay: RunningRelay) -> int:
    busy: int = (await figures(relay))["upstreams"][0]["sessions_busy"]
    return busy


async def figures(relay: RunningRelay) -> dict[str, Any]:
    """``status`` without a process of its own."""
    answer = await asyncio.to_thread(control.ask, control.socket_path(relay.spool), "status")
    assert answer is not None
    return answer


async def logged(relay: RunningRelay, text: str) -> None:
    await until(lambda: text in relay.log, PATIENCE_S)


async def end(relay: RunningRelay) -> int:
    """Wait for the process to end by itself; its exit code."""
    assert relay._running is not None
    async with asyncio.timeout(PATIENCE_S):
        code = await relay._running.wait()
    relay._running = None
    return code


async def test_sigterm_said_twice_settles_what_is_under_way(tmp_path: Path) -> None:
    """Exit 0; what the upstream took is noted down, the rest waits; and one can watch it end."""
    async with relay_and_twin(tmp_path, SLOW) as (relay, twin):
        await busy(relay, 30, sessions=3)

        os.kill(relay.pid, signal.SIGTERM)
        await logged(relay, "relay stopping")
        os.kill(relay.pid, signal.SIGTERM)
        assert (await figures(relay))["draining"] is True
        code = await end(relay)

        assert code == 0
        sent = twin.ledger.total.accepted
        assert 1 <= sent < 30
    async with open_spool(tmp_path) as spool:
        [(outcomes,)] = query(tmp_path, "SELECT count(*) FROM outcome WHERE outcome = 'sent'")
        assert outcomes == sent
        assert sum(spool.depth().values()) == 30 - sent
    assert not control.socket_path(relay.spool).exists()


async def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """Someone does not want to wait for the replies: exit 1, and nothing is lost."""
    async with relay_and_twin(tmp_path, NEVER) as (relay, _):
        await busy(relay, 5)

        os.kill(relay.pid, signal.SIGINT)
        await logged(relay, "relay stopping")
        os.kill(relay.pid, signal.SIGINT)  # The same key press, told twice.
        await asyncio.sleep(SAME_KEY_S + 0.2)  # The rule is about real time.
        assert relay._running is not None
        assert relay._running.returncode is None
        os.kill(relay.pid, signal.SIGINT)
        code = await end(relay)

        assert code == 1
        assert "stopped at once" in relay.log
        assert "Traceback" not in relay.log
    async with open_spool(tmp_path) as spool:
        assert sum(spool.depth().values()) == 5


async def serve(folder: Path, toml: str, *words: str) -> tuple[int, str]:
    """``relay serve`` that is to fail: its exit code and what it says."""
    (folder / "relay.toml").write_text(toml)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve", "-c", str(folder / "relay.toml"), *words),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "RELAY_SES_PASSWORD": "x"},
    )
    async with asyncio.timeout(PATIENCE_S):
        _, told = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode()


@pytest.mark.parametrize("door", ["listen", "dashboard"])
async def test_port_in_use_is_told_with_its_key(tmp_path: Path, door: str) -> None:
    """Exit 75: a port may be free again in a moment, so systemd is to try again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, [free] = other.getsockname()[1], free_ports(1)
        ports = {"listen": free, "dashboard": free, door: taken}
        toml = (
            f"[listen]\nport = {ports['listen']}\n[dashboard]\nport = {ports['dashboard']}\n"
            '[spool]\nfree_min_bytes = 1\n[[upstream]]\nusername = "x"\n'
        )

        code, told = await serve(tmp_path, toml)

    assert code == 75, told
    assert f"{door}.port {taken} on 127.0.0.1 is taken by another program" in told
    assert "Traceback" not in told


async def test_second_relay_on_one_spool_is_told(tmp_path: Path) -> None:
    """Exit 75, and the first one is not disturbed."""
    async with open_spool(tmp_path):
        code, told = await serve(
            tmp_path, '[spool]\nfree_min_bytes = 1\n[[upstream]]\nusername = "x"\n'
        )

    assert code == 75, told
    assert "Traceback" not in told


async def test_failed_start_leaves_no_door_open(tmp_path: Path) -> None:
    """A relay whose dashboard cannot be opened takes no mail either."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        whole = replace(settings(tmp_path), dashboard=config.Dashboard(port=other.getsockname()[1]))

        with pytest.raises(BaseExceptionGroup) as told:
            async with living(tmp_path, whole):
                pass

    error = _first(told.value)
    assert isinstance(error, AddressBusy)
    assert not control.socket_path(tmp_path / "relay.db").exists()


# -- The sandbox ---------------------------------------------------------------------------


def test_sandbox_turns_every_upstream_to_the_twin(tmp_path: Path) -> None:
    """Nothing may leave the machine; names, rates and breakers stay."""
    ses = config.Upstream(host="email-smtp.eu-west-1.amazonaws.com", password_file="/secret")
    other = replace(ses, name="other", tls="implicit", rate=config.Rate(start_per_s=3))
    whole = replace(settings(tmp_path), upstreams=(ses, other))

    turned = sandbox.redirect(sandbox.own_spool(whole), 2587)

    assert [(one.host, one.port, one.tls) for one in turned.upstreams] == [
        ("127.0.0.1", 2587, "starttls")
    ] * 2
    assert [one.name for one in turned.upstreams] == ["ses", "other"]
    assert turned.upstreams[1].rate == other.rate
    assert not any(one.password_file for one in turned.upstreams)
    assert Path(turned.spool.path) == tmp_path / "relay.db.sandbox"
    assert turned.listen == whole.listen


async def test_sandbox_sends_into_the_twin_and_leaves_the_real_spool_alone(tmp_path: Path) -> None:
    """Real mail waits for the real SES, though this machine could not reach it anyway."""
    smtp, http = free_ports(2)
    (tmp_path / "relay.toml").write_text(
        f"[listen]\nport = {smtp}\n[dashboard]\nport = {http}\n[spool]\nfree_min_bytes = 1\n"
        '[[upstream]]\nname = "ses"\n[[upstream]]\nname = "other"\n'
        'from_domains = ["lists.example.com"]\n'
    )
    async with open_spool(tmp_path) as real:
        await real.append([envelope(1)], b"x")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "serve", "--sandbox"),
        *("-c", str(tmp_path / "relay.toml")),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log = b""
    async with asyncio.timeout(PATIENCE_S):
        while b"relay started" not in log:
            log += await process.stderr.readline()
        rng = random.Random(1)
        mails = [make_mail(rng, n, campaign=CAMPAIGN) for n in range(3)]
        told = await Client("127.0.0.1", smtp).send(mails)
        while log.count(b'msg="envelope sent"') < 3:
            log += await process.stderr.readline()
        shown = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "status", "--json"),
            *("-c", str(tmp_path / "relay.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await shown.communicate()
        process.send_signal(signal.SIGTERM)
        log += (await process.communicate())[1]

    assert process.returncode == 0, log.decode()
    assert len(told.accepted) == 3
    assert "the relay that runs with --sandbox says" in err.decode()
    assert [one["name"] for one in json.loads(out)["upstreams"]] == ["ses", "other"]
    assert b'msg="sandbox ended" accepted=3' in log
    assert (tmp_path / "relay.db.sandbox").exists()
    async with open_spool(tmp_path) as real:
        assert sum(real.depth().values()) == 1

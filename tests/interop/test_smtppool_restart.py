"""Listmonk's own client while the relay is away: what each version survives.

Three outcomes are kept apart: *sent*; *failed*: Listmonk knows, counts an error and writes a log
line; and *lost though nil*: the library told Listmonk that the mail is sent, and no server has
ever seen it. Only v2.0.0 has the third. Versions and settings meet the same trouble beside each
other; ``-s`` prints the table. The relay stands alone here, so that nobody listens while it is
away: under systemd somebody does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.dispatcher.books import UNSETTLED_MAX
from relay.twin import by_relay_id
from tests.fakes.smtppool import ADVISED, SHIPPED, Pool
from tests.interop.audit import (
    ENDED,
    REFUSED,
    WAITED,
    Audit,
    arrived,
    audits,
    each,
    fast_relay,
    html_of,
    of_each_version,
    open_pools,
    quiet_audits,
    taken,
    until_all_sent,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.running import RunningRelay


SURVIVORS = ("v2.1.2 advised", "v2.2.0 advised")
"""They wait for a relay that is away."""


async def end(relay: RunningRelay, signal: str) -> None:
    await (relay.stop() if signal == "SIGTERM" else relay.kill())


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize(
    ("count", "rate_per_s"), [(40, 60), pytest.param(1500, 500, marks=pytest.mark.slow)]
)
async def test_relay_is_away_in_mid_run(
    tmp_path: Path, signal: str, count: int, rate_per_s: float
) -> None:
    """From v2.1.2 on the advised settings wait for the relay; others fail, or lose and say nil."""
    # The first dials that fail kill v1.1.0's pool: from then on each message waits in vain, and
    # for how long teaches nothing.
    pools = {
        name: replace(one, wait_timeout_ms=1000, rate_per_s=rate_per_s)
        for name, one in of_each_version(shipped=SHIPPED, advised=ADVISED).items()
    }

    async with (
        fast_relay(tmp_path) as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await each(opened.values(), lambda pool: pool.queue(count))
        await each(opened.values(), lambda pool: pool.until_told(count // 2))
        sessions = twin.ledger.sessions_open
        await end(relay, signal)
        # However long its end took: so many messages find nobody.
        gone = {pool: pool.told.count for pool in opened.values()}
        await each(opened.values(), lambda pool: pool.queue(50))
        hasty = [pool for name, pool in opened.items() if name not in SURVIVORS]
        await each(hasty, lambda pool: pool.until_told(gone[pool] + 30))
        await relay.start()
        await each(opened.values(), Pool.until_idle)
        await until_all_sent(tmp_path)

        found = audits(f"away, {signal}", opened, twin)
        assert_versions_differ(found, count + 50)
        survivors = [found[name] for name in SURVIVORS]
        if signal == "SIGTERM":
            assert [one.told.failed for one in survivors] == [{}, {}]
            assert not any(one.in_spite for one in found.values())
            assert twin.ledger.twice() == {}
        else:
            # What was between its dot and its answer, one message a connection, is not retried.
            assert all(set(one.kinds) <= {ENDED} for one in survivors)
            assert all(len(one.told.failed) <= ADVISED.conns for one in survivors)
            twice = sum(n - 1 for n in twin.ledger.twice(by_relay_id).values())
            assert twice <= sessions + UNSETTLED_MAX
        # What v2.0.0 lost the relay has never had.
        assert taken(tmp_path) == arrived(twin)


def assert_versions_differ(found: dict[str, Audit], count: int) -> None:
    """Each version fails in its own way, and only v2.0.0 without a word."""
    for name, one in found.items():
        assert one.told.count == count, name
        assert bool(one.lost) == name.startswith("v2.0.0"), name
    for kind in ("shipped", "advised"):
        v1, v2_0 = found[f"v1.1.0 {kind}"], found[f"v2.0.0 {kind}"]
        assert {REFUSED, WAITED} <= set(v1.kinds) <= {REFUSED, WAITED, ENDED}
        assert set(v2_0.kinds) <= {ENDED}
    for version in ("v2.1.2", "v2.2.0"):
        assert {REFUSED} <= set(found[f"{version} shipped"].kinds) <= {REFUSED, ENDED}


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.slow)])
async def test_relay_was_away_while_the_pool_lay_idle(tmp_path: Path, rounds: int) -> None:
    """A dead connection in the pool costs v1.1.0 a message, and v2 one of a message's attempts.

    So with more attempts than connections v2 loses none; and the pools live on.
    """
    # One connection after another is tried, with the delay in between.
    quick = replace(ADVISED, retry_delay_ms=50)
    pools = of_each_version(shipped=SHIPPED, advised=ADVISED if rounds > 1 else quick)
    dead = dict.fromkeys(pools, 0)

    async with (
        fast_relay(tmp_path) as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        for _ in range(rounds):
            await each(opened.values(), lambda pool: pool.send(40))
            before = {name: len(pool.ports()) for name, pool in opened.items()}
            assert await relay.stop() == 0
            await relay.start()
            # One after another, so that each message meets what the last one has left.
            await each(opened.values(), one_by_one)
            for name, connections in before.items():
                attempts = 1 if name.startswith("v1") else pools[name].retries
                dead[name] += connections // attempts
        await until_all_sent(tmp_path)

        for name, one in audits("was away, idle", opened, twin).items():
            assert one.told.count == rounds * (40 + ONE_BY_ONE), name
            assert (len(one.told.failed), set(one.kinds) - {ENDED}) == (dead[name], set()), name
            assert one.lost == one.in_spite == [], name
        assert dead["v1.1.0 advised"] > dead["v2.1.2 shipped"] > dead["v2.1.2 advised"] == 0
        assert twin.ledger.twice() == {}
        assert taken(tmp_path) == arrived(twin)


ONE_BY_ONE = 20
"""More than any pool has connections."""


async def one_by_one(pool: Pool) -> None:
    for _ in range(ONE_BY_ONE):
        await pool.send(1)


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
async def test_advised_settings_outlast_restart_after_restart(tmp_path: Path, rounds: int) -> None:
    """v2.1.2, two pools at 250/s each, and a SIGTERM every time: no message fails or is lost."""
    pools = {f"v2.1.2 {n}": replace(ADVISED, rate_per_s=250) for n in range(2)}
    count = 100 * (rounds + 1)

    async with (
        fast_relay(tmp_path) as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await each(opened.values(), lambda pool: pool.queue(count))
        for n in range(rounds):
            await each(opened.values(), lambda pool, n=n: pool.until_told(100 * (n + 1)))  # type: ignore[misc]
            assert await relay.stop() == 0
            await relay.start()
        await each(opened.values(), Pool.until_idle)
        await until_all_sent(tmp_path)

        for name, one in audits(f"{rounds} restarts", opened, twin).items():
            assert (len(one.told.sent), one.told.failed, one.lost) == (count, {}, []), name
        assert twin.ledger.twice() == {}
        assert taken(tmp_path) == arrived(twin)


@pytest.mark.parametrize("rounds", [2, pytest.param(12, marks=pytest.mark.slow)])
async def test_listmonk_dies_in_mid_run(tmp_path: Path, rounds: int) -> None:
    """What it was told is sent arrives once; of what it had in hand, whole messages or nothing."""
    pools = of_each_version(killed=replace(SHIPPED, conns=4, workers=4))
    ends = ("</html>", "</html>" + "x" * LONG_BYTES)
    sent = 0

    async with fast_relay(tmp_path) as (relay, twin):
        for n in range(rounds):
            async with open_pools(relay.smtp_port, pools, name=f"round{n}") as opened:
                await each(opened.values(), lambda pool: pool.send(20))
                await each(opened.values(), lambda pool: pool.queue(1000, pad_bytes=LONG_BYTES))
                # One worker is done, so that the others are in the midst of their messages.
                await each(opened.values(), lambda pool: pool.until_told(21))
                for pool in opened.values():
                    pool.kill()
                await each(opened.values(), Pool.until_ended)
                await until_all_sent(tmp_path)

                for name, one in quiet_audits(opened, twin).items():
                    assert (one.told.failed, one.lost) == ({}, []), name
                    sent += len(one.told.sent)
        assert all(html_of(one).rstrip().endswith(ends) for one in twin.ledger.records)
        assert twin.ledger.twice() == {}
        print(f"\nListmonk dies    {len(pools) * rounds} times: sent {sent}, lost 0, cut 0")
        assert taken(tmp_path) == arrived(twin)


LONG_BYTES = 1_000_000
"""As long as a message must be to be cut in the midst of it."""

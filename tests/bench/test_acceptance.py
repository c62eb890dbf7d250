"""Durable acceptance, against Postfix on the same disk in the same run.

Both only accept: the relay's account is held by an operator, Postfix puts all mail on hold
by an access rule. The rounds alternate, so that whatever else the machine does meets both;
the medians are compared as a ratio, since absolute figures say more about the disk.
Postfix is set up at its best: no chroot, no log beside syslog, no pause of cleanup, and as
Debian builds it it syncs each message before its 250 (there is no setting against it).
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from relay.spool.place import file_system
from tests.fakes.running import PATIENCE_S, RunningRelay, free_ports
from tests.fakes.smtp_source import CONNECTIONS, needs_source, smtp_source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

POSTFIX = shutil.which("postfix", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
MESSAGES = int(os.environ.get("BENCH_MESSAGES", "4000"))
"""A round: some four seconds for Postfix on the disk this was written on."""
WARM_UP = 200
"""Messages before the first round: processes start, files get their first blocks."""
IN_MEMORY = {"tmpfs", "ramfs"}

_MAIN_CF = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file =
myhostname = bench.example.com
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
alias_database =
# Else cleanup waits a second when mail comes faster than it goes, and here none goes.
in_flow_delay = 0
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_client_access static:HOLD, permit_mynetworks, reject
"""
_MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
"""


class Peer(Protocol):
    """What takes mail and keeps it."""

    @property
    def port(self) -> int: ...

    async def count(self) -> int:
        """Messages that it keeps."""


@dataclass(frozen=True, slots=True)
class Relay:
    running: RunningRelay

    @property
    def port(self) -> int:
        return self.running.smtp_port

    async def count(self) -> int:
        streams = (await self.running.status())["streams"]
        return sum(stream["waiting"] + stream["parked"] for stream in streams)


@dataclass(frozen=True, slots=True)
class Postfix:
    """A private instance: configuration, queue and data in one folder, one port."""

    folder: Path
    port: int

    async def start(self) -> None:
        owner = pwd.getpwnam("postfix")
        for name in ("etc", "queue", "data"):
            (self.folder / name).mkdir(parents=True)
        os.chown(self.folder / "data", owner.pw_uid, owner.pw_gid)
        (self.folder / "etc/main.cf").write_text(_MAIN_CF.format(folder=self.folder))
        (self.folder / "etc/master.cf").write_text(_MASTER_CF.format(port=self.port))
        assert await self._run("start") == 0

    async def stop(self) -> None:
        assert await self._run("stop") == 0

    async def _run(self, command: str) -> int:
        assert POSTFIX is not None
        words = (POSTFIX, "-c", str(self.folder / "etc"), command)
        running = await asyncio.create_subprocess_exec(*words)
        async with asyncio.timeout(PATIENCE_S):
            return await running.wait()

    async def count(self) -> int:
        return sum(1 for _ in (self.folder / "queue/hold").iterdir())


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder that Postfix's own user may enter (pytest's may not), on a disk."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        kind = file_system(folder, Path("/proc/self/mountinfo").read_text())
        if kind in IN_MEMORY:
            pytest.skip(f"{folder} is on {kind}, where nothing is synced: point TMPDIR at a disk")
        folder.chmod(0o755)
        yield folder


@asynccontextmanager
async def relay_that_holds(folder: Path) -> AsyncIterator[Relay]:
    """A relay in a process of its own, whose account the operator holds: nothing goes out."""
    folder.mkdir()  # noqa: ASYNC240  # nothing else runs on this loop yet
    running = RunningRelay(folder, free_ports(1)[0], folder / "relay.db", log_level="warning")
    await running.start()
    try:
        await running.command("queue", "hold", "account:ses")
        yield Relay(running)
    finally:
        await running.stop()


@asynccontextmanager
async def postfix_that_holds(folder: Path) -> AsyncIterator[Postfix]:
    postfix = Postfix(folder, free_ports(1)[0])
    await postfix.start()
    try:
        yield postfix
    finally:
        await postfix.stop()


async def load(peer: Peer, messages: int) -> float:
    """Messages a second of one round, all of them accepted and kept."""
    before = await peer.count()
    # What the round before left in memory shall not be written on this one's time.
    await asyncio.to_thread(os.sync)
    started = time.perf_counter()
    code = await smtp_source(peer.port, messages)
    seconds = time.perf_counter() - started
    assert code == 0
    assert await peer.count() - before == messages
    return messages / seconds


def table(rates: dict[str, list[float]]) -> str:
    base = statistics.median(rates["Postfix"])
    lines = ["| peer | msgs/s median | min | max | ratio to Postfix |", "|---|---|---|---|---|"]
    for name, found in rates.items():
        middle = statistics.median(found)
        cells = f"{middle:.0f} | {min(found):.0f} | {max(found):.0f} | {middle / base:.2f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


@pytest.mark.bench
@needs_source
@pytest.mark.skipif(POSTFIX is None, reason="Debian's package postfix is not here")
@pytest.mark.skipif(os.geteuid() != 0, reason="postfix starts as root only")
async def test_durable_acceptance_beside_postfix(disk: Path) -> None:
    """4 kB over 10 connections: every message is kept by both; the table says how fast."""
    async with (
        relay_that_holds(disk / "relay") as relay,
        postfix_that_holds(disk / "pf") as postfix,
    ):
        peers: dict[str, Peer] = {"relay": relay, "Postfix": postfix}
        assert (disk / "relay/relay.db").stat().st_dev == (disk / "pf/queue").stat().st_dev
        for peer in peers.values():
            await load(peer, WARM_UP)

        rates: dict[str, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for name, peer in peers.items():
                rates[name].append(await load(peer, MESSAGES))

        for peer in peers.values():
            assert await peer.count() == WARM_UP + ROUNDS * MESSAGES
        print(f"\n\n{ROUNDS} rounds of {MESSAGES} messages of 4 kB over {CONNECTIONS} connections")
        print(f"load average {os.getloadavg()[0]:.1f}\n\n{table(rates)}")

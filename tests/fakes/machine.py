"""Ways in which the machine under the relay fails: small disks, disks that refuse, clocks.

Nothing here mocks a room of ours: the disk is a real one that is too small, or a library put
between SQLite and the kernel (``LD_PRELOAD``) that answers as a failing disk does, and the
relay is a process of its own that knows of neither.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from relay.dispatcher.books import UNSETTLED_MAX
from relay.mailer import Client, Told, make_mail
from relay.twin import Latency, TwinConfig, by_relay_id
from tests.fakes.running import PATIENCE_S
from tests.fakes.spool_file import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from relay.twin import Twin
    from tests.fakes.running import RunningRelay

MIB = 1 << 20
PAGE_BYTES = 4096
"""SQLite's own choice."""
QUIET_S = 2.0
"""Nothing more is on its way if nothing has arrived for so long; sessions are fast here."""
CAMPAIGN = "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"
SHORT_NET = Latency(rtt_s=0.002, accept_median_s=0.02, accept_p99_s=0.1, refuse_s=0.01)
FAST_TWIN = TwinConfig(rate_per_s=400, latency=SHORT_NET, seed=1, quota=0)
FAST_START = "[upstream.rate]\nstart_per_s = 200"
"""No test of the machine should wait for the rate to be learned."""


@contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[Path]:
    """A file system of that size at ``folder``; the test is skipped where none can be mounted."""
    folder.mkdir()
    options = f"size={megabytes}m,mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """While this lasts, another program has taken all that is left of the disk."""
    path = disk / "other"
    with path.open("wb", buffering=0) as other:
        block = bytes(MIB)
        while block:
            try:
                other.write(block)
            except OSError:
                block = block[: len(block) // 2 if len(block) > 4096 else 0]
    try:
        yield
    finally:
        path.unlink()


def pages_of(database: Path, table: str, kind: str = "leaf") -> list[int]:
    """The numbers of the pages of a table or an index, by SQLite's own account."""
    sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY pageno"
    return [page for (page,) in query(database.parent, sql, (table, kind))]  # type: ignore[misc]


def all_pages(database: Path) -> list[tuple[int, str]]:
    """Every page but the first, with what it is."""
    sql = "SELECT pageno, name || ' ' || pagetype FROM dbstat WHERE pageno > 1"
    return query(database.parent, sql)  # type: ignore[return-value]


def spoil(database: Path, page: int, rng: random.Random) -> None:
    """Overwrite a page, as a failing disk might; its neighbours stay whole."""
    with database.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(rng.randbytes(PAGE_BYTES))


_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* control[0]: the errno to fail with, 0 for none; [1]: calls that still pass; [2]: how many failed;
   [3]: 1 if only syncs fail. */
static volatile int *control;
static const char *prefix;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("DISK_FAULT");
    int fd = path ? open(path, O_RDWR) : -1;
    prefix = getenv("DISK_FAULT_PREFIX");
    if (fd < 0 || !prefix) return;
    void *at = mmap(0, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) control = at;
    close(fd);
}

static int refuses(const char *name, int sync)
{
    if (strncmp(name, prefix, strlen(prefix)) || strstr(name, ".lock")) return 0;
    if (control[3] && !sync) return 0;
    if (__sync_fetch_and_sub(&control[1], 1) > 0) return 0;
    __sync_fetch_and_add(&control[2], 1);
    errno = control[0];
    return 1;
}

static int fails(int fd, int sync)
{
    char link[64], name[4096];
    if (!control || !control[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, sizeof name - 1);
    if (size < 0) return 0;
    name[size] = 0;
    return refuses(name, sync);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{ REAL(pwrite64); return fails(fd, 0) ? -1 : real(fd, data, size, at); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{ REAL(pwrite); return fails(fd, 0) ? -1 : real(fd, data, size, at); }
ssize_t write(int fd, const void *data, size_t size)
{ REAL(write); return fails(fd, 0) ? -1 : real(fd, data, size); }
int ftruncate64(int fd, off64_t size)
{ REAL(ftruncate64); return fails(fd, 0) ? -1 : real(fd, size); }
int posix_fallocate64(int fd, off64_t at, off64_t size)
{ REAL(posix_fallocate64); return fails(fd, 0) ? errno : real(fd, at, size); }
int posix_fallocate(int fd, off_t at, off_t size)
{ REAL(posix_fallocate); return fails(fd, 0) ? errno : real(fd, at, size); }
int fdatasync(int fd)
{ REAL(fdatasync); return fails(fd, 1) ? -1 : real(fd); }
int fsync(int fd)
{ REAL(fsync); return fails(fd, 1) ? -1 : real(fd); }
int unlink(const char *name)
{
    REAL(unlink);
    if (control && control[0] == EROFS && refuses(name, 0)) return -1;
    return real(name);
}
int open64(const char *name, int flags, ...)
{
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
    va_end(rest);
    if (control && control[0] == EROFS && (flags & O_ACCMODE) != O_RDONLY && refuses(name, 0))
        return -1;
    return real(name, flags, mode);
}
"""


class FailingDisk:
    """A disk that fails when told to, under every relay started while this is in force."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self.mend()

    def fail(self, number: int, *, after_calls: int = 0, syncs_only: bool = False) -> None:
        """From now on, or after some more writes and syncs, each fails with this errno."""
        # The errno comes last: it is what the library looks at first.
        self._put(4, after_calls, 0, int(syncs_only))
        self._put(0, number)

    def mend(self) -> None:
        """The disk is well again."""
        self._put(0, 0, 0, 0, 0)

    def __enter__(self) -> FailingDisk:
        return self

    def __exit__(self, *_: object) -> None:
        """Let a relay that is still there finish."""
        self.mend()

    @property
    def refused(self) -> int:
        """How many calls have failed since ``fail``."""
        number: int = struct.unpack_from("i", self._control.read_bytes(), 8)[0]
        return number

    def _put(self, at: int, *numbers: int) -> None:
        descriptor = os.open(self._control, os.O_RDWR | os.O_CREAT)
        try:
            os.pwrite(descriptor, struct.pack(f"{len(numbers)}i", *numbers), at)
        finally:
            os.close(descriptor)


def failing_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """A disk under ``folder``/relay.db* that fails when told to; needs a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to come between SQLite and the disk")
    source, library = folder / "disk.c", folder / "disk.so"
    source.write_text(_SHIM)
    words = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"]
    subprocess.run(words, check=True)
    disk = FailingDisk(folder / "disk.control")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("DISK_FAULT", str(folder / "disk.control"))
    monkeypatch.setenv("DISK_FAULT_PREFIX", str(folder / "relay.db"))
    return disk


@dataclass
class Load:
    """A campaign on its way through a relay to a twin, and what its client was told."""

    relay: RunningRelay
    twin: Twin
    count: int
    body_bytes: int = 4000
    seed: int = 1
    connections: int = 10
    refusals_allowed: tuple[str, ...] = ()
    """Replies that may be given: Listmonk loses that mail, so that only a crash excuses them."""
    told: Told = field(init=False)
    twice_max: int = field(init=False, default=0)
    _client: Client = field(init=False)
    _sending: asyncio.Task[Told] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._client = Client(
            "127.0.0.1", self.relay.smtp_port, connections=self.connections, attempts=1000
        )
        self.told = self._client.told

    def start(self) -> None:
        """Send from now on."""
        rng = random.Random(self.seed)
        mails = (
            make_mail(rng, n, campaign=CAMPAIGN, body_bytes=self.body_bytes)
            for n in range(self.count)
        )
        self._sending = asyncio.ensure_future(self._client.send(mails))

    async def leave(self) -> None:
        """The client gives up, whatever it is at, and closes its connections."""
        assert self._sending is not None
        self._sending.cancel()
        await asyncio.wait([self._sending])

    @property
    def is_over(self) -> bool:
        """Whether the client has been told something about every mail."""
        return self._sending is not None and self._sending.done()

    def crashed(self) -> None:
        """Note a fault after which mail may come twice: what is on its way, and one batch."""
        self.twice_max += self.twin.ledger.sessions_open + UNSETTLED_MAX

    async def accepted(self, messages: int) -> None:
        """Return once the client was told 250 so often."""
        while len(self.told.accepted) < messages and not self.is_over:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def told_all(self, or_else: Callable[[], bool]) -> None:
        """Return once the client was told about every mail, or ``or_else`` something happened."""
        async with asyncio.timeout(PATIENCE_S):
            while not (self.is_over or or_else()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def stalls(self) -> None:
        """Return once nothing has been accepted for a second."""
        before = -1
        while len(self.told.accepted) != before:
            before = len(self.told.accepted)
            await asyncio.sleep(1)

    async def audited(self) -> int:
        """Wait for all of it, then hold the relay to its word; how many came twice.

        Lost 0, nothing refused, twice at most what the faults that were noted allow.
        """
        assert self._sending is not None
        if not self._sending.cancelled():
            await self._sending
        await self.relay.until_empty()
        arrived = {record.relay_id for record in self.twin.ledger.records}
        assert {queue_id for _, queue_id in self.told.accepted} - arrived == set()
        return self.check_words()

    def check_words(self) -> int:
        """Hold what the client was told against the twin's ledger; how many came twice."""
        assert self._sending is not None
        told = self.told
        assert [one for one in told.refusals if not one.startswith(self.refusals_allowed)] == []
        accepted = {queue_id for _, queue_id in told.accepted}
        assert len(accepted) == len(told.accepted)
        if not self._sending.cancelled():
            unkept = len(told.lost_at_dot) + len(told.given_up) + len(told.refusals)
            assert len(accepted) + unkept == self.count
        twice = sum(n - 1 for n in self.twin.ledger.twice(by_relay_id).values())
        assert twice <= self.twice_max
        return twice

    async def missing(
        self, told_of: Callable[[], set[str]], or_else: Callable[[], bool] = lambda: False
    ) -> set[str]:
        """Envelopes that were accepted and do not arrive, once all others have.

        Each is among those that the relay tells of, unless ``or_else`` it says something else.
        """
        accepted = {queue_id for _, queue_id in self.told.accepted}
        before, since = -1, 0.0
        async with asyncio.timeout(PATIENCE_S):
            while missing := accepted - {one.relay_id for one in self.twin.ledger.records}:
                if len(missing) != before:
                    before, since = len(missing), time.monotonic()
                is_over = time.monotonic() - since > QUIET_S
                if is_over and (missing <= told_of() or or_else()):
                    break
                await asyncio.sleep(0.2)
        return missing

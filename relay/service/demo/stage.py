"""The scene of the demo: relay, twin and mailer set up, played, and taken down again."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay import config, control
from relay.clock import SystemClock
from relay.errors import RelayError
from relay.loops import loop_factory
from relay.mailer import Client, Mail, Told, make_mail
from relay.service.demo.audit import Audit, Run, audit
from relay.service.demo.process import TOML, free_ports, relay_process
from relay.spool import Spool
from relay.twin import Twin, TwinConfig, certificate_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

BODY_BYTES = 27_000
"""Characters of HTML a message, which quoted-printable makes 40 kB of."""
CONNECTIONS = 10
"""Listmonk's pool for each of the two campaigns (its default is 10)."""
CAMPAIGN_SHARES = (2, 1)
"""How the messages are divided between the campaigns."""
TRANSACTIONAL_EVERY_S = 0.5
TRANSACTIONAL_SHARE = 0.05
"""At most this share of the limit is transactional: on a small account it comes more seldom."""
CHANGE_FACTOR = 2 / 3
"""What is left of the limit when half of the mail has gone: SES accepts less than it allows, or
somebody else sends through the account (facts/ses-smtp.md 3)."""
FIRST_RESET = 10_000_000
"""Readers of transactional mail are numbered from here, far above those of the campaigns."""
SESSIONS_MOST = 400
"""Descriptors and memory of a small machine bear these."""
TICK_S = 0.5
QUIET_MAX_S = 60.0
"""No message for so long although some wait: the demo gives up and says so."""
START_MAX_S = 60.0
LOG_TAIL = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a user can ask of the demo."""

    messages: int = 6_000
    """Campaign messages, in both campaigns together."""
    limit_per_s: float = 150.0
    """The limit of the pretended account at first, recipients a second."""
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One moment of a run. ``status`` is what the relay says of itself (``relay status``)."""

    elapsed_s: float
    total: int
    accepted: int
    delivered: int
    delivered_per_s: float
    limit_per_s: float
    throttled: int
    transactional: int
    status: dict[str, Any]
    dashboard: str

    @property
    def eta_s(self) -> float | None:
        """Seconds until all is delivered at this pace."""
        if self.delivered_per_s <= 0:
            return None
        return max(0, self.total - self.delivered) / self.delivered_per_s


def run(wish: Wish, show: Callable[[Progress], None]) -> Audit:
    """Play the whole demo; ``show`` is called twice a second.

    Raises: RelayError if it cannot be set up, or the relay ends in the midst of it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="relay-demo-") as folder,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        return runner.run(Demo(wish, Path(folder)).play(show))


@dataclass(slots=True)
class Demo:
    """One run in ``folder``."""

    wish: Wish
    folder: Path
    _rng: random.Random = field(init=False)
    _twin: Twin = field(init=False)
    _smtp: int = field(init=False, default=0)
    _http: int = field(init=False, default=0)
    _bytes_per_message: int = field(init=False, default=0)
    _most_waiting: int = field(init=False, default=0)
    _changed: bool = field(init=False, default=False)
    _load: float = field(init=False, default=0.0)
    _session_bound: list[bool] = field(init=False, default_factory=list)
    _enough: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set when only transactional mail is left: then that ends, too."""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.wish.seed)  # noqa: S311  (header order, no secrets)
        self._twin = Twin(
            TwinConfig(
                rate_per_s=self.wish.limit_per_s,
                quota=0,
                connections_max=_sessions(self.wish.limit_per_s),
                seed=self.wish.seed,
            )
        )

    async def play(self, show: Callable[[Progress], None]) -> Audit:
        """Set up, send, wait for the last message, take down, and audit."""
        port = await self._twin.start()
        try:
            self._smtp, self._http = free_ports(2)
            path = self._configure(port)
            cpu_before = resource.getrusage(resource.RUSAGE_CHILDREN)
            async with relay_process(path) as process:
                await self._until_ready(process)
                seen = await self._send_all(process, show)
            cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
        finally:
            await self._twin.stop()
        relay_cpu_s = cpu.ru_utime + cpu.ru_stime - cpu_before.ru_utime - cpu_before.ru_stime
        spent = await self._attempts_by_throttling(path)
        return audit(
            Run(
                **seen,
                attempts_by_throttling=spent,
                spool_bytes_per_message=self._bytes_per_message,
                relay_cpu_s=relay_cpu_s,
                load=self._load,
                session_bound_share=sum(self._session_bound) / max(1, len(self._session_bound)),
                processors=len(os.sched_getaffinity(0)),
            ),
            self._twin.ledger,
        )

    # The scene.

    def _configure(self, twin_port: int) -> Path:
        certificate, _ = certificate_files()
        path = self.folder / "relay.toml"
        path.write_text(
            TOML.format(
                smtp=self._smtp,
                http=self._http,
                twin=twin_port,
                ca=certificate,
                user=self._twin.config.username,
                sessions=_sessions(self.wish.limit_per_s),
            )
        )
        return path

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + START_MAX_S
        while await self._status() is None:
            if process.returncode is not None or time.monotonic() > deadline:
                raise RelayError(f"the relay did not start:\n{self._log_tail()}")
            await asyncio.sleep(0.05)

    async def _status(self) -> dict[str, Any] | None:
        """The relay's figures; None while it does not listen."""
        socket_path = control.socket_path(self.folder / "relay.db")
        return await asyncio.to_thread(control.ask, socket_path, "status")

    def _log_tail(self) -> str:
        log = self.folder / "relay.log"
        return log.read_text(errors="replace")[-LOG_TAIL:] if log.exists() else ""

    # The play.

    async def _send_all(
        self, process: asyncio.subprocess.Process, show: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """Send everything and wait until it has arrived; what was seen, for ``Run``."""
        began_at, cpu_began = time.monotonic(), time.process_time()
        campaigns = [self._client() for _ in CAMPAIGN_SHARES]
        transactional = self._client(connections=1)
        senders = [
            asyncio.create_task(client.send(mails))
            for client, mails in zip(campaigns, self._campaigns(), strict=True)
        ]
        resets = asyncio.create_task(self._send_transactional(transactional))
        told = [*(client.told for client in campaigns), transactional.told]
        intake_ended_at = began_at
        try:
            async for progress, intake_is_over in self._watch(process, senders, resets, told):
                show(progress)
                if not intake_is_over:
                    intake_ended_at = time.monotonic()
                if progress.delivered >= self.wish.messages // 2 and not self._changed:
                    self._change_limit()
            status = await self._status() or {"streams": ()}
        finally:
            for task in (*senders, resets):
                task.cancel()
            await asyncio.gather(*senders, resets, return_exceptions=True)
        return {
            "told": [client.told for client in campaigns],
            "transactional": transactional.told,
            "began_at": began_at,
            "intake_ended_at": intake_ended_at,
            "drained_at": time.monotonic(),
            "waiting": _waiting(status),
            "doubles_cpu_s": time.process_time() - cpu_began,
        }

    async def _watch(
        self,
        process: asyncio.subprocess.Process,
        senders: list[asyncio.Task[Told]],
        resets: asyncio.Task[None],
        told: list[Told],
    ) -> AsyncIterator[tuple[Progress, bool]]:
        """A ``Progress`` each tick, and whether the campaigns are handed over, to the end.

        The end is when all that was accepted has arrived, or when nothing arrives any more.
        Transactional mail ends when there is nothing else left to go first of.
        """
        ledger, began_at = self._twin.ledger, time.monotonic()
        history, moved_at = [(began_at, 0)], began_at
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if process.returncode is not None:
                raise RelayError(f"the relay ended in the midst of it:\n{self._log_tail()}")
            status = await self._status()
            if status is None:
                continue
            self._measure(status)
            delivered, accepted = ledger.total.accepted, sum(len(one.accepted) for one in told)
            if delivered > history[-1][1]:
                moved_at = now
            history = [*history[-6:], (now, delivered)]
            handed_over = all(task.done() for task in senders)
            if handed_over and _only_transactional(status):
                self._enough.set()
            yield (
                Progress(
                    elapsed_s=now - began_at,
                    total=self.wish.messages + len(told[-1].accepted),
                    accepted=accepted,
                    delivered=delivered,
                    delivered_per_s=(delivered - history[0][1]) / (now - history[0][0]),
                    limit_per_s=self._twin.rate_per_s,
                    throttled=ledger.total.throttled,
                    transactional=len(told[-1].accepted),
                    status=status,
                    dashboard=f"http://127.0.0.1:{self._http}/",
                ),
                handed_over,
            )
            is_over = handed_over and resets.done() and not _waiting(status)
            if (is_over and delivered >= accepted) or now - moved_at > QUIET_MAX_S:
                return

    def _change_limit(self) -> None:
        """The account allows less from now on; nobody tells the relay."""
        self._changed = True
        self._twin.set_rate(self.wish.limit_per_s * CHANGE_FACTOR)

    def _measure(self, status: dict[str, Any]) -> None:
        """Note what holds the rate back, and what a message costs on disk while most wait."""
        self._load = max(self._load, os.getloadavg()[0])
        self._session_bound.append("session-bound" in status["upstreams"][0]["doing"])
        waiting = _waiting(status)
        if waiting > self._most_waiting:
            self._most_waiting = waiting
            self._bytes_per_message = status["room"]["used_bytes"] // waiting

    # The mail.

    def _client(self, *, connections: int = CONNECTIONS) -> Client:
        return Client("127.0.0.1", self._smtp, connections=connections)

    def _campaigns(self) -> Iterator[Iterator[Mail]]:
        """The mail of each campaign, made when it is wanted."""
        shares, numbers = sum(CAMPAIGN_SHARES), itertools.count(1)
        sizes = [self.wish.messages * share // shares for share in CAMPAIGN_SHARES]
        sizes[0] += self.wish.messages - sum(sizes)
        for size in sizes:
            campaign = str(uuid.UUID(int=self._rng.getrandbits(128)))
            yield (self._mail(next(numbers), campaign) for _ in range(size))

    def _mail(self, number: int, campaign: str = "") -> Mail:
        return make_mail(self._rng, number, campaign=campaign, body_bytes=BODY_BYTES)

    async def _send_transactional(self, client: Client) -> None:
        """One password reset after another, until there is enough."""
        numbers = itertools.count(FIRST_RESET)
        lowest_per_s = self.wish.limit_per_s * CHANGE_FACTOR
        every_s = max(TRANSACTIONAL_EVERY_S, 1 / (TRANSACTIONAL_SHARE * lowest_per_s))
        while not self._enough.is_set():
            await client.send([self._mail(next(numbers))])
            try:
                async with asyncio.timeout(every_s):
                    await self._enough.wait()
            except TimeoutError:
                pass

    async def _attempts_by_throttling(self, path: Path) -> int:
        """Attempts beyond the first that the relay has written beside its outcomes.

        The twin of the demo refuses nothing but for the rate, so that is what they are for.
        """
        spool_config = config.resolve(config.parse({}), path.parent).spool
        spool = await Spool.open(
            self.folder / "relay.db", spool_config, clock=SystemClock(), create=False
        )
        try:
            return sum((tries - 1) * n for (_, tries), n in (await spool.tally()).items())
        finally:
            await spool.close()


def _sessions(limit_per_s: float) -> int:
    """As many as the limit needs if a message takes half a second (facts/ses-smtp.md 3), twice."""
    return min(SESSIONS_MOST, max(100, round(limit_per_s)))


def _waiting(status: dict[str, Any]) -> int:
    return sum(stream["waiting"] + stream["parked"] for stream in status["streams"])


def _only_transactional(status: dict[str, Any]) -> bool:
    return not any(stream["campaign"] for stream in status["streams"])

"""Pools of several versions and settings beside each other, and what became of their mail."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay.twin import NO_LATENCY, Twin, TwinConfig
from tests.fakes.running import PATIENCE_S, RunningRelay, relay_and_twin
from tests.fakes.smtppool import VERSIONS, Pool, Settings, Told, open_pool
from tests.fakes.spool_file import query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
    from pathlib import Path

    from relay.twin import Accepted

FAST = TwinConfig(rate_per_s=5000, latency=NO_LATENCY, quota=0, keep_content=True)
FAST_START = "[upstream.rate]\nstart_per_s = 2000"

ENDED, REFUSED, WAITED = "ended", "refused", "waited"
"""The link was lost; nobody listened; no connection of the pool was free in time."""
_WORDS = {
    "EOF": ENDED,
    "connection reset by peer": ENDED,
    "broken pipe": ENDED,
    "connection refused": REFUSED,
    "timed out waiting for free conn in pool": WAITED,
}
"""How the text of an error ends, as Go 1.23 to 1.26 on Linux and smtppool write it (observed)."""


def kind_of(error: str) -> str:
    """A word for that error, or its own text: an error that nobody expected."""
    return next((word for end, word in _WORDS.items() if error.endswith(end)), error)


@dataclass(frozen=True)
class Audit:
    """What a pool was told, held against what arrived."""

    told: Told
    lost: list[str]
    """Counted as sent, and never arrived."""
    in_spite: list[str]
    """Counted as failed, and did arrive."""

    @property
    def kinds(self) -> Counter[str]:
        """The kinds of errors, with how many messages each has cost."""
        return Counter(kind_of(error) for error in self.told.failed.values())

    def row(self, case: str, name: str) -> str:
        """One line of a table."""
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kinds.items())) or "-"
        sent, failed = len(self.told.sent), len(self.told.failed)
        return (
            f"{case:<16} {name:<16} sent {sent:>5}, lost though nil {len(self.lost):>4};"
            f" failed {failed:>4} ({kinds}), arrived in spite {len(self.in_spite)};"
            f" longest {self.told.longest_s:.1f} s"
        )


def audits(case: str, pools: Mapping[str, Pool], twin: Twin) -> dict[str, Audit]:
    """The audit of each pool, also printed as a table (which ``-s`` lets through)."""
    made = quiet_audits(pools, twin)
    print("", *(one.row(case, name) for name, one in sorted(made.items())), sep="\n")
    return made


def quiet_audits(pools: Mapping[str, Pool], twin: Twin) -> dict[str, Audit]:
    """The audit of each pool."""
    there = arrived(twin)
    return {name: _audit(pool.told, there) for name, pool in pools.items()}


def _audit(told: Told, there: set[object]) -> Audit:
    lost = [one for one in told.sent if one not in there]
    return Audit(told, lost, [one for one in told.failed if one in there])


def arrived(twin: Twin) -> set[object]:
    """The Message-Ids of all that the twin has."""
    return {record.message_id for record in twin.ledger.records}


def taken(folder: Path) -> set[object]:
    """The Message-Ids of all that the relay has ever taken and, by its own books, sent."""
    rows = query(folder, "SELECT message_id, outcome FROM outcome")
    assert {outcome for _, outcome in rows} <= {"sent"}
    return {message_id for message_id, _ in rows}


async def until_all_sent(folder: Path) -> None:
    """Return once nothing that the relay has taken waits any more, by its own books.

    Read from its file: ``relay status`` would start a process for each look.
    """
    async with asyncio.timeout(PATIENCE_S):
        while query(folder, "SELECT 1 FROM envelope LIMIT 1"):  # noqa: ASYNC110  # two processes
            await asyncio.sleep(0.05)


def html_of(record: Accepted) -> str:
    """The text of the mail as its reader sees it."""
    assert record.content is not None
    mail = email.message_from_bytes(record.content, policy=email.policy.default)
    text = mail.get_content()
    assert isinstance(text, str)
    return text


@asynccontextmanager
async def open_pools(
    port: int, pools: Mapping[str, Settings], *, name: str = "m"
) -> AsyncIterator[dict[str, Pool]]:
    """A pool for each key, which begins with the version: "v2.0.0 shipped".

    ``name`` begins each Message-Id: pools that come one after the other need different ones.
    """
    async with AsyncExitStack() as stack:
        yield {
            key: await stack.enter_async_context(
                open_pool(key.split()[0], port, settings, name=f"{name}.{key.replace(' ', '.')}")
            )
            for key, settings in pools.items()
        }


def of_each_version(**kinds: Settings) -> dict[str, Settings]:
    """Settings by "version kind"."""
    return {f"{version} {kind}": one for kind, one in kinds.items() for version in VERSIONS}


async def each(pools: Iterable[Pool], do: Callable[[Pool], Coroutine[Any, Any, object]]) -> None:
    """Return once all pools have done it, beside each other."""
    await asyncio.gather(*(do(pool) for pool in pools))


@asynccontextmanager
async def fast_relay(
    folder: Path,
    listen: str = "",
    **settings: Any,  # noqa: ANN401  # RunningRelay's fields
) -> AsyncIterator[tuple[RunningRelay, Twin]]:
    """A relay whose upstream bears whatever comes."""
    settings = {"listen": listen, "upstream": FAST_START, **settings}
    async with relay_and_twin(folder, FAST, **settings) as pair:
        yield pair

"""The branches of all upstreams, and what is watched of them together: limits and accounts.

A branch is made before the spool is asked anything, so that what the configuration names and
cannot be used is found at once; ``restore`` then gives each its past. Sending and watching are
two lives: sending ends by itself once drained, watching when it is cancelled.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.service.accounts import Accounts
from relay.service.branch import Branch
from relay.service.figures import upstream_of
from relay.service.limits import Limits
from relay.service.phases import Phases
from relay.service.rates import Rates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from relay.aws import Account
    from relay.config import Config
    from relay.figures import EventFigures, UpstreamFigures
    from relay.service.branch import Shared
    from relay.spool import Due


class Branches:
    """One branch for each upstream of the configuration, by its name."""

    def __init__(self, config: Config, passwords: Mapping[str, str], shared: Shared) -> None:
        """Raises: ConfigError: a file that an upstream names cannot be used."""
        self._clock = shared.clock
        self._branches = {
            one.name: Branch(config, one, passwords[one.name], shared, self.reread)
            for one in config.upstreams
        }
        memories = {name: branch.memory for name, branch in self._branches.items()}
        shapers = {name: branch.shaper for name, branch in self._branches.items()}
        spool, clock, metrics = shared.spool, shared.clock, shared.metrics
        self._limits = Limits(memories, spool, clock, metrics)
        self._accounts = Accounts(
            config.upstreams, shapers, spool, clock, metrics.failed, self._on_day
        )
        self._phases = Phases(self.figures, clock, metrics.failed)
        self.rates = Rates(config.upstreams, memories, self._limits, self.figures_of, clock)
        """What is known of each upstream's limit, and a person's word on it."""

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the configuration."""
        return iter(self._branches)

    def __getitem__(self, name: str) -> Branch:
        """The branch of the upstream ``name``."""
        return self._branches[name]

    async def restore(self) -> None:
        """Bring back what was learned in earlier runs; before it nothing may be sent."""
        await self._limits.recall()
        await self._accounts.restore()
        for branch in self._branches.values():
            await branch.restore()
        self._limits.note()

    async def save(self) -> None:
        """Write down what was learned, if it is news. Raises: SpoolError."""
        await self._limits.save()
        await self._accounts.save()
        for branch in self._branches.values():
            await branch.save()

    async def send(self) -> None:
        """Send until all are drained and their sessions closed."""
        async with asyncio.TaskGroup() as tasks:
            for branch in self._branches.values():
                tasks.create_task(branch.run())

    async def watch(self) -> None:
        """Say how rates and limits change and ask AWS about the accounts, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._limits.run())
            tasks.create_task(self._phases.run())
            tasks.create_task(self._accounts.run())

    def _on_day(self, name: str, account: Account) -> None:
        """AWS has said how much of its day an upstream's account has used."""
        branch, now_ms = self._branches[name], self._clock.wall_ms()
        branch.quota.told(now_ms, day_max=account.max_24_h, day_sent=account.sent_24_h)
        branch.dispatcher.wake()

    def note(self) -> None:
        """Say how limits have moved since ``watch`` looked last."""
        self._limits.note()

    def drain(self) -> None:
        """Send nothing more; ``send`` returns when what is under way is settled."""
        for branch in self._branches.values():
            branch.dispatcher.drain()

    def arrived(self, arrivals: Sequence[Due]) -> None:
        """Hand what was committed to the dispatchers of its upstreams."""
        for name, branch in self._branches.items():
            mine = [due for due in arrivals if due.envelope.upstream == name]
            if mine:
                branch.dispatcher.arrived(mine)

    def reread(self) -> None:
        """Have all dispatchers look anew at what may go: a hold was lifted, or the clock set."""
        for branch in self._branches.values():
            branch.dispatcher.reread()

    @property
    def events(self) -> tuple[EventFigures, ...]:
        """The latest changes of limits, oldest first."""
        return self._limits.events

    def figures(self) -> tuple[UpstreamFigures, ...]:
        """The figures of all upstreams, in the order of the configuration."""
        return tuple(map(self.figures_of, self._branches))

    def figures_of(self, name: str) -> UpstreamFigures:
        """The figures of the upstream ``name`` at this moment."""
        now_ms, now = self._clock.wall_ms(), self._clock.monotonic()
        figures = upstream_of(self._branches[name], now_ms, now)
        return replace(figures, aws=self._accounts.figures_of(name))

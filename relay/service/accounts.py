"""What AWS says of our accounts, asked a moment after the start and then every few minutes.

One question for all upstreams of a region, since they have the same credentials and AWS takes
one a second. What it says goes to the figures, to the log if it is another than before, to
the shaper as a start value if ``aws.prior`` finds it worth that, and to the quota, which leaves
the last of the day to the priority lane by it. Mail is neither held nor released by it: the
replies to the mail itself do that.

Where nothing can be asked there is silence: one line in the log, ever fewer attempts, and no
other trace. Neither start nor stop waits for an answer.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.aws import (
    CONFIDENCE,
    RATE_MAX_PER_S,
    Account,
    Asker,
    Endpoint,
    Silence,
    account_of_key,
    endpoint_of,
    prior,
    troubles,
)
from relay.figures import AwsFigures
from relay.service.kept import recalled
from relay.shaper import Cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from relay import config
    from relay.clock import Clock
    from relay.shaper import Shaper
    from relay.spool import Spool

_log = logging.getLogger(__name__)

FIRST_S = 2.0
"""After the start: soon enough for the first campaign, and not in the way of the start."""
EVERY_S = 300.0
"""A limit that AWS raises is used this much later at most, if the search has not found it."""
SILENT_MAX_S = 3600.0
"""Where nobody answers the wait doubles up to here: a right that is granted is seen in an hour."""


@dataclass(slots=True)
class _Known:
    """What is known of one upstream's account; ``rate_max_per_s`` outlives this run."""

    account: Account | None = None
    said_at: int = 0
    rate_max_per_s: float | None = None


class Accounts:
    """Asks about the accounts of all upstreams that are at SES; ``run`` it."""

    def __init__(
        self,
        upstreams: Iterable[config.Upstream],
        shapers: Mapping[str, Shaper],
        spool: Spool,
        clock: Clock,
        on_failure: Callable[[str], None],
        on_day: Callable[[str, Account], None] = lambda _, __: None,
    ) -> None:
        """``on_day`` is told what AWS says of an upstream's account, if it surely is of that."""
        self._shapers, self._spool, self._clock = shapers, spool, clock
        self._on_failure, self._on_day = on_failure, on_day
        self._known = {upstream.name: _Known() for upstream in upstreams}
        self._owners = {one.name: account_of_key(one.username) for one in upstreams}
        self._at: dict[Endpoint, list[str]] = {}
        for upstream in upstreams:
            endpoint = endpoint_of(upstream.host)
            if endpoint is not None:
                self._at.setdefault(endpoint, []).append(upstream.name)
        self._lines: set[Silence] = set()

    async def restore(self) -> None:
        """Bring back what AWS said in an earlier run, so that a change meanwhile is noticed."""
        for name, known in self._known.items():
            saved = (await recalled(self._spool, f"aws:{name}")).get("rate_max_per_s")
            if isinstance(saved, int | float) and 0 < saved <= RATE_MAX_PER_S:
                known.rate_max_per_s = float(saved)

    async def save(self) -> None:
        """Write down what AWS said last. Raises: SpoolError."""
        for name, known in self._known.items():
            if known.account is not None:
                await self._spool.put_state(f"aws:{name}", {"rate_max_per_s": known.rate_max_per_s})

    async def run(self) -> None:
        """Ask until cancelled; return at once if no upstream is at SES."""
        async with asyncio.TaskGroup() as tasks:
            for endpoint in self._at:
                tasks.create_task(self._ask_often(endpoint))

    def figures_of(self, name: str) -> AwsFigures | None:
        """What AWS last said of the account of upstream ``name``; None if nothing in this run."""
        known = self._known[name]
        if known.account is None:
            return None
        account = known.account
        return AwsFigures(
            said_at=known.said_at,
            rate_max_per_s=account.rate_max_per_s,
            max_24_h=account.max_24_h,
            sent_24_h=account.sent_24_h,
            sending_enabled=account.sending_enabled,
            production_access=account.production_access,
            enforcement=account.enforcement and account.enforcement.value,
            troubles=troubles(account),
        )

    async def _ask_often(self, endpoint: Endpoint) -> None:
        asker, silences = Asker(endpoint), 0
        await self._clock.sleep(FIRST_S)
        while True:
            try:
                answer = await asker.ask()
                heard = self._heard(endpoint, answer)
            except Exception as error:  # the one of this loop
                # Without its text and trace: credentials are near.
                _log.warning("asking AWS failed", extra={"error": type(error).__name__})
                self._on_failure("aws")
                answer, heard = Silence.REFUSED, False
            if answer is Silence.EXTRA:
                return  # until the next start
            silences = 0 if heard else silences + 1
            await self._clock.sleep(wait_s(silences))

    def _heard(self, endpoint: Endpoint, answer: Account | Silence) -> bool:
        """Spread an answer to the upstreams it is about; whether it was about any."""
        if isinstance(answer, Silence):
            self._note(answer, endpoint, self._at[endpoint])
            return False
        others = [name for name in self._at[endpoint] if self._is_another(name, answer)]
        if others:
            self._note(Silence.ANOTHER, endpoint, others)
        ours = [name for name in self._at[endpoint] if name not in others]
        for name in ours:
            self._said(name, answer)
        return bool(ours)

    def _is_another(self, name: str, account: Account) -> bool:
        owner = self._owners[name]
        return owner is not None and account.id is not None and owner != account.id

    def _note(self, silence: Silence, endpoint: Endpoint, names: list[str]) -> None:
        """One line for each kind of silence, once."""
        if silence not in self._lines:
            self._lines.add(silence)
            facts = {"why": silence.value, "region": endpoint.region, "upstreams": ",".join(names)}
            _log.info("AWS says nothing of the account", extra=facts)

    def _said(self, name: str, account: Account) -> None:
        known, shaper = self._known[name], self._shapers[name]
        _tell(name, known.account, account)
        told_per_s = account.rate_max_per_s
        if prior(told_per_s, known.rate_max_per_s, shaper.snapshot().limit_per_s):
            learned = {"limit_per_s": told_per_s, "confidence": CONFIDENCE}
            shaper.restore(self._clock.monotonic(), learned, Cause.AWS)
        if account.id is not None and account.id == self._owners[name]:
            # Of keys that do not tell, the credentials may be another account's, and its full day
            # must stop nobody here; a wrong rate, on the other hand, is found out by the shaper.
            self._on_day(name, account)
        known.account, known.said_at = account, self._clock.wall_ms()
        known.rate_max_per_s = told_per_s or known.rate_max_per_s


def wait_s(silences: int) -> float:
    """Seconds to the next question after so many in a row that nobody answered."""
    doublings = min(silences, 32)
    return min(SILENT_MAX_S, EVERY_S * 2.0**doublings)


def _tell(name: str, before: Account | None, now: Account) -> None:
    """Log what is new in ``now``; what was sent meanwhile is not."""
    if before is None or replace(before, sent_24_h=now.sent_24_h) != now:
        facts = {
            "upstream": name,
            "rate_max_per_s": now.rate_max_per_s,
            "max_24_h": now.max_24_h,
            "sent_24_h": now.sent_24_h,
            "enforcement": now.enforcement,
        }
        _log.info("AWS says of the account", extra=facts)
    known = set(troubles(before)) if before else set()
    for trouble in troubles(now):
        if trouble not in known:
            _log.warning("account in trouble", extra={"upstream": name, "trouble": trouble})

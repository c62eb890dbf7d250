"""The spool against a model made of dicts, through any sequence of operations."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.envelope import Envelope, Outcome, Recipient
from relay.errors import SpoolError
from relay.spool import DepthKey, Finished, Parked, Rescheduled, Settlement, State
from relay.spool.reading import depth
from tests.fakes.clock import ManualClock
from tests.fakes.mail import envelope
from tests.fakes.spool_file import open_spool, query

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    from relay.spool import Due

    T = TypeVar("T")

FAR_MS = 1 << 60
CAMPAIGNS = ("", "a", "b")
KEYS = ("k", "l")
KEPT = (Outcome.BOUNCED, Outcome.EXPIRED, Outcome.DROPPED)
CHANGES = st.lists(st.sampled_from([None, "later", *Outcome]), min_size=3, max_size=3)


@dataclass
class Kept:
    """What the model knows of an envelope that is still in the spool."""

    made: Envelope
    body: bytes
    state: State = State.WAITING
    hold_key: str = ""
    waiting: dict[int, Recipient] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)

    def now(self) -> Envelope:
        return replace(self.made, recipients=tuple(self.waiting[n] for n in sorted(self.waiting)))


class SpoolMachine(RuleBasedStateMachine):
    """Each rule does one thing to the spool and the same to the model."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = ManualClock()
        self.runner = asyncio.Runner()
        self.kept: dict[int, Kept] = {}
        self.outcomes: dict[tuple[int, int], str] = {}
        self.told: list[Settlement] = []
        self._do(self._open())

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self._do(self.stack.aclose())
            self.runner.close()
            shutil.rmtree(self.folder)

    def _do(self, work: Coroutine[object, object, T]) -> T:
        return self.runner.run(work)

    async def _open(self) -> None:
        self.stack = AsyncExitStack()
        self.spool = await self.stack.enter_async_context(open_spool(self.folder, self.clock))

    @rule(
        campaign=st.sampled_from(CAMPAIGNS),
        costs=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    )
    def append(self, campaign: str, costs: list[int]) -> None:
        """One message, split into as many envelopes as there are costs."""
        ids = [self.spool.new_id() for _ in costs]
        parts = [
            replace(envelope(one, campaign=campaign, cost=cost), content_id=ids[0])
            for one, cost in zip(ids, costs, strict=True)
        ]
        body = b"%d" % ids[0]
        self._do(self.spool.append(parts, body))
        for part in parts:
            self.kept[part.id] = Kept(part, body, waiting={r.n: r for r in part.recipients})

    @rule(count=st.integers(2, 9))
    def append_together(self, count: int) -> None:
        """Several at once share a commit."""
        made = [envelope(self.spool.new_id(), campaign="a") for _ in range(count)]

        async def all_at_once() -> None:
            await asyncio.gather(*(self.spool.append([one], b"%d" % one.id) for one in made))

        self._do(all_at_once())
        for one in made:
            self.kept[one.id] = Kept(one, b"%d" % one.id, waiting={0: one.recipients[0]})

    def _pick(self, at: int, *states: State) -> Kept | None:
        some = [kept for kept in self.kept.values() if kept.state in states]
        return some[at % len(some)] if some else None

    @rule(at=st.integers(0), changes=CHANGES, key=st.sampled_from([None, *KEYS]))
    def settle(self, at: int, changes: list[Outcome | str | None], key: str | None) -> None:
        """Some recipients end, some are put off, the rest may be parked."""
        kept = self._pick(at, State.WAITING, State.PARKED)
        if kept is None:
            return
        news = [
            self._change(n, change)
            for n, change in zip(sorted(kept.waiting), changes, strict=False)
            if change is not None
        ]
        parked = Parked(hold_key=key, reply="held") if key else None
        told = Settlement(
            envelope=kept.now(), changes=tuple(news), parked=parked, at=self.clock.wall_ms()
        )
        self._do(self.spool.settle(told))
        self.told.append(told)
        self._apply(kept, told)

    def _change(self, n: int, change: Outcome | str) -> Finished | Rescheduled:
        if isinstance(change, Outcome):
            return Finished(n=n, outcome=change, ses_id=f"s{n}", attempts=1)
        return Rescheduled(n=n, due_at=self.clock.wall_ms() + 5, attempts=2, in_doubt=True)

    def _apply(self, kept: Kept, told: Settlement) -> None:
        for change in told.changes:
            recipient = kept.waiting.pop(change.n)
            if isinstance(change, Rescheduled):
                kept.waiting[change.n] = replace(recipient, attempts=2, in_doubt=True)
                continue
            self.outcomes[kept.made.id, change.n] = change.outcome.value
            if change.outcome in KEPT:
                kept.dead.add(change.n)
        if not kept.waiting and not kept.dead:
            del self.kept[kept.made.id]
        elif not kept.waiting:
            kept.state, kept.hold_key = State.DEAD, ""
        elif told.parked:
            kept.state, kept.hold_key = State.PARKED, told.parked.hold_key

    @precondition(lambda self: self.told and self.told[-1].changes)
    @rule()
    def settle_again(self) -> None:
        """The last settlement is repeated, if it only ended recipients: nothing changes."""
        told = replace(self.told[-1], parked=None)
        if all(isinstance(change, Finished) for change in told.changes):
            self._do(self.spool.settle(told))

    @rule(at=st.integers(0))
    def contradict(self, at: int) -> None:
        """An outcome that was recorded cannot be changed."""
        if not self.outcomes:
            return
        ended = sorted(self.outcomes)[at % len(self.outcomes)]
        other = Outcome.SKIPPED if self.outcomes[ended] != "skipped" else Outcome.SENT
        told = Settlement(
            envelope=envelope(ended[0]), changes=(Finished(n=ended[1], outcome=other),), at=1
        )
        with pytest.raises(SpoolError):
            self._do(self.spool.settle(told))

    @rule(key=st.sampled_from(KEYS))
    def release(self, key: str) -> None:
        parked = [one for one in self.kept.values() if one.hold_key == key]
        assert self._do(self.spool.release(key)) == len(parked)
        for one in parked:
            one.state, one.hold_key = State.WAITING, ""

    @rule(at=st.integers(0))
    def quarantine(self, at: int) -> None:
        kept = self._pick(at, State.WAITING, State.PARKED)
        if kept is not None:
            self._do(self.spool.quarantine(kept.made.id, "odd"))
            kept.state, kept.hold_key = State.QUARANTINED, ""

    @rule(ms=st.integers(-3, 50))
    def clock_moves(self, ms: int) -> None:
        self.clock.step_wall(ms)

    @rule()
    def clamp(self) -> None:
        """Whatever is due later is due now."""
        self._do(self.spool.clamp_due(self.clock.wall_ms()))
        found = [due for c in CAMPAIGNS for due in self._read(c, self.clock.wall_ms())]
        assert {one.envelope.id for one in found} == self._ids(State.WAITING)

    @rule()
    def reopen(self) -> None:
        self._do(self.stack.aclose())
        self._do(self._open())

    def _ids(self, state: State) -> set[int]:
        return {one.made.id for one in self.kept.values() if one.state is state}

    def _read(self, campaign: str, now_ms: int) -> list[Due]:
        lane = "bulk" if campaign else "priority"
        return self._do(self.spool.read_due("ses", lane, campaign, now_ms=now_ms, limit=10_000))

    @invariant()
    def every_waiting_recipient_is_read(self) -> None:
        """What is read is exactly what waits, with its content."""
        found = {due.envelope.id: due.envelope for c in CAMPAIGNS for due in self._read(c, FAR_MS)}
        assert found == {i: self.kept[i].now() for i in self._ids(State.WAITING)}
        for kept in list(self.kept.values())[-2:]:
            assert self._do(self.spool.read_content(kept.made.content_id)) == kept.body

    @invariant()
    def p2_every_recipient_that_ended_has_its_one_outcome(self) -> None:
        """No outcome is missing, none is there twice, no content is left behind."""
        rows = query(self.folder, "SELECT envelope_id, n, outcome FROM outcome")
        assert len(rows) == len(self.outcomes)
        assert {(row[0], row[1]): row[2] for row in rows} == self.outcomes
        contents = {row[0] for row in query(self.folder, "SELECT id FROM content")}
        assert contents == {kept.made.content_id for kept in self.kept.values()}

    @invariant()
    def depth_is_exact(self) -> None:
        """The counts in memory are those of the model, and of a fresh count of the rows."""
        expected: Counter[DepthKey] = Counter()
        for kept in self.kept.values():
            stream = ("ses", kept.made.lane, kept.made.campaign)
            expected[DepthKey(*stream, kept.state)] += len(kept.waiting)
            expected[DepthKey(*stream, State.DEAD)] += len(kept.dead)
        assert self.spool.depth() == {key: count for key, count in expected.items() if count}
        assert self._do(self.spool._read(depth)) == self.spool.depth()


SpoolMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestSpool = SpoolMachine.TestCase

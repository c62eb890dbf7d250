"""The changes to what is on the queue, each for one transaction, in the writer's thread.

P2 lives here: a recipient's outcome is written by the transaction that takes it off the
queue. Each function checks first and changes afterwards, because a job that raises
``SpoolError`` shares its transaction with others and must not have changed anything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from relay.envelope import Outcome
from relay.errors import SpoolError
from relay.spool.settlement import Finished, Rescheduled
from relay.spool.stamps import beyond
from relay.spool.transaction import WRITE
from relay.spool.words import DepthKey, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.spool.settlement import Settlement
    from relay.spool.transaction import Transaction

KEPT: Final = frozenset((Outcome.BOUNCED, Outcome.EXPIRED, Outcome.DROPPED))
"""Outcomes that may have been a mistake: the mail is kept for a while (design 5, Undo)."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the spool has of an envelope; ``recipients`` maps n to waiting or dead."""

    id: int
    state: State
    content_id: int
    shared: bool
    stream: tuple[str, str, str]
    recipients: dict[int, State]

    @classmethod
    def of(cls, transaction: Transaction, envelope_id: int) -> Self | None:
        row = transaction.db.execute(WRITE["envelope"], (envelope_id,)).fetchone()
        if row is None:
            return None
        state, content_id, shared, *stream = row
        recipients = transaction.db.execute(WRITE["recipients"], (envelope_id,))
        return cls(
            envelope_id,
            State(state),
            content_id,
            bool(shared),
            (stream[0], stream[1], stream[2]),
            {n: State(state) for n, state in recipients},
        )

    def depth(self) -> Counter[DepthKey]:
        """What the envelope adds to the depth."""
        states = (State.DEAD if s is State.DEAD else self.state for s in self.recipients.values())
        return Counter(DepthKey(*self.stream, state) for state in states)

    def has(self, state: State) -> bool:
        """Whether any recipient stands so."""
        return state in self.recipients.values()


def settle(transaction: Transaction, settlement: Settlement) -> int | None:
    """Apply all that is new about an envelope. Applying it again changes nothing.

    Returns when it is due, by the first of its recipients that wait, whether named in the
    settlement or not; None if it waits in no lane any more.

    Raises: SpoolError, having changed nothing, if it contradicts what is on disk.
    """
    standing = _Standing.of(transaction, settlement.envelope.id)
    changes = [c for c in settlement.changes if _is_new(transaction, settlement, standing, c)]
    if standing is None:
        if not changes and not settlement.changes:
            raise SpoolError(f"envelope {settlement.envelope.name} is not in the spool")
        return None
    transaction.depth.subtract(standing.depth())
    for change in changes:
        if isinstance(change, Finished):
            _finish(transaction, standing, change, settlement.at)
        else:
            _reschedule(transaction, standing, change)
    after = _place(transaction, standing, settlement)
    transaction.depth.update(after.depth())
    if after.state is not State.WAITING or not after.recipients:
        return None
    due_at: int = transaction.db.execute(WRITE["due_at"], (after.id,)).fetchone()[0]
    return due_at


def _is_new(
    transaction: Transaction,
    settlement: Settlement,
    standing: _Standing | None,
    change: Finished | Rescheduled,
) -> bool:
    """False if the change has been made before.

    Raises: SpoolError if the recipient is not waiting, or ended otherwise.
    """
    if standing and standing.recipients.get(change.n) is State.WAITING:
        return True
    row = transaction.db.execute(WRITE["outcome"], (settlement.envelope.id, change.n)).fetchone()
    ended = f"ended as {row[0]}" if row else "is unknown"
    if isinstance(change, Finished) and row == (change.outcome.value, change.ses_id):
        return False
    raise SpoolError(
        f"recipient {change.n} of envelope {settlement.envelope.name} cannot be settled: it {ended}"
    )


def _finish(transaction: Transaction, standing: _Standing, change: Finished, at: int) -> None:
    db, key = transaction.db, (standing.id, change.n)
    tried = (change.attempts, change.in_doubt)
    db.execute(
        WRITE["add_outcome"],
        (change.outcome.value, change.code, change.reply, change.ses_id, *tried, at, *key),
    )
    if change.outcome in KEPT:
        db.execute(WRITE["bury_recipient"], (*tried, change.reply, *key))
        standing.recipients[change.n] = State.DEAD
    else:
        db.execute(WRITE["remove_recipient"], key)
        del standing.recipients[change.n]


def _reschedule(transaction: Transaction, standing: _Standing, change: Rescheduled) -> None:
    due_at = beyond(transaction.floor, change.due_at, standing.id)
    transaction.db.execute(
        WRITE["reschedule"],
        (due_at, change.attempts, change.in_doubt, change.reply, standing.id, change.n),
    )


def _place(transaction: Transaction, standing: _Standing, settlement: Settlement) -> _Standing:
    """Put the envelope where its recipients now say; returns how it stands then."""
    db, parked = transaction.db, settlement.parked
    if not standing.recipients:
        db.execute(WRITE["remove_envelope"], (standing.id,))
        _drop_content(transaction, standing.content_id, shared=standing.shared)
        return standing
    if not standing.has(State.WAITING):
        return _move(transaction, standing, State.DEAD, died_at=settlement.at)
    if settlement.changes:
        db.execute(WRITE["refresh_due"], (standing.id,))
    if parked is not None:
        db.execute(WRITE["note_reply"], (parked.reply, standing.id))
        return _move(transaction, standing, State.PARKED, hold_key=parked.hold_key)
    return standing


def _move(
    transaction: Transaction,
    standing: _Standing,
    state: State,
    *,
    hold_key: str = "",
    died_at: int = 0,
    reason: str = "",
) -> _Standing:
    transaction.db.execute(WRITE["set_state"], (int(state), hold_key, died_at, reason, standing.id))
    return _Standing(
        standing.id,
        state,
        standing.content_id,
        standing.shared,
        standing.stream,
        standing.recipients,
    )


def _drop_content(transaction: Transaction, content_id: int, *, shared: bool) -> None:
    """Forget the content unless another envelope of a split message still has it."""
    db = transaction.db
    if shared and db.execute(WRITE["content_in_use"], (content_id,)).fetchone()[0]:
        return
    db.execute(WRITE["remove_content"], (content_id,))


def count_parked(transaction: Transaction, hold_key: str) -> int:
    """How many envelopes are parked under the key."""
    count: int = transaction.db.execute(WRITE["count_parked"], (hold_key,)).fetchone()[0]
    return count


def release(transaction: Transaction, hold_key: str, limit: int) -> int:
    """Let the next ``limit`` envelopes that are parked under the key wait again."""
    ids = _ids(transaction, "parked_ids", hold_key, limit)
    for envelope_id in ids:
        transaction.db.execute(WRITE["join_end"], (transaction.stamp, envelope_id))
        transaction.db.execute(WRITE["refresh_due"], (envelope_id,))
        standing = _Standing.of(transaction, envelope_id)
        assert standing is not None  # Its id was read in this transaction.
        _recount(transaction, standing, _move(transaction, standing, State.WAITING))
    return len(ids)


def quarantine(transaction: Transaction, envelope_id: int, reason: str) -> str | None:
    """Take an unreadable envelope out of the way; its lane, None if it was not on the queue."""
    standing = _Standing.of(transaction, envelope_id)
    if standing is None or standing.state not in {State.WAITING, State.PARKED}:
        return None
    after = _move(transaction, standing, State.QUARANTINED, reason=reason)
    _recount(transaction, standing, after)
    _, lane, _ = standing.stream
    return lane


def _recount(transaction: Transaction, before: _Standing, after: _Standing) -> None:
    """Note how the depth changes when an envelope moves as a whole."""
    transaction.depth.subtract(before.depth())
    transaction.depth.update(after.depth())


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBack:
    """How due times follow a clock that was set back by ``back_ms`` to ``now_ms``.

    What was due later than that is due ``back_ms`` earlier, and never later than ``latest_ms``.
    """

    now_ms: int
    back_ms: int
    latest_ms: int


def clamp(transaction: Transaction, change: SetBack, after_id: int, limit: int) -> int | None:
    """Let the next envelopes after ``after_id`` follow the clock.

    Returns the last id it came to, None once there are no more.
    """
    since_ms = change.now_ms if change.back_ms else change.latest_ms
    ids = _ids(transaction, "late_ids", since_ms, after_id, limit)
    for envelope_id in ids:
        times = (change.latest_ms, since_ms, change.back_ms)
        transaction.db.execute(WRITE["clamp_recipients"], (*times, envelope_id, since_ms))
        transaction.db.execute(WRITE["refresh_due"], (envelope_id,))
    return ids[-1] if ids else None


def purge_dead(transaction: Transaction, before_ms: int, limit: int) -> int:
    """Forget up to ``limit`` dead envelopes and their content; their outcomes stay."""
    ids = _ids(transaction, "dead_ids", before_ms, limit)
    for envelope_id in ids:
        standing = _Standing.of(transaction, envelope_id)
        assert standing is not None  # Its id was read in this transaction.
        transaction.depth.subtract(standing.depth())
        transaction.db.execute(WRITE["remove_recipients"], (envelope_id,))
        transaction.db.execute(WRITE["remove_envelope"], (envelope_id,))
        _drop_content(transaction, standing.content_id, shared=standing.shared)
    return len(ids)


def purge_outcomes(transaction: Transaction, before_ms: int, limit: int) -> int:
    """Forget up to ``limit`` outcomes, the oldest first; returns how many it were."""
    return transaction.db.execute(WRITE["purge_outcomes"], (before_ms, limit)).rowcount


def _ids(transaction: Transaction, statement: str, *values: object) -> Sequence[int]:
    return [row[0] for row in transaction.db.execute(WRITE[statement], values)]

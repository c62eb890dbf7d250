"""What became of an attempt, in the words by which the spool is told.

Pure words. A settlement is one envelope's news at one moment; the spool applies all of
it or nothing. Telling the same news twice is harmless, because a caller whose first
call failed cannot know how far it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.envelope import Envelope, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Recipient ``n`` has its one outcome (P2) and leaves the queue for good."""

    n: int
    outcome: Outcome
    reply: str = ""
    code: int = 0
    ses_id: str = ""
    attempts: int = 0
    in_doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescheduled:
    """Recipient ``n`` waits until ``due_at`` (wall ms)."""

    n: int
    due_at: int
    attempts: int
    reply: str = ""
    in_doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """The envelope leaves its lane until ``hold_key`` is released; ``reply`` says why."""

    hold_key: str
    reply: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """All that is new about ``envelope`` at wall time ``at`` (ms).

    ``changes`` name each recipient at most once; a recipient not named stays as it is.
    ``parked`` is about those that still wait after the changes.
    """

    envelope: Envelope
    changes: tuple[Finished | Rescheduled, ...] = ()
    parked: Parked | None = None
    at: int

    @property
    def earliest_due_at(self) -> int | None:
        """When the first rescheduled recipient is due again; None if none was rescheduled."""
        return min((c.due_at for c in self.changes if isinstance(c, Rescheduled)), default=None)

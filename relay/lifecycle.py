"""What becomes of a recipient that was tried: one table.

Only a waiting recipient is ever tried, so the table's key is what the try came to: the
verdict's kind, and where that is not enough, a word more (whom a hold concerns; whether mail
in doubt is sent again). Promise P2: only *sent* and *bounced* finish a recipient; that and the
outcome are written in one transaction. Promise P4: throttled, session ended and held cost no
attempt. What has no verdict (expiry: ``ageing``; an
operator's drop) never comes by here.

Where a recipient goes that is not finished:

- *head*: back to the head of its lane, in memory only. Nothing is written: a crash returns it
  to where it was.
- *behind*: due now, behind all that are due already. For mail that a hold on the whole account
  or campaign stopped: its stream is skipped while that holds, and each probe then takes another
  envelope, so that one which is bad in its own right cannot keep a hold alive for ever.
- *parked*: out of its lane until the hold is lifted. For holds on a sender, configuration set
  or recipient, whose mail stands among mail that may go.

Pure; it knows no time: ``deferral`` says when *retry* and *doubt* are due.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from relay.envelope import Outcome
from relay.verdict import Held, Kind, Scope, Verdict, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping


class Next(StrEnum):
    """What the dispatcher does with a recipient."""

    FINISH = "finish"
    """Off the queue, with ``Fate.outcome``."""
    RETRY = "retry"
    """Due again when ``deferral.due_at`` says."""
    DOUBT = "doubt"
    """Due again when ``deferral.in_doubt_at`` says."""
    HEAD = "head"
    BEHIND = "behind"
    PARK = "park"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a recipient.

    ``outcome`` is set if that finishes it; ``costs`` is how many attempts to add;
    ``in_doubt`` says to flag it as perhaps delivered (a flag once set stays).
    """

    next: Next
    outcome: Outcome | None = None
    costs: Literal[0, 1] = 0
    in_doubt: bool = False


RESEND: Final = "resend"
HOLD: Final = "hold"

TABLE: Mapping[tuple[Kind, str], Fate] = {
    (Kind.SENT, ""): Fate(Next.FINISH, Outcome.SENT, costs=1),
    (Kind.BOUNCED, ""): Fate(Next.FINISH, Outcome.BOUNCED, costs=1),
    (Kind.DEFERRED, ""): Fate(Next.RETRY, costs=1),
    (Kind.IN_DOUBT, RESEND): Fate(Next.DOUBT, costs=1, in_doubt=True),
    (Kind.IN_DOUBT, HOLD): Fate(Next.PARK, costs=1, in_doubt=True),
    (Kind.THROTTLED, ""): Fate(Next.HEAD),
    (Kind.SESSION_ENDED, ""): Fate(Next.HEAD),
    (Kind.HELD, Scope.ACCOUNT): Fate(Next.BEHIND),
    (Kind.HELD, Scope.CAMPAIGN): Fate(Next.BEHIND),
    (Kind.HELD, Scope.SENDER): Fate(Next.PARK),
    (Kind.HELD, Scope.CONFIGURATION_SET): Fate(Next.PARK),
    (Kind.HELD, Scope.SANDBOX): Fate(Next.PARK),
}


def fate(verdict: Verdict, in_doubt: Literal["resend", "hold"] = RESEND) -> Fate:
    """What becomes of a waiting recipient after ``verdict``.

    ``in_doubt`` is ``upstream.in_doubt``: whether mail that may have gone out is sent again.
    """
    kind, more = kind_of(verdict), ""
    if isinstance(verdict, Held):
        more = verdict.scope
    elif kind is Kind.IN_DOUBT:
        more = in_doubt
    return TABLE[kind, more]

"""Mail that is throttled again and again, and when it steps aside for the rest.

A throttle is about the account, not about the mail under which it came, and so that mail goes
back to the head of its lane (P4). If it is about that mail after all (one too large for a
bandwidth limit, a rule on its recipient's domain: *assumed*, none is known of SES), it would
stand there for ever: nothing behind it is tried, and the rate falls to its floor. So a mail that
was throttled ``PATIENCE`` times in a row over at least ``PATIENCE_S`` waits by ``[retry]``,
uncharged. If others were accepted since then and it is throttled again, it waits twice as long,
and so on; if nobody was, it is the account's trouble, and it waits no longer than the first time.

A spent quota is no such throttle. Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE = 10
PATIENCE_S = 30.0
"""A shaper that starts far too high, or meets a cut, has found the limit by then: refusals in a
row of so long are no longer its search."""
AGAIN = 2
"""As ``PATIENCE``, for a mail that has stepped aside before."""
ENVELOPES_MAX = 1000
"""Envelopes remembered; the one throttled longest ago is forgotten first."""


@dataclass(slots=True)
class _Row:
    """Throttles in a row of one envelope since ``since``; ``asides``: how often it gave way."""

    since: float
    accepted: int
    throttled: int = 0
    asides: int = 0


class Refusals:
    """Throttles in a row, by envelope."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._accepted = 0

    def accepted(self) -> None:
        """The upstream took a mail."""
        self._accepted += 1

    def answered(self, envelope_id: int) -> None:
        """Something else than a throttle came of it."""
        self._rows.pop(envelope_id, None)

    def throttled(self, envelope_id: int, now: float) -> int:
        """How often the envelope has stepped aside by now, for others; 0: it stays at the head."""
        row = self._rows.pop(envelope_id, None) or _Row(now, self._accepted)
        self._rows[envelope_id] = row
        if len(self._rows) > ENVELOPES_MAX:
            del self._rows[next(iter(self._rows))]
        row.throttled += 1
        if row.asides:
            is_enough = row.throttled >= AGAIN
        else:
            is_enough = row.throttled >= PATIENCE and now - row.since >= PATIENCE_S
        if not is_enough:
            return 0
        if not row.asides or self._accepted > row.accepted:
            row.asides += 1
        row.throttled, row.accepted = 0, self._accepted
        return row.asides

"""Sessions that end under the mail, and when that stops being nothing.

A session that ends costs its mail no attempt, and the same mail goes on the next one at once
(P4). That is right for a cap, an idle cut or a link that broke. But an upstream that greets,
takes the login and then closes at each MAIL would be hammered for ever, and one mail under
which every session ends would cost a session each time. So endings in a row are counted:

- for the upstream, by generation: what was sent before the last counted ending is part of it.
  From the third on it is *broken*: one attempt at a time, after a pause that doubles up to a
  minute. Any answer about a mail mends it.
- for an envelope: from the third on it waits by ``[retry]``, uncharged.

A full session, an idle cut and one session too many are the ordinary ends of a session and do
not count; but only at MAIL or RCPT, and only if the session has taken mail before. Who says so
under the first mail of each session, or with a content half sent, would say so for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.reply import Stage
from relay.verdict import Ending

if TYPE_CHECKING:
    from relay.verdict import SessionEnded

ORDINARY = frozenset({Ending.SESSION_CAP, Ending.IDLE, Ending.CONNECTION_CAP})
_ORDINARY_AT = frozenset({Stage.MAIL, Stage.RCPT})
PATIENCE = 2
"""Endings in a row that mean nothing: a load balancer that replaces a host makes one or two."""
PAUSE_MAX_S = 60.0
"""As the pool's own back-off between failed openings."""
ENVELOPES_MAX = 1000
"""Envelopes remembered; the one counted longest ago is forgotten first."""


def is_ordinary(verdict: SessionEnded, stage: Stage, *, first: bool) -> bool:
    """Whether a session that ended at ``stage`` had just done its work; ``first``: it had none."""
    return verdict.ending in ORDINARY and stage in _ORDINARY_AT and not first


class Endings:
    """Endings in a row, of one upstream and of each envelope. Times are monotonic."""

    def __init__(self) -> None:
        self._by_envelope: dict[int, int] = {}
        self._in_row = 0
        self._counted_at = float("-inf")
        self._until = float("-inf")
        self.text = ""
        """What the last counted ending said."""

    @property
    def is_broken(self) -> bool:
        """Whether the upstream ends sessions rather than answer."""
        return self._in_row > PATIENCE

    def wait_s(self, now: float) -> float:
        """How long a broken upstream is left alone yet."""
        return max(0.0, self._until - now) if self.is_broken else 0.0

    def ended(self, envelope_id: int, verdict: SessionEnded, sent_at: float, now: float) -> int:
        """Count an ending; how often the envelope was put off by now, 0 to go on at once."""
        if sent_at >= self._counted_at:
            self._in_row += 1
            self._counted_at, self.text = now, verdict.text
            doublings = min(self._in_row - PATIENCE - 1, 10)
            self._until = now + min(PAUSE_MAX_S, 2.0**doublings)
        count = self._by_envelope.pop(envelope_id, 0) + 1
        self._by_envelope[envelope_id] = count
        if len(self._by_envelope) > ENVELOPES_MAX:
            del self._by_envelope[next(iter(self._by_envelope))]
        return max(0, count - PATIENCE)

    def answered(self, envelope_id: int) -> None:
        """The upstream said something about a mail: it works."""
        self._in_row, self.text = 0, ""
        self._by_envelope.pop(envelope_id, None)

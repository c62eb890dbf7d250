"""How many sessions the peer bears at once, learned from its refusals. Pure.

SES publishes no number for ``421 Too many concurrent SMTP connections``, other clients of the
account may count against it, and it may move: so the edge is found, kept to, and tried again
now and then. A refused opening costs one connection and no mail, hence:

- *Additive increase.* At the edge one more session is tried after 10 s, 20 s, 40 s … 15 min: an
  edge that is real is met four times an hour in the end. One that has moved, or that was a
  moment's trouble, is soon far behind: each step that the peer bears doubles the next (1, 2, 4 …,
  one every 5 s), so that an edge four times as high is reached within 15 minutes and the half
  minute of the climb.
- *Multiplicative decrease.* A refusal sets the edge to what stands at that moment, for so many
  the peer does bear; a second later one more is tried, for it may have counted sessions that had
  just gone. Only if it refuses below the edge again, with none opened in between, has the edge
  moved down: then a tenth more is given up at each refusal, since every session that ends would
  otherwise cost one. A cut by a tenth at each refusal, as TCP has it, would leave 5 %
  of the sessions unused for ever.

Measured in the model of ``tests/unit/test_upstream_ceiling.py`` (caps of 1, 5, 20, 100; sessions
end all the time): 99 % of the cap open on average; 10 to 39 refused openings in the first 20
minutes, those of the first climb among them, then four an hour; a cap four times as high reached
after 6 to 13 minutes (16 at worst); of a cap lowered to a quarter 8 to 18 refusals in all.

Not kept over a restart: finding the edge costs one refused opening, while a number of yesterday
could starve an account whose edge was low because a relay that was killed still counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

KEEP = 0.9
"""What is kept of the sessions at a refusal that shows the edge going down."""
RETRY_FIRST_S = 5.0
"""The first try beyond a new edge: trouble of a moment is over by then."""
RETRY_LONGEST_S = 900.0
"""An edge that is real costs four refused openings an hour."""
PAUSE_S = 1.0
"""No opening for so long after a refusal, whatever else would allow one: no storm."""


@dataclass(slots=True)
class Ceiling:
    """The most sessions that may be open, 1 to ``sessions_max``. Times are monotonic seconds."""

    sessions_max: int
    _edge: int = field(init=False)
    _met: int = field(default=0, init=False)
    """Where one more was refused the last time that it was tried."""
    _step: int = field(default=1, init=False)
    _wait_s: float = field(default=RETRY_FIRST_S, init=False)
    _retry_at: float = field(default=-inf, init=False)
    _refused_at: float = field(default=-inf, init=False)
    _falls: int = field(default=0, init=False)
    """Refusals below the edge since a session was last opened."""

    def __post_init__(self) -> None:
        self._edge = self.sessions_max

    @property
    def paused_until(self) -> float:
        """Before this moment nothing may be opened."""
        return self._refused_at + PAUSE_S

    def at(self, now: float) -> int:
        """The ceiling at ``now``."""
        step = self._step if now >= self._retry_at else 0
        return min(self.sessions_max, self._edge + step)

    def climbs_at(self, now: float) -> float:
        """The moment after ``now`` at which it will be higher; ``inf`` if it waits for none."""
        if now >= self._retry_at or self._edge >= self.sessions_max:
            return inf
        return self._retry_at

    def on_opened(self, now: float, open_count: int) -> None:
        """The peer bears ``open_count`` sessions, the one opened just now among them."""
        self._falls = 0
        if now >= self._retry_at:
            if open_count >= self._edge + self._step:
                self._climb(now)
        elif open_count > self._edge:
            # It was under way at the refusal and shows that the edge is higher.
            self._edge = open_count
            self._met = max(self._met, open_count)

    def _climb(self, now: float) -> None:
        """The step was borne: the next is twice as long, and due soon."""
        self._edge = min(self.sessions_max, self._edge + self._step)
        self._step *= 2
        if self._edge > self._met:
            self._wait_s = RETRY_FIRST_S
        is_known = self._edge == self._met
        self._retry_at = now + (self._wait_s if is_known else RETRY_FIRST_S)

    def on_refused(self, now: float, begun_at: float, open_count: int, going: int) -> None:
        """One more was too many beside ``open_count`` and ``going``, being opened or closed.

        Openings that began before the last refusal was noted belong to it and say nothing new.
        """
        if begun_at <= self._refused_at:
            return
        self._refused_at = now
        self._step = 1
        if open_count + going >= self._edge:
            self._meet(open_count)
            self._retry_at = now + self._wait_s
        else:
            self._fall(open_count)
            self._retry_at = now + (PAUSE_S if self._falls == 1 else RETRY_FIRST_S)

    def _meet(self, open_count: int) -> None:
        """The edge is where it was, or a little higher."""
        self._edge = max(self._edge, open_count)
        wait_s = self._wait_s if self._edge >= self._met * KEEP else RETRY_FIRST_S
        self._wait_s = min(RETRY_LONGEST_S, wait_s * 2)
        self._met = self._edge

    def _fall(self, open_count: int) -> None:
        """The peer bears fewer than it did, or counts sessions that have just gone."""
        self._falls += 1
        self._edge = max(1, open_count if self._falls == 1 else int(open_count * KEEP))

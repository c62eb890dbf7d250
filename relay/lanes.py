"""Which envelope goes next: lanes, campaigns in them, and who may jump the queue.

Mail is divided into *streams*, one for each (lane, campaign). Of each stream only a
window of the next few hundred envelopes is in memory; the rest stays in the spool, so a
million waiting envelopes cost nothing here. The rules, in order:

1. A stream that is held gives nothing; its window stays where it is.
2. The lane *priority* goes first, whatever waits elsewhere.
3. But the other lanes keep a floor share: for every recipient that priority sends while
   others wait, these earn ``floor / (1 - floor)`` of one, and are served once they have
   earned a whole one. With nothing waiting there is nothing to earn.
4. Between the streams of the other lanes: deficit round robin by recipients (Shreedhar and
   Varghese, 1995), but paid afterwards. A stream in credit sends and pays the
   cost; one in debt waits for its turns, each worth ``QUANTUM`` recipient, to pay off.
   Classic DRR saves up first and needs a quantum as large as the largest message (50), so
   campaigns would alternate in lumps of 50; debt lets them alternate one by one.
5. Within a stream: first what was given back (throttled, session ended), then by due time.

What is in memory is only a copy. An envelope is *known* from the moment it enters a window
until it is settled, so that re-reading the spool never leases one twice. Reading needs no
cursor: the spool is always asked from the start for more envelopes than are known, and the
known ones are skipped. A cursor would be cheaper by a few microseconds and wrong whenever
a deferred envelope falls due behind it. While a read is under way its answer may already be
stale: what is settled meanwhile stays known until the read has come back, and what arrives
meanwhile makes the stream be read again.

Pure. Nothing here knows the time: only envelopes that are due are ever loaded.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from relay.envelope import BULK, PRIORITY, RECIPIENTS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from relay.config import Lane
    from relay.envelope import Envelope

WINDOW_MAX = 400
"""Envelopes of a stream in memory: seconds of work at 1,000/s while the next are read."""
WINDOW_LOW = 150
"""A window that holds fewer is filled up, so that a read of some milliseconds is never felt."""
QUANTUM = 1.0
"""Recipients a stream earns at each turn; see rule 4."""


class StreamKey(NamedTuple):
    """Where an envelope queues. ``campaign`` is empty for mail of no campaign."""

    lane: str
    campaign: str


def lane_of(campaign: str) -> str:
    """The lane of a message with this campaign: Listmonk marks all bulk mail, and only that."""
    return BULK if campaign else PRIORITY


def key_of(envelope: Envelope) -> StreamKey:
    """The stream in which ``envelope`` waits."""
    return StreamKey(envelope.lane, envelope.campaign)


@dataclass(slots=True)
class _Stream:
    window: deque[Envelope] = field(default_factory=deque)
    known: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    reading: bool = False
    more: bool = False
    credit: float = 0.0


class Lanes:
    """The streams of one upstream; ``is_held`` says whether a stream's campaign is held now."""

    def __init__(
        self, config: Mapping[str, Lane], *, is_held: Callable[[str], bool] = lambda _: False
    ) -> None:
        floors = [lane.floor for name, lane in config.items() if name != PRIORITY]
        self._floor = min(max(floors, default=0.0), 0.99)
        self._is_held = is_held
        self._streams: dict[StreamKey, _Stream] = {}
        self._turns: deque[StreamKey] = deque()
        self._earned = 0.0

    def arrived(self, envelope: Envelope) -> None:
        """Take in an envelope that was just committed, or note that its stream has more."""
        stream = self._stream(key_of(envelope))
        if envelope.id in stream.known:
            return
        if stream.more or stream.reading or len(stream.window) >= WINDOW_MAX:
            stream.more = True
            return
        stream.known.add(envelope.id)
        stream.window.append(envelope)

    def has_more(self, keys: Iterable[StreamKey]) -> None:
        """Note that the spool has due mail in these streams that may not be known here."""
        for key in keys:
            self._stream(key).more = True

    def to_read(self) -> list[tuple[StreamKey, int]]:
        """The streams to read from the spool now, each with how many envelopes to ask for.

        Each one named is answered with ``loaded`` before it is named again.
        """
        found = [
            (key, len(stream.known) + WINDOW_MAX - WINDOW_LOW)
            for key, stream in self._streams.items()
            if stream.more and not stream.reading and len(stream.window) < WINDOW_LOW
        ]
        for key, _ in found:
            self._streams[key].reading, self._streams[key].more = True, False
        return found

    def loaded(self, key: StreamKey, envelopes: list[Envelope], asked: int) -> None:
        """Take in what the spool gave for ``key``; fewer than ``asked`` means that was all.

        A read that failed is answered with ``asked`` 0: the stream will be named again.
        """
        stream = self._stream(key)
        stream.more = stream.more or len(envelopes) >= asked
        for envelope in envelopes:
            if envelope.id not in stream.known and envelope.id not in stream.settled:
                stream.known.add(envelope.id)
                stream.window.append(envelope)
        stream.reading = False
        stream.settled.clear()
        self._forget_if_empty(key)

    def ready(self, *, only: str | None = None) -> bool:
        """Whether ``choose`` would find an envelope."""
        return any(self._gives(key, stream, only) for key, stream in self._streams.items())

    def choose(self, *, only: str | None = None) -> Envelope | None:
        """The envelope that goes next, now leased; None if nothing may go.

        ``only`` names the one lane that may be served (the last free session, or the
        quota's reserve, is kept for priority). The lease ends with ``give_back`` or
        ``settled``.
        """
        first = self._first_of_priority() if self._serves(PRIORITY, only) else None
        others = self._able()
        if not others:
            self._earned = 0.0
        allowed = [key for key in others if self._serves(key.lane, only)]
        if allowed and (first is None or self._earned >= 1):
            return self._take(self._next_turn(allowed))
        if first is None:
            return None
        if others:
            cost = self._streams[first].window[0].cost
            earned = self._earned + cost * self._floor / (1 - self._floor)
            self._earned = min(earned, RECIPIENTS_MAX)
        return self._take(first)

    def first_of(self, campaign: str) -> Envelope | None:
        """The head of a campaign's stream, leased, held or not: a breaker's probe."""
        for key, stream in self._streams.items():
            if key.campaign == campaign and stream.window:
                return self._take(key)
        return None

    def any_head(self, is_usable: Callable[[Envelope], bool]) -> Envelope | None:
        """The head of any stream that is usable, leased, held or not: an account's probe."""
        for key, stream in self._streams.items():
            if stream.window and is_usable(stream.window[0]):
                return self._take(key)
        return None

    def give_back(self, envelope: Envelope) -> None:
        """Put a leased envelope at the head of its stream: this try did not count (P4)."""
        stream = self._stream(key_of(envelope))
        stream.known.add(envelope.id)
        stream.window.appendleft(envelope)

    def settled(self, envelope: Envelope) -> None:
        """Forget a leased envelope: the spool now says where it is, if anywhere."""
        key = key_of(envelope)
        stream = self._stream(key)
        stream.known.discard(envelope.id)
        if stream.reading:
            stream.settled.add(envelope.id)
        self._forget_if_empty(key)

    def _stream(self, key: StreamKey) -> _Stream:
        if key not in self._streams:
            self._streams[key] = _Stream()
            if key.lane != PRIORITY:
                self._turns.append(key)
        return self._streams[key]

    def _forget_if_empty(self, key: StreamKey) -> None:
        stream = self._streams[key]
        if not (stream.known or stream.more or stream.reading):
            del self._streams[key]
            if key.lane != PRIORITY:
                self._turns.remove(key)

    @staticmethod
    def _serves(lane: str, only: str | None) -> bool:
        return only is None or lane == only

    def _gives(self, key: StreamKey, stream: _Stream, only: str | None) -> bool:
        return (
            bool(stream.window)
            and self._serves(key.lane, only)
            and not (key.campaign and self._is_held(key.campaign))
        )

    def _first_of_priority(self) -> StreamKey | None:
        for key, stream in self._streams.items():
            if key.lane == PRIORITY and self._gives(key, stream, None):
                return key
        return None

    def _able(self) -> list[StreamKey]:
        """The streams outside priority that have something to give, in order of turn."""
        return [key for key in self._turns if self._gives(key, self._streams[key], None)]

    def _next_turn(self, able: list[StreamKey]) -> StreamKey:
        """The stream among ``able`` whose turn it is; those passed over have earned theirs."""
        if all(self._streams[key].credit < 0 for key in able):
            # Turns in which everyone would only pay off debt are taken at one go.
            turns = min(-self._streams[key].credit for key in able)
            for key in able:
                self._streams[key].credit += turns
        while self._turns[0] not in able or self._streams[self._turns[0]].credit < 0:
            stream = self._streams[self._turns[0]]
            if self._turns[0] in able:
                # Nobody saves up: a turn pays off debt and is otherwise gone.
                stream.credit = min(0.0, stream.credit + QUANTUM)
            self._turns.rotate(-1)
        return self._turns[0]

    def _take(self, key: StreamKey) -> Envelope:
        stream = self._streams[key]
        envelope = stream.window.popleft()
        if key.lane != PRIORITY:
            self._earned = max(0.0, self._earned - envelope.cost)
            stream.credit -= envelope.cost
        return envelope

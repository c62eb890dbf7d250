"""How old mail is, not counting the time in which nobody could have sent it.

An envelope expires by age (``lane.*.age_max_h``), and an account that was held for two
weeks must not cost its whole queue. So the age clock stops while the account is held,
its quota is spent, the upstream cannot be reached, or the campaign is held. What is kept
is not a clock for each envelope but the *stretches* of stopped time for each scope
(``account:ses``, ``campaign:…``): age is then asked for only by envelopes that look too
old, and costs one pass over a few stretches.

Clocks: nothing expires in the first ``GRACE_MS`` after the start or after a wall-clock
step, whatever the arithmetic says; a machine that boots with a dead clock battery would
otherwise throw away its queue before NTP has spoken. Pure; times are wall milliseconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GRACE_MS = 600_000
"""Ten minutes (design 5): longer than NTP needs after boot."""
STEP_MS = 60_000
"""A wall clock that moves this much more or less than the monotonic one was set by someone."""
BACK_MS = 1_000
"""One that moves so much back was set, too, as far as due times go: NTP slews it by at most 5 ms
in the 10 s between two looks, and mail that was to wait a minute shall not wait two."""
UNSET_BEFORE_MS = 1_700_000_000_000
"""November 2023: this program is younger, so that a time before it comes of a clock that nobody
had set yet (1970, a dead battery)."""
STRETCHES_MAX = 200
"""Stretches kept for a scope; beyond that the two oldest are joined, the gap counted as stopped."""
KEEP_MS = 2 * 366 * 24 * 3_600_000
"""Stretches that ended so long ago are forgotten: twice the largest ``lane.*.age_max_h``."""


_CLOCK = "clock"
"""The scope of time that never passed: a wall clock that was set forward."""


class Ageing:
    """Stopped time by scope, and the moment before which nothing expires."""

    def __init__(self, now_ms: int) -> None:
        self._started_at = now_ms
        self._grace_until = now_ms + GRACE_MS
        self._offset_ms: float | None = None
        self._stopped_at: dict[str, int] = {}
        self._stretches: dict[str, deque[tuple[int, int]]] = {}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Bring back what ``saved`` gave before a restart; what is no stretch is left out."""
        for scope, stretches in saved.items():
            listed = stretches if isinstance(stretches, list) else []
            kept = [found for one in listed if (found := _stretch(one))]
            self._stretches[scope] = deque(kept[-STRETCHES_MAX:])

    def stop(self, scope: str, now_ms: int) -> None:
        """From now on, time does not count for ``scope``."""
        self._stopped_at.setdefault(scope, now_ms)

    def go(self, scope: str, now_ms: int) -> bool:
        """Time counts again for ``scope``; True if it had been stopped."""
        start = self._stopped_at.pop(scope, None)
        if start is None:
            return False
        self._add(scope, start, now_ms)
        return True

    def stepped(self, by_ms: int, now_ms: int) -> None:
        """The wall clock was set by ``by_ms``: no expiry for a while, open stretches move along."""
        self._grace_until = now_ms + GRACE_MS
        self._offset_ms = None
        self._stopped_at = {scope: at + by_ms for scope, at in self._stopped_at.items()}
        if by_ms > 0:
            # The time that a step added has not passed: no mail is older for it.
            self._add(_CLOCK, now_ms - by_ms, now_ms)

    def went_on(self, now_ms: int, now: float) -> None:
        """Note where both clocks are (``now`` is monotonic): they went on together, or nearly."""
        self._offset_ms = now_ms - now * 1000

    def is_steady(self, now_ms: int, now: float) -> bool:
        """Whether the wall clock has not been set since ``went_on`` or ``stepped``.

        Asked at the moment of a decision: ``stepped`` comes seconds after the step.
        """
        if self._offset_ms is None:
            self.went_on(now_ms, now)
            return True
        return abs(now_ms - now * 1000 - self._offset_ms) < STEP_MS

    def expired(
        self, received_at: int, age_max_h: float, scopes: Iterable[str], now_ms: int
    ) -> bool:
        """Whether mail received then is older than allowed, stopped time not counted.

        Mail received before the clock was set is as old as this process: nobody knows more.
        """
        if received_at < UNSET_BEFORE_MS:
            received_at = self._started_at
        limit_ms = age_max_h * 3_600_000
        if now_ms < self._grace_until or now_ms - received_at <= limit_ms:
            return False
        return now_ms - received_at - self._stopped_ms(scopes, received_at, now_ms) > limit_ms

    def saved(self, now_ms: int) -> dict[str, list[tuple[int, int]]]:
        """The stretches as JSON can keep them, open ones closed at ``now_ms``."""
        scopes = {*self._stretches, *self._stopped_at}
        found = {scope: list(self._of(scope, now_ms)) for scope in sorted(scopes)}
        recent = {
            scope: [(start, end) for start, end in stretches if end > now_ms - KEEP_MS]
            for scope, stretches in found.items()
        }
        return {scope: stretches for scope, stretches in recent.items() if stretches}

    def _add(self, scope: str, start: int, end: int) -> None:
        stretches = self._stretches.setdefault(scope, deque())
        stretches.append((start, max(start, end)))
        if len(stretches) > STRETCHES_MAX:
            # Joining counts the gap as stopped: mail then lives a little longer, never shorter.
            (first, _), (_, last) = stretches.popleft(), stretches.popleft()
            stretches.appendleft((first, last))

    def _of(self, scope: str, now_ms: int) -> list[tuple[int, int]]:
        stretches = list(self._stretches.get(scope, ()))
        if scope in self._stopped_at:
            stretches.append((self._stopped_at[scope], now_ms))
        return stretches

    def _stopped_ms(self, scopes: Iterable[str], since: int, now_ms: int) -> int:
        """Stopped time between the two moments; scopes that stopped together count once."""
        total, reached = 0, since
        parts = (part for scope in (*scopes, _CLOCK) for part in self._of(scope, now_ms))
        for start, end in sorted(parts):
            begin, finish = max(start, reached), min(end, now_ms)
            if finish > begin:
                total += finish - begin
                reached = finish
        return total


def _stretch(kept: object) -> tuple[int, int] | None:
    """A stretch as JSON has it, if it is one."""
    match kept:
        case [int(start), int(end)]:
            return start, end
        case _:
            return None

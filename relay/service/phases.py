"""What sending has come to, said in the log in the words that ``status`` has for it.

Of the rate: a line when a shaper does another thing, that is, it searches, settles, holds, or
sessions hold it back. A probe is a part of holding, and idle is no news: at a few mails a minute
each would make two lines of it. What it has learned meanwhile is for ``limits`` to say. Of the
daily quota: a line when the upstream says that it is spent, and when there is room again.
"""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.clock import Clock
    from relay.figures import UpstreamFigures

_log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the figures are looked at."""
APART_S = 10.0
"""Between two lines on one rate at least: what lasts no longer is no news, and a shaper that
cannot make up its mind writes six lines a minute."""
_SESSION_BOUND, _IDLE = "session-bound", "idle"
_KINDS = {"probing": "holding"}
"""Phases that are told apart in ``status`` and not here."""


class Phases:
    """Watches what the shapers and quotas of all upstreams do; ``run`` it."""

    def __init__(
        self,
        figures: Callable[[], Iterable[UpstreamFigures]],
        clock: Clock,
        on_failure: Callable[[str], None],
    ) -> None:
        self._figures, self._clock, self._on_failure = figures, clock, on_failure
        self._said: dict[str, tuple[str, float]] = {}
        """By upstream: the kind of rate that was said last, and when (monotonic)."""
        self._spent: set[str] = set()
        """The upstreams whose quota was said to be spent."""

    async def run(self) -> None:
        """Look each second, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                self.note()
            except Exception:
                _log.exception("phases not watched")
                self._on_failure("service")

    def note(self) -> None:
        """Say what has become another since the last look."""
        now = self._clock.monotonic()
        for one in self._figures():
            self._note_rate(one, now)
            self._note_quota(one)

    def _note_rate(self, one: UpstreamFigures, now: float) -> None:
        kind = _kind(one)
        last, said_at = self._said.get(one.name, (_IDLE, -inf))
        if kind not in {_IDLE, last} and now - said_at >= APART_S:
            self._said[one.name] = kind, now
            # Sessions can be had by a key in relay.toml or from AWS: somebody should look.
            level = logging.WARNING if kind == _SESSION_BOUND else logging.INFO
            _log.log(level, "sending rate", extra={"upstream": one.name, "rate": one.rate_words})

    def _note_quota(self, one: UpstreamFigures) -> None:
        is_spent = one.quota_spent_at is not None
        if is_spent == (one.name in self._spent):
            return
        facts = {"upstream": one.name, "used": one.quota_used}
        if is_spent:
            self._spent.add(one.name)
            _log.warning("daily quota spent", extra=facts)
        else:
            self._spent.remove(one.name)
            _log.info("daily quota has room again", extra=facts)


def _kind(one: UpstreamFigures) -> str:
    return _SESSION_BOUND if one.session_bound else _KINDS.get(one.phase, one.phase)

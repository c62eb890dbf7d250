"""The send rate that nobody told us, learned from replies, and the pace that keeps to it.

Pure: ``now`` is handed in, nothing waits. This module is the face; ``pacing`` spaces, ``order``
puts replies back into send order, ``evidence`` says what they prove, ``control`` decides, in five
rooms (``holding``, ``corrections``, ``probing``, ``searching``, ``control``), with ``episodes`` for
what a brake, a probe or a trial remembers and ``tuning`` for its numbers. It may not know
sessions, lanes or what an envelope is.

Theory
======
SES admits a message if its bucket holds one token, takes a token a recipient (into debt) and
refills at the limit L (facts/ses-smtp.md 3). Neither L nor the depth is told.

1. *Identity.* Between two refusals the bucket went from empty to empty. If it was never full in
   between, what passed is what was refilled: ``passed / elapsed = L``, whatever the depth and
   whatever our rate did. A reading of m messages is wrong by about ``edge / m``, where the edge is
   1.5 messages and the disorder of arrivals, the root of how many come within the latency's
   spread. Readings blend by m; one that contradicts the past beyond three errors replaces it.
   Others' random mail scatters readings by more: that variance is learned beside, from readings
   that differ from each other (a limit that moved shifts all of them). Where there is some, the
   bucket's content wanders by its root: the pause after a refusal is longer, and a probe counts
   on it before it calls a lucky minute a raise.
2. *Never full* has to be earned. Idle time (demand, sessions, late timers) and replies that prove
   nothing count as idle; more than 5 % of it voids a reading, 0.25 s of it in a cycle makes the
   bucket's content unknown. What holding below the estimate saves is counted, too: a reading that
   is low by no more than that came from a full bucket, confirms, and lowers nothing. (Else a fixed
   window, which keeps nothing, would ratchet the estimate down.)
3. *Send order.* A refusal proves an empty bucket at the moment it was sent. Replies overtake each
   other, so they are judged in the order of ``sent_at``, as late as the longest latency seen
   lately; nothing else here would hold without it. Only a search may be braked out of order.
4. *From above.* A reading counts one message more than passed, the first of a climb 6 % more. An
   estimate that is too high by d drains the cushion c that each refusal's pause leaves in c/d
   messages and is read again; one that is too low would only fill the bucket.
5. *Probes.* In between we hold 0.998 of the estimate and go above it now and then by e: 1 to 25 %,
   to end within 44 messages or 3 s. A probe costs ``1 + e x rate x latency`` refusals, hence small
   e at high rates and long ways; the next one waits until its refusals are paid for by a budget
   for each accepted recipient (0.12 to 0.34 %, more after a change: a few are lent). What it has
   to use up is bounded by the estimate and its error *at the probe's start*; a step that uses up
   1.2 times that unrefused goes on with three times the excess, and above a third the search
   takes over. Met after such a step, the limit is lifted by half the excess and soon read again.
6. *Gentle probes.* A bucket of B messages that holding below the limit by d keeps full bears a low
   estimate out: a probe by e is met after B/(e - d) messages, and the reading since the last one
   is the estimate again. Only an excess below d tells: it is borne for ever. So now and then, at
   less than 30 messages a second or where the last reading came from a full bucket, a probe goes
   only 2 % above, for as long as is needed to use up what the estimate allows. One that is met
   costs no more than any other and makes the next one rarer (from the third probe to the
   seventeenth); one that is outlived has proved the estimate low. Restored 4 % too low, 5/s with
   three tokens are used to 99.7 % ten minutes later (without: 96.4 %).
7. *Noise.* Refusals are weighed as likelihood against the noise that was learned (cumulative sums
   at 50, 12 and 3 %): a lone one in cruise does nothing. An alarm first refines the limit by the
   cycle's reading, then cuts it by the share that the trial of it saw; if neither ends the
   refusals they were noise, and the limit is given back. Noise itself is doubted: whenever it
   doubles, a limit that is lower by some per cent is tried, until three more refusals at the same
   share prove the noise, or 750 messages without them the limit. What such a trial has
   verified is not forgotten over a lucky one (of m messages without a refusal 3/m are still
   possible). What chance refuses takes no token: the part that is certain is sent on top. Noise
   that no trial has verified is left 1.3 times as room (in a fixed window that ends most of it),
   and a probe wants more than one refusal.
8. *Far off.* Four refusals that are nearly half of what was tried, or most of what was under way
   at the last change: brake to 15 % for one round trip and read what was in flight, from where
   the arrivals' disorder about the first refusal ends. With too few for a reading, keep what
   passed and climb slowly to the first one. A cut waits half a second for the next.
9. *Low limits.* Below 3/s a bucket may hold one token: full at each send, so the identity does not
   hold. There probes keep what they proved, 3 % a step, refusals step down by 3 %, nothing is
   caught up, and the spacing has a guard against early arrival.

Measured in the model (``python -m tests.bench.shaping``: timers up to 1 ms late, from second 60 on,
latency 30 and 250 ms +-30 %, depth 0.3, 1 and 3 s and at least three tokens; the worst of each
row's grid over three seeds, of changes over 24 phases):

    limit/s           5        14       50       200      1000
    steady: use       0.997    0.998    0.9995   0.9995   0.9989
            refused   0.30 %   0.28 %   0.28 %   0.10 %   0.13 %
    0.5 % lone refusals by chance
            use       0.991    0.987    0.992    0.999
            refused   1.02 %   1.07 %   0.90 %   0.66 %   in all
    2 % of them
            use       0.85     0.945    0.971    0.942
            refused   2.6 %    3.1 %    3.3 %    2.6 %    in all
    four recipients a message
            use                0.981    0.999    0.9995
            refused            0.50 %   0.33 %   0.13 %
    fixed window
            use                0.955    0.971    0.963
            refused            0.47 %   0.44 %   1.39 %
    an even foreign sender who takes 30 %
            use of the rest    0.999             0.9995
            refused            0.66 %            0.13 %
    a random (Poisson) one, in buckets of 1 and 3 s (200/s: 0.3 s, too)
            use of the rest    0.954             0.995
            refused            2.3 %             0.88 %
            his own refused    5.1 %             1.5 %
    limit x4, s to 95 % of it
            median             19       10       10
            worst              58       15       17
    limit /5 from 25, 50, 200, 1000/s: calm after 1.0 to 1.7 s (worst 2.8, 2.8, 3.8, 2.7 s); 0.80,
    0.62, 0.47 and 0.39 s worth of the old limit refused; 10/s to 500/s from cold: 95 % after 10 s,
    0.8 s worth refused; one token at 1/s: use 0.914 (250 ms) to 0.96 (30 ms), 0.5 % refused.

Reference controllers in the same table (``--all``): a timer rule that starts at the true limit wins
every row in which that is told and nothing else happens (steady, even foreign, four recipients: 1.0
at no refusals; after one refusal by chance it is at 0.5), an even pacer that knows the limit wins
windows (14/s: 0.978), 2 % noise and random mail at 14/s (0.964, 0.970), CUBIC the median of a raise
(8 s at 14/s, where it may also never come; 9 s at 50/s) at 4 to 60 % refused elsewhere.

Known to be weak: 2 % noise at 5/s, where a probe meets three refusals by chance before the bucket
is empty; buckets of three or four messages at 14/s and 250 ms with noise, windows or four
recipients a message, while the estimate climbs by gentle probes (use 0.955 to 0.99); refusals in
windows at 200/s, and beside random mail, where each lift is a guess. At 14/s, 0.3 s deep, random
mail leaves 0.90 at 2.3 % refused; an even pacer that knows the rate gets 0.916 at 2.3 %. One token
at 1/s and 250 ms leaves an even pacer that knows the rate 0.930 (tests/bench/shaping/rows.py).
"""

from __future__ import annotations

from collections import deque
from math import isfinite
from typing import TYPE_CHECKING

from relay.shaper import tuning
from relay.shaper.control import Controller, Phase
from relay.shaper.order import Kind, SendOrder
from relay.shaper.pacing import Pacer
from relay.shaper.words import Cause, Change, ShaperState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.config.schema import Rate

__all__ = ["Cause", "Change", "Shaper", "ShaperState"]

REFUSED_SPAN = 1000.0
"""Recipients over which the refused share is shown."""

CHANGES_MAX = 64
"""Changes kept for whoever asks; the oldest are lost."""

CHANGE_MIN = 0.01
"""A limit that moved by less, as a share, has not changed for anybody but the arithmetic."""

RESTORED_WEIGHT_MAX = 200.0
"""Evidence that a limit of an earlier run counts for at most: it may be days old."""


class Shaper:
    """Says when the next recipients may go, and learns from what became of them.

    ``now`` and ``sent_at`` are monotonic seconds. Each booking of ``reserve`` is closed by
    exactly one call of ``accepted``, ``throttled``, ``ignored`` or ``cancelled``.
    """

    def __init__(self, config: Rate) -> None:
        start_per_s = max(config.floor_per_s, config.start_per_s)
        if config.ceiling_per_s > 0:
            start_per_s = min(config.ceiling_per_s, start_per_s)
        self._pacer = Pacer(start_per_s)
        self._order = SendOrder()
        self._controller = Controller(config, self._pacer)
        self._changes: deque[Change] = deque(maxlen=CHANGES_MAX)
        self._said_per_s: float | None = None
        self._refused_share = 0.0
        self._tried = 0.0

    def reserve(self, now: float, recipients: int) -> float:
        """Book the next moment for ``recipients``: not before ``now`` or an earlier booking's.

        Called later than the booking before allows, it shows that there was no backlog.
        """
        self._judge(now)
        return self._pacer.book(now, max(1, recipients))

    def accepted(self, now: float, recipients: int, sent_at: float) -> None:
        """The upstream took what was sent at ``sent_at``."""
        self._answered(now, Kind.ACCEPTED, recipients, sent_at)

    def throttled(self, now: float, recipients: int, sent_at: float) -> None:
        """The upstream found it too fast. A spent daily quota is ``ignored``, not this."""
        self._answered(now, Kind.THROTTLED, recipients, sent_at)

    def ignored(self, now: float, recipients: int, sent_at: float) -> None:
        """It was answered, or lost, in a way that proves nothing about the rate."""
        self._answered(now, Kind.IGNORED, recipients, sent_at)

    def cancelled(self, now: float, recipients: int) -> None:
        """A booking that was not used gives its time back."""
        self._pacer.cancel(now, max(1, recipients))
        self._judge(now)

    def snapshot(self) -> ShaperState:
        """Return what is known now."""
        controller = self._controller
        return ShaperState(
            rate_per_s=self._pacer.rate_per_s,
            limit_per_s=controller.estimate.limit_per_s,
            phase=self._phase if self._pacer.open_count else "idle",
            refused_share=self._refused_share,
            error_share=controller.estimate.error_share,
            confirmed_at=controller.confirmed_at,
            noise_share=controller.suspicion.noise_share,
            burst=controller.burst,
            has_backlog=controller.idle_share <= tuning.BUSY_IDLE_MAX,
            under_way=self._pacer.open_count,
        )

    @property
    def _phase(self) -> str:
        """The phase for people; braking lasts a round trip, and they need no word for it."""
        phase = self._controller.phase
        return (Phase.SETTLING if phase is Phase.BRAKING else phase).value

    def changes(self) -> tuple[Change, ...]:
        """Hand out, once, how the learned limit moved since the last call, oldest first."""
        changes = tuple(self._changes)
        self._changes.clear()
        return changes

    def learned(self) -> dict[str, float | None]:
        """Return what is worth keeping over a restart, as JSON can hold it."""
        estimate = self._controller.estimate
        return {
            "limit_per_s": estimate.limit_per_s,
            "burst": self._controller.burst,
            "confidence": 1 - estimate.error_share,
            "noise": self._controller.suspicion.noise_share,
        }

    def restore(
        self, now: float, learned: Mapping[str, object], cause: Cause = Cause.REMEMBERED
    ) -> None:
        """Start from what ``learned`` once returned; anything unusable in it is left out."""
        limit_per_s = _positive(learned.get("limit_per_s"))
        if limit_per_s is None:
            return
        error_share = 1 - min(1.0, _positive(learned.get("confidence")) or 0.0)
        weight = min(RESTORED_WEIGHT_MAX, 1.5 / max(error_share, 1e-9))
        self._controller.burst = _positive(learned.get("burst"))
        self._controller.start_from(now, limit_per_s, weight)
        self._note_change(now, cause)

    def _answered(self, now: float, kind: Kind, recipients: int, sent_at: float) -> None:
        recipients = max(1, recipients)
        self._pacer.close()
        self._order.add(now, kind, recipients, sent_at)
        if kind is Kind.THROTTLED:
            self._controller.hear(now)
        if kind is not Kind.IGNORED:
            self._tried = min(REFUSED_SPAN, self._tried + recipients)
            refused = 1.0 if kind is Kind.THROTTLED else 0.0
            step = min(1.0, recipients / self._tried)
            self._refused_share += (refused - self._refused_share) * step
        self._judge(now)

    def _judge(self, now: float) -> None:
        """Judge every outcome that no older one can follow any more."""
        self._controller.spread_s = self._order.spread_s
        self._controller.latency_s = self._order.latency_s
        complete = self._pacer.under_way(now) == 0
        while (outcome := self._order.next_due(now, complete=complete)) is not None:
            idle_s = self._pacer.idle_until(outcome.sent_at)
            self._controller.judge(now, outcome, idle_s)
            self._note_change(now, self._controller.cause)

    def _note_change(self, now: float, cause: Cause) -> None:
        """Keep a move of the limit that anybody would call one."""
        before, after = self._said_per_s, self._controller.estimate.limit_per_s
        if after == before:
            return
        if after and before and abs(after / before - 1) < CHANGE_MIN:
            return
        self._changes.append(Change(at=now, before_per_s=before, after_per_s=after, cause=cause))
        self._said_per_s = after


def _positive(value: object) -> float | None:
    """Return ``value`` if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        return None
    return number if isfinite(number) and number > 0 else None

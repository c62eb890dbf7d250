"""One attempt on one envelope, from the spool's bytes to what became of each recipient.

Whatever happens, the accounts are closed: the session is released, the booking is reported to
the shaper once, the probe (if it was one) is answered, and the lease ends, settled or given
back. A surprise of our own counts as *in doubt*, since nobody knows how far it came: the mail
is tried again later and flagged, never forgotten and never sent in a tight loop. If even that
cannot be written, the lease is kept: only the next start sends that mail again.

What became of the mail is written before the holds that followed from it: a hold that is
lifted releases what was parked, and a probe is parked mail until it is settled.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay.breaker import Decision, Hold, Source, in_doubt_key
from relay.dispatcher.conclusion import (
    Conclusion,
    Part,
    Rules,
    Ruling,
    conclude,
    parts_of,
)
from relay.dispatcher.endings import Endings, is_ordinary
from relay.dispatcher.refusals import Refusals
from relay.dispatcher.speed import Speed
from relay.dispatcher.staffing import Occupancy
from relay.envelope import redact, redact_all
from relay.errors import ContentDamaged, SessionLost, SpoolDamaged, SpoolError
from relay.reply import Stage
from relay.verdict import Ending, InDoubt, Kind, Limit, Sent, SessionEnded, Throttled, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.dispatcher.books import Books
    from relay.dispatcher.feed import Feed
    from relay.dispatcher.rooms import Rooms
    from relay.envelope import Envelope
    from relay.upstream import Attempt, Session
    from relay.verdict import Verdict

_log = logging.getLogger(__name__)

IN_DOUBT_REASON = "in doubt: sent, but the upstream's answer was lost"
"""Of the hold for such mail: by ``upstream.in_doubt = "hold"``, or after ``DOUBTS_MAX`` tries."""
RETRY_S = 1.0
"""Pause after content could not be read; the session is kept, so that this bounds the tries."""

_LEVELS = {Kind.BOUNCED: logging.WARNING, Kind.IN_DOUBT: logging.WARNING}
"""All else is INFO: a hold is logged as a warning once, where it is set."""


class Attempts:
    """Runs attempts for one upstream."""

    def __init__(
        self,
        upstream: str,
        rooms: Rooms,
        *,
        feed: Feed,
        books: Books,
        rules: Rules,
        on_end: Callable[[], None],
    ) -> None:
        """``on_end`` is called after each attempt: a session is free, mail may be back."""
        self._name, self._rooms, self._on_end = upstream, rooms, on_end
        self._feed, self._books, self._rules = feed, books, rules
        self.occupancy = Occupancy()
        self.speed = Speed()
        self.endings = Endings()
        self.refusals = Refusals()

    async def run(self, envelope: Envelope, session: Session, probe: str) -> None:
        """Try to send a leased envelope; ``probe`` is the held key that this tests, or "".

        Raises nothing: one attempt does not end the others.
        """
        try:
            await self._run(envelope, session, probe)
        except Exception:
            _log.exception("attempt lost, leased until the next start", extra=_labels(envelope))
            self._rooms.metrics.failed("dispatcher")
        finally:
            self._on_end()

    async def _run(self, envelope: Envelope, session: Session, probe: str) -> None:
        taken_at = self._rooms.clock.monotonic()
        try:
            content = await self._content(envelope)
            sent_at = self._rooms.clock.monotonic()
            result = None if content is None else await self._send(envelope, session, content)
        finally:
            self._rooms.upstream.release(session)
        if result is not None:
            taken_s = self._rooms.clock.monotonic() - taken_at
            self.occupancy.note(taken_s, self._rooms.shaper.snapshot().rate_per_s)
        if result is None:
            self._rooms.shaper.cancelled(self._rooms.clock.monotonic(), envelope.cost)
            await self._unanswered(probe)
            return
        try:
            first = not isinstance(result, SessionLost) and result.first
            await self._conclude(envelope, parts_of(envelope, result), sent_at, probe, first=first)
        except Exception:
            _log.exception("attempt not concluded", extra=_labels(envelope))
            self._rooms.metrics.failed("dispatcher")
            await self._write(envelope, self._in_doubt(envelope, "surprise inside the relay"))
            await self._unanswered(probe)

    async def _content(self, envelope: Envelope) -> bytes | None:
        """The bytes to send; None if they cannot be had, and the envelope was put away."""
        try:
            return await self._sound_content(envelope)
        except SpoolError as error:
            _log.error("content cannot be read", extra=_labels(envelope, error=str(error)))
            await self._rooms.clock.sleep(RETRY_S)
            self._feed.end_lease(envelope, envelope.recipients)
        return None

    async def _sound_content(self, envelope: Envelope) -> bytes | None:
        """The bytes; None if they are damaged, and the envelope was put away.

        If it cannot be put away either (a page of the spool is bad), it stays leased: given
        back, it would stand at the head of its lane for ever.

        Raises: SpoolError.
        """
        try:
            return await self._rooms.spool.read_content(envelope.content_id)
        except ContentDamaged as error:
            _log.error("content damaged, quarantined", extra=_labels(envelope, error=str(error)))
            await self._quarantine(envelope, str(error))
        return None

    async def _quarantine(self, envelope: Envelope, reason: str) -> None:
        try:
            await self._rooms.spool.quarantine(envelope.id, reason)
        except SpoolDamaged as error:
            facts = _labels(envelope, error=str(error))
            _log.error("envelope not quarantined, leased until the next start", extra=facts)
        else:
            self._feed.end_lease(envelope)

    async def _send(
        self, envelope: Envelope, session: Session, content: bytes
    ) -> Attempt | SessionLost:
        addresses = [recipient.address for recipient in envelope.recipients]
        started = self._rooms.clock.monotonic()
        try:
            return await session.send(envelope.sender, addresses, content)
        except SessionLost as lost:
            return lost
        except Exception as error:
            _log.exception("session failed", extra=_labels(envelope))
            self._rooms.metrics.failed("upstream")
            return SessionLost(Stage.DOT, f"surprise inside the relay: {type(error).__name__}")
        finally:
            self._rooms.metrics.attempted(self._rooms.clock.monotonic() - started)

    async def _conclude(
        self, envelope: Envelope, parts: list[Part], sent_at: float, probe: str, *, first: bool
    ) -> None:
        """Draw all conclusions; ``first``: the session had taken no mail before."""
        self._report(envelope, parts, sent_at)
        rulings, decisions = [], []
        for part in parts:
            decision = self._rooms.breaker.judged(
                envelope,
                part.judgement.verdict,
                self._rooms.clock.wall_ms(),
                recipients=len(part.recipients),
                probe_of=probe if part is parts[-1] else "",
            )
            self._count(envelope, part, decision.verdict)
            rulings.append(Ruling(part, decision.verdict, decision.key))
            decisions.append(decision)
        conclusion = conclude(
            envelope,
            rulings,
            self._rules,
            now_ms=self._rooms.clock.wall_ms(),
            jitter=self._rooms.chance(),
            put_off=self._put_off(envelope, parts[-1], sent_at, first=first),
        )
        await self._write(envelope, conclusion)
        for decision in decisions:
            await self.apply(decision)

    async def apply(self, decision: Decision) -> None:
        """Write a decision's holds down and let go what they let go."""
        if decision.add or decision.lift:
            await self._books.keep_holds(decision)
        if decision.lift:
            self._rooms.on_lift()

    def _put_off(self, envelope: Envelope, part: Part, sent_at: float, *, first: bool) -> int:
        """How often this mail waits by now, uncharged, for others; 0: it goes on at once.

        It does if sessions keep ending under it, or if it is throttled for long.
        """
        verdict, now = part.judgement.verdict, self._rooms.clock.monotonic()
        if isinstance(verdict, Throttled) and verdict.limit is not Limit.QUOTA:
            self.endings.answered(envelope.id)
            return self.refusals.throttled(envelope.id, now)
        self.refusals.answered(envelope.id)
        match verdict:
            case SessionEnded() if is_ordinary(verdict, part.stage, first=first):
                return 0
            case SessionEnded():
                was_broken = self.endings.is_broken
                put_off = self.endings.ended(envelope.id, verdict, sent_at, now)
                if self.endings.is_broken and not was_broken:
                    facts = {"upstream": self._name, "error": redact_all(verdict.text)}
                    _log.warning("upstream ends sessions, slowing down", extra=facts)
                return put_off
            case InDoubt():
                return 0
            case _:
                self.endings.answered(envelope.id)
                return 0

    async def _unanswered(self, probe: str) -> None:
        """A probe came to nothing: it is asked again later."""
        if probe:
            now_ms, verdict = self._rooms.clock.wall_ms(), SessionEnded(Ending.OUR_BUG, "not sent")
            decision = self._rooms.breaker.opening_failed(verdict, now_ms, probe_of=probe)
            await self.apply(decision)

    def _in_doubt(self, envelope: Envelope, text: str) -> Conclusion:
        lost = SessionLost(Stage.DOT, text)
        rulings = [Ruling(part, InDoubt(text)) for part in parts_of(envelope, lost)]
        now_ms, jitter = self._rooms.clock.wall_ms(), self._rooms.chance()
        return conclude(envelope, rulings, self._rules, now_ms=now_ms, jitter=jitter)

    async def _write(self, envelope: Envelope, conclusion: Conclusion) -> None:
        """Settle what is to be settled, then end the lease."""
        settlement = conclusion.settlement
        if settlement is None:
            self._feed.end_lease(envelope, conclusion.head)
            return
        settled = await self._books.settle(settlement)
        if not settled.written:
            return
        self._feed.end_lease(envelope, conclusion.head)
        if settlement.parked is not None:
            await self.see_to_parked(settlement.parked.hold_key)
        elif settled.due_at is not None and not conclusion.head:
            # Also what was not tried now, and may have fallen due while the rest was leased.
            self._feed.falls_due(settled.due_at)

    async def see_to_parked(self, key: str) -> None:
        """A hold may have been lifted while the mail under it was being parked."""
        if key == in_doubt_key(self._name) and not self._rooms.holds.held(key):
            hold = Hold(key, Source.BREAKER, IN_DOUBT_REASON, self._rooms.clock.wall_ms())
            self._rooms.holds.add(hold)
            await self._books.keep_holds(Decision(InDoubt(IN_DOUBT_REASON), key, add=(hold,)))
        elif not self._rooms.holds.held(key):
            await self._books.free(key)
            self._feed.reread()

    def _report(self, envelope: Envelope, parts: list[Part], sent_at: float) -> None:
        """Close the attempt's one booking with the shaper, and tell the quota.

        The last part decides: recipients refused on their own say nothing about the rate. If
        there were only such, no message went out.
        """
        shaper, quota = self._rooms.shaper, self._rooms.quota
        now, now_ms = self._rooms.clock.monotonic(), self._rooms.clock.wall_ms()
        part = parts[-1]
        recipients = len(part.recipients)
        match part.judgement.verdict:
            case Sent():
                shaper.accepted(now, recipients, sent_at)
                self.speed.count(now, recipients)
                self.refusals.accepted()
                quota.sent(now_ms, recipients)
            case Throttled(limit=limit):
                quota.throttled(limit, now_ms)
                if limit is Limit.QUOTA:
                    shaper.ignored(now, recipients, sent_at)
                else:
                    shaper.throttled(now, recipients, sent_at)
            case SessionEnded():
                shaper.cancelled(now, envelope.cost)
            case _ if not part.is_final:
                shaper.cancelled(now, envelope.cost)
            case _:
                shaper.ignored(now, recipients, sent_at)

    def _count(self, envelope: Envelope, part: Part, verdict: Verdict) -> None:
        """One log line and the metrics of one part."""
        kind, metrics, reply = kind_of(verdict), self._rooms.metrics, redact_all(part.text)
        metrics.judged(kind.value, part.stage, part.text, known=part.judgement.known)
        metrics.settled(self._name, kind.value, len(part.recipients))
        if not part.judgement.known:
            _log.warning("reply unknown", extra={"stage": part.stage.value, "reply": reply})
        to = ",".join(redact(recipient.address) for recipient in part.recipients[:_NAMED_MAX])
        extra = _labels(envelope, to=to, recipients=len(part.recipients), reply=reply)
        _log.log(_LEVELS.get(kind, logging.INFO), _MESSAGES[kind], extra=extra)


_NAMED_MAX = 3
"""Recipients named in a log line; a message to fifty need not list them all."""

_MESSAGES = {
    Kind.SENT: "envelope sent",
    Kind.THROTTLED: "envelope throttled",
    Kind.DEFERRED: "envelope deferred",
    Kind.HELD: "envelope held",
    Kind.BOUNCED: "envelope bounced",
    Kind.IN_DOUBT: "envelope in doubt",
    Kind.SESSION_ENDED: "session ended",
}


def _labels(envelope: Envelope, **more: object) -> dict[str, object]:
    return {"envelope": envelope.name, "lane": envelope.lane, **more}

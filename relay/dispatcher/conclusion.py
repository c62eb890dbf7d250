"""From what the upstream said to what becomes of each recipient.

An attempt has one *part* for each recipient that was refused on its own, and one for all the
others, decided by one reply. Nothing here waits or counts: a part goes in, a change for
the spool and the recipients that go back to the head of their lane come out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.breaker import in_doubt_key
from relay.deferral import DOUBTS_MAX, due_at, in_doubt_at
from relay.envelope import Outcome, Recipient
from relay.errors import SessionLost
from relay.lifecycle import Next, fate
from relay.reply import Reply, Stage
from relay.spool import Finished, Parked, Rescheduled, Settlement
from relay.verdict import InDoubt, Judgement, Sent, SessionEnded, Throttled, judge, judge_lost

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from relay import config
    from relay.envelope import Envelope
    from relay.upstream import Attempt
    from relay.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Part:
    """Recipients that share one reply; ``is_final`` for all but those refused on their own."""

    recipients: tuple[Recipient, ...]
    judgement: Judgement
    stage: Stage
    text: str
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Ruling:
    """A part, the verdict that stands once the breaker has seen it, and the key that holds."""

    part: Part
    verdict: Verdict
    key: str = ""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What to write down (None: nothing), and who goes back to the head of the lane."""

    settlement: Settlement | None
    head: tuple[Recipient, ...]


def parts_of(envelope: Envelope, result: Attempt | SessionLost) -> list[Part]:
    """The parts of one attempt, the refused recipients first."""
    if isinstance(result, SessionLost):
        stage = Stage(result.stage)
        verdict = judge_lost(stage, result.text)
        judgement = Judgement(verdict, "lost", known=True)
        return [Part(envelope.recipients, judgement, stage, result.text)]
    parts = [
        _part((envelope.recipients[index],), reply, is_final=False)
        for index, reply in sorted(result.refused.items())
    ]
    rest = tuple(
        recipient
        for index, recipient in enumerate(envelope.recipients)
        if index not in result.refused
    )
    if rest and result.final is not None:
        parts.append(_part(rest, result.final, is_final=True))
    elif rest:
        # The session broke its word. Nobody knows, so it is in doubt: nobody is forgotten.
        text = "the session gave no reply that decides"
        parts.append(Part(rest, Judgement(InDoubt(text), "no-reply", known=True), Stage.DOT, text))
    return parts


def _part(recipients: tuple[Recipient, ...], reply: Reply, *, is_final: bool) -> Part:
    addresses = [recipient.address for recipient in recipients]
    return Part(recipients, judge(reply, addresses), reply.stage, str(reply), is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The operator's wishes that a conclusion depends on."""

    retry: config.Retry
    in_doubt: Literal["resend", "hold"]


def conclude(
    envelope: Envelope,
    rulings: Iterable[Ruling],
    rules: Rules,
    *,
    now_ms: int,
    jitter: float,
    put_off: int = 0,
) -> Conclusion:
    """What becomes of each recipient of an envelope after one attempt.

    ``put_off`` above 0: sessions keep ending under this mail, or it is throttled again and
    again, and it waits, uncharged, as long as after that many deferrals.
    """
    changes: list[Finished | Rescheduled] = []
    head: list[Recipient] = []
    parked: Parked | None = None
    for ruling in rulings:
        fated = fate(ruling.verdict, _wish(ruling.part, rules))
        for recipient in ruling.part.recipients:
            tried = replace(
                recipient,
                attempts=recipient.attempts + fated.costs,
                in_doubt=recipient.in_doubt or fated.in_doubt,
            )
            if put_off and isinstance(ruling.verdict, SessionEnded | Throttled):
                due = due_at(rules.retry, put_off, now_ms, jitter)
                changes.append(_rescheduled(tried, ruling, due))
            elif fated.next is Next.HEAD:
                head.append(tried)
            elif fated.outcome is not None:
                changes.append(_finished(tried, ruling, fated.outcome))
            else:
                due = _due(fated.next, tried.attempts, rules.retry, now_ms, jitter)
                changes.append(_rescheduled(tried, ruling, due))
        if fated.next is Next.PARK:
            key = ruling.key or in_doubt_key(envelope.upstream)
            parked = Parked(hold_key=key, reply=ruling.part.text)
    if not changes:
        return Conclusion(None, tuple(head))
    settlement = Settlement(envelope=envelope, changes=tuple(changes), parked=parked, at=now_ms)
    # What is parked takes everyone who still waits along: an envelope has one place.
    return Conclusion(settlement, () if parked else tuple(head))


def _wish(part: Part, rules: Rules) -> Literal["resend", "hold"]:
    """What is wished for mail in doubt: what the operator says, but not for ever."""
    tries = (recipient.attempts + 1 for recipient in part.recipients if recipient.in_doubt)
    return "hold" if max(tries, default=0) >= DOUBTS_MAX else rules.in_doubt


def _due(next_: Next, attempts: int, retry: config.Retry, now_ms: int, jitter: float) -> int:
    """When a recipient that waits on may be tried again (wall ms)."""
    match next_:
        case Next.RETRY:
            return due_at(retry, attempts, now_ms, jitter)
        case Next.DOUBT:
            return in_doubt_at(retry, attempts, now_ms, jitter)
        case _:
            return now_ms


def _finished(recipient: Recipient, ruling: Ruling, outcome: Outcome) -> Finished:
    verdict = ruling.verdict
    code = 0 if isinstance(verdict, InDoubt | SessionEnded) else verdict.reply.code
    return Finished(
        n=recipient.n,
        outcome=outcome,
        reply=ruling.part.text,
        code=code,
        ses_id=verdict.ses_id if isinstance(verdict, Sent) else "",
        attempts=recipient.attempts,
        in_doubt=recipient.in_doubt,
    )


def _rescheduled(recipient: Recipient, ruling: Ruling, due: int) -> Rescheduled:
    return Rescheduled(
        n=recipient.n,
        due_at=due,
        attempts=recipient.attempts,
        reply=ruling.part.text,
        in_doubt=recipient.in_doubt,
    )


def expired(envelope: Envelope, now_ms: int) -> Settlement:
    """The end of an envelope that nobody could be told of in time."""
    changes = tuple(
        Finished(
            n=recipient.n,
            outcome=Outcome.EXPIRED,
            reply="older than the lane's age_max_h",
            attempts=recipient.attempts,
            in_doubt=recipient.in_doubt,
        )
        for recipient in envelope.recipients
    )
    return Settlement(envelope=envelope, changes=changes, at=now_ms)


def set_aside(envelope: Envelope, key: str, now_ms: int) -> Settlement:
    """An envelope leaves its lane until ``key`` is lifted."""
    return Settlement(envelope=envelope, parked=Parked(hold_key=key), at=now_ms)

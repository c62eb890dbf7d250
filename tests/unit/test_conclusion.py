"""What becomes of each recipient after one attempt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.breaker import in_doubt_key
from relay.deferral import DOUBTS_MAX, IN_DOUBT_MS, due_at
from relay.dispatcher.conclusion import (
    Rules,
    Ruling,
    conclude,
    expired,
    parts_of,
    set_aside,
)
from relay.envelope import Outcome, Recipient
from relay.errors import SessionLost
from relay.lifecycle import Next, fate
from relay.reply import Reply, Stage
from relay.spool import Finished, Parked, Rescheduled
from relay.upstream import Attempt
from relay.verdict import (
    Bounced,
    Deferred,
    Ending,
    Held,
    InDoubt,
    Kind,
    Limit,
    Scope,
    Sent,
    SessionEnded,
    Throttled,
    Verdict,
    kind_of,
)
from tests.fakes.mail import envelope
from tests.fakes.upstream import said

if TYPE_CHECKING:
    from relay.dispatcher.conclusion import Conclusion
    from relay.envelope import Envelope

NOW = 1_800_000_000_000
RETRY = config.Retry()
OK = said(Stage.DOT, "250 Ok 01000170d10e6a6c-71c65177-ce88-4135-9258-48c0e8bf916d-000000")
NO = said(Stage.DOT, "554 Transaction failed: Duplicate header 'Content-Type'.")
LATER = said(Stage.DOT, "451 Temporary service failure")
FAST = said(Stage.DOT, "454 Throttling failure: Maximum sending rate exceeded.")
BAD_RCPT = said(Stage.RCPT, "501 Invalid RCPT TO address provided")
FAST_RCPT = replace(FAST, stage=Stage.RCPT)

VERDICTS: list[Verdict] = [
    Sent(OK, "id"),
    Bounced(NO, per_recipient=False),
    Deferred(LATER),
    InDoubt("lost"),
    Throttled(FAST, Limit.RATE),
    Throttled(FAST, Limit.QUOTA),
    SessionEnded(Ending.LINK, "lost"),
    *(Held(NO, scope) for scope in Scope),
]


def rules(in_doubt: Literal["resend", "hold"] = "resend") -> Rules:
    return Rules(retry=RETRY, in_doubt=in_doubt)


def one(verdict: Verdict, who: Envelope, key: str = "sender:ses:x") -> Ruling:
    """All recipients of ``who`` share one verdict."""
    [part] = parts_of(who, Attempt({}, OK, ended=False))
    held = key if isinstance(verdict, Held) else ""
    return Ruling(part, verdict, held)


def ended(
    verdict: Verdict,
    *,
    attempts: int = 2,
    in_doubt: bool = False,
    wish: Literal["resend", "hold"] = "resend",
) -> Conclusion:
    who = replace(envelope(1), recipients=(Recipient(0, "a@example.org", attempts, in_doubt),))
    return conclude(who, [one(verdict, who)], rules(wish), now_ms=NOW, jitter=0.5)


# -- Parts ---------------------------------------------------------------------------------


def test_one_reply_for_all_is_one_part() -> None:
    """The reply after the dot decides for everybody."""
    who = envelope(1, cost=3)

    [part] = parts_of(who, Attempt({}, OK, ended=False))

    assert part.recipients == who.recipients
    assert part.is_final
    assert kind_of(part.judgement.verdict) is Kind.SENT
    assert (part.stage, part.text) == (Stage.DOT, str(OK))


def test_refused_recipients_come_first_and_alone() -> None:
    """In their order, each with its own reply; the rest shares the last."""
    who = envelope(1, cost=4)

    parts = parts_of(who, Attempt({2: BAD_RCPT, 0: FAST_RCPT}, OK, ended=False))

    assert [[one.n for one in part.recipients] for part in parts] == [[0], [2], [1, 3]]
    kinds = [kind_of(part.judgement.verdict) for part in parts]
    assert kinds == [Kind.THROTTLED, Kind.BOUNCED, Kind.SENT]
    assert [part.is_final for part in parts] == [False, False, True]


def test_all_refused_at_rcpt_leaves_no_other_part() -> None:
    """There was no DATA, so nothing else was said."""
    who = envelope(1, cost=2)

    parts = parts_of(who, Attempt({0: BAD_RCPT, 1: BAD_RCPT}, None, ended=False))

    assert [part.is_final for part in parts] == [False, False]


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        (Stage.MAIL, Kind.SESSION_ENDED),
        (Stage.RCPT, Kind.SESSION_ENDED),
        (Stage.DATA, Kind.SESSION_ENDED),
        (Stage.DOT, Kind.IN_DOUBT),
    ],
)
def test_lost_link_is_about_all(stage: Stage, kind: Kind) -> None:
    """In doubt only once content was under way."""
    who = envelope(1, cost=3)

    [part] = parts_of(who, SessionLost(stage, "cut"))

    assert part.recipients == who.recipients
    assert kind_of(part.judgement.verdict) is kind
    assert part.is_final


def test_session_that_breaks_its_word_leaves_doubt() -> None:
    """No reply decides, yet not all were refused: nobody may be forgotten for that."""
    who = envelope(1, cost=2)

    parts = parts_of(who, Attempt({0: BAD_RCPT}, None, ended=True))

    kinds = [kind_of(part.judgement.verdict) for part in parts]
    assert kinds == [Kind.BOUNCED, Kind.IN_DOUBT]


def test_own_recipient_named_by_the_sandbox_is_its_own_trouble() -> None:
    """The judge is told whom the reply decides about."""
    text = (
        "554 Message rejected: Email address is not verified. The following identities failed "
        "the check in region X: r1-0@example.org"
    )
    [part] = parts_of(envelope(1), Attempt({}, said(Stage.DOT, text), ended=False))

    assert isinstance(part.judgement.verdict, Held)
    assert part.judgement.verdict.scope is Scope.SANDBOX


# -- Conclusions ---------------------------------------------------------------------------


def test_sent_is_the_end() -> None:
    """One attempt more, the id by which SES knows it, the flag it had."""
    conclusion = ended(Sent(OK, "id"), in_doubt=True)

    assert conclusion.head == ()
    assert conclusion.settlement is not None
    [change] = conclusion.settlement.changes
    assert change == Finished(
        n=0, outcome=Outcome.SENT, reply=str(OK), code=250, ses_id="id", attempts=3, in_doubt=True
    )
    assert (conclusion.settlement.parked, conclusion.settlement.at) == (None, NOW)


def test_bounced_is_the_end() -> None:
    """With the code of its reply, and no id."""
    conclusion = ended(Bounced(NO, per_recipient=False))

    assert conclusion.settlement is not None
    [change] = conclusion.settlement.changes
    assert isinstance(change, Finished)
    assert (change.outcome, change.code, change.ses_id, change.attempts) == ("bounced", 554, "", 3)


@pytest.mark.parametrize(
    ("verdict", "attempts", "due", "doubt"),
    [
        (Deferred(LATER), 3, due_at(RETRY, 3, NOW, 0.5), False),
        (InDoubt("lost"), 3, NOW + IN_DOUBT_MS, True),
        (Held(NO, Scope.ACCOUNT), 2, NOW, False),
        (Held(NO, Scope.CAMPAIGN), 2, NOW, False),
    ],
)
def test_what_waits_on_is_due_when_its_verdict_says(
    verdict: Verdict, attempts: int, due: int, doubt: bool
) -> None:
    """Deferred by the schedule, in doubt after ten minutes, held behind the others."""
    conclusion = ended(verdict)

    assert conclusion.head == ()
    assert conclusion.settlement is not None
    [change] = conclusion.settlement.changes
    assert isinstance(change, Rescheduled)
    assert (change.attempts, change.due_at, change.in_doubt) == (attempts, due, doubt)
    assert conclusion.settlement.parked is None


@pytest.mark.parametrize("scope", [Scope.SENDER, Scope.CONFIGURATION_SET, Scope.SANDBOX])
def test_held_in_its_own_right_is_parked_under_the_key(scope: Scope) -> None:
    """Uncharged, and with the reply that shows why."""
    conclusion = ended(Held(NO, scope))

    assert conclusion.settlement is not None
    assert conclusion.settlement.parked == Parked(hold_key="sender:ses:x", reply=str(OK))
    [change] = conclusion.settlement.changes
    assert change.attempts == 2


def test_in_doubt_may_be_parked_by_wish() -> None:
    """Under a key of its own; flagged; the attempt counts."""
    conclusion = ended(InDoubt("lost"), wish="hold")

    assert conclusion.settlement is not None
    assert conclusion.settlement.parked is not None
    assert conclusion.settlement.parked.hold_key == in_doubt_key("ses")
    [change] = conclusion.settlement.changes
    assert (change.attempts, change.in_doubt) == (3, True)


@pytest.mark.parametrize(
    ("attempts", "was_in_doubt", "parks"),
    [(DOUBTS_MAX - 2, True, False), (DOUBTS_MAX - 1, True, True), (DOUBTS_MAX, False, False)],
)
def test_mail_that_keeps_ending_in_doubt_is_kept_after_a_few_copies(
    attempts: int, was_in_doubt: bool, parks: bool
) -> None:
    """An upstream that takes it and never says so does not fill a mailbox for two weeks."""
    conclusion = ended(InDoubt("lost"), attempts=attempts, in_doubt=was_in_doubt)

    assert conclusion.settlement is not None
    assert (conclusion.settlement.parked is not None) is parks


@pytest.mark.parametrize(
    "verdict", [Throttled(FAST, Limit.RATE), SessionEnded(Ending.LINK, "lost")]
)
def test_as_good_as_not_tried_goes_back_to_the_head_and_writes_nothing(verdict: Verdict) -> None:
    """P4, and not even a commit: a crash returns it to where it was."""
    conclusion = ended(verdict, attempts=2, in_doubt=True)

    assert conclusion.settlement is None
    assert conclusion.head == (Recipient(0, "a@example.org", 2, in_doubt=True),)


def test_refused_one_leaves_and_the_throttled_rest_goes_back() -> None:
    """Only what is over is written; the others keep their attempts."""
    who = envelope(1, cost=3)
    parts = parts_of(who, Attempt({1: BAD_RCPT}, FAST, ended=False))
    rulings = [Ruling(part, part.judgement.verdict) for part in parts]

    conclusion = conclude(who, rulings, rules(), now_ms=NOW, jitter=0.5)

    assert conclusion.settlement is not None
    assert [change.n for change in conclusion.settlement.changes] == [1]
    assert conclusion.head == (who.recipients[0], who.recipients[2])


def test_parked_takes_along_who_would_go_back() -> None:
    """An envelope has one place: those that were throttled wait with the others."""
    who = envelope(1, cost=2)
    first, rest = parts_of(who, Attempt({0: FAST_RCPT}, NO, ended=False))
    rulings = [Ruling(first, first.judgement.verdict), Ruling(rest, Held(NO, Scope.SENDER), "k")]

    conclusion = conclude(who, rulings, rules(), now_ms=NOW, jitter=0.5)

    assert conclusion.head == ()
    assert conclusion.settlement is not None
    assert conclusion.settlement.parked == Parked(hold_key="k", reply=str(NO))
    assert [change.n for change in conclusion.settlement.changes] == [1]


@given(
    st.lists(
        st.tuples(st.sampled_from(VERDICTS), st.integers(0, 10_000), st.booleans()),
        min_size=1,
        max_size=50,
    ),
    st.sampled_from(["resend", "hold"]),
    st.floats(0, 1),
)
def test_every_recipient_ends_up_in_exactly_one_place(
    fates: list[tuple[Verdict, int, bool]], wish: Literal["resend", "hold"], jitter: float
) -> None:
    """Finished, put off, back at the head, or taken along by a parked one.

    Charged as the table of ``lifecycle`` says, and a flag once set stays.
    """
    recipients = tuple(
        Recipient(n, f"{n}@example.org", tried, doubt) for n, (_, tried, doubt) in enumerate(fates)
    )
    who = replace(envelope(1), recipients=recipients)
    replies = dict.fromkeys(range(len(fates)), BAD_RCPT)
    parts = parts_of(who, Attempt(replies, None, ended=False))
    rulings = [
        Ruling(part, verdict, "k" if isinstance(verdict, Held) else "")
        for part, (verdict, _, _) in zip(parts, fates, strict=True)
    ]

    conclusion = conclude(who, rulings, rules(wish), now_ms=NOW, jitter=jitter)

    settlement = conclusion.settlement
    changes = {change.n: change for change in (settlement.changes if settlement else ())}
    head = {recipient.n: recipient for recipient in conclusion.head}
    assert len(changes) == (len(settlement.changes) if settlement else 0)
    assert len(head) == len(conclusion.head)
    assert not set(changes) & set(head)
    is_parked = settlement is not None and settlement.parked is not None
    missing = set(range(len(fates))) - set(changes) - set(head)
    assert not missing or is_parked
    for n, (verdict, tried, doubt) in enumerate(fates):
        wanted = fate(verdict, wish)
        assert (n in changes) is (wanted.next is not Next.HEAD)
        if n in missing:
            assert wanted.next is Next.HEAD  # As it was: uncharged.
            continue
        change = changes.get(n) or head[n]
        assert change.attempts == tried + wanted.costs
        assert change.in_doubt is (doubt or wanted.in_doubt)
        assert isinstance(change, Finished) is (wanted.outcome is not None)
        if isinstance(change, Rescheduled):
            assert change.due_at >= NOW


@given(st.integers(1, 50), st.data())
def test_parts_hold_every_recipient_once(cost: int, data: st.DataObject) -> None:
    """Whatever the session reports, true to its word or not."""
    who = envelope(1, cost=cost)
    refused = data.draw(st.dictionaries(st.integers(0, cost - 1), st.sampled_from([BAD_RCPT])))
    final: Reply | None = data.draw(st.sampled_from([OK, NO, LATER, FAST, None]))

    parts = parts_of(who, Attempt(refused, final, ended=False))

    assert sorted(r.n for part in parts for r in part.recipients) == list(range(cost))
    assert all(part.recipients for part in parts)
    assert sum(part.is_final for part in parts) == (len(refused) < cost)


# -- Without a try -------------------------------------------------------------------------


def test_expired_mail_ends_for_each_who_still_waits() -> None:
    """With the attempts it had and the reason."""
    who = replace(envelope(1), recipients=(Recipient(3, "a@example.org", 5, in_doubt=True),))

    settlement = expired(who, NOW)

    [change] = settlement.changes
    assert change == Finished(
        n=3,
        outcome=Outcome.EXPIRED,
        reply="older than the lane's age_max_h",
        attempts=5,
        in_doubt=True,
    )
    assert (settlement.envelope, settlement.at, settlement.parked) == (who, NOW, None)


def test_mail_set_aside_changes_for_nobody() -> None:
    """It only leaves its lane."""
    settlement = set_aside(envelope(1), "sender:ses:x", NOW)

    assert (settlement.changes, settlement.parked) == ((), Parked(hold_key="sender:ses:x"))

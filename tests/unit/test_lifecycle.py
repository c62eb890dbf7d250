"""What becomes of a recipient after each verdict."""

from __future__ import annotations

from typing import Literal

import pytest

from relay.envelope import Outcome
from relay.lifecycle import TABLE, Fate, Next, fate
from relay.reply import Reply, Stage
from relay.verdict import (
    Bounced,
    Deferred,
    Ending,
    Held,
    InDoubt,
    Limit,
    Scope,
    Sent,
    SessionEnded,
    Throttled,
    Verdict,
)

REPLY = Reply(Stage.DOT, 250, "Ok")

FATES: list[tuple[Verdict, Fate]] = [
    (Sent(REPLY, "id"), Fate(Next.FINISH, Outcome.SENT, costs=1)),
    (Bounced(REPLY, per_recipient=False), Fate(Next.FINISH, Outcome.BOUNCED, costs=1)),
    (Bounced(REPLY, per_recipient=True), Fate(Next.FINISH, Outcome.BOUNCED, costs=1)),
    (Deferred(REPLY), Fate(Next.RETRY, costs=1)),
    (Throttled(REPLY, Limit.RATE), Fate(Next.HEAD)),
    (Throttled(REPLY, Limit.QUOTA), Fate(Next.HEAD)),
    (SessionEnded(Ending.OUR_BUG, ""), Fate(Next.HEAD)),
    (Held(REPLY, Scope.ACCOUNT), Fate(Next.BEHIND)),
    (Held(REPLY, Scope.CAMPAIGN), Fate(Next.BEHIND)),
    (Held(REPLY, Scope.SENDER), Fate(Next.PARK)),
    (Held(REPLY, Scope.CONFIGURATION_SET), Fate(Next.PARK)),
    (Held(REPLY, Scope.SANDBOX), Fate(Next.PARK)),
]


@pytest.mark.parametrize(("verdict", "wanted"), FATES, ids=lambda value: repr(value)[:50])
@pytest.mark.parametrize("in_doubt", ["resend", "hold"])
def test_verdict_has_its_fate(
    verdict: Verdict, wanted: Fate, in_doubt: Literal["resend", "hold"]
) -> None:
    """Finished, tried again, put back or parked: the wish about doubts changes none of these."""
    assert fate(verdict, in_doubt) == wanted


def test_mail_in_doubt_is_sent_again_unless_it_is_to_be_held() -> None:
    """Either way it is flagged as perhaps delivered."""
    assert fate(InDoubt("reset")) == Fate(Next.DOUBT, costs=1, in_doubt=True)
    assert fate(InDoubt("reset"), "hold") == Fate(Next.PARK, costs=1, in_doubt=True)


def test_every_row_is_somebodys_fate() -> None:
    """The table has no row that no verdict leads to."""
    reached = {id(fate(verdict)) for verdict, _ in FATES}
    reached |= {id(fate(InDoubt(""), "hold")), id(fate(InDoubt("")))}

    assert reached == {id(row) for row in TABLE.values()}

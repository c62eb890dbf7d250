"""Promises that hold for every verdict there is."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from relay.envelope import Outcome
from relay.lifecycle import Next, fate
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
    judge,
)

REPLIES = st.builds(Reply, st.sampled_from(Stage), st.integers(200, 599), st.text(max_size=40))
VERDICTS: st.SearchStrategy[Verdict] = st.one_of(
    st.builds(Sent, REPLIES, st.text(max_size=5)),
    st.builds(Throttled, REPLIES, st.sampled_from(Limit)),
    st.builds(Deferred, REPLIES),
    st.builds(Held, REPLIES, st.sampled_from(Scope), st.text(max_size=5), st.booleans()),
    st.builds(Bounced, REPLIES, st.booleans()),
    st.builds(InDoubt, st.text(max_size=5)),
    st.builds(SessionEnded, st.sampled_from(Ending), st.text(max_size=5)),
)
IN_DOUBT: st.SearchStrategy[Literal["resend", "hold"]] = st.sampled_from(["resend", "hold"])


@given(VERDICTS, IN_DOUBT)
def test_p4_throttles_ended_sessions_and_holds_cost_no_attempt(
    verdict: Verdict, in_doubt: Literal["resend", "hold"]
) -> None:
    """P4, both ways: what says something about the envelope costs one, nothing else does."""
    free = isinstance(verdict, Throttled | SessionEnded | Held)

    assert fate(verdict, in_doubt).costs == (0 if free else 1)


@given(VERDICTS, IN_DOUBT)
def test_p2_only_sent_and_bounced_end_a_recipient(
    verdict: Verdict, in_doubt: Literal["resend", "hold"]
) -> None:
    """P2: an outcome where it finishes, none where it does not, and the right one."""
    found = fate(verdict, in_doubt)

    ends = {Sent: Outcome.SENT, Bounced: Outcome.BOUNCED}
    assert found.outcome == ends.get(type(verdict))
    assert (found.next is Next.FINISH) == (found.outcome is not None)
    assert found.in_doubt == isinstance(verdict, InDoubt)


@given(REPLIES)
def test_every_reply_comes_to_a_fate(reply: Reply) -> None:
    """Whatever a server says at whatever step, something is to be done; 4xx never ends mail."""
    found = fate(judge(reply).verdict)

    if 400 <= reply.code < 500:
        assert found.outcome is None
    if found.outcome is Outcome.SENT:
        assert reply.stage is Stage.DOT
        assert reply.code < 300

"""The breaker against any run of replies: what is bounced is bounded, holds stay in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.breaker import PROBE_MAX_MS, Breaker, Decision, Hold, Holds, Source, masked
from relay.envelope import Envelope, Recipient
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

OK = Reply(Stage.DOT, 250, "Ok")
TEXTS = ["Duplicate header", "Illegal header"]
BOUNCES = [Bounced(Reply(Stage.DOT, 554, text), per_recipient=False) for text in TEXTS]
VERDICTS: list[Verdict] = [
    Sent(OK, "id"),
    *BOUNCES,
    Bounced(Reply(Stage.RCPT, 501, "Invalid RCPT TO"), per_recipient=True),
    Deferred(Reply(Stage.DOT, 451, "Temporary service failure")),
    *(Held(OK, scope) for scope in Scope),
    Throttled(OK, Limit.RATE),
    InDoubt(""),
    SessionEnded(Ending.LINK, ""),
]


def envelope(campaign: str = "c") -> Envelope:
    return Envelope(
        id=1,
        content_id=1,
        sender="a@x",
        recipients=(Recipient(0, "b@y"),),
        upstream="ses",
        lane="bulk",
        campaign=campaign,
        size_bytes=1,
        received_at=0,
    )


@given(
    st.lists(st.sampled_from([*BOUNCES, VERDICTS[0]]), max_size=300),
    st.integers(1, 12),
    st.sampled_from([0.01, 0.05, 0.25]),
)
def test_bounces_of_one_text_are_bounded_until_somebody_lifts(
    verdicts: list[Verdict], same_text: int, share: float
) -> None:
    """At most ``same_text``, and the share of what was accepted, bounce with one text."""
    holds = Holds()
    breaker = Breaker(config.Breaker(same_text=same_text, rcpt_share=share), "ses", holds)

    accepted, bounced = 0, dict.fromkeys(TEXTS, 0)
    for verdict in verdicts:
        was_held = holds.campaign_held("c")
        final = breaker.judged(envelope(), verdict, 0).verdict
        accepted += isinstance(final, Sent)
        if isinstance(final, Bounced):
            assert not was_held
            bounced[final.reply.text] += 1

    assert all(count <= same_text + share * accepted + 1e-6 for count in bounced.values())


@given(st.lists(st.booleans(), max_size=400), st.sampled_from([0.01, 0.05, 0.5, 1.0]))
def test_refused_recipients_stay_within_their_share(accepted: list[bool], share: float) -> None:
    """Recipients bounced at RCPT: at most the share of 200 and of those accepted."""
    holds = Holds()
    breaker = Breaker(config.Breaker(rcpt_share=share), "ses", holds)

    sent = bounced = 0
    for was_accepted in accepted:
        verdict = VERDICTS[0] if was_accepted else VERDICTS[3]
        final = breaker.judged(envelope(), verdict, 0).verdict
        sent += isinstance(final, Sent)
        bounced += isinstance(final, Bounced)

    assert bounced <= max(1, share * 200) + share * sent + 1e-6


STEPS = st.tuples(
    st.sampled_from(VERDICTS),
    st.sampled_from(["", "c"]),
    st.integers(-PROBE_MAX_MS, 2 * PROBE_MAX_MS),
    st.sampled_from(["send", "send", "probe", "miss", "operator", "lift"]),
)


def copied(copy: dict[tuple[str, Source], Hold], decision: Decision) -> None:
    """Do to ``copy`` what the decision names, which is all that the spool ever learns."""
    for hold in decision.add:
        assert hold.source is Source.BREAKER
        copy[hold.key, hold.source] = hold
    for lifted in decision.lift:
        assert lifted[1] is Source.BREAKER
        del copy[lifted]


@given(st.lists(STEPS, max_size=60))
def test_decisions_tell_the_spool_all_there_is(
    steps: list[tuple[Verdict, str, int, str]],
) -> None:
    """A copy kept by ``add`` and ``lift`` alone never differs; only the breaker's own is touched.

    Whatever comes: mail that is held has a key that is held, and a probe is due within its
    longest wait.
    """
    holds, copy, now = Holds(), dict[tuple[str, Source], Hold](), 1_800_000_000_000
    breaker = Breaker(config.Breaker(same_text=2), "ses", holds)

    for verdict, campaign, gap_ms, step in steps:
        now += gap_ms
        key = breaker.probe_due(now)
        if step == "miss" and key is not None:
            breaker.probe_missed(key, now)
        elif step == "operator":
            copy["campaign:c", Source.OPERATOR] = Hold("campaign:c", Source.OPERATOR, "", now)
            holds.add(copy["campaign:c", Source.OPERATOR])
        elif step == "lift":
            holds.lift_all("campaign:c")
            copy = {place: hold for place, hold in copy.items() if place[0] != "campaign:c"}
        else:
            probe_of = key if step == "probe" and key is not None else ""
            if probe_of:
                breaker.probe_started(probe_of, now)
            decision = breaker.judged(envelope(campaign), verdict, now, probe_of=probe_of)
            copied(copy, decision)
            assert isinstance(decision.verdict, Held) == bool(decision.key)
            assert not decision.key or holds.held(decision.key)
            assert not holds.probing(probe_of, now)

        assert {(hold.key, hold.source): hold for hold in holds.all()} == copy
        next_at = breaker.next_probe_at(now)
        assert next_at is None or next_at <= now + PROBE_MAX_MS


@given(st.text(max_size=400))
def test_masking_bears_any_text(text: str) -> None:
    """Whatever a server says can be masked, and what is kept of it is bounded."""
    assert len(masked(text)) <= 200


LOCAL = st.from_regex(r"[a-z0-9.+_-]{1,20}", fullmatch=True)


@given(LOCAL, LOCAL)
def test_masking_hides_every_plain_address(one: str, other: str) -> None:
    """Two refusals that differ by the address alone count together."""
    text = "Transaction failed: Illegal address '{}@example.com'."

    assert masked(text.format(one)) == masked(text.format(other))

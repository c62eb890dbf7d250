"""When refusals become a hold, what is kept, and how a probe ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay import config
from relay.breaker import (
    PROBE_FIRST_MS,
    PROBE_MAX_MS,
    SUBJECTS_MAX,
    TEXT_CHARS_MAX,
    TEXTS_MAX,
    Breaker,
    Counts,
    Decision,
    Hold,
    Holds,
    Source,
    masked,
)
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

NOW = 1_800_000_000_000
DUPLICATE = Reply(Stage.DOT, 554, "Transaction failed: Duplicate header 'Content-Type'.")
ILLEGAL = Reply(Stage.DOT, 554, "Transaction failed: Illegal header 'X'.")
BUSY = Reply(Stage.DOT, 451, "Temporary service failure")
NO_RCPT = Reply(Stage.RCPT, 501, "Invalid RCPT TO address provided")
PAUSED = Reply(Stage.DOT, 554, "Message rejected: Sending paused for this account.")
BAD_LOGIN = Reply(Stage.AUTH, 535, "Authentication Credentials Invalid")
SENT = Sent(Reply(Stage.DOT, 250, "Ok id"), "id")
BOUNCED = Bounced(DUPLICATE, per_recipient=False)
NO_SUCH = Bounced(NO_RCPT, per_recipient=True)
NO_LOGIN = Held(BAD_LOGIN, Scope.ACCOUNT)
SAYS_NOTHING: list[Verdict] = [
    Throttled(Reply(Stage.DOT, 454, "Throttling failure"), Limit.RATE),
    InDoubt("reset"),
    SessionEnded(Ending.LINK, "reset"),
]


def envelope(
    *, campaign: str = "c1", sender: str = "a@x", recipients: int = 1, configuration_set: str = ""
) -> Envelope:
    return Envelope(
        id=1,
        content_id=1,
        sender=sender,
        recipients=tuple(Recipient(n, f"r{n}@y") for n in range(recipients)),
        upstream="ses",
        lane="bulk" if campaign else "priority",
        campaign=campaign,
        configuration_set=configuration_set,
        size_bytes=1,
        received_at=NOW,
    )


def new_breaker(holds: Holds | None = None, **table: float) -> tuple[Breaker, Holds]:
    store = Holds() if holds is None else holds
    same_text = int(table.get("same_text", 10))
    share = table.get("rcpt_share", 0.05)
    return Breaker(config.Breaker(same_text=same_text, rcpt_share=share), "ses", store), store


def refuse(breaker: Breaker, times: int, verdict: Verdict = BOUNCED) -> list[Decision]:
    return [breaker.judged(envelope(), verdict, NOW) for _ in range(times)]


def tripped(verdict: Verdict = BOUNCED, same_text: int = 10) -> tuple[Breaker, Holds]:
    breaker, holds = new_breaker(same_text=same_text)
    refuse(breaker, same_text, verdict)
    assert holds.campaign_held("c1")
    return breaker, holds


def probed(breaker: Breaker, key: str, verdict: Verdict, now_ms: int) -> Decision:
    breaker.probe_started(key, now_ms)
    return breaker.judged(envelope(), verdict, now_ms, probe_of=key)


# -- Counting -----------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [BOUNCED, Deferred(BUSY)])
def test_same_refusal_ten_times_holds_the_campaign(verdict: Verdict) -> None:
    """Ten messages are lost or put off, the eleventh and all others are kept."""
    breaker, holds = new_breaker()

    decisions = refuse(breaker, 12, verdict)

    assert [decision.verdict for decision in decisions[:10]] == [verdict] * 10
    assert all(not decision.add and not decision.key for decision in decisions[:9])
    (hold,) = decisions[9].add
    assert hold == holds.get("campaign:c1", Source.BREAKER)
    assert (hold.since_at, hold.next_probe_at, hold.probes) == (NOW, NOW + PROBE_FIRST_MS, 0)
    for decision in decisions[10:]:
        reply = verdict.reply  # type: ignore[union-attr]
        kept = Held(reply, Scope.CAMPAIGN, "c1")
        assert decision == Decision(kept, key="campaign:c1")


def test_reason_of_a_hold_is_the_text_that_met_so_many() -> None:
    """An operator sees what was refused, without anybody's address."""
    breaker, holds = new_breaker(same_text=1)
    text = "Transaction failed: Address contains illegal characters: '<b@y>'."

    breaker.judged(envelope(), Bounced(Reply(Stage.DOT, 554, text), per_recipient=False), NOW)

    (hold,) = holds.all()
    assert hold.reason == (
        "554 Transaction failed: Address contains illegal characters: 'ADDRESS'."
    )


def test_mail_without_a_campaign_counts_for_its_sender() -> None:
    """Transactional mail of one sender is stopped, another sender's is not."""
    breaker, holds = new_breaker(same_text=1)
    one, other = envelope(campaign="", sender="a@x"), envelope(campaign="", sender="b@x")

    breaker.judged(one, BOUNCED, NOW)
    decision = breaker.judged(one, BOUNCED, NOW)

    assert decision == Decision(Held(DUPLICATE, Scope.SENDER, "a@x"), key="sender:ses:a@x")
    assert breaker.blocking(one) == "sender:ses:a@x"
    assert breaker.blocking(other) is None
    assert len(holds.all()) == 1


def test_texts_and_campaigns_are_counted_apart() -> None:
    """Nine of each are nobody's storm."""
    breaker, holds = new_breaker()

    for _ in range(9):
        breaker.judged(envelope(), BOUNCED, NOW)
        breaker.judged(envelope(), Bounced(ILLEGAL, per_recipient=False), NOW)
        breaker.judged(envelope(campaign="c2"), BOUNCED, NOW)

    assert not holds


def test_accepted_mail_of_the_same_campaign_lets_the_count_leak() -> None:
    """One refusal in twenty messages is put up with for ever; another campaign does not help."""
    steady, steady_holds = new_breaker()
    other, other_holds = new_breaker()

    for _ in range(100):
        steady.judged(envelope(), BOUNCED, NOW)
        other.judged(envelope(), BOUNCED, NOW)
        for _ in range(20):
            steady.judged(envelope(), SENT, NOW)
            other.judged(envelope(campaign="c2"), SENT, NOW)

    assert not steady_holds
    assert other_holds.campaign_held("c1")


def test_leaks_never_buy_more_than_the_limit_at_once() -> None:
    """A count of nine and a half does not let a tenth and an eleventh bounce."""
    breaker, holds = new_breaker(same_text=3)
    refuse(breaker, 2)
    breaker.judged(envelope(), SENT, NOW)

    (decision,) = refuse(breaker, 1)

    assert decision.verdict == BOUNCED
    assert holds.campaign_held("c1")


def test_hold_of_an_operator_does_not_stop_the_count() -> None:
    """Mail in flight when an operator paused is judged as it would have been."""
    breaker, _ = new_breaker(Holds([Hold("campaign:c1", Source.OPERATOR, "", NOW)]), same_text=2)

    decisions = refuse(breaker, 3)

    assert [decision.verdict for decision in decisions[:2]] == [BOUNCED] * 2
    assert isinstance(decisions[2].verdict, Held)


def test_released_campaign_counts_from_nothing() -> None:
    """After an operator's release the next ten count afresh, whatever the text."""
    breaker, holds = new_breaker()
    refuse(breaker, 9, Bounced(ILLEGAL, per_recipient=False))
    refuse(breaker, 10)

    holds.lift_all("campaign:c1", [Source.OPERATOR, Source.BREAKER])
    again = [refuse(breaker, 1)[0] for _ in range(9)]
    refuse(breaker, 9, Bounced(ILLEGAL, per_recipient=False))

    assert all(decision.verdict == BOUNCED for decision in again)
    assert not holds
    refuse(breaker, 1)
    assert holds.campaign_held("c1")


# -- Recipients refused on their own ------------------------------------------------------


def test_ten_of_two_hundred_recipients_are_put_up_with() -> None:
    """The tenth in a row trips; the reason tells the share; whatever comes then is kept."""
    breaker, holds = new_breaker()

    decisions = [
        breaker.judged(envelope(recipients=3), NO_SUCH, NOW, recipients=1) for _ in range(11)
    ]

    assert all(decision.verdict == NO_SUCH for decision in decisions[:10])
    (hold,) = decisions[9].add
    assert hold.reason == (
        "too many recipients refused (over 5.0%), last: 501 Invalid RCPT TO address provided"
    )
    assert decisions[10] == Decision(Held(NO_RCPT, Scope.CAMPAIGN, "c1"), key="campaign:c1")
    assert holds.campaign_held("c1")


def test_accepted_recipients_make_room_for_refused_ones() -> None:
    """A list that is one in twenty bad flows; it is recipients that count, not messages."""
    breaker, holds = new_breaker()

    for _ in range(200):
        breaker.judged(envelope(recipients=20), NO_SUCH, NOW, recipients=1)
        breaker.judged(envelope(recipients=20), SENT, NOW)

    assert not holds


def test_refused_recipients_are_not_made_up_for_by_themselves() -> None:
    """Of a message that was accepted in part, only that part counts as accepted."""
    breaker, holds = new_breaker()

    for _ in range(20):
        breaker.judged(envelope(recipients=20), NO_SUCH, NOW, recipients=1)
        breaker.judged(envelope(recipients=20), SENT, NOW, recipients=1)

    assert holds.campaign_held("c1")


def test_blacklisted_address_counts_as_a_recipient() -> None:
    """What is one address's fault never counts as a text of the campaign."""
    breaker, holds = new_breaker(same_text=1)
    blacklisted = Reply(Stage.DOT, 554, "Message rejected: Address blacklisted")

    breaker.judged(envelope(), Bounced(blacklisted, per_recipient=True), NOW)

    assert not holds


def test_smallest_share_still_lets_one_recipient_bounce() -> None:
    """A share so small that it rounds to nobody must not hold mail nobody has refused."""
    breaker, holds = new_breaker(rcpt_share=0.001)

    decision = breaker.judged(envelope(), NO_SUCH, NOW)

    assert decision.verdict == NO_SUCH
    assert holds.campaign_held("c1")


# -- Holds at once ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "key"),
    [
        (Scope.ACCOUNT, "account:ses"),
        (Scope.SENDER, "sender:ses:a@x"),
        (Scope.CONFIGURATION_SET, "configuration-set:ses:main"),
        (Scope.CAMPAIGN, "campaign:c1"),
    ],
)
def test_first_word_of_our_fault_holds_its_scope(scope: Scope, key: str) -> None:
    """The envelope is kept, the key is held with the server's words, a probe is planned."""
    breaker, holds = new_breaker()
    mail = envelope(configuration_set="main")

    decision = breaker.judged(mail, Held(BAD_LOGIN, scope), NOW)

    hold = Hold(key, Source.BREAKER, str(BAD_LOGIN), NOW, NOW + PROBE_FIRST_MS)
    assert decision == Decision(Held(BAD_LOGIN, scope), key, add=(hold,))
    assert holds.all() == [hold]
    assert breaker.blocking(mail) == key


def test_second_word_changes_nothing() -> None:
    """Mail in flight that meets the same trouble is kept under the hold that there is."""
    breaker, holds = new_breaker()
    first = breaker.judged(envelope(), NO_LOGIN, NOW)

    second = breaker.judged(envelope(), NO_LOGIN, NOW + 5)

    assert second == Decision(NO_LOGIN, "account:ses")
    assert holds.all() == list(first.add)


def test_set_that_the_envelope_did_not_ask_for_holds_the_sender() -> None:
    """An identity's default configuration set: no other mark tells whom it concerns."""
    breaker, _ = new_breaker()

    decision = breaker.judged(envelope(), Held(DUPLICATE, Scope.CONFIGURATION_SET, "main"), NOW)

    assert decision.key == "sender:ses:a@x"


def test_sandbox_parks_one_and_blocks_nobody() -> None:
    """Mail to verified recipients flows on; nobody probes, somebody must lift it."""
    breaker, holds = new_breaker()
    mail = envelope(configuration_set="main")

    decision = breaker.judged(mail, Held(DUPLICATE, Scope.SANDBOX, "b@y"), NOW)

    assert decision.key == "sandbox:ses"
    assert [hold.next_probe_at for hold in holds.all()] == [0]
    assert breaker.blocking(mail) is None
    assert breaker.probe_due(NOW + 10 * PROBE_MAX_MS) is None


def test_session_that_cannot_be_opened_holds_the_account() -> None:
    """A failed login needs no envelope to be believed; the reason has no code if there was none."""
    breaker, holds = new_breaker()
    wrong = Held(Reply(Stage.CONNECT, 0, "certificate expired"), Scope.ACCOUNT)

    decision = breaker.opening_failed(wrong, NOW)

    assert decision.key == "account:ses"
    assert [hold.reason for hold in holds.all()] == ["certificate expired"]
    assert holds.account_held("ses")


def test_session_that_failed_for_now_holds_nothing() -> None:
    """An unreachable host is no reason to hold."""
    breaker, holds = new_breaker()

    decision = breaker.opening_failed(SessionEnded(Ending.LINK, "timed out"), NOW)

    assert decision == Decision(SessionEnded(Ending.LINK, "timed out"))
    assert not holds


@pytest.mark.parametrize("verdict", [SENT, *SAYS_NOTHING])
def test_verdict_that_blames_nobody_passes_through(verdict: Verdict) -> None:
    """Accepted, throttled and lost mail leaves no trace in the holds."""
    breaker, holds = new_breaker(same_text=1)

    decisions = [breaker.judged(envelope(), verdict, NOW) for _ in range(20)]

    assert decisions == [Decision(verdict)] * 20
    assert not holds


# -- What is in the way -------------------------------------------------------------------


def test_widest_hold_is_named_first() -> None:
    """Parking under the account's key means one release for all."""
    mail = envelope(configuration_set="main")
    keys = ["account:ses", "campaign:c1", "sender:ses:a@x", "configuration-set:ses:main"]
    breaker, holds = new_breaker(Holds(Hold(key, Source.OPERATOR, "", NOW) for key in keys))

    for key in keys:
        assert breaker.blocking(mail) == key
        holds.lift(key, Source.OPERATOR)

    assert breaker.blocking(mail) is None


def test_other_upstreams_holds_are_not_in_the_way() -> None:
    """Only campaigns are held for all upstreams alike."""
    keys = ["account:b", "sender:b:a@x", "configuration-set:b:main"]
    breaker, _ = new_breaker(Holds(Hold(key, Source.BREAKER, "", NOW, 1) for key in keys))

    assert breaker.blocking(envelope(configuration_set="main")) is None
    assert breaker.probe_due(NOW) is None


def test_probe_is_mail_that_nothing_else_keeps_back() -> None:
    """An envelope under a second hold is only the second choice, and never against a person."""
    breaker, holds = tripped()
    breaker.judged(envelope(), NO_LOGIN, NOW)
    mail, free = envelope(), envelope(campaign="c2")

    assert breaker.may_probe(free, "account:ses")
    assert not breaker.may_probe(free, "campaign:c1", through_breakers=True)
    assert not breaker.may_probe(mail, "account:ses")
    assert breaker.may_probe(mail, "account:ses", through_breakers=True)
    holds.add(Hold("campaign:c1", Source.OPERATOR, "", NOW))
    assert not breaker.may_probe(mail, "account:ses", through_breakers=True)


# -- Probes -------------------------------------------------------------------------------


def test_probe_is_due_after_its_wait_and_one_at_a_time() -> None:
    """Nothing before the minute is over, then one envelope, then none until it is back."""
    breaker, _ = tripped()
    due_at = NOW + PROBE_FIRST_MS

    assert breaker.probe_due(due_at - 1) is None
    assert breaker.next_probe_at(NOW) == due_at
    assert breaker.probe_due(due_at) == "campaign:c1"
    breaker.probe_started("campaign:c1", due_at)

    assert breaker.probe_due(due_at) is None
    assert breaker.next_probe_at(due_at) is None


def test_nothing_held_needs_no_probe() -> None:
    """The usual state of affairs costs nothing."""
    breaker, _ = new_breaker()

    assert breaker.probe_due(NOW) is None
    assert breaker.next_probe_at(NOW) is None


def test_accepted_probe_lifts_the_breakers_hold_on_that_key_alone() -> None:
    """The account is free; the campaign and what the operator holds are as they were."""
    breaker, holds = tripped()
    breaker.judged(envelope(), NO_LOGIN, NOW)
    holds.add(Hold("account:ses", Source.OPERATOR, "", NOW))

    decision = probed(breaker, "account:ses", SENT, NOW)

    assert decision == Decision(SENT, lift=(("account:ses", Source.BREAKER),))
    assert holds.sources("account:ses") == {Source.OPERATOR}
    assert holds.campaign_held("c1")


def test_refused_probes_come_ever_more_rarely() -> None:
    """One, two, four minutes …, at most an hour; the envelope is kept each time."""
    breaker, holds = tripped()
    waits, now = [], NOW

    for _ in range(9):
        decision = probed(breaker, "campaign:c1", BOUNCED, now)
        (hold,) = decision.add
        assert isinstance(decision.verdict, Held)
        assert hold == holds.get("campaign:c1", Source.BREAKER)
        waits.append((hold.next_probe_at - now) // 60_000)
        now = hold.next_probe_at

    assert waits == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert [hold.probes for hold in holds.all()] == [9]


def test_ten_thousandth_refused_probe_waits_an_hour_like_the_tenth() -> None:
    """Back-off does not overflow."""
    hold = Hold("account:ses", Source.BREAKER, "", NOW, NOW, probes=10_000)
    breaker, holds = new_breaker(Holds([hold]))

    probed(breaker, "account:ses", NO_LOGIN, NOW)

    assert [hold.next_probe_at for hold in holds.all()] == [NOW + PROBE_MAX_MS]


@pytest.mark.parametrize(
    "verdict",
    [*SAYS_NOTHING, Deferred(BUSY), Held(PAUSED, Scope.ACCOUNT, slow=True)],
)
def test_probe_that_says_nothing_is_repeated_after_the_same_time(verdict: Verdict) -> None:
    """Throttled, lost or stopped by something else: neither lifted nor put off for longer."""
    breaker, holds = tripped()
    probed(breaker, "campaign:c1", BOUNCED, NOW)

    probed(breaker, "campaign:c1", verdict, NOW)

    hold = holds.get("campaign:c1", Source.BREAKER)
    assert hold is not None
    assert (hold.probes, hold.next_probe_at) == (1, NOW + 2 * PROBE_FIRST_MS)


def test_storm_of_deferrals_is_refused_by_one_more() -> None:
    """The very deferral that led to the hold shows that the storm goes on."""
    breaker, holds = tripped(Deferred(BUSY))

    decision = probed(breaker, "campaign:c1", Deferred(BUSY), NOW)

    assert decision.verdict == Held(BUSY, Scope.CAMPAIGN, "c1")
    assert [hold.probes for hold in holds.all()] == [1]


def test_account_probe_with_a_bad_message_judges_the_message() -> None:
    """Its content is its own fault: it bounces, and the next probe takes another."""
    breaker, holds = new_breaker()
    breaker.judged(envelope(), NO_LOGIN, NOW)

    decision = probed(breaker, "account:ses", BOUNCED, NOW)

    assert decision.verdict == BOUNCED
    assert [hold.probes for hold in holds.all()] == [0]
    assert not holds.probing("account:ses", NOW)


def test_probe_that_finds_the_account_paused_keeps_both_holds() -> None:
    """The decision names the new hold and the changed one; the spool writes both."""
    breaker, holds = tripped()

    decision = probed(breaker, "campaign:c1", Held(PAUSED, Scope.ACCOUNT, slow=True), NOW)

    assert [hold.key for hold in decision.add] == ["account:ses", "campaign:c1"]
    assert decision.key == "account:ses"
    assert sorted(decision.add, key=lambda hold: hold.key) == sorted(
        holds.all(), key=lambda hold: hold.key
    )


def test_paused_account_is_asked_once_an_hour() -> None:
    """From the first probe on, and the latest reason is shown."""
    breaker, holds = new_breaker()
    paused = Held(PAUSED, Scope.ACCOUNT, slow=True)
    breaker.judged(envelope(), NO_LOGIN, NOW)

    probed(breaker, "account:ses", paused, NOW)
    (later,) = holds.all()
    holds.lift_all("account:ses")
    breaker.judged(envelope(), paused, NOW)
    (at_once,) = holds.all()

    assert (later.next_probe_at, later.reason) == (NOW + PROBE_MAX_MS, str(PAUSED))
    assert (at_once.next_probe_at, at_once.probes) == (NOW + PROBE_MAX_MS, 0)


def test_probe_of_several_recipients_is_refused_once() -> None:
    """Two refusals to RCPT are one probe; an acceptance after them still lifts."""
    breaker, holds = tripped()
    mail = envelope(recipients=3)
    breaker.probe_started("campaign:c1", NOW)

    for _ in range(2):
        breaker.judged(mail, NO_SUCH, NOW, recipients=1, probe_of="campaign:c1")
    (hold,) = holds.all()
    breaker.judged(mail, SENT, NOW, recipients=1, probe_of="campaign:c1")

    assert hold.probes == 1
    assert not holds


def test_probe_of_a_hold_that_is_gone_is_ordinary_mail() -> None:
    """Somebody released the campaign while its probe was under way."""
    breaker, holds = tripped()
    breaker.probe_started("campaign:c1", NOW)
    holds.lift_all("campaign:c1")

    decision = breaker.judged(envelope(), BOUNCED, NOW, probe_of="campaign:c1")

    assert decision == Decision(BOUNCED)


def test_probe_by_opening_a_session_counts() -> None:
    """A login that fails again doubles the wait with no envelope spent on it."""
    breaker, holds = new_breaker()
    breaker.opening_failed(NO_LOGIN, NOW)
    breaker.probe_started("account:ses", NOW)

    breaker.opening_failed(NO_LOGIN, NOW, probe_of="account:ses")

    assert [hold.probes for hold in holds.all()] == [1]


def test_while_the_account_is_held_only_the_account_is_probed() -> None:
    """No campaign's probe could get through."""
    breaker, _ = tripped()
    breaker.judged(envelope(), NO_LOGIN, NOW + 1)

    assert breaker.probe_due(NOW + PROBE_FIRST_MS) is None
    assert breaker.probe_due(NOW + PROBE_FIRST_MS + 1) == "account:ses"


def test_nothing_is_probed_that_somebody_else_holds_too() -> None:
    """An operator's hold means that nothing goes, not even one."""
    breaker, holds = tripped()
    holds.add(Hold("campaign:c1", Source.OPERATOR, "", NOW))

    assert breaker.probe_due(NOW + PROBE_MAX_MS) is None


def test_longest_due_is_probed_first() -> None:
    """Probes take turns by when they fell due."""
    old = Hold("sender:ses:z@x", Source.BREAKER, "", NOW, NOW + 1)
    new = Hold("campaign:a", Source.BREAKER, "", NOW, NOW + 2)
    breaker, _ = new_breaker(Holds([new, old]))

    assert breaker.probe_due(NOW + 5) == "sender:ses:z@x"


def test_key_without_mail_is_asked_again_later_and_stops_no_other() -> None:
    """This upstream has nothing of that campaign: the next key is due, another upstream may."""
    holds = Holds(Hold(f"campaign:{c}", Source.BREAKER, "", NOW, NOW) for c in "ab")
    here, _ = new_breaker(holds)
    there = Breaker(config.Breaker(), "other", holds)

    here.probe_missed("campaign:a", NOW)
    here.probe_missed("campaign:gone", NOW)

    assert here.probe_due(NOW) == "campaign:b"
    assert there.probe_due(NOW) == "campaign:a"
    here.probe_missed("campaign:b", NOW + 1)
    assert here.probe_due(NOW + 1) is None
    assert here.next_probe_at(NOW + 1) == NOW + PROBE_FIRST_MS
    assert here.probe_due(NOW + PROBE_FIRST_MS) == "campaign:a"


def test_missed_probe_of_a_lifted_hold_does_not_delay_the_next_hold() -> None:
    """What was put off for one hold is not put off for another on the same key."""
    breaker, holds = new_breaker(same_text=1)
    holds.add(Hold("campaign:c1", Source.BREAKER, "", NOW, NOW, probes=9))
    breaker.probe_missed("campaign:c1", NOW)
    holds.lift_all("campaign:c1")

    refuse(breaker, 1)

    assert breaker.probe_due(NOW + PROBE_FIRST_MS) == "campaign:c1"


def test_clock_that_was_set_back_does_not_put_probes_off() -> None:
    """A probe is never further away than the longest wait."""
    breaker, _ = tripped()
    yesterday = NOW - 86_400_000

    assert breaker.probe_due(yesterday) == "campaign:c1"
    assert breaker.next_probe_at(yesterday) == yesterday


def test_holds_of_the_last_run_are_in_force_and_probed() -> None:
    """What the spool kept works as if there had been no restart."""
    breaker, _ = tripped()
    hold = Hold("campaign:c1", Source.BREAKER, "554 x", NOW, NOW + 5, probes=2)
    breaker, holds = new_breaker(Holds([hold]))

    (decision,) = refuse(breaker, 1)
    probed(breaker, "campaign:c1", BOUNCED, NOW + 5)

    assert isinstance(decision.verdict, Held)
    assert holds.all() == [replace(hold, probes=3, next_probe_at=NOW + 5 + 8 * PROBE_FIRST_MS)]


# -- Masking and bounds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bad address '<\"re:ceiver\"@x>'.", "Bad address '<a b@y.example>'."),
        ('Bad address "a b"@x, again', "Bad address c.d+e@y-z.example, again"),
        ("553 <a@x> address unknown", "553 <b@y> address unknown"),
        ("on `arn:aws:ses:eu:1:identity/a'", "on `arn:aws:ses:us:2:identity/b@c'"),
        ("id 0100abcd-71c65177-ce88 x", "id 71c65177 x"),
        ("line 17 of 230", "line 4 of 5"),
    ],
)
def test_refusals_of_one_cause_look_alike(one: str, other: str) -> None:
    """Addresses, ids, ARNs and numbers are masked."""
    assert masked(one) == masked(other)


def test_refusals_of_different_causes_do_not() -> None:
    """Header names and words stay."""
    assert masked(DUPLICATE.text) == DUPLICATE.text
    assert masked(DUPLICATE.text) != masked(ILLEGAL.text)


def test_endless_text_is_cut() -> None:
    """What is kept of a text is bounded."""
    assert len(masked("x " * 10_000)) == TEXT_CHARS_MAX


def test_texts_that_masking_does_not_tame_trip_together() -> None:
    """Each refusal with a text of its own: the campaign is held all the same."""
    breaker, holds = new_breaker()
    words = ["".join(chr(97 + n // 26**k % 26) for k in range(3)) for n in range(100)]

    bounced = 0
    for word in words:
        verdict = Bounced(Reply(Stage.DOT, 554, f"No: {word}"), per_recipient=False)
        bounced += isinstance(breaker.judged(envelope(), verdict, NOW).verdict, Bounced)

    assert holds.campaign_held("c1")
    assert bounced == TEXTS_MAX + 10


def test_counts_forget_who_was_refused_longest_ago() -> None:
    """However many senders are refused, what is kept is bounded; who comes again stays."""
    counts = Counts(0.05)
    counts.refused("first", "x")
    counts.refused("second", "x")

    counts.refused("first", "x")
    for n in range(SUBJECTS_MAX - 1):
        counts.refused(f"n{n}", "x")

    assert len(counts) == SUBJECTS_MAX
    assert counts.refused("first", "x") == 3
    assert counts.refused("second", "x") == 1


def test_counts_that_have_leaked_away_are_not_kept() -> None:
    """Memory is for troubles that last."""
    counts = Counts(0.5)
    counts.refused("a", "x")
    counts.recipients_refused("a", 1)

    counts.accepted("a", 2)
    assert len(counts) == 1
    counts.accepted("a", 2)

    assert len(counts) == 0


def test_leak_takes_its_share_of_each_count() -> None:
    """A message takes the share once from texts, a recipient from recipients; never below none."""
    counts = Counts(0.5)
    for text in ("x", "x", "y"):
        counts.refused("a", text)
    counts.recipients_refused("a", 3)

    counts.accepted("a", 4)
    counts.accepted("nobody", 4)

    assert counts.refused("a", "x") == 2.5
    assert counts.refused("a", "y") == 1.5
    assert counts.recipients_refused("a", 1) == 2
    counts.accepted("a", 10)
    assert counts.recipients_refused("a", 1) == 1

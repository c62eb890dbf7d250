"""The daily quota: what was used, who may send, and when to ask again."""

from __future__ import annotations

import pytest

from relay import config
from relay.envelope import BULK, PRIORITY
from relay.quota import (
    ALLOWED_BELIEVED_MS,
    ALLOWED_KEPT_MS,
    BUCKET_MS,
    PROBE_FIRST_MS,
    PROBE_MAX_MS,
    SIGV2_PERSISTS_MS,
    TOLD_FOR_MS,
    WINDOW_MS,
    Quota,
    QuotaState,
)
from relay.quota.told import UNSEEN_MAX_MS, UNSEEN_MS
from relay.verdict import Limit

# A moment at which a bucket begins.
NOW = 6_000_000 * BUCKET_MS
MINUTE = 60_000


def new_quota(
    buckets: list[tuple[int, int]] | None = None, *, daily_max: int = 0, reserve: float = 0.02
) -> Quota:
    return Quota(config.Quota(daily_max=daily_max, priority_reserve=reserve), buckets or [])


def used(quota: Quota, now_ms: int) -> int:
    return quota.snapshot(now_ms).used


# -- The ledger ---------------------------------------------------------------------------


def test_recipients_count_for_a_day() -> None:
    """A bucket counts until its last moment is a day old, no longer."""
    quota = new_quota()

    quota.sent(NOW, 3)
    quota.sent(NOW + BUCKET_MS - 1, 4)
    quota.sent(NOW + BUCKET_MS, 5)

    assert used(quota, NOW + BUCKET_MS) == 12
    assert used(quota, NOW + WINDOW_MS + BUCKET_MS - 1) == 12
    assert used(quota, NOW + WINDOW_MS + BUCKET_MS) == 5
    assert used(quota, NOW + WINDOW_MS + 2 * BUCKET_MS) == 0


def test_ledger_begins_with_what_the_spool_remembers() -> None:
    """Outcomes of the last day count; older ones do not, whatever the order they come in."""
    quota = new_quota([(NOW, 5), (NOW - WINDOW_MS, 7), (NOW - WINDOW_MS - BUCKET_MS, 9)])

    assert used(quota, NOW) == 12


def test_clock_set_back_keeps_what_was_used() -> None:
    """Entries that lie in the future were made now: they leave a day from now."""
    quota = new_quota()
    quota.sent(NOW, 3)
    earlier = NOW - 10 * WINDOW_MS

    assert used(quota, earlier) == 3
    assert used(quota, earlier + WINDOW_MS) == 3
    assert used(quota, earlier + WINDOW_MS + BUCKET_MS) == 0


# -- Spent --------------------------------------------------------------------------------


def test_quota_that_nobody_called_spent_lets_all_go() -> None:
    """Without a known size nothing is ever stopped by the ledger."""
    quota = new_quota([(NOW, 1_000_000)])

    assert quota.allows(BULK, NOW)
    assert quota.allows(PRIORITY, NOW)
    assert quota.next_at(NOW) == NOW
    assert quota.snapshot(NOW) == QuotaState(
        used=1_000_000,
        daily_max=None,
        allowed=None,
        left=None,
        spent_at=None,
        next_at=None,
        room_at=None,
    )


@pytest.mark.parametrize("lane", [BULK, PRIORITY, "other"])
def test_spent_quota_lets_one_message_go_after_two_minutes(lane: str) -> None:
    """Every lane waits for the probe: the upstream would refuse each alike."""
    quota = new_quota()

    quota.throttled(Limit.QUOTA, NOW)

    assert not quota.allows(lane, NOW)
    assert not quota.allows(lane, NOW + PROBE_FIRST_MS - 1)
    assert quota.allows(lane, NOW + PROBE_FIRST_MS)
    assert quota.next_at(NOW, lane) == NOW + PROBE_FIRST_MS


def test_probe_on_its_way_is_the_only_one() -> None:
    """The second message waits, even if no word comes of the first."""
    quota = new_quota()
    quota.spent(NOW)
    due_at = NOW + PROBE_FIRST_MS

    quota.probe_started(due_at)

    assert not quota.allows(BULK, due_at)
    assert quota.next_at(due_at) == due_at + PROBE_FIRST_MS


def test_refused_probes_wait_up_to_a_quarter_of_an_hour() -> None:
    """2, 4, 8, 15, 15 … minutes."""
    quota, now, waits = new_quota(), NOW, []
    quota.spent(now)

    for _ in range(10_000):
        waits.append(quota.next_at(now) - now)
        now = quota.next_at(now)
        quota.probe_started(now)
        quota.spent(now)

    assert [wait // MINUTE for wait in waits[:6]] == [2, 4, 8, 15, 15, 15]
    assert max(waits) == PROBE_MAX_MS


def test_refusals_of_what_was_in_flight_are_one_refusal() -> None:
    """Ten sessions hear it at once; the first probe is still two minutes away."""
    quota = new_quota()

    for n in range(10):
        quota.spent(NOW + n)

    assert quota.next_at(NOW) == NOW + PROBE_FIRST_MS
    assert quota.snapshot(NOW).spent_at == NOW


def test_probe_that_ended_without_word_is_repeated_after_the_same_time() -> None:
    """Throttled by the rate or lost: no doubling."""
    quota = new_quota()
    quota.spent(NOW)
    quota.probe_started(NOW + PROBE_FIRST_MS)

    quota.throttled(Limit.RATE, NOW + PROBE_FIRST_MS)

    assert quota.next_at(NOW + PROBE_FIRST_MS) == NOW + 2 * PROBE_FIRST_MS


def test_accepted_probe_opens_the_quota() -> None:
    """And the next time it is spent, probes begin at two minutes again."""
    quota = new_quota()
    quota.spent(NOW)
    quota.probe_started(NOW)
    quota.spent(NOW)
    quota.probe_started(NOW)

    quota.sent(NOW, 1)

    later = NOW + PROBE_MAX_MS
    assert quota.allows(BULK, NOW)
    quota.spent(later)
    assert quota.next_at(later) == later + PROBE_FIRST_MS
    quota.spent(later + 1)
    assert quota.next_at(later) == later + PROBE_FIRST_MS


def test_accepts_of_what_was_in_flight_do_not_open_it() -> None:
    """Accepts are answered later than refusals: they speak of the time before."""
    quota = new_quota()
    quota.probe_started(NOW)
    quota.spent(NOW)

    quota.sent(NOW + 500, 1)

    assert used(quota, NOW) == 1
    assert quota.snapshot(NOW).spent_at == NOW
    assert quota.next_at(NOW + 500) == NOW + PROBE_FIRST_MS


def test_quota_that_is_soon_spent_again_is_asked_at_the_old_pace() -> None:
    """Each hour's step would else cost a series of probes of its own."""
    quota, now = new_quota(), NOW
    quota.spent(now)
    for _ in range(5):
        now = quota.next_at(now)
        quota.probe_started(now)
        quota.spent(now)
    now = quota.next_at(now)
    quota.probe_started(now)
    quota.sent(now, 1)

    quota.spent(now + PROBE_MAX_MS - 1)

    assert quota.next_at(now + PROBE_MAX_MS - 1) == now + 2 * PROBE_MAX_MS - 1


def test_message_that_goes_while_there_is_room_is_no_probe() -> None:
    """The dispatcher may tell of every message."""
    quota = new_quota()

    quota.probe_started(NOW)
    quota.spent(NOW)
    quota.spent(NOW)

    assert quota.next_at(NOW) == NOW + PROBE_FIRST_MS


def test_clock_set_back_does_not_put_the_probe_off() -> None:
    """At most the longest wait from now."""
    quota = new_quota()
    quota.spent(NOW)

    assert quota.allows(BULK, NOW - WINDOW_MS)
    assert quota.next_at(NOW - WINDOW_MS) == NOW - WINDOW_MS


def test_signature_throttles_are_the_rates_until_they_persist() -> None:
    """Ten minutes of them with nothing accepted mean that the quota is spent."""
    quota = new_quota()

    quota.throttled(Limit.SIGV2, NOW)
    quota.throttled(Limit.SIGV2, NOW + SIGV2_PERSISTS_MS - 1)
    before = quota.snapshot(NOW).spent_at
    quota.throttled(Limit.SIGV2, NOW + SIGV2_PERSISTS_MS)

    assert before is None
    later = NOW + SIGV2_PERSISTS_MS
    assert quota.snapshot(later).spent_at == later


def test_signature_throttles_with_mail_between_them_stay_the_rates() -> None:
    """Whatever is accepted begins the ten minutes anew, and so does a clock set back."""
    quota = new_quota()

    quota.throttled(Limit.SIGV2, NOW)
    quota.sent(NOW + 1, 1)
    quota.throttled(Limit.SIGV2, NOW + SIGV2_PERSISTS_MS)
    quota.throttled(Limit.SIGV2, NOW)
    quota.throttled(Limit.SIGV2, NOW + SIGV2_PERSISTS_MS - 1)

    assert quota.snapshot(NOW).spent_at is None


def test_signature_throttles_persist_by_the_clock_that_was_set_back() -> None:
    """The ten minutes are not counted from a moment that has not come yet."""
    quota = new_quota()

    quota.throttled(Limit.SIGV2, NOW + WINDOW_MS)
    quota.throttled(Limit.SIGV2, NOW)
    quota.throttled(Limit.SIGV2, NOW + SIGV2_PERSISTS_MS)

    later = NOW + SIGV2_PERSISTS_MS
    assert quota.snapshot(later).spent_at == later


# -- The reserve --------------------------------------------------------------------------


def test_reserve_is_kept_for_priority() -> None:
    """Bulk and any other lane stop at 98 %; the priority lane goes on, even past the end."""
    quota = new_quota(daily_max=100)
    quota.sent(NOW, 97)
    below = quota.allows(BULK, NOW)

    quota.sent(NOW, 1)

    assert below
    assert not quota.allows(BULK, NOW)
    assert not quota.allows("other", NOW)
    assert quota.allows(PRIORITY, NOW)
    quota.sent(NOW, 10)
    assert quota.allows(PRIORITY, NOW)
    assert quota.snapshot(NOW).left == 0


def test_room_comes_when_enough_has_left_the_day() -> None:
    """The prediction walks the ledger until bulk has something left to use."""
    quota = new_quota(
        [(NOW - 3 * BUCKET_MS, 22), (NOW - 2 * BUCKET_MS, 38), (NOW - BUCKET_MS, 60)],
        daily_max=100,
    )
    room_at = NOW - 2 * BUCKET_MS + BUCKET_MS + WINDOW_MS

    assert quota.room_at(NOW) == room_at
    assert quota.next_at(NOW) == room_at
    assert quota.next_at(NOW, PRIORITY) == NOW
    assert quota.snapshot(NOW) == QuotaState(
        used=120,
        daily_max=100,
        allowed=None,
        left=0,
        spent_at=None,
        next_at=room_at,
        room_at=room_at,
    )
    assert not quota.allows(BULK, room_at - 1)
    assert quota.allows(BULK, room_at)


def test_whole_quota_in_reserve_is_asked_about_once_a_day() -> None:
    """With a reserve of everything there is never room for bulk."""
    quota = new_quota(daily_max=100, reserve=1)

    assert not quota.allows(BULK, NOW)
    assert quota.next_at(NOW) == NOW + WINDOW_MS


def test_spent_quota_expects_room_when_the_oldest_leaves() -> None:
    """Whatever the real size is: it is full now, and less full then."""
    quota = new_quota([(NOW - 5 * BUCKET_MS, 10), (NOW, 5)], daily_max=1_000)
    quota.spent(NOW)

    assert quota.room_at(NOW) == NOW - 5 * BUCKET_MS + BUCKET_MS + WINDOW_MS
    assert quota.snapshot(NOW) == QuotaState(
        used=15,
        daily_max=1_000,
        allowed=None,
        left=985,
        spent_at=NOW,
        next_at=NOW + PROBE_FIRST_MS,
        room_at=quota.room_at(NOW),
    )


def test_nobody_knows_when_room_comes_that_others_used() -> None:
    """Nothing in our ledger, and yet it is spent."""
    quota = new_quota()
    quota.spent(NOW)

    assert quota.room_at(NOW) is None


# -- The allowance ------------------------------------------------------------------------

HOUR = 60 * MINUTE


def spent_after(recipients: int, *, daily_max: int = 0, reserve: float = 0.02) -> Quota:
    """A quota that was spent at NOW, when we had sent so many in one go before."""
    quota = new_quota(daily_max=daily_max, reserve=reserve)
    quota.sent(NOW - BUCKET_MS, recipients)
    quota.spent(NOW)
    return quota


def probe_accepted(quota: Quota, now_ms: int) -> None:
    quota.probe_started(now_ms)
    quota.sent(now_ms, 1)


def test_what_was_used_when_it_was_spent_is_what_the_day_allows() -> None:
    """Nobody else says how large the quota is."""
    state = spent_after(1_000).snapshot(NOW)

    assert (state.allowed, state.left, state.used) == (1_000, 0, 1_000)
    assert state.room_at == NOW + WINDOW_MS


def test_last_of_the_allowance_is_for_priority() -> None:
    """A day later bulk stops short of it, so that a password reset still goes."""
    quota = spent_after(1_000)
    now = NOW + WINDOW_MS
    probe_accepted(quota, now)
    quota.sent(now, 978)
    before = quota.allows(BULK, now)

    quota.sent(now, 1)

    assert before
    assert not quota.allows(BULK, now)
    assert quota.allows(PRIORITY, now)
    assert quota.snapshot(now).left == 20


def test_without_a_reserve_the_allowance_stops_nobody() -> None:
    """Only the upstream does."""
    quota = spent_after(1_000, reserve=0)
    now = NOW + WINDOW_MS
    probe_accepted(quota, now)

    quota.sent(now, 5_000)

    assert quota.allows(BULK, now)


def test_end_of_an_old_allowance_is_looked_for_when_room_is_near() -> None:
    """Else a raise would never be found; whoever hears "spent" then waits for minutes."""
    quota = spent_after(1_000)
    now = NOW + WINDOW_MS
    probe_accepted(quota, now)
    quota.sent(now, 990)

    looks_at = now + WINDOW_MS - PROBE_MAX_MS

    assert quota.next_at(now) == looks_at
    assert not quota.allows(BULK, looks_at - 1)
    assert quota.allows(BULK, looks_at)


def test_more_than_the_allowance_ends_it() -> None:
    """The quota was raised: nothing is known of its end any more."""
    quota = spent_after(1_000)
    now = NOW + WINDOW_MS
    probe_accepted(quota, now)

    quota.sent(now, 1_000)
    later = now + BUCKET_MS

    assert quota.snapshot(later).allowed is None
    assert quota.allows(BULK, later)


def test_room_that_our_ledger_does_not_explain_ends_the_allowance() -> None:
    """All of ours still counts, and yet there is room: it was others' mail that left."""
    quota = spent_after(1_000)

    probe_accepted(quota, NOW + 2 * HOUR)

    assert quota.snapshot(NOW + 2 * HOUR).allowed is None
    assert quota.allows(BULK, NOW + 2 * HOUR)


def test_allowance_outlives_a_day_that_others_used() -> None:
    """A far smaller one replaces it only after two days."""
    quota = spent_after(1_000)

    quota.probe_started(NOW + WINDOW_MS)
    quota.sent(NOW + WINDOW_MS, 300)
    quota.spent(NOW + WINDOW_MS + 1)
    first = quota.snapshot(NOW + WINDOW_MS + 1).allowed
    quota.probe_started(NOW + 2 * WINDOW_MS)
    quota.sent(NOW + 2 * WINDOW_MS, 1)
    quota.spent(NOW + 2 * WINDOW_MS + 1)
    second = quota.snapshot(NOW + 2 * WINDOW_MS + 1).allowed

    assert first == 1_000
    assert second == 301


def test_allowance_of_a_single_day_is_forgotten_after_two() -> None:
    """Others had used that day; next week's campaign would wait a day for nothing."""
    quota = spent_after(1_000)
    probe_accepted(quota, NOW + WINDOW_MS)
    later = NOW + ALLOWED_KEPT_MS

    quota.sent(later, 990)

    assert quota.snapshot(later).allowed is None
    assert quota.allows(BULK, later)


def test_allowance_of_several_days_is_kept_for_a_month() -> None:
    """Then it is the account's own, and next week's campaign leaves priority its share."""
    quota = spent_after(1_000)
    probe_accepted(quota, NOW + WINDOW_MS)
    quota.sent(NOW + WINDOW_MS, 998)
    quota.spent(NOW + WINDOW_MS + 1)
    probe_accepted(quota, NOW + 2 * WINDOW_MS + BUCKET_MS)
    last = NOW + WINDOW_MS + 1 + ALLOWED_BELIEVED_MS - 1

    quota.sent(last, 980)

    assert not quota.allows(BULK, last)
    assert quota.allows(PRIORITY, last)
    assert quota.allows(BULK, last + 1 + BUCKET_MS)


def test_allowance_that_was_spent_twice_on_one_day_is_of_a_single_day() -> None:
    """An hour later it is still the same others' mail that is in the way."""
    quota = spent_after(1_000)
    quota.probe_started(NOW + HOUR)
    quota.spent(NOW + HOUR)
    quota._open(NOW + HOUR)
    quota.sent(NOW + HOUR, 1)
    quota.spent(NOW + HOUR)

    assert quota.snapshot(NOW + HOUR + ALLOWED_KEPT_MS).allowed is None


def test_far_smaller_allowance_is_of_a_single_day_again() -> None:
    """However long the one that it takes the place of had been met."""
    quota = spent_after(1_000)
    for day in (1, 2):
        probe_accepted(quota, NOW + day * WINDOW_MS + BUCKET_MS)
        quota.sent(NOW + day * WINDOW_MS + BUCKET_MS, 998)
        quota.spent(NOW + day * WINDOW_MS + BUCKET_MS)
    later = NOW + 5 * WINDOW_MS
    probe_accepted(quota, later)
    quota.sent(later, 300)
    quota.spent(later)
    smaller = quota.snapshot(later).allowed

    assert smaller == 301
    assert quota.snapshot(later + ALLOWED_KEPT_MS).allowed is None


def test_less_than_the_smallest_quota_is_no_allowance() -> None:
    """Others used the rest."""
    assert spent_after(199).snapshot(NOW).allowed is None
    assert spent_after(200).snapshot(NOW).allowed == 200


def test_the_smaller_of_both_binds() -> None:
    """A ``daily_max`` above what the day has is no promise, below it an order."""
    high, low = spent_after(1_000, daily_max=5_000), spent_after(1_000, daily_max=500)
    now = NOW + WINDOW_MS + 1
    for quota in (high, low):
        probe_accepted(quota, now)
        quota.sent(now, 489)

    assert (high.snapshot(now).left, low.snapshot(now).left) == (510, 10)
    assert high.allows(BULK, now)
    assert not low.allows(BULK, now)


# -- What AWS says of the day ----------------------------------------------------------------


def test_day_that_aws_knows_of_keeps_the_reserve_from_the_first_day_on() -> None:
    """Others' mail counts in it, too: bulk stops where AWS says that only the reserve is left."""
    quota = new_quota()

    quota.told(NOW, day_max=1_000, day_sent=970)
    quota.sent(NOW, 9)
    before = quota.allows(BULK, NOW)
    quota.sent(NOW, 1)

    assert before
    assert not quota.allows(BULK, NOW)
    assert quota.allows(PRIORITY, NOW)
    assert quota.snapshot(NOW).left == 20
    assert quota.next_at(NOW) == NOW + TOLD_FOR_MS


def test_what_was_just_sent_may_not_be_in_the_counter_of_aws_yet() -> None:
    """For 20 minutes it is taken off what AWS leaves; then it surely is."""
    quota, late = new_quota(), NOW + BUCKET_MS - 1
    quota.sent(late, 500)

    quota.told(late, day_max=1_000, day_sent=500)
    shown = quota.snapshot(late).left
    before = quota.allows(BULK, late)
    quota.told(late + UNSEEN_MS, day_max=1_000, day_sent=500)

    assert not before
    assert shown == 500
    assert quota.allows(BULK, late + UNSEEN_MS)


def test_allowance_holds_while_aws_may_be_counting_late() -> None:
    """What we sent in the last two hours could be all that AWS has not seen."""
    quota = spent_after(1_000)
    now = NOW + WINDOW_MS
    probe_accepted(quota, now)
    quota.sent(now, 990)

    quota.told(now, day_max=2_000, day_sent=1_000)
    at_once = quota.allows(BULK, now)
    later = now + UNSEEN_MAX_MS + BUCKET_MS
    quota.told(later, day_max=2_000, day_sent=1_000)

    assert not at_once
    assert quota.allows(BULK, later)


def test_word_of_aws_is_forgotten_when_it_is_not_repeated() -> None:
    """Nobody stops for long because of an answer that cannot be had any more."""
    quota = new_quota()
    quota.told(NOW, day_max=1_000, day_sent=1_000)

    assert not quota.allows(BULK, NOW + TOLD_FOR_MS - 1)
    assert quota.allows(BULK, NOW + TOLD_FOR_MS)
    assert quota.allows(BULK, NOW - 1)
    assert quota.snapshot(NOW + TOLD_FOR_MS).left is None


def test_room_that_aws_tells_of_lets_bulk_go_again() -> None:
    """Some of the day has left it."""
    quota = new_quota()
    quota.told(NOW, day_max=1_000, day_sent=1_000)

    quota.told(NOW + 1, day_max=1_000, day_sent=900)

    assert quota.allows(BULK, NOW + 1)
    assert quota.snapshot(NOW + 1).left == 100


def test_fresh_word_of_aws_takes_the_place_of_the_allowance() -> None:
    """It counts others' mail, the allowance only guesses at it."""
    quota = spent_after(1_000)
    now = NOW + WINDOW_MS
    probe_accepted(quota, now)
    quota.sent(now, 990)
    before = quota.allows(BULK, now)

    quota.told(now, day_max=50_000, day_sent=1_000)

    assert not before
    assert quota.allows(BULK, now)
    assert not quota.allows(BULK, now + TOLD_FOR_MS)


def test_daily_max_of_the_operator_holds_whatever_aws_says() -> None:
    """He may leave the rest to others."""
    quota = new_quota(daily_max=100)
    quota.sent(NOW, 98)

    quota.told(NOW, day_max=50_000, day_sent=98)

    assert not quota.allows(BULK, NOW)
    assert quota.snapshot(NOW).left == 2


def test_spent_is_what_the_upstream_said_whatever_aws_says() -> None:
    """AWS's counters lag behind (observed)."""
    quota = spent_after(1_000)

    quota.told(NOW, day_max=50_000, day_sent=10)

    assert not quota.allows(BULK, NOW)
    assert not quota.allows(PRIORITY, NOW)
    assert quota.snapshot(NOW).left == 0


@pytest.mark.parametrize(
    ("day_max", "day_sent"),
    [(0, 0), (199, 199), (1_000, 1_101), (None, 5), (1_000, None), (10**12, 10**13)],
)
def test_absurd_day_is_not_believed(day_max: int | None, day_sent: int | None) -> None:
    """Nor is one that lacks a number; what was told before is forgotten, too."""
    quota = new_quota()
    quota.told(NOW, day_max=1_000, day_sent=1_000)

    quota.told(NOW, day_max=day_max, day_sent=day_sent)

    assert quota.allows(BULK, NOW)
    assert quota.snapshot(NOW).left is None


def test_without_a_reserve_aws_stops_nobody() -> None:
    """Then only the upstream does."""
    quota = new_quota(reserve=0)

    quota.told(NOW, day_max=1_000, day_sent=1_000)

    assert quota.allows(BULK, NOW)


# -- Over a restart -----------------------------------------------------------------------


def test_spent_quota_is_still_spent_after_a_restart() -> None:
    """The same probe at the same moment, the same allowance."""
    before = spent_after(1_000)
    before.probe_started(NOW + PROBE_FIRST_MS)
    before.spent(NOW + PROBE_FIRST_MS)
    after = new_quota([(NOW - BUCKET_MS, 1_000)])

    after.restore(before.learned())

    assert after.snapshot(NOW) == before.snapshot(NOW)
    assert after.learned() == before.learned()
    later = NOW + ALLOWED_KEPT_MS
    assert (before.snapshot(later).allowed, after.snapshot(later).allowed) == (None, None)


@pytest.mark.parametrize("value", [None, "1", -1, 0, 1.5, True, [], 10**400, float("nan")])
def test_what_makes_no_sense_is_not_restored(value: object) -> None:
    """A spool may have been written by another version."""
    quota = new_quota()

    quota.restore(dict.fromkeys(quota.learned(), value))

    assert quota.snapshot(NOW) == new_quota().snapshot(NOW)


def test_allowance_below_the_smallest_quota_is_not_restored() -> None:
    """It would let one message go a day."""
    quota = new_quota([(NOW, 1)])

    quota.restore({"allowed": 1, "allowed_at": NOW})

    assert quota.allows(BULK, NOW)


def test_spent_by_a_clock_that_ran_ahead_is_spent_now() -> None:
    """Nobody is shown a moment to come."""
    quota = new_quota()

    quota.restore({"spent_at": NOW + WINDOW_MS, "probe_at": NOW + WINDOW_MS})

    assert quota.snapshot(NOW).spent_at == NOW
    assert quota.allows(BULK, NOW)


def test_restored_wait_stays_within_its_bounds() -> None:
    """However long it was."""
    quota = new_quota()

    quota.restore({"spent_at": NOW, "probe_at": NOW, "wait_ms": 10 * WINDOW_MS})
    quota.probe_started(NOW)

    assert quota.next_at(NOW) == NOW + PROBE_MAX_MS

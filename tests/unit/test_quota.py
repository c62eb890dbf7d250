"""The daily quota: what was used, who may send, and when to ask again."""

from __future__ import annotations

import pytest

from relay import config
from relay.envelope import BULK, PRIORITY
from relay.quota import (
    BUCKET_MS,
    PROBE_FIRST_MS,
    PROBE_MAX_MS,
    SIGV2_PERSISTS_MS,
    WINDOW_MS,
    Quota,
    QuotaState,
)
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
        used=1_000_000, daily_max=None, left=None, spent_at=None, next_at=None, room_at=None
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


def test_anything_accepted_opens_the_quota() -> None:
    """And the next time it is spent, probes begin at two minutes again."""
    quota = new_quota()
    quota.spent(NOW)
    quota.probe_started(NOW)
    quota.spent(NOW)

    quota.sent(NOW, 1)

    assert quota.allows(BULK, NOW)
    quota.spent(NOW)
    assert quota.next_at(NOW) == NOW + PROBE_FIRST_MS
    quota.spent(NOW + 1)
    assert quota.next_at(NOW) == NOW + PROBE_FIRST_MS


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
    assert quota.snapshot(NOW).spent_at == NOW + SIGV2_PERSISTS_MS


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

    assert quota.snapshot(NOW).spent_at == NOW + SIGV2_PERSISTS_MS


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
        used=120, daily_max=100, left=0, spent_at=None, next_at=room_at, room_at=room_at
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

"""The twin's bucket of recipients and its 24-hour quota."""

from __future__ import annotations

import pytest

from relay.twin.limits import Bucket, Quota


def test_full_bucket_lets_one_second_of_recipients_pass_at_once() -> None:
    """Without a burst of its own the bucket holds one second's worth, no more."""
    bucket = Bucket(14, None, now=100)

    admitted = 0
    while bucket.admits(100):
        bucket.take(1, 100)
        admitted += 1

    assert admitted == 14


def test_big_message_is_admitted_on_one_token_and_its_debt_paid_back() -> None:
    """Ten recipients at 1/s pass at once, then nothing does until one is left again."""
    bucket = Bucket(1, None, now=0)

    assert bucket.admits(0)
    bucket.take(10, 0)

    assert bucket.tokens(0) == -9
    assert not bucket.admits(9.999)
    assert bucket.admits(10)


def test_bucket_never_holds_more_than_its_depth() -> None:
    """An hour of silence saves up no more than the burst."""
    bucket = Bucket(10, 25, now=0)

    bucket.take(20, 0)

    assert bucket.tokens(3600) == 25


def test_slow_rate_still_admits_a_message() -> None:
    """Half a recipient a second fills a bucket of one, else nothing could ever pass."""
    bucket = Bucket(0.5, None, now=0)

    assert bucket.admits(0)
    bucket.take(1, 0)

    assert not bucket.admits(1.9)
    assert bucket.admits(2)


def test_change_of_rate_counts_the_past_at_the_old_one() -> None:
    """What was earned before the change stays; from then on the new rate refills."""
    bucket = Bucket(10, 100, now=0)
    bucket.take(100, 0)

    bucket.change(2, 100, now=3)

    assert bucket.tokens(3) == 30
    assert bucket.tokens(4) == 32


def test_change_to_a_lower_rate_takes_what_no_longer_fits() -> None:
    """A full bucket of 14 becomes a full bucket of 2."""
    bucket = Bucket(14, None, now=0)

    bucket.change(2, None, now=0)

    assert bucket.tokens(0) == 2


def test_backward_clock_earns_nothing_and_is_not_paid_twice() -> None:
    """A step back neither adds tokens nor lets the same second be earned again."""
    bucket = Bucket(10, None, now=100)
    bucket.take(10, 100)

    assert bucket.tokens(99) == 0
    assert bucket.tokens(100) == 0


def test_quota_counts_recipients_and_overshoots_by_one_message() -> None:
    """While one recipient is left a message to many passes, as observed at 102 %."""
    quota = Quota(100, 3600)
    quota.take(99, 0)

    assert quota.admits(0)
    quota.take(50, 0)

    assert quota.used == 149
    assert not quota.admits(0)


def test_quota_comes_back_in_steps_a_day_later() -> None:
    """Sends of one hour are released together, 24 hours after that hour began."""
    quota = Quota(10, 3600)
    quota.take(6, 1 * 3600 + 5)
    quota.take(4, 2 * 3600 + 5)

    assert not quota.admits(25 * 3600 - 1)
    assert quota.admits(25 * 3600)
    assert quota.used == 4


@pytest.mark.parametrize("used", [0, 10**9])
def test_quota_of_zero_is_none(used: int) -> None:
    """0 stands for "any number"."""
    quota = Quota(0, 3600)

    quota.take(used, 0)

    assert quota.admits(0)

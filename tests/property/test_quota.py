"""The quota against any run of events, clock steps included, and a ledger without buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.envelope import BULK, PRIORITY
from relay.quota import ALLOWED_MIN, BUCKET_MS, BUCKETS_MAX, PROBE_MAX_MS, WINDOW_MS, Quota
from relay.verdict import Limit

START = 1_800_000_000_000
FORWARD = st.integers(0, WINDOW_MS // 4)
EITHER_WAY = st.integers(-2 * WINDOW_MS, 2 * WINDOW_MS)
EVENT = st.sampled_from(["sent", "spent", "probe", "sigv2", "rate", "restart", "told"])


def new_quota(daily_max: int = 0) -> Quota:
    return Quota(config.Quota(daily_max=daily_max))


@given(st.lists(st.tuples(FORWARD, st.integers(1, 50)), max_size=60))
def test_ledger_counts_the_last_day_to_within_a_bucket(sends: list[tuple[int, int]]) -> None:
    """Never less than was sent in 24 hours, never more than in 24 hours and one bucket."""
    quota, now, log = new_quota(), START, []

    for gap_ms, recipients in sends:
        now += gap_ms
        quota.sent(now, recipients)
        log.append((now, recipients))

        used = quota.snapshot(now).used
        assert used >= sum(n for at, n in log if at > now - WINDOW_MS)
        assert used <= sum(n for at, n in log if at > now - WINDOW_MS - BUCKET_MS)


@given(
    st.lists(st.tuples(EVENT, EITHER_WAY, st.integers(1, 500)), max_size=60),
    st.sampled_from([0, 100, 1_000]),
    st.integers(0, 1_200),
)
def test_no_clock_and_no_reply_stops_mail_for_good(
    events: list[tuple[str, int, int]], daily_max: int, used_by_all: int
) -> None:
    """Whatever happens, priority is asked again within 15 minutes, and all within a day."""
    quota, now = new_quota(daily_max), START

    for event, gap_ms, recipients in events:
        now += gap_ms
        match event:
            case "sent":
                quota.sent(now, recipients)
            case "spent":
                quota.spent(now)
            case "probe":
                quota.probe_started(now)
            case "sigv2":
                quota.throttled(Limit.SIGV2, now)
            case "restart":
                kept, ledger = quota.learned(), dict(quota._ledger)
                quota = new_quota(daily_max)
                quota.restore(kept)
                quota._ledger.update(ledger)
            case "told":
                quota.told(now, day_max=recipients * 2, day_sent=used_by_all)
            case _:
                quota.throttled(Limit.RATE, now)

        assert now <= quota.next_at(now, PRIORITY) <= now + PROBE_MAX_MS
        assert now <= quota.next_at(now) <= now + WINDOW_MS + BUCKET_MS
        assert quota.allows(BULK, now) == (quota.next_at(now) == now)
        assert quota.allows(BULK, quota.next_at(now))
        state = quota.snapshot(now)
        assert state.room_at is None or state.room_at > now
        assert state.left is None or state.left >= 0
        assert state.allowed is None or state.allowed >= ALLOWED_MIN


@given(st.lists(st.tuples(EITHER_WAY, st.integers(1, 50)), max_size=200))
def test_ledger_is_bounded(sends: list[tuple[int, int]]) -> None:
    """A day of buckets, however the clock jumps; nothing leaves before it is a day old."""
    quota, now = new_quota(), START

    for gap_ms, recipients in sends:
        now += gap_ms
        quota.sent(now, recipients)

        assert quota.snapshot(now).used >= recipients
        assert len(quota._ledger) <= BUCKETS_MAX

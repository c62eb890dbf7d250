"""Replies come back in any order and are judged in that of sending."""

from __future__ import annotations

from relay.shaper.order import WAIT_MAX_S, WAITING_MAX, Kind, SendOrder


def drain(order: SendOrder, now: float, *, complete: bool = False) -> list[float]:
    """Take out what may be judged at ``now``."""
    taken = []
    while (outcome := order.next_due(now, complete=complete)) is not None:
        taken.append(outcome.sent_at)
    return taken


def test_refusal_that_overtook_an_accept_waits_for_it() -> None:
    """The reply of the message sent first is judged first, though it came last."""
    order = SendOrder()
    order.add(0.2, Kind.ACCEPTED, 1, sent_at=0.0)
    assert drain(order, 0.2) == [0.0]

    order.add(1.05, Kind.THROTTLED, 1, sent_at=1.02)
    early = drain(order, 1.1)
    order.add(1.2, Kind.ACCEPTED, 1, sent_at=1.0)

    assert early == []
    assert drain(order, 1.3) == [1.0, 1.02]


def test_nothing_waits_when_nothing_is_under_way() -> None:
    """Where no older reply can come, all are judged at once, in order."""
    order = SendOrder()
    order.add(5.0, Kind.ACCEPTED, 1, sent_at=4.0)
    order.add(5.0, Kind.THROTTLED, 1, sent_at=3.9)

    assert drain(order, 5.0, complete=True) == [3.9, 4.0]


def test_one_slow_reply_blinds_nobody_for_long() -> None:
    """After a reply that took a minute, the others wait a second, not a minute."""
    order = SendOrder()
    order.add(60.0, Kind.ACCEPTED, 1, sent_at=0.0)
    drain(order, 60.0)

    order.add(61.0, Kind.ACCEPTED, 1, sent_at=60.9)

    assert drain(order, 60.9 + WAIT_MAX_S - 0.05) == []
    assert drain(order, 60.9 + WAIT_MAX_S) == [60.9]


def test_long_latency_is_forgotten() -> None:
    """Some hundred quick replies later, waiting follows them."""
    order = SendOrder()
    order.add(1.0, Kind.ACCEPTED, 1, sent_at=0.0)
    for n in range(1000):
        order.add(2.0 + n, Kind.ACCEPTED, 1, sent_at=1.99 + n)
        drain(order, 2.0 + n, complete=True)

    order.add(2000.01, Kind.ACCEPTED, 1, sent_at=2000.0)

    assert drain(order, 2000.02) == [2000.0]


def test_equal_moments_keep_the_order_of_their_replies() -> None:
    """Messages sent in one moment are judged as they were answered."""
    order = SendOrder()
    for kind in (Kind.THROTTLED, Kind.ACCEPTED, Kind.IGNORED):
        order.add(1.0, kind, 1, sent_at=0.5)

    taken = [order.next_due(1.0, complete=True) for _ in range(3)]

    kinds = [outcome.kind for outcome in taken if outcome]
    assert kinds == [Kind.THROTTLED, Kind.ACCEPTED, Kind.IGNORED]


def test_reply_from_the_future_counts_as_now() -> None:
    """A moment after the reply itself cannot be; it is judged as sent now."""
    order = SendOrder()

    order.add(1.0, Kind.ACCEPTED, 1, sent_at=9.0)

    assert drain(order, 1.0) == [1.0]


def test_waiting_replies_are_bounded() -> None:
    """When too many wait, the oldest is judged, due or not."""
    order = SendOrder()

    for n in range(WAITING_MAX + 500):
        # Now and then a slow reply, so that the quick ones have a reason to wait.
        sent_at = 0.0 if n % 32 == 0 else 1.999 + n / 1e8
        order.add(2.0, Kind.ACCEPTED, 1, sent_at)
        drain(order, 2.0)

    assert len(order._waiting) == WAITING_MAX

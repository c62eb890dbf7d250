"""What goes next, as a table of what is in the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import pytest

from relay import config
from relay.breaker import Breaker, Hold, Holds, Source, account_key, campaign_key, sender_key
from relay.dispatcher.turn import Go, Policy, Rest, Why, next_turn
from relay.envelope import PRIORITY
from relay.lanes import Lanes
from relay.quota import PROBE_FIRST_MS, Quota
from relay.upstream import PoolState
from relay.verdict import Limit
from tests.fakes.mail import envelope

NOW = 1_800_000_000_000
DAY = 24 * 3_600_000
ALL_FREE = PoolState(open=3, idle=3, busy=0, opening=0, ceiling=10)
ONE_LEFT = PoolState(open=9, idle=0, busy=9, opening=0, ceiling=10)
ONLY_ONE = PoolState(open=1, idle=1, busy=0, opening=0, ceiling=1)
CAMPAIGN = campaign_key("c")
ACCOUNT = account_key("ses")


@dataclass
class House:
    """The rooms that decide, in one state."""

    quota: Quota = field(default_factory=lambda: Quota(config.Quota()))
    holds: Holds = field(default_factory=Holds)
    bulk: bool = True
    priority: bool = True

    def turn(self, sessions: PoolState = ALL_FREE, now_ms: int = NOW) -> Go | Rest:
        lanes = Lanes(config.Config().lanes, is_held=self.holds.campaign_held)
        for number, campaign in enumerate(["c"] * self.bulk + [""] * self.priority):
            lanes.arrived(envelope(number + 1, campaign=campaign))
        breaker = Breaker(config.Breaker(), "ses", self.holds)
        policy = Policy(
            upstream="ses", lanes=lanes, quota=self.quota, breaker=breaker, holds=self.holds
        )
        return next_turn(policy, sessions, now_ms)

    def hold(self, key: str, probe_at: int = 0, source: Source = Source.BREAKER) -> None:
        self.holds.add(Hold(key, source, "test", NOW - 1000, next_probe_at=probe_at))


def spent() -> Quota:
    """A quota that the upstream just called spent: a probe is due in two minutes."""
    quota = Quota(config.Quota())
    quota.throttled(Limit.QUOTA, NOW)
    return quota


def reserve_left() -> Quota:
    """A known quota of which only the share kept for priority is left."""
    return Quota(config.Quota(daily_max=100, priority_reserve=0.1), [(NOW - 1000, 95)])


def test_whatever_waits_may_go() -> None:
    """The lanes decide which; this only says that something may."""
    assert House().turn() == Go()
    assert House(bulk=False).turn() == Go()
    assert House(priority=False).turn() == Go()


def test_nothing_waits() -> None:
    """Until something changes: there is no moment to wait for."""
    assert House(bulk=False, priority=False).turn() == Rest(Why.IDLE)


def test_last_session_is_for_priority() -> None:
    """Bulk waits for a session, and a reset that comes now finds one."""
    assert House().turn(ONE_LEFT) == Go(only=PRIORITY)
    assert House(priority=False).turn(ONE_LEFT) == Rest(Why.SESSIONS)


def test_only_session_serves_everyone() -> None:
    """With a ceiling of one, bulk would never go."""
    assert House(priority=False).turn(ONLY_ONE) == Go()


def test_held_account_stops_everything() -> None:
    """Until its probe is due, or, if a person holds it, until somebody changes that."""
    house = House()
    house.hold(ACCOUNT, NOW + 60_000)
    assert house.turn() == Rest(Why.HELD, NOW + 60_000)

    house.hold(ACCOUNT, source=Source.OPERATOR)
    assert house.turn() == Rest(Why.HELD)


def test_due_probe_of_the_account_goes() -> None:
    """One envelope, to see whether it may go on."""
    house = House()
    house.hold(ACCOUNT, NOW)

    assert house.turn() == Go(probe=ACCOUNT)


def test_probe_is_not_sent_through_a_held_account() -> None:
    """A campaign's probe would only learn of the account's trouble."""
    house = House()
    house.hold(CAMPAIGN, NOW)
    house.hold(ACCOUNT, NOW + 60_000)

    assert house.turn() == Rest(Why.HELD, NOW + 60_000)


def test_due_probe_goes_before_other_mail() -> None:
    """The probe of what has waited longest; other mail goes on meanwhile."""
    house = House()
    house.hold(CAMPAIGN, NOW)
    house.hold(sender_key("ses", "x@example.com"), NOW - 1)
    assert house.turn() == Go(probe=sender_key("ses", "x@example.com"))

    house = House()
    house.hold(CAMPAIGN, NOW + 1)
    assert house.turn() == Go()


def test_held_campaign_alone_waits_for_its_probe() -> None:
    """Nothing else is there, so that is the moment to wait for."""
    house = House(priority=False)
    house.hold(CAMPAIGN, NOW + 60_000)

    assert house.turn() == Rest(Why.IDLE, NOW + 60_000)


def test_spent_quota_stops_everyone_until_its_probe() -> None:
    """The upstream would refuse priority, too."""
    house = House(quota=spent())
    assert house.turn() == Rest(Why.QUOTA, NOW + PROBE_FIRST_MS)

    assert house.turn(now_ms=NOW + PROBE_FIRST_MS) == Go()


def test_spent_quota_stops_probes_of_holds() -> None:
    """They would be refused for the quota and learn nothing; and the wait is no busy one."""
    house = House(quota=spent())
    house.hold(CAMPAIGN, NOW)
    assert house.turn() == Rest(Why.QUOTA, NOW + PROBE_FIRST_MS)

    house.hold(ACCOUNT, NOW)
    assert house.turn() == Rest(Why.QUOTA, NOW + PROBE_FIRST_MS)


def test_reserve_is_for_priority() -> None:
    """Bulk waits until the ledger says that room comes back."""
    assert House(quota=reserve_left()).turn() == Go(only=PRIORITY)

    rest = House(quota=reserve_left(), priority=False).turn()

    assert isinstance(rest, Rest)
    assert rest.why is Why.QUOTA
    assert rest.until_ms is not None
    assert DAY - 600_000 < rest.until_ms - NOW <= DAY + 600_000


def test_reserve_waits_no_longer_than_a_probe() -> None:
    """Whichever moment comes first."""
    house = House(quota=reserve_left(), priority=False)
    house.hold(sender_key("ses", "x@example.com"), NOW + 60_000)

    assert house.turn() == Rest(Why.QUOTA, NOW + 60_000)


@pytest.mark.parametrize(
    ("bulk", "priority", "sessions", "quota", "held", "account"),
    list(
        product(
            (False, True),
            (False, True),
            (ALL_FREE, ONE_LEFT),
            ("", "spent", "reserve"),
            (None, NOW, NOW + 1),
            (None, NOW, NOW + 1),
        )
    ),
)
def test_never_against_a_hold_or_quota_and_never_a_busy_wait(
    bulk: bool,
    priority: bool,
    sessions: PoolState,
    quota: str,
    held: int | None,
    account: int | None,
) -> None:
    """Every state there is: what may go may go, and a rest ends in the future."""
    made = {"": lambda: Quota(config.Quota()), "spent": spent, "reserve": reserve_left}[quota]()
    house = House(quota=made, bulk=bulk, priority=priority)
    if held is not None:
        house.hold(CAMPAIGN, held)
    if account is not None:
        house.hold(ACCOUNT, account)

    turn = house.turn(sessions)

    if isinstance(turn, Rest):
        assert turn.until_ms is None or turn.until_ms > NOW
        return
    assert quota != "spent"
    assert not house.holds.account_held("ses") or turn.probe == ACCOUNT
    if not turn.probe and (sessions is ONE_LEFT or quota == "reserve"):
        assert turn.only == PRIORITY
        assert priority
    assert turn.only in (None, PRIORITY)

"""Whatever comes and goes, lanes lose nothing, double nothing and starve nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.config import Lane
from relay.lanes import Lanes
from tests.fakes.mail import envelope

CONFIG = {"bulk": Lane(floor=0.1), "priority": Lane(age_max_h=24)}
MAIL = st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 50))


@given(st.lists(MAIL, max_size=80), st.data())
def test_each_envelope_is_leased_once_until_given_back(
    mail: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Leases and settlements in any order: each envelope is settled exactly once."""
    lanes = Lanes(CONFIG)
    for number, (campaign, cost) in enumerate(mail):
        lanes.arrived(envelope(number, campaign=campaign, cost=cost))
        lanes.arrived(envelope(number, campaign=campaign, cost=cost))
    settled: list[int] = []
    returns = 20

    while (leased := lanes.choose()) is not None:
        if returns and data.draw(st.booleans()):
            returns -= 1
            lanes.give_back(leased)
        else:
            settled.append(leased.id)
            lanes.settled(leased)

    assert sorted(settled) == list(range(len(mail)))
    assert not lanes.ready()


@given(st.lists(st.integers(1, 50), min_size=100, max_size=100), st.integers(1, 50))
def test_no_campaign_falls_behind_by_more_than_one_message(costs: list[int], cost_b: int) -> None:
    """At any moment two busy campaigns differ by at most a largest message and a turn."""
    lanes = Lanes(CONFIG)
    for number, cost in enumerate(costs):
        lanes.arrived(envelope(number, campaign="a", cost=cost))
        lanes.arrived(envelope(1000 + number, campaign="b", cost=cost_b))
    sent = {"a": 0, "b": 0}
    left = {"a": 100, "b": 100}

    while min(left.values()) and (leased := lanes.choose()) is not None:
        lanes.settled(leased)
        sent[leased.campaign] += leased.cost
        left[leased.campaign] -= 1

        assert abs(sent["a"] - sent["b"]) <= 51


@given(st.lists(st.integers(1, 50), min_size=60, max_size=60))
def test_bulk_never_gets_less_than_its_floor(costs: list[int]) -> None:
    """Under a flood of priority mail of any sizes bulk has its tenth, give or take a message."""
    lanes = Lanes(CONFIG)
    for number, cost in enumerate(costs):
        lanes.arrived(envelope(number, cost=cost))
        for part in range(6):
            lanes.arrived(envelope(1000 + 10 * number + part, campaign="a"))
    sent = {"": 0, "a": 0}

    while lanes.ready(only="priority") and (leased := lanes.choose()) is not None:
        lanes.settled(leased)
        sent[leased.campaign] += leased.cost

        assert sent["a"] >= 0.1 * (sent[""] + sent["a"]) - 50

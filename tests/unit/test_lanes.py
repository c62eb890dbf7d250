"""Which envelope goes next."""

from __future__ import annotations

from collections import Counter

from relay.config import Lane
from relay.envelope import PRIORITY
from relay.lanes import WINDOW_LOW, WINDOW_MAX, Lanes, StreamKey, key_of
from tests.fakes.mail import envelope

CONFIG = {"bulk": Lane(floor=0.1), "priority": Lane(age_max_h=24)}


def chosen(lanes: Lanes, count: int, *, only: str | None = None) -> list[str]:
    """The campaigns of the next ``count`` envelopes, each settled at once."""
    campaigns = []
    for _ in range(count):
        leased = lanes.choose(only=only)
        if leased is None:
            break
        lanes.settled(leased)
        campaigns.append(leased.campaign)
    return campaigns


def test_priority_goes_before_a_campaign_that_came_first() -> None:
    """A password reset does not wait behind newsletters."""
    lanes = Lanes(CONFIG)
    lanes.arrived(envelope(1, campaign="a"))
    lanes.arrived(envelope(2))

    assert chosen(lanes, 9) == ["", "a"]


def test_bulk_keeps_its_floor_share_under_a_flood_of_priority_mail() -> None:
    """With floor 0.1, one recipient in ten is bulk's, and not many more."""
    lanes = Lanes(CONFIG)
    for number in range(WINDOW_MAX):
        lanes.arrived(envelope(number))
        lanes.arrived(envelope(1000 + number, campaign="a"))

    counts = Counter(chosen(lanes, 300))

    assert 29 <= counts["a"] <= 31


def test_no_share_is_earned_while_bulk_is_empty() -> None:
    """An hour of priority mail alone does not make a campaign jump the queue afterwards."""
    lanes = Lanes(CONFIG)
    for number in range(300):
        lanes.arrived(envelope(number))
    chosen(lanes, 200)

    lanes.arrived(envelope(1000, campaign="a"))

    assert "a" not in chosen(lanes, 8)


def test_campaigns_take_turns_by_recipients() -> None:
    """Ten recipients in one message cost a campaign ten turns."""
    lanes = Lanes(CONFIG)
    for number in range(10):
        lanes.arrived(envelope(number, campaign="a", cost=10))
    for number in range(100, 200):
        lanes.arrived(envelope(number, campaign="b"))

    order = chosen(lanes, 55)

    assert order.count("a") == 5
    assert order[:3] == ["a", "b", "b"]


def test_equal_campaigns_alternate() -> None:
    """No lumps: one each, in order of arrival within each."""
    lanes = Lanes(CONFIG)
    for number in range(4):
        lanes.arrived(envelope(number, campaign="a"))
        lanes.arrived(envelope(10 + number, campaign="b"))

    assert chosen(lanes, 8) == ["a", "b"] * 4


def test_a_lone_campaign_in_debt_goes_on() -> None:
    """Debt orders streams among each other; it never makes the line wait."""
    lanes = Lanes(CONFIG)
    for number in range(3):
        lanes.arrived(envelope(number, campaign="a", cost=50))

    assert chosen(lanes, 3) == ["a"] * 3


def test_a_stream_that_was_idle_has_saved_nothing_up() -> None:
    """A campaign that starts late gets equal turns, not those it missed."""
    lanes = Lanes(CONFIG)
    for number in range(100):
        lanes.arrived(envelope(number, campaign="a"))
    lanes.arrived(envelope(500, campaign="b"))
    chosen(lanes, 60)
    for number in range(600, 640):
        lanes.arrived(envelope(number, campaign="b"))

    order = chosen(lanes, 20)

    assert order.count("b") == 10


def test_held_campaign_is_passed_over_and_keeps_its_place() -> None:
    """A hold costs other campaigns nothing, and lifting it is enough to go on."""
    held = {"a"}
    lanes = Lanes(CONFIG, is_held=held.__contains__)
    lanes.arrived(envelope(1, campaign="a"))
    lanes.arrived(envelope(2, campaign="b"))

    assert chosen(lanes, 9) == ["b"]
    assert not lanes.ready()

    held.clear()

    assert lanes.ready()
    assert chosen(lanes, 9) == ["a"]


def test_reserved_session_serves_priority_only() -> None:
    """The last free session never goes to bulk."""
    lanes = Lanes(CONFIG)
    lanes.arrived(envelope(1, campaign="a"))

    assert not lanes.ready(only=PRIORITY)
    assert lanes.choose(only=PRIORITY) is None

    lanes.arrived(envelope(2))

    assert chosen(lanes, 9, only=PRIORITY) == [""]


def test_given_back_envelope_is_first_again() -> None:
    """A throttled envelope goes before the rest of its campaign."""
    lanes = Lanes(CONFIG)
    for number in (1, 2):
        lanes.arrived(envelope(number, campaign="a"))
    first = lanes.choose()
    assert first is not None

    lanes.give_back(first)

    assert lanes.choose() == first


def test_window_is_filled_from_the_spool_and_never_twice() -> None:
    """A deep campaign is read piece by piece; what is leased is not read again."""
    lanes = Lanes(CONFIG)
    spooled = [envelope(number, campaign="a") for number in range(1000)]
    key = key_of(spooled[0])
    for item in spooled:
        lanes.arrived(item)
    assert lanes.to_read() == []
    seen: list[int] = []
    leased: list[int] = []

    while (chosen_now := lanes.choose()) is not None:
        seen.append(chosen_now.id)
        leased.append(chosen_now.id)
        if len(leased) > 20:  # Settle late, as sessions do.
            done = leased.pop(0)
            spooled = [entry for entry in spooled if entry.id != done]
            lanes.settled(envelope(done, campaign="a"))
        for wanted, asked in lanes.to_read():
            assert wanted == key
            lanes.loaded(wanted, spooled[:asked], asked)

    assert seen == list(range(1000))


def test_deferred_mail_that_fell_due_is_found_behind_the_window() -> None:
    """A due envelope with an older id than all in memory is not overlooked."""
    lanes = Lanes(CONFIG)
    lanes.arrived(envelope(5, campaign="a"))
    key = StreamKey("bulk", "a")

    lanes.has_more([key])
    [(wanted, asked)] = lanes.to_read()
    lanes.loaded(wanted, [envelope(2, campaign="a"), envelope(5, campaign="a")], asked)

    assert lanes.to_read() == []
    assert {item.id for item in iter(lanes.choose, None)} == {2, 5}


def test_probe_takes_the_head_of_a_held_campaign() -> None:
    """A breaker may try one envelope of what it holds."""
    lanes = Lanes(CONFIG, is_held=lambda _: True)
    lanes.arrived(envelope(1, campaign="a"))

    probe = lanes.first_of("a")

    assert probe is not None
    assert probe.id == 1
    assert lanes.first_of("a") is None
    assert lanes.first_of("b") is None


def test_settled_streams_are_forgotten() -> None:
    """Finished campaigns leave nothing behind."""
    lanes = Lanes(CONFIG)
    for number in range(50):
        lanes.arrived(envelope(number, campaign=f"c{number}"))
    chosen(lanes, 50)
    lanes.loaded(StreamKey("bulk", "gone"), [], 10)

    assert lanes.to_read() == []
    assert not lanes._streams
    assert not lanes._turns


def test_low_window_is_filled_before_it_runs_dry() -> None:
    """The spool is asked while there is still mail to send meanwhile."""
    lanes = Lanes(CONFIG)
    for number in range(WINDOW_MAX + 1):
        lanes.arrived(envelope(number, campaign="a"))

    assert lanes.to_read() == []
    chosen(lanes, WINDOW_MAX - WINDOW_LOW)
    assert lanes.to_read() == []
    chosen(lanes, 1)

    assert [key.campaign for key, _ in lanes.to_read()] == ["a"]


def test_stale_read_does_not_bring_back_what_was_settled_meanwhile() -> None:
    """The spool was read, then the envelope was sent, then the read came back: sent once."""
    lanes = Lanes(CONFIG)
    for number in (1, 2):
        lanes.arrived(envelope(number, campaign="a"))
    lanes.has_more([StreamKey("bulk", "a")])
    [(key, asked)] = lanes.to_read()
    stale = [envelope(1, campaign="a"), envelope(2, campaign="a")]
    leased = lanes.choose()
    assert leased is not None

    lanes.settled(leased)
    lanes.loaded(key, stale, asked)

    assert [item.id for item in iter(lanes.choose, None)] == [2]


def test_arrival_during_a_read_is_read_afterwards() -> None:
    """A read that began before an envelope was committed does not hide it."""
    lanes = Lanes(CONFIG)
    lanes.has_more([StreamKey("bulk", "a")])
    [(key, asked)] = lanes.to_read()
    assert lanes.to_read() == []

    lanes.arrived(envelope(1, campaign="a"))
    lanes.loaded(key, [], asked)

    [(key, asked)] = lanes.to_read()
    lanes.loaded(key, [envelope(1, campaign="a")], asked)
    assert chosen(lanes, 9) == ["a"]


def test_failed_read_is_tried_again() -> None:
    """A spool that could not be read hides no mail for good."""
    lanes = Lanes(CONFIG)
    lanes.has_more([StreamKey("bulk", "a")])
    [(key, _)] = lanes.to_read()

    lanes.loaded(key, [], 0)

    assert [key for key, _ in lanes.to_read()] == [StreamKey("bulk", "a")]


def test_accounts_probe_takes_the_first_head_that_is_usable() -> None:
    """Held or not; but what a person holds is passed over."""
    lanes = Lanes(CONFIG, is_held=lambda _: True)
    for number, campaign in enumerate("abc", start=1):
        lanes.arrived(envelope(number, campaign=campaign))

    probe = lanes.any_head(lambda one: one.campaign != "a")

    assert probe is not None
    assert probe.campaign == "b"
    assert lanes.any_head(lambda _: False) is None

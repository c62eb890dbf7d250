"""How old mail is, not counting the time in which nobody could have sent it."""

from __future__ import annotations

import json

from relay.ageing import GRACE_MS, KEEP_MS, STRETCHES_MAX, Ageing

HOUR = 3_600_000
START = 1_800_000_000_000
SCOPES = ("account:ses", "quota:ses")


def test_mail_expires_by_age() -> None:
    """Past the lane's age limit, and not before."""
    ageing = Ageing(START)

    assert not ageing.expired(START, 24, SCOPES, START + 24 * HOUR)
    assert ageing.expired(START, 24, SCOPES, START + 24 * HOUR + 1)


def test_stopped_time_does_not_count() -> None:
    """A day with the account held makes no mail older."""
    ageing = Ageing(START)

    ageing.stop("account:ses", START + HOUR)
    assert ageing.go("account:ses", START + 25 * HOUR)

    assert not ageing.expired(START, 24, SCOPES, START + 48 * HOUR)
    assert ageing.expired(START, 24, SCOPES, START + 48 * HOUR + 1)
    assert ageing.expired(START, 24, ("quota:ses",), START + 48 * HOUR)


def test_time_that_is_still_stopped_does_not_count() -> None:
    """While the hold lasts nothing expires."""
    ageing = Ageing(START)

    ageing.stop("account:ses", START)
    ageing.stop("account:ses", START + 100 * HOUR)

    assert not ageing.expired(START, 24, SCOPES, START + 200 * HOUR)


def test_two_stops_at_once_count_once() -> None:
    """Held and out of quota in the same hour: one hour was lost, not two."""
    ageing = Ageing(START)
    for scope in SCOPES:
        ageing.stop(scope, START + HOUR)
        ageing.go(scope, START + 3 * HOUR)

    assert not ageing.expired(START, 24, SCOPES, START + 26 * HOUR)
    assert ageing.expired(START, 24, SCOPES, START + 26 * HOUR + 1)


def test_stop_before_the_mail_came_does_not_help_it() -> None:
    """Only time that the mail itself spent waiting is left out."""
    ageing = Ageing(START)
    ageing.stop("account:ses", START)
    ageing.go("account:ses", START + 10 * HOUR)

    assert ageing.expired(START + 10 * HOUR, 24, SCOPES, START + 34 * HOUR + 1)


def test_nothing_expires_right_after_the_start_or_a_clock_step() -> None:
    """Ten minutes of grace, in which a wrong clock can be put right."""
    ageing = Ageing(START)
    assert not ageing.expired(START - 1000 * HOUR, 24, SCOPES, START + GRACE_MS - 1)
    assert ageing.expired(START - 1000 * HOUR, 24, SCOPES, START + GRACE_MS)

    ageing.stepped(1000 * HOUR, START + 1000 * HOUR)

    assert not ageing.expired(START, 24, SCOPES, START + 1000 * HOUR + GRACE_MS - 1)


def test_clock_step_does_not_stretch_an_open_stop() -> None:
    """A clock set forward by a day does not look like a day of stopped time."""
    ageing = Ageing(START)
    ageing.stop("account:ses", START)

    ageing.stepped(24 * HOUR, START + 25 * HOUR)
    ageing.go("account:ses", START + 25 * HOUR)

    assert ageing.saved(START + 25 * HOUR)["account:ses"] == [
        (START + 24 * HOUR, START + 25 * HOUR)
    ]


def test_stopped_time_survives_a_restart() -> None:
    """What was saved as JSON counts as before; old stretches are left out."""
    ageing = Ageing(START)
    ageing.stop("account:ses", START)
    ageing.go("account:ses", START + HOUR)
    ageing.stop("quota:ses", START + 2 * HOUR)

    saved = json.loads(json.dumps(ageing.saved(START + 4 * HOUR)))
    again = Ageing(START + 4 * HOUR)
    again.load(saved)

    assert not again.expired(START, 24, SCOPES, START + 27 * HOUR)
    assert again.expired(START, 24, SCOPES, START + 27 * HOUR + 1)
    assert again.saved(START + 4 * HOUR + KEEP_MS) == {}


def test_saved_time_that_makes_no_sense_is_left_out() -> None:
    """A spoilt row costs its stretches, not the start."""
    ageing = Ageing(START)

    ageing.load(
        {
            "account:ses": [[START, START + HOUR], "x", [START], [None, 1], 7],
            "quota:ses": 7,
            "broken:ses": None,
        }
    )

    assert ageing.saved(START) == {"account:ses": [(START, START + HOUR)]}


def test_stretches_are_bounded_and_joined_in_favour_of_the_mail() -> None:
    """Memory stays small; joining two stretches never makes mail older."""
    ageing = Ageing(START)
    for number in range(STRETCHES_MAX + 50):
        ageing.stop("account:ses", START + 2 * number * HOUR)
        ageing.go("account:ses", START + (2 * number + 1) * HOUR)

    end = START + 2 * (STRETCHES_MAX + 50) * HOUR
    assert len(ageing.saved(end)["account:ses"]) == STRETCHES_MAX
    assert not ageing.expired(START, STRETCHES_MAX + 50, SCOPES, end)


def test_going_on_without_a_stop_changes_nothing() -> None:
    """Lifting what was never stopped is no stretch."""
    ageing = Ageing(START)

    assert not ageing.go("account:ses", START)
    assert ageing.saved(START) == {}


def test_clock_that_goes_backward_makes_an_empty_stretch() -> None:
    """A stretch never ends before it began."""
    ageing = Ageing(START)
    ageing.stop("account:ses", START)

    ageing.go("account:ses", START - HOUR)

    assert ageing.saved(START) == {"account:ses": [(START, START)]}


def test_time_that_a_clock_step_added_is_no_age() -> None:
    """A clock set forward by thirty days does not expire mail of a minute ago."""
    step, ageing = 30 * 24 * HOUR, Ageing(START)
    ageing.stepped(step, START + step)

    assert not ageing.expired(START - 60_000, 336, [], START + step + GRACE_MS)
    assert ageing.expired(START - 60_000, 336, [], START + step + 336 * HOUR)


def test_clock_that_was_set_is_not_trusted_until_it_is_said() -> None:
    """Between a step and the notice of it, nothing is decided by age."""
    ageing = Ageing(START)
    assert ageing.is_steady(START, 100.0)
    assert ageing.is_steady(START + 5000, 105.0)

    assert not ageing.is_steady(START + 25 * HOUR, 106.0)

    ageing.stepped(25 * HOUR, START + 25 * HOUR)
    assert ageing.is_steady(START + 25 * HOUR, 107.0)
    assert not ageing.is_steady(START + 26 * HOUR, 108.0)


def test_clock_that_is_nudged_stays_trusted() -> None:
    """NTP corrects by seconds all day; many small steps are no large one."""
    ageing = Ageing(START)

    for number in range(10):
        now_ms = START + 40_000 * number
        assert ageing.is_steady(now_ms, float(number))
        ageing.went_on(now_ms, float(number))

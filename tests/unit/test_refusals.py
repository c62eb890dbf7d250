"""Mail that is throttled again and again, and when it steps aside."""

from __future__ import annotations

from relay.dispatcher.refusals import AGAIN, ENVELOPES_MAX, PATIENCE, PATIENCE_S, Refusals


def stepped_aside(refusals: Refusals, envelope_id: int = 1, at: float = 0.0) -> int:
    """Throttle it for as long as it takes the first time."""
    steps = (at + n * PATIENCE_S / (PATIENCE - 1) for n in range(PATIENCE))
    return [refusals.throttled(envelope_id, step) for step in steps][-1]


def test_throttles_in_a_row_are_the_rates_until_they_last() -> None:
    """Neither many within a second nor a few over an hour move mail from its place."""
    many, few = Refusals(), Refusals()

    assert {many.throttled(1, n / 100) for n in range(100)} == {0}
    assert {few.throttled(1, n * 600.0) for n in range(PATIENCE - 1)} == {0}


def test_mail_that_is_throttled_for_long_steps_aside() -> None:
    """It has been tried ten times, over half a minute."""
    assert stepped_aside(Refusals()) == 1


def test_mail_throttled_again_while_others_go_waits_longer_each_time() -> None:
    """It is about that mail."""
    refusals, found = Refusals(), []
    stepped_aside(refusals)
    for _ in range(3):
        refusals.accepted()
        found += [refusals.throttled(1, 100.0) for _ in range(AGAIN)]

    assert found == [0, 2, 0, 3, 0, 4]


def test_mail_throttled_again_while_all_are_never_waits_longer() -> None:
    """It is the account's trouble, and will be over for all at once."""
    refusals = Refusals()
    stepped_aside(refusals)

    found = {refusals.throttled(1, float(at)) for at in range(100, 10_000)}

    assert found == {0, 1}


def test_any_other_answer_ends_the_row() -> None:
    """Whatever it was."""
    refusals = Refusals()
    for _ in range(PATIENCE - 1):
        refusals.throttled(1, 0.0)

    refusals.answered(1)

    assert refusals.throttled(1, PATIENCE_S) == 0


def test_memory_of_throttled_mail_is_bounded() -> None:
    """The one throttled longest ago is forgotten first."""
    refusals = Refusals()
    for number in range(ENVELOPES_MAX + 10):
        refusals.throttled(number, 0.0)

    assert len(refusals._rows) == ENVELOPES_MAX
    assert 0 not in refusals._rows

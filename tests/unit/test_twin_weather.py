"""The parts that faults by plan and by probability are made of."""

from __future__ import annotations

import random

import pytest

from relay.twin import Action, Cut, Fault, Say, Stage, Transaction, texts, weather

NO = Say(texts.TEMPORARY_454)
CUT = Cut(reset=True)


def strikes(fault: Fault, n: int, stage: Stage = Stage.DOT) -> list[bool]:
    """Whether ``fault`` strikes at the first ``n`` messages of a session."""
    return [
        fault(stage, Transaction(session=1, number=number)) is not None
        for number in range(1, n + 1)
    ]


def ask(fault: Fault, stage: Stage = Stage.DOT, session: int = 1) -> Action | None:
    """What ``fault`` does at that stage of a session's first message."""
    return fault(stage, Transaction(session=session))


def test_fault_at_a_stage_leaves_the_others_alone() -> None:
    """Only there, in every message of every session."""
    fault = weather.at(Stage.DOT, NO)

    assert [stage for stage in Stage if ask(fault, stage) is not None] == [Stage.DOT]
    assert strikes(fault, 3) == [True] * 3


def test_fault_can_be_planned_for_messages_and_sessions() -> None:
    """Ranges count from 1, as the transaction does."""
    third = weather.at(Stage.DOT, NO, messages=range(3, 5))
    second = weather.at(Stage.CONNECT, CUT, sessions={2})

    assert strikes(third, 5) == [False, False, True, True, False]
    assert [ask(second, Stage.CONNECT, session) for session in (1, 2, 3)] == [None, CUT, None]


def test_chance_strikes_as_often_as_it_says_and_can_be_repeated() -> None:
    """A fifth of 5,000, at its own stage, and the same ones with the same seed."""
    runs = [
        strikes(weather.sometimes(random.Random(seed), {Stage.DOT: (0.2, NO)}), 5_000)
        for seed in (1, 1, 2)
    ]

    assert sum(runs[0]) == pytest.approx(1_000, rel=0.1)
    assert runs[0] == runs[1] != runs[2]
    assert not any(
        strikes(weather.sometimes(random.Random(1), {Stage.DOT: (1, NO)}), 9, Stage.MAIL)
    )


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_probability_must_be_one(probability: float) -> None:
    """The error names the stage and what was found."""
    with pytest.raises(ValueError, match=f"^dot: found {probability}, wanted 0 to 1"):
        weather.sometimes(random.Random(1), {Stage.DOT: (probability, NO)})


def test_flag_switches_a_fault() -> None:
    """It is asked each time."""
    flags = iter([True, False, True])
    fault = weather.while_(lambda: next(flags), weather.at(Stage.DOT, NO))

    assert strikes(fault, 3) == [True, False, True]


def test_first_strikes_so_often_and_never_again() -> None:
    """What its fault lets pass does not count."""
    fault = weather.first(2, weather.at(Stage.DOT, NO))

    assert strikes(fault, 3, Stage.MAIL) == [False] * 3
    assert strikes(fault, 4) == [True, True, False, False]


def test_turns_come_again() -> None:
    """Two strikes, three rests, for ever."""
    fault = weather.by_turns(2, 3, weather.at(Stage.DOT, NO))

    assert strikes(fault, 12) == [True, True, False, False, False] * 2 + [True, True]


def test_bursts_follow_the_clock_from_the_first_question() -> None:
    """Five seconds of quiet, then two of every ten."""
    now = 1_000.0
    fault = weather.bursts(
        lambda: now, weather.at(Stage.DOT, NO), every_s=10, lasting_s=2, after_s=5
    )

    struck = []
    for _ in range(30):
        struck.append(ask(fault) is not None)
        now += 1

    assert [second for second, is_struck in enumerate(struck) if is_struck] == [
        5,
        6,
        15,
        16,
        25,
        26,
    ]


def test_first_of_several_faults_wins() -> None:
    """Those behind it are not asked, so that their counts are their own."""
    second = weather.first(1, weather.at(Stage.DOT, NO))
    fault = weather.either(weather.at(Stage.DOT, CUT, messages={1}), second)

    actions = [fault(Stage.DOT, Transaction(session=1, number=n)) for n in (1, 2, 3)]

    assert actions == [CUT, NO, None]

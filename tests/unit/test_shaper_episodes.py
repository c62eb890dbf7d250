"""What a brake, a probe and a trial make of what they have counted."""

from __future__ import annotations

import pytest

from relay.shaper import tuning
from relay.shaper.episodes import Brake, Probe, Trial, Turns


def brake(refused: float, accepted: float, *, was_search: bool = True) -> Brake:
    return Brake(10.0, 100.0, was_search, has_begun=False, refused=refused, accepted=accepted)


@pytest.mark.parametrize(
    ("refused", "accepted", "was_search", "is_false"),
    [(3, 97, True, True), (3, 97, False, False), (3, 10, True, False), (20, 80, True, False)],
    ids=["hardly any", "no search", "too few", "many"],
)
def test_search_was_ended_by_chance_if_hardly_anything_else_is_refused(
    refused: float, accepted: float, is_false: bool, was_search: bool
) -> None:
    """Of enough messages under way, and of a search only."""
    assert brake(refused, accepted, was_search=was_search).is_false is is_false


@pytest.mark.parametrize(
    ("refused", "accepted", "until", "kept"),
    [
        (48, 50, 11.0, 52),
        (98, 0, 11.0, 100 * tuning.KEPT_MIN),
        (98, 0, 10.1, 100 * tuning.KEPT_SHORT_MIN),
        (4, 94, 11.0, 100 * tuning.KEPT_MAX),
    ],
    ids=["share", "all, for long", "all, for a moment", "few"],
)
def test_a_cut_keeps_the_share_that_passed_within_bounds(
    refused: float, accepted: float, until: float, kept: float
) -> None:
    """Two more are taken for accepted; a short span cuts less, a mild one no less than 30 %."""
    assert brake(refused, accepted).kept_per_s(until) == pytest.approx(kept)


def test_probe_lasts_until_more_than_the_saved_tokens_must_be_used_up() -> None:
    """Ten saved at an excess of a tenth: 1.2 times a hundred messages, and two."""
    probe = Probe(saved=10)
    probe.step(now=5.0, excess=0.1, unit=1, noise=0.002)

    count = next(n for n in range(1, 1000) if probe.accept(1))

    assert count == 122
    assert probe.began_at == 5.0


def test_first_refusal_ends_a_quiet_probe_but_not_a_noisy_one() -> None:
    """Where chance refuses, too, or a step was outlived, it takes more than one."""
    probe = Probe(saved=10)
    probe.step(now=5.0, excess=0.25, unit=1, noise=0.1)

    probe.refuse(6.0)
    quiet, noisy = probe.is_met(quiet=True), probe.is_met(quiet=False)
    probe.outlived = 1
    outlived = probe.is_met(quiet=True)
    for n in range(5):
        probe.refuse(6.1 + n)

    assert (quiet, noisy, outlived) == (True, False, False)
    assert probe.is_met(quiet=False)


def test_outlived_probe_with_many_refusals_was_none() -> None:
    """Ten of a hundred, where chance explains one or two: it has met the limit."""
    probe = Probe(saved=10)
    probe.step(now=5.0, excess=0.25, unit=1, noise=0.1)
    for _ in range(90):
        probe.accept(1)
    for n in range(10):
        probe.refuse(6.0 + n)

    assert probe.is_beyond(noise=0.01)
    assert not probe.is_beyond(noise=0.1)


def trial(refused: int, accepted: int) -> Trial:
    """A correction because of one refused in ten, after so many messages."""
    one = Trial(50.0, 100.0, share=0.1, left=40, is_cut=True, suspects=2.0)
    for n in range(refused + accepted):
        one.weigh(refused=n < refused)
    return one


def test_trial_asks_for_its_verdict_when_enough_was_tried() -> None:
    """At the fortieth message, not before."""
    one = trial(refused=0, accepted=38)

    assert not one.weigh(refused=False)
    assert one.weigh(refused=True)
    assert one.refused_share == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    ("refused", "accepted", "changed_nothing"),
    [(4, 36, True), (1, 39, False), (1, 0, False), (0, 0, False)],
    ids=["as before", "much less", "one", "nothing tried"],
)
def test_correction_changed_nothing_if_refusals_go_on_as_before(
    refused: int, accepted: int, changed_nothing: bool
) -> None:
    """About the share that made the correction, and more than a single one."""
    assert trial(refused, accepted).changed_nothing is changed_nothing


@pytest.mark.parametrize(
    ("refused", "accepted", "suspects", "is_over"),
    [
        (3, 297, 0, True),
        (2, 297, 0, False),
        (3, 97, 0, False),
        (3, 647, 0, False),
        (3, 297, 2, False),
    ],
    ids=["as suspected", "too few to tell", "far more", "far less", "a correction's"],
)
def test_doubt_is_answered_as_soon_as_noise_is_proven(
    refused: int, accepted: int, suspects: int, is_over: bool
) -> None:
    """Three refused at about the suspected share; a limit that fell refuses far more."""
    doubt = Trial(50.0, 100.0, share=0.01, left=750, is_cut=True, suspects=suspects)
    for _ in range(accepted):
        assert not doubt.weigh(refused=False)

    answers = [doubt.weigh(refused=True) for _ in range(refused)]

    assert answers[-1] is is_over


def test_gentle_probes_become_rare_while_they_are_met() -> None:
    """From one in three to one in seventeen; where chance refuses, no rarer than one in five."""
    turns, noisy = Turns(), Turns()

    for _ in range(5):
        turns.answer(outlived=False, often=False)
        noisy.answer(outlived=False, often=True)

    assert turns.left == tuning.GENTLE_GAP_MAX
    assert noisy.left == tuning.GENTLE_GAP_OFTEN


def test_gentle_probe_comes_again_soon_after_one_that_was_outlived() -> None:
    """The estimate was low, and may still be."""
    turns = Turns(gap=16)

    turns.answer(outlived=True, often=False)
    turns.count()

    assert turns.left == tuning.GENTLE_GAP - 1

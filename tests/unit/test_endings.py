"""Sessions that end under the mail, and when that stops being nothing."""

from __future__ import annotations

import pytest

from relay.dispatcher.endings import (
    ENVELOPES_MAX,
    ORDINARY,
    PAUSE_MAX_S,
    Endings,
    is_ordinary,
)
from relay.reply import Stage
from relay.verdict import Ending, SessionEnded

CLOSED = SessionEnded(Ending.SERVER, "421 4.3.0 Service not available")


def test_one_or_two_endings_are_nothing() -> None:
    """The same mail goes on the next session at once."""
    endings = Endings()

    assert [endings.ended(1, CLOSED, now, now + 0.1) for now in (0.0, 1.0)] == [0, 0]
    assert not endings.is_broken
    assert endings.wait_s(1.1) == 0


def test_upstream_that_keeps_closing_is_left_alone_for_longer_and_longer() -> None:
    """The pause doubles, up to a minute."""
    endings, pauses, now = Endings(), [], 0.0
    for number in range(12):
        endings.ended(number, CLOSED, now, now)
        pauses.append(endings.wait_s(now))
        now += pauses[-1] + 0.1

    assert pauses == pytest.approx([0, 0, 1, 2, 4, 8, 16, 32, *[PAUSE_MAX_S] * 4])
    assert endings.text == CLOSED.text


def test_ten_sessions_cut_at_once_are_one_ending() -> None:
    """What was under way when the first of them ended is of its generation."""
    endings = Endings()

    for number in range(10):
        endings.ended(number, CLOSED, 0.5, 1.0 + number / 100)

    assert not endings.is_broken


def test_any_answer_mends_the_upstream() -> None:
    """A 454 is an answer, too."""
    endings = Endings()
    for now in range(5):
        endings.ended(now, CLOSED, float(now), float(now))
    assert endings.is_broken

    endings.answered(99)

    assert not endings.is_broken
    assert endings.wait_s(5.0) == 0


def test_mail_under_which_every_session_ends_waits_while_others_go() -> None:
    """From the third time on it is put off, once more each time."""
    endings = Endings()
    found = []
    for now in range(5):
        found.append(endings.ended(1, CLOSED, float(now), float(now)))
        endings.answered(2)

    assert found == [0, 0, 1, 2, 3]
    endings.answered(1)
    assert endings.ended(1, CLOSED, 9.0, 9.0) == 0


@pytest.mark.parametrize("ending", sorted(ORDINARY))
def test_ordinary_end_is_one_of_a_session_that_has_worked(ending: Ending) -> None:
    """A full session, an idle cut and too many sessions: at MAIL or RCPT, after other mail."""
    verdict = SessionEnded(ending, "421")

    assert is_ordinary(verdict, Stage.MAIL, first=False)
    assert is_ordinary(verdict, Stage.RCPT, first=False)
    assert not is_ordinary(verdict, Stage.DOT, first=False)
    assert not is_ordinary(verdict, Stage.MAIL, first=True)


def test_other_ends_are_never_ordinary() -> None:
    """However long the session had worked."""
    assert not is_ordinary(CLOSED, Stage.MAIL, first=False)


def test_memory_is_bounded() -> None:
    """The envelope counted longest ago is forgotten first."""
    endings = Endings()
    for number in range(ENVELOPES_MAX + 10):
        endings.ended(number, CLOSED, 0.0, 0.0)

    assert len(endings._by_envelope) == ENVELOPES_MAX
    assert 0 not in endings._by_envelope

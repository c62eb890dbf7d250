"""How a rate is told: the phase in words, with units and digits that fit its size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.figures import (
    PHASES,
    KnownBy,
    change_in_words,
    known_in_words,
    limit_in_words,
    per_s,
    rate_in_words,
    span,
)
from relay.service.figures import UPSTREAMS_SAID, in_words
from relay.shaper import Cause
from tests.fakes.figures import figures, upstream

NOW = 2
AGO_40_S = NOW - 40_000


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        (0.0, "0/s"),
        (0.05, "0.05/s"),
        (0.5, "0.50/s"),
        (0.999, "1.00/s"),
        (5, "5.00/s"),
        (9.996, "10.0/s"),
        (14, "14.0/s"),
        (99.94, "99.9/s"),
        (99.96, "100/s"),
        (200.4, "200/s"),
        (1000, "1000/s"),
        (123456.7, "123457/s"),
        (float("inf"), "inf/s"),
        (float("nan"), "nan/s"),
    ],
)
def test_rate_is_told_with_three_digits(rate: float, wanted: str) -> None:
    """Enough at 0.5 a second, and no false precision at 1000."""
    assert per_s(rate) == wanted


@pytest.mark.parametrize(
    ("limit", "error", "wanted"),
    [
        (None, 1.0, "not known yet"),
        (14.0, 0.005, "14.0/s ± 0.1"),
        (14.0, 0.1, "14.0/s ± 1.4"),
        (0.5, 0.02, "0.50/s ± 0.01"),
        (1000.0, 0.002, "1000/s ± 2"),
        (1000.0, 0.0, "1000/s ± 1"),
        (14.0, 1.0, "about 14.0/s"),
        (14.0, 0.5, "about 14.0/s"),
        (float("inf"), 0.1, "inf/s ± inf"),
    ],
)
def test_limit_is_told_with_its_error(limit: float | None, error: float, wanted: str) -> None:
    """In the digits of the limit, and never as none at all."""
    assert limit_in_words(limit, error) == wanted


@pytest.mark.parametrize(
    ("ms", "wanted"),
    [
        (-5_000, "0 s"),
        (400, "0 s"),
        (119_400, "119 s"),
        (120_000, "2 min"),
        (7_199_000, "119 min"),
        (7_200_000, "2 h"),
        (47 * 3_600_000, "47 h"),
        (48 * 3_600_000, "2 d"),
    ],
)
def test_time_is_told_in_the_unit_that_fits(ms: float, wanted: str) -> None:
    """Never less than two of a unit, but for seconds."""
    assert span(ms) == wanted


@pytest.mark.parametrize(
    ("known_by", "dated", "undated"),
    [
        (KnownBy.NOBODY, "not known yet", "not known yet"),
        (KnownBy.CONFIRMED, "confirmed 40 s ago", "confirmed"),
        (KnownBy.ESTIMATED, "estimated 40 s ago, not confirmed yet", "not confirmed yet"),
        (
            KnownBy.REMEMBERED,
            "remembered, last confirmed 40 s ago",
            "remembered from an earlier run",
        ),
        (
            KnownBy.OPERATOR,
            "set by an operator 40 s ago, not confirmed yet",
            "set by an operator",
        ),
        (KnownBy.AWS, "told by AWS 40 s ago, not confirmed yet", "told by AWS"),
    ],
)
def test_limit_says_how_it_is_known(known_by: KnownBy, dated: str, undated: str) -> None:
    """By whom and since when, if that is known."""
    assert known_in_words(known_by.value, AGO_40_S, NOW) == dated
    assert known_in_words(known_by.value, None, NOW) == undated


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({}, "holding 14.0/s ± 0.1, confirmed 40 s ago"),
        (
            {"use_max": 0.8, "rate_per_s": 11.2},
            "holding 11.2/s, use_max 0.8 of 14.0/s ± 0.1, confirmed 40 s ago",
        ),
        (
            {"use_max": 0.8, "rate_per_s": 13.97},
            "holding 14.0/s ± 0.1, confirmed 40 s ago",
        ),
        ({"phase": "searching", "rate_per_s": 23.4}, "searching, 23.4/s so far"),
        (
            {"phase": "settling", "error_share": 0.04},
            "settling near 14.0/s ± 0.6, confirmed 40 s ago",
        ),
        ({"phase": "probing"}, "probing for more than 14.0/s, confirmed 40 s ago"),
        (
            {"phase": "settling", "limit_per_s": None},
            "settling: a limit was met, and is being measured",
        ),
        ({"phase": "holding", "limit_per_s": None}, "holding 12.5/s, limit not known yet"),
        ({"phase": "probing", "limit_per_s": None}, "probing, 12.5/s so far"),
        ({"phase": "new", "limit_per_s": None}, "new, limit not known yet"),
        ({"phase": "idle"}, "idle; last known 14.0/s ± 0.1"),
        ({"phase": "idle", "limit_per_s": None}, "idle; limit not known yet"),
        ({"phase": "new"}, "new, limit 14.0/s ± 0.1, confirmed 40 s ago"),
        (
            {"session_bound": True, "sessions_busy": 10, "sent_per_s": 4.8, "limit_per_s": None},
            "session-bound: 10 sessions carry 4.80/s, the limit is at least 4.80/s",
        ),
        (
            {"session_bound": True, "sessions_busy": 10, "sent_per_s": 4.8},
            "session-bound: 10 sessions carry 4.80/s, the limit is 14.0/s ± 0.1",
        ),
        (
            {"session_bound": True, "sessions_busy": 1, "sent_per_s": 0.0, "limit_per_s": None},
            "session-bound: 1 session carries 0/s so far, the limit is not known yet",
        ),
        (
            {"ceiling_per_s": 10.0, "rate_per_s": 10.0},
            "held down to ceiling_per_s, 10.0/s; limit 14.0/s ± 0.1",
        ),
        (
            {"ceiling_per_s": 10.0, "rate_per_s": 10.0, "limit_per_s": None},
            "held down to ceiling_per_s, 10.0/s; limit not known",
        ),
        (
            {"session_bound": True, "sessions_busy": 10, "sent_per_s": 4.8, "limit_per_s": 3.0},
            "session-bound: 10 sessions carry 4.80/s, the limit is at least 4.80/s",
        ),
        (
            {"ceiling_per_s": 10.0, "rate_per_s": 9.9},
            "holding 14.0/s ± 0.1, confirmed 40 s ago",
        ),
        (
            {"ceiling_per_s": 14.0, "rate_per_s": 13.97},
            "holding 14.0/s ± 0.1, confirmed 40 s ago",
        ),
        (
            {"floor_per_s": 20.0, "rate_per_s": 20.0},
            "held up to floor_per_s, 20.0/s; limit 14.0/s ± 0.1",
        ),
        ({"phase": "idle", "floor_per_s": 20.0}, "idle; last known 14.0/s ± 0.1"),
    ],
)
def test_phase_is_told_in_words(facts: dict[str, object], wanted: str) -> None:
    """One sentence that needs no manual."""
    assert rate_in_words(upstream(**facts), NOW) == wanted


@given(
    phase=st.sampled_from(PHASES),
    known_by=st.sampled_from(KnownBy),
    known_at=st.none() | st.integers(-(10**15), 10**15),
    limit=st.none() | st.floats(1e-6, 1e9),
    error=st.floats(0, 1),
    rate=st.floats(0, 1e9),
    bound=st.booleans(),
    busy=st.integers(0, 1000),
    sent=st.floats(0, 1e9),
)
def test_whatever_is_known_can_be_told(  # noqa: PLR0913  # all that words depend on
    *,
    phase: str,
    known_by: KnownBy,
    known_at: int | None,
    limit: float | None,
    error: float,
    rate: float,
    bound: bool,
    busy: int,
    sent: float,
) -> None:
    """On one line, short enough for it, without a gap or a number that is none."""
    one = upstream(
        phase=phase,
        known_by=known_by.value,
        known_at=known_at,
        limit_per_s=limit,
        error_share=error,
        rate_per_s=rate,
        session_bound=bound,
        sessions_busy=busy,
        sent_per_s=sent,
    )

    said = rate_in_words(one, NOW)

    assert said.isprintable()
    assert len(said) < 120
    assert not {"nan", "inf", "None", "nan/s", "inf/s"} & set(said.split())
    assert "  " not in said
    assert said.count("not known yet") <= 1


def test_line_of_systemctl_says_what_is_known_of_the_limit() -> None:
    """Of the first few upstreams: it is one line."""
    names = [f"u{n}" for n in range(UPSTREAMS_SAID + 1)]

    said = in_words(figures(upstreams=tuple(upstream(name=name) for name in names)))

    assert "; u0 holding 14.0/s ± 0.1, confirmed 40 s ago; u1 holding" in said
    assert f"u{UPSTREAMS_SAID}" not in said


def test_change_of_a_limit_says_from_what_to_what_and_why() -> None:
    """Also the first, and one that takes the limit away."""
    raised, found = Cause.RAISED.value, Cause.FOUND.value

    assert change_in_words(14.0, 28.0, raised) == f"limit 28.0/s, was 14.0/s: {raised}"
    assert change_in_words(None, 14.0, found) == f"limit 14.0/s, not known before: {found}"
    assert change_in_words(14.0, None, raised) == f"limit not known any more, was 14.0/s: {raised}"

"""The retry schedule stays within its bounds for every configuration that parses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.deferral import IN_DOUBT_MS, due_at, in_doubt_at

NOW = 1_800_000_000_000


@st.composite
def retries(draw: st.DrawFn) -> config.Retry:
    first_s = draw(st.floats(1, 86_400))
    return config.Retry(
        first_s=first_s,
        factor=draw(st.floats(1, 100)),
        max_s=draw(st.floats(first_s, 604_800)),
        jitter=draw(st.floats(0, 1)),
    )


@given(retries(), st.integers(1, 100_000), st.floats(0, 1))
def test_wait_stays_between_first_and_max_give_or_take_the_jitter(
    retry: config.Retry, attempts: int, jitter: float
) -> None:
    """Never sooner than ``first_s`` less its share, never later than ``max_s`` and its share."""
    wait_ms = due_at(retry, attempts, NOW, jitter) - NOW

    assert retry.first_s * 1000 * (1 - retry.jitter) - 1 <= wait_ms
    assert wait_ms <= retry.max_s * 1000 * (1 + retry.jitter) + 1
    assert in_doubt_at(retry, attempts, NOW, jitter) - NOW == max(IN_DOUBT_MS, wait_ms)


@given(retries(), st.integers(1, 10_000), st.floats(0, 1))
def test_wait_never_shrinks_from_one_attempt_to_the_next(
    retry: config.Retry, attempts: int, jitter: float
) -> None:
    """At equal luck."""
    assert due_at(retry, attempts, NOW, jitter) <= due_at(retry, attempts + 1, NOW, jitter)

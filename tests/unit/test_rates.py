"""A person's word on the send rate: what it changes, and how a wrong one fares in the model."""

from __future__ import annotations

import math

import pytest

from relay import config
from relay.service.memory import TOLD_CONFIDENCE
from relay.service.rates import _check as check
from relay.service.rates import _rate_in as rate_in
from relay.service.rates import chosen
from relay.shaper import Shaper
from tests.bench.shaping.model import START_AT, Bucket, Course

RATE = config.parse({}).upstreams[0].rate


@pytest.mark.parametrize("latency_s", [0.03, 0.25])
@pytest.mark.parametrize(("told", "truth", "within_s"), [(100, 50, 5), (20, 100, 40), (50, 50, 5)])
def test_a_told_rate_is_corrected_by_what_the_upstream_answers(
    told: float, truth: float, within_s: float, latency_s: float
) -> None:
    """Too high, too low or right, in mid-course with messages under way: it ends at the truth."""
    shaper = Shaper(RATE)
    course = Course(shaper=shaper, limit=Bucket(truth, truth), latency_s=latency_s).run(60)
    known = {"limit_per_s": told, "confidence": TOLD_CONFIDENCE}

    shaper.restore(START_AT + 60, known)
    course.run(130)

    assert course.reached(0.95, truth, 60) <= within_s
    assert course.use(100, 130, truth) >= 0.95
    assert course.refused_share(60, 130) <= 0.03


def test_a_request_names_one_upstream_or_means_all() -> None:
    """An unknown name is told with those that there are."""
    assert chosen({}, ["ses", "eu"]) == ["ses", "eu"]
    assert chosen({"upstream": None}, ["ses"]) == ["ses"]
    assert chosen({"upstream": "eu"}, ["ses", "eu"]) == ["eu"]
    with pytest.raises(ValueError, match=r"no upstream 'us': wanted ses, eu"):
        chosen({"upstream": "us"}, ["ses", "eu"])


@pytest.mark.parametrize(
    "per_s", [None, "50", True, math.nan, math.inf, [1], 0, -1, 100_001, 10**400]
)
def test_what_is_no_rate_is_refused(per_s: object) -> None:
    """Whatever JSON can hold besides a finite number."""
    with pytest.raises(ValueError, match="wanted recipients a second"):
        rate_in({"per_s": per_s})


def test_a_rate_outside_the_configuration_is_refused_by_its_key() -> None:
    """Floor and ceiling hold for people, too; the bounds themselves are good."""
    (upstream,) = config.parse(
        {"upstream": [{"rate": {"floor_per_s": 5, "ceiling_per_s": 80}}]}
    ).upstreams

    check(5, upstream.rate)
    check(80, upstream.rate)
    with pytest.raises(ValueError, match="floor_per_s = 5"):
        check(4.9, upstream.rate)
    with pytest.raises(ValueError, match="ceiling_per_s = 80"):
        check(80.1, upstream.rate)

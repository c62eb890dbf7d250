"""The grid of the model bench: each row's courses, what is measured, and its bars (issue 5).

A row is a function from a controller's factory and a cell of its grid to figures; the worst
of all cells stands in the table. Times are virtual: a row of an hour takes a minute.

What an evenly pacing sender that *knows* the rate gets at a share of what is left (*observed*
in this model; use / refused):

- Poisson 14/s: depth 0.3 s: 0.965 gives 91.6 % / 2.33 %, 0.995 gives 93.4 % / 2.81 %, so
  96.5 % at 1.5 % is out of its reach; depth 1 s: 0.965 gives 96.2 % / 0.20 %, 0.99 gives
  98.1 % / 0.52 %; depth 3 s: 0.99 gives 99.0 % / 0.06 %.
- Poisson 200/s, any depth: 0.99 gives 98.6 % / 0.01 %.
- Window 14/s: 250 ms: 0.97 gives 96.7 % / 0.25 %, 0.99 gives 98.1 % / 0.86 %, 0.998 gives
  98.4 % / 1.37 %; 30 ms: 0.99 gives 99.0 % / 0.
- One token at 1/s, spacing: 250 ms: 0.93 gives 93.0 % / 0, 0.94 gives 93.0 % / 1.1 %, 0.95 gives
  90.8 % / 4.4 %; 30 ms: 0.98 gives 98.0 % / 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from statistics import median

from tests.bench.shaping.model import Bucket, Controller, Course, Foreign, Window

Make = Callable[[float], Controller]
"""A fresh controller; a reference that must be told the limit gets it, ours ignores it."""

LIMITS = (5.0, 14.0, 50.0, 200.0, 1000.0)
LATENCIES = (0.03, 0.25)
DEPTHS_S = (0.3, 1.0, 3.0)
WARM_S = 60.0


def depth_of(limit: float, depth_s: float) -> float:
    """Tokens a bucket holds: at least three (issue 5)."""
    return max(3.0, limit * depth_s)


def span_of(limit: float) -> float:
    """Seconds measured after the warm-up: enough messages for the share, not more."""
    return 1200.0 if limit < 30 else 600.0 if limit < 300 else 240.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one cell showed, by name."""

    values: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """``name`` must be at least (``least``) or at most (``most``) so much.

    ``how``: "worst" of the cells, or their "median".
    """

    name: str
    least: float | None = None
    most: float | None = None
    how: str = "worst"

    def of(self, values: list[float]) -> float:
        if self.how == "median":
            return median(values)
        return min(values) if self.least is not None else max(values)

    def holds(self, value: float) -> bool:
        if self.least is not None:
            return value >= self.least
        return self.most is None or value <= self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    cells: list[tuple[object, ...]]
    play: Callable[..., dict[str, float]]
    bars: tuple[Bar, ...]
    note: str = field(default="")


def _steady(
    make: Make,
    limit: float,
    depth_s: float,
    latency_s: float,
    seed: int,
    *,
    noise: float = 0.0,
    recipients: int = 1,
) -> dict[str, float]:
    fixed = (lambda _: recipients) if recipients > 1 else None
    course = Course(
        shaper=make(limit),
        limit=Bucket(limit, depth_of(limit, depth_s)),
        latency_s=latency_s,
        noise=noise,
        seed=seed,
        recipients=fixed,
    )
    end = WARM_S + span_of(limit)
    course.run(end)
    return {
        "use": course.use(WARM_S, end, limit),
        "refused": course.refused_share(WARM_S, end),
    }


def _one_token(make: Make, latency_s: float, seed: int) -> dict[str, float]:
    course = Course(shaper=make(1.0), limit=Bucket(1.0, 1.0), latency_s=latency_s, seed=seed)
    course.run(3060)
    return {"use": course.use(60, 3060, 1), "refused": course.refused_share(60, 3060)}


def _window(make: Make, limit: float, latency_s: float, seed: int) -> dict[str, float]:
    course = Course(
        shaper=make(limit), limit=Window(limit, 0.1 * seed), latency_s=latency_s, seed=seed
    )
    end = 5060.0 if limit <= 50 else 1060.0
    course.run(end)
    late = end - 1000 if limit <= 50 else end - 300
    return {
        "use": course.use(WARM_S, end, limit),
        "late use": course.use(late, end, limit),
        "refused": course.refused_share(WARM_S, end),
    }


def _foreign(
    make: Make, limit: float, depth_s: float, latency_s: float, seed: int, *, poisson: bool
) -> dict[str, float]:
    course = Course(
        shaper=make(0.7 * limit),
        limit=Bucket(limit, depth_of(limit, depth_s)),
        latency_s=latency_s,
        seed=seed,
        foreign=Foreign(0.3, poisson),
    )
    end = WARM_S + span_of(limit)
    course.run(end)
    theirs = sum(course.foreign_accepted[60:]) + sum(course.foreign_refused[60:])
    return {
        "use": course.use_of_rest(WARM_S, end),
        "refused": course.refused_share(WARM_S, end),
        "theirs refused": sum(course.foreign_refused[60:]) / max(1, theirs),
    }


def _phase(seed: int, limit: float) -> float:
    """A random moment of change: early (seconds 40 to 80) or late (600 to 640)."""
    chance = random.Random(1000 * seed + int(limit))
    return (40 if seed % 2 else (600 if limit < 300 else 240)) + chance.uniform(0, 40)


def _raise(make: Make, limit: float, latency_s: float, seed: int) -> dict[str, float]:
    """The limit rises to four times; both times the bucket holds a second."""
    depth_s = (0.3, 1.0, 3.0)[seed % 3]
    course = Course(
        shaper=make(limit),
        limit=Bucket(limit, depth_of(limit, depth_s)),
        latency_s=latency_s,
        seed=seed,
    )
    at = _phase(seed, limit)
    course.change_at(at, 4 * limit, depth_of(4 * limit, depth_s))
    course.run(at + 90)
    window = 4 if limit < 20 else 2
    return {
        "s to 95 %": course.reached(0.95, 4 * limit, at, window),
        "refused s": sum(course.refused[int(at) : int(at) + 60]) / (4 * limit),
    }


def _cut(make: Make, limit: float, latency_s: float, seed: int) -> dict[str, float]:
    """The limit falls to a fifth."""
    depth_s = (0.3, 1.0, 3.0)[seed % 3]
    course = Course(
        shaper=make(limit),
        limit=Bucket(limit, depth_of(limit, depth_s)),
        latency_s=latency_s,
        seed=seed,
    )
    at = _phase(seed, limit)
    course.change_at(at, limit / 5, depth_of(limit / 5, depth_s))
    course.run(at + 120)
    return {
        "s to calm": course.calm_after(at),
        "refused s": sum(course.refused[int(at) : int(at) + 20]) / limit,
        "use after": course.use(at + 30, at + 120, limit / 5),
    }


def _cold(make: Make, latency_s: float, depth_s: float, seed: int) -> dict[str, float]:
    course = Course(
        shaper=make(500.0), limit=Bucket(500, 500 * depth_s), latency_s=latency_s, seed=seed
    )
    course.run(61)
    return {
        "s to 95 %": course.reached(0.95, 500, 0, 1),
        "refused s": sum(course.refused[:60]) / 500,
    }


def _idle(
    make: Make, limit: float, depth_s: float, latency_s: float, seed: int
) -> dict[str, float]:
    course = Course(
        shaper=make(limit),
        limit=Bucket(limit, depth_of(limit, depth_s)),
        latency_s=latency_s,
        seed=seed,
        gaps=((300.0, 480.0),),
    )
    course.run(540)
    return {
        "use": min(course.use(480, 490, limit), course.use(480, 540, limit)),
        "refused": course.refused_share(480, 540),
    }


SEEDS = (1, 2, 3)
PHASES = tuple(range(1, 25))


def _grid(*axes: tuple[object, ...]) -> list[tuple[object, ...]]:
    return list(product(*axes))


def _rows() -> list[Row]:
    rows = [
        Row(
            name=f"steady {limit:g}/s",
            cells=_grid((limit,), DEPTHS_S, LATENCIES, SEEDS),
            play=_steady,
            bars=(
                Bar(name="use", least=0.99),
                Bar(name="refused", most=0.0015 if limit >= 200 else 0.003),
            ),
        )
        for limit in LIMITS
    ]
    for noise, use, refused in ((0.005, 0.99, 0.011), (0.02, 0.94, None)):
        rows += [
            Row(
                name=f"noise {noise:.1%} {limit:g}/s",
                cells=_grid((limit,), DEPTHS_S, LATENCIES, SEEDS),
                play=partial(_steady, noise=noise),
                bars=(Bar(name="use", least=use), Bar(name="refused", most=refused)),
            )
            for limit in (5.0, 14.0, 50.0, 200.0)
        ]
    rows += [
        Row(
            name=f"window {limit:g}/s",
            cells=_grid((limit,), LATENCIES, SEEDS),
            play=_window,
            bars=(
                Bar(name="use", least=0.96),
                Bar(name="late use", least=0.96),
                Bar(name="refused", most=0.01),
            ),
        )
        for limit in (14.0, 50.0, 200.0)
    ]
    for limit, use, refused in ((14.0, 0.98, 0.01), (200.0, 0.98, 0.005)):
        rows.append(
            Row(
                name=f"even foreign {limit:g}/s",
                cells=_grid((limit,), DEPTHS_S, LATENCIES, SEEDS),
                play=partial(_foreign, poisson=False),
                bars=(
                    Bar(name="use", least=use),
                    Bar(name="refused", most=refused),
                    Bar(name="theirs refused"),
                ),
            )
        )
    rows.append(
        Row(
            name="poisson foreign 14/s, shallow",
            cells=_grid((14.0,), (0.3,), LATENCIES, SEEDS),
            play=partial(_foreign, poisson=True),
            bars=(Bar(name="use"), Bar(name="refused"), Bar(name="theirs refused")),
        )
    )
    for limit, depths_s, use, refused in (
        (14.0, (1.0, 3.0), 0.965, 0.015),
        (200.0, DEPTHS_S, 0.97, 0.008),
    ):
        rows.append(
            Row(
                name=f"poisson foreign {limit:g}/s",
                cells=_grid((limit,), depths_s, LATENCIES, SEEDS),
                play=partial(_foreign, poisson=True),
                bars=(
                    Bar(name="use", least=use),
                    Bar(name="refused", most=refused),
                    Bar(name="theirs refused"),
                ),
            )
        )
    rows += [
        Row(
            name=f"four recipients {limit:g}/s",
            cells=_grid((limit,), DEPTHS_S, LATENCIES, SEEDS),
            play=partial(_steady, recipients=4),
            bars=(Bar(name="use", least=0.99), Bar(name="refused", most=0.006)),
        )
        for limit in (14.0, 50.0, 200.0)
    ]
    rows.append(
        Row(
            name="one token 1/s",
            cells=_grid(LATENCIES, SEEDS),
            play=_one_token,
            bars=(Bar(name="use", least=0.93), Bar(name="refused", most=0.02)),
        )
    )
    for limit in (14.0, 50.0, 200.0):
        low = limit < 50
        rows.append(
            Row(
                name=f"raise x4 {limit:g}/s",
                cells=_grid((limit,), LATENCIES, PHASES),
                play=_raise,
                bars=(
                    Bar(name="s to 95 %", most=20, how="median"),
                    Bar(name="s to 95 %", most=60 if low else 20),
                    Bar(name="refused s"),
                ),
            )
        )
    for limit in (25.0, 50.0, 200.0, 1000.0):
        rows.append(
            Row(
                name=f"cut /5 {limit:g}/s",
                cells=_grid((limit,), LATENCIES, PHASES),
                play=_cut,
                bars=(
                    Bar(name="s to calm", most=4, how="median"),
                    Bar(name="s to calm", most=40),
                    Bar(name="refused s", most=0.8),
                    Bar(name="use after"),
                ),
            )
        )
    rows.append(
        Row(
            name="cold 10 to 500/s",
            cells=_grid(LATENCIES, DEPTHS_S, SEEDS),
            play=_cold,
            bars=(Bar(name="s to 95 %", most=10), Bar(name="refused s", most=0.8)),
        )
    )
    rows.append(
        Row(
            name="three idle minutes",
            cells=_grid((14.0, 50.0, 200.0), DEPTHS_S, LATENCIES, SEEDS),
            play=_idle,
            bars=(Bar(name="use", least=0.98), Bar(name="refused")),
        )
    )
    return rows


ROWS = {row.name: row for row in _rows()}

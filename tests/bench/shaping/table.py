"""Plays rows on all cores and prints one line a row and controller."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import relay.config
from relay.shaper import Shaper
from tests.bench.shaping.references import Cubic, Fixed, Timer, knows
from tests.bench.shaping.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.shaping.model import Controller
    from tests.bench.shaping.rows import Bar


def ours(_: float) -> Controller:
    """The shaper of the embedded defaults."""
    return Shaper(relay.config.parse({}).upstreams[0].rate)


CONTROLLERS = {"ours": ours, "fixed 90 %": Fixed, "CUBIC": Cubic, "timer": Timer, "knows": knows}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table for one controller; ``worst`` is the cell of each bar's figure."""

    row: str
    controller: str
    figures: list[tuple[Bar, float, tuple[Any, ...]]]
    cells: list[tuple[tuple[Any, ...], dict[str, float]]]

    @property
    def missed(self) -> list[Bar]:
        return [bar for bar, value, _ in self.figures if not bar.holds(value)]


def _cell(what: tuple[str, str, int]) -> dict[str, float]:
    row, controller, index = what
    return ROWS[row].play(CONTROLLERS[controller], *ROWS[row].cells[index])


def play(wanted: list[str], controllers: list[str], *, detailed: bool = False) -> Iterator[Line]:
    """Each wanted row (all without a wish) with each controller."""
    names = [name for name in ROWS if not wanted or any(part in name for part in wanted)]
    with multiprocessing.Pool() as pool:
        for name in names:
            for controller in controllers:
                cells = ROWS[name].cells
                jobs = [(name, controller, index) for index in range(len(cells))]
                results = pool.map(_cell, jobs, chunksize=1)
                figures = []
                for bar in ROWS[name].bars:
                    values = [result[bar.name] for result in results]
                    value = bar.of(values)
                    where = cells[values.index(value)] if value in values else ()
                    figures.append((bar, value, where))
                pairs = list(zip(cells, results, strict=True)) if detailed else []
                yield Line(name, controller, figures, pairs)


def show(line: Line) -> str:
    """One line of text; a figure that misses its bar has a ``!``."""
    parts = [f"{line.row:24s} {line.controller:10s}"]
    for bar, value, where in line.figures:
        share = bar.name in {"use", "late use", "use after", "refused", "theirs refused"}
        text = f"{value * 100:.2f}%" if share else f"{value:.2f}"
        wanted = bar.least if bar.least is not None else bar.most
        scale = 100 if share else 1
        mark = "" if bar.holds(value) else "!"
        bound = "" if wanted is None else f" ({wanted * scale:g})"
        cell = ",".join(f"{one:g}" for one in where) if mark else ""
        how = "~" if bar.how == "median" else ""
        parts.append(f"{how}{bar.name} {text}{mark}{bound}{' @' + cell if cell else ''}")
    text = " | ".join(parts)
    for where, result in line.cells:
        text += "\n    " + ",".join(f"{one:g}" for one in where)
        text += "  " + "  ".join(f"{name} {value:.4f}" for name, value in result.items())
    return text

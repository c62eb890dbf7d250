"""What the relay knows of each account's send limit, and a person's word on it.

``rate set N`` gives the shaper a prior, not an order: it starts over from N and goes on
learning, so that a wrong number costs seconds, not a campaign. What always holds is
``ceiling_per_s`` in ``relay.toml``. The same on a stopped relay: there the shapers are those
that the next start would have.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from relay.service.memory import LIMIT_MAX_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from relay import config
    from relay.clock import Clock
    from relay.figures import UpstreamFigures
    from relay.service.limits import Limits
    from relay.service.memory import Memory

SHOWN = (
    "name",
    "rate_words",
    "rate_per_s",
    "limit_per_s",
    "error_share",
    "known_by",
    "known_at",
    "burst",
    "phase",
    "session_bound",
    "refused_share",
    "noise_share",
    "start_per_s",
    "floor_per_s",
    "ceiling_per_s",
    "use_max",
)
"""Of an upstream's figures, those about its rate."""


class Rates:
    """Shows and sets the rates of all upstreams."""

    def __init__(
        self,
        upstreams: Iterable[config.Upstream],
        memories: Mapping[str, Memory],
        limits: Limits,
        figures: Callable[[str], UpstreamFigures],
        clock: Clock,
    ) -> None:
        """``figures`` are those of the upstream of that name."""
        self._rules = {upstream.name: upstream.rate for upstream in upstreams}
        self._memories, self._limits, self._figures = memories, limits, figures
        self._clock = clock

    async def show(self, request: dict[str, Any]) -> dict[str, Any]:
        """The rate of each upstream, or of the one that is named. Raises: ValueError."""
        return self._all(chosen(request, self._rules))

    async def told(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start over from ``per_s``, and keep that in the spool.

        Raises: ValueError: it is no rate, or outside of what ``relay.toml`` allows; SpoolError.
        """
        names = chosen(request, self._rules)
        per_s = _rate_in(request)
        for name in names:
            _check(per_s, self._rules[name])
        self._limits.note()
        for name in names:
            self._memories[name].tell(per_s)
        self._limits.note()
        await self._limits.save()
        return self._all(names)

    def _all(self, names: Iterable[str]) -> dict[str, Any]:
        figures = [asdict(self._figures(name)) for name in names]
        return {
            "now": self._clock.wall_ms(),
            "upstreams": [{field: one[field] for field in SHOWN} for one in figures],
        }


def chosen(request: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The upstream that ``request`` names, or all. Raises: ValueError if there is none such."""
    known, wanted = list(names), request.get("upstream")
    if wanted is None:
        return known
    if wanted not in known:
        raise ValueError(f"no upstream {wanted!r}: wanted {', '.join(known)}")
    return [wanted]


def _rate_in(request: Mapping[str, Any]) -> float:
    """The rate in ``request``. Raises: ValueError: there is none."""
    per_s = request.get("per_s")
    if isinstance(per_s, bool) or not isinstance(per_s, int | float):
        found = type(per_s).__name__
        raise ValueError(f"found {found}, wanted recipients a second")  # noqa: TRY004  # one answer
    if not 0 < per_s <= LIMIT_MAX_PER_S:  # false for NaN, too
        raise ValueError(f"wanted recipients a second, at most {LIMIT_MAX_PER_S:g}")
    return float(per_s)


def _check(per_s: float, rate: config.Rate) -> None:
    """Raises: ValueError unless the configuration allows ``per_s``."""
    if per_s < rate.floor_per_s:
        raise ValueError(f"{per_s:g}/s is below upstream.rate.floor_per_s = {rate.floor_per_s:g}")
    if 0 < rate.ceiling_per_s < per_s:
        raise ValueError(
            f"{per_s:g}/s is above upstream.rate.ceiling_per_s = {rate.ceiling_per_s:g}"
        )

"""What the relay knows of each account's send limit, and a person's word on it.

``rate set N`` gives the shaper a prior, not an order: it starts over from N and goes on
learning, so that a wrong number costs seconds, not a campaign. What always holds is
``ceiling_per_s`` in ``relay.toml``. The same on a stopped relay: there the shapers are those
that the next start would have.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from relay import config
    from relay.clock import Clock
    from relay.shaper import Shaper
    from relay.spool import Spool

_log = logging.getLogger(__name__)

TOLD_CONFIDENCE = 0.9
"""How sure a told number counts as: an error of 10 %, that of fifteen messages. A reading that
contradicts it by more replaces it (``Estimate.learn``). Measured in the model, at the start and
in mid-course, 30 and 250 ms, a bucket of one second: told 100 at 50/s, 95 % use after 3 s and
2 % refused in that minute; told 20 at 100/s, 95 % after 27 s (the climb is the search's own).
A number that is far too high costs refusals in its first seconds, not throughput: told 500 at
50/s, 9 % of that minute's attempts at 250 ms."""

TOLD_MAX_PER_S = 100_000
"""More recipients a second than any account has; a slip of the finger must not pass."""


class Rates:
    """Shows and sets the rates of all upstreams."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        upstreams: Iterable[config.Upstream],
        shapers: Mapping[str, Shaper],
    ) -> None:
        self._spool, self._clock, self._shapers = spool, clock, shapers
        self._upstreams = {upstream.name: upstream for upstream in upstreams}

    async def show(self, request: dict[str, Any]) -> dict[str, Any]:
        """The rate of each upstream, or of the one that is named. Raises: ValueError."""
        return {"upstreams": [self._one(name) for name in chosen(request, self._upstreams)]}

    async def told(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start over from ``per_s``, and keep that in the spool.

        Raises: ValueError: it is no rate, or outside of what ``relay.toml`` allows.
        """
        names = chosen(request, self._upstreams)
        per_s = request.get("per_s")
        for name in names:
            _check(per_s, self._upstreams[name].rate)
        for name in names:
            shaper = self._shapers[name]
            known = {"limit_per_s": per_s, "confidence": TOLD_CONFIDENCE}
            shaper.restore(self._clock.monotonic(), known)
            await self._spool.put_state(f"shaper:{name}", shaper.learned())
            _log.warning("rate set by an operator", extra={"upstream": name, "per_s": per_s})
        return {"upstreams": [self._one(name) for name in names]}

    def _one(self, name: str) -> dict[str, Any]:
        known, rate = self._shapers[name].snapshot(), self._upstreams[name].rate
        return {
            "name": name,
            "rate_per_s": known.rate_per_s,
            "limit_per_s": known.limit_per_s,
            "error_share": known.error_share,
            "burst": known.burst,
            "phase": known.phase,
            "refused_share": known.refused_share,
            "noise_share": known.noise_share,
            "start_per_s": rate.start_per_s,
            "floor_per_s": rate.floor_per_s,
            "ceiling_per_s": rate.ceiling_per_s,
            "use_max": rate.use_max,
        }


def chosen(request: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The upstream that ``request`` names, or all. Raises: ValueError if there is none such."""
    known, wanted = list(names), request.get("upstream")
    if wanted is None:
        return known
    if wanted not in known:
        raise ValueError(f"no upstream {wanted!r}: wanted {', '.join(known)}")
    return [wanted]


def _check(per_s: object, rate: config.Rate) -> None:
    """Raises: ValueError unless ``per_s`` is a rate that the configuration allows."""
    if isinstance(per_s, bool) or not isinstance(per_s, int | float):
        found = type(per_s).__name__
        raise ValueError(f"found {found}, wanted recipients a second")  # noqa: TRY004  # one answer
    if not 0 < per_s <= TOLD_MAX_PER_S:  # false for NaN, too
        raise ValueError(f"wanted recipients a second, at most {TOLD_MAX_PER_S:g}")
    if per_s < rate.floor_per_s:
        raise ValueError(f"{per_s:g}/s is below upstream.rate.floor_per_s = {rate.floor_per_s:g}")
    if 0 < rate.ceiling_per_s < per_s:
        raise ValueError(
            f"{per_s:g}/s is above upstream.rate.ceiling_per_s = {rate.ceiling_per_s:g}"
        )

"""The same commands on a relay that is not running: the spool is opened for one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.ageing import Ageing
from relay.breaker import Holds
from relay.clock import SystemClock
from relay.errors import RelayError
from relay.metrics import Metrics
from relay.service.branch import Shared
from relay.service.figures import of_stopped_spool, resting_upstream
from relay.service.kept import recalled
from relay.service.limits import Limits
from relay.service.memory import Memory
from relay.service.rates import Rates
from relay.service.steering import Steering
from relay.shaper import Shaper
from relay.spool import Spool

if TYPE_CHECKING:
    from relay.config import Config
    from relay.figures import UpstreamFigures

_CHANGING = frozenset({"hold", "release", "pause", "resume"})


async def answer(config: Config, command: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a running relay would have answered.

    Raises: SpoolBroken if there is no spool; SpoolBusy if a relay owns it after all;
    RelayError if the request makes no sense.
    """
    clock = SystemClock()
    spool = await Spool.open(Path(config.spool.path), config.spool, clock=clock, create=False)
    try:
        kept = await spool.holds()
        ageing = Ageing(clock.wall_ms())
        ageing.load(await recalled(spool, "ageing"))
        for hold in kept:
            ageing.stop(hold.key, hold.since_at)
        shared = Shared(
            spool=spool, holds=Holds(kept), ageing=ageing, metrics=Metrics(), clock=clock
        )
        names = [upstream.name for upstream in config.upstreams]
        rates, limits = await _rates(config, shared)
        figures = of_stopped_spool(spool, kept, limits.events, clock.wall_ms(), clock.monotonic())
        steering = Steering(shared, names, rates, figures=lambda: figures, on_change=lambda: None)
        said = dict(await getattr(steering.commands, command)(request))
        if command in _CHANGING:
            # Time in which mail was held does not count, released by whichever way.
            await spool.put_state("ageing", ageing.saved(clock.wall_ms()))
    except ValueError as error:
        raise RelayError(str(error)) from error
    else:
        return said
    finally:
        await spool.close()


async def _rates(config: Config, shared: Shared) -> tuple[Rates, Limits]:
    """The rates with which the next start would begin."""
    spool, clock = shared.spool, shared.clock
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    shapers = {name: Shaper(upstream.rate) for name, upstream in upstreams.items()}
    memories = {
        name: Memory(upstreams[name], shaper, spool, clock) for name, shaper in shapers.items()
    }
    for memory in memories.values():
        await memory.recall()
        memory.changes()  # To look at what is kept is no event.
    limits = Limits(memories, spool, clock, shared.metrics)
    await limits.recall()

    def figures(name: str) -> UpstreamFigures:
        return resting_upstream(upstreams[name], shapers[name], memories[name], clock.wall_ms())

    return Rates(config.upstreams, memories, limits, figures, clock), limits

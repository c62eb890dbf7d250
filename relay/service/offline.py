"""The same commands on a relay that is not running: the spool is opened for one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.ageing import Ageing
from relay.breaker import Holds
from relay.clock import SystemClock
from relay.errors import RelayError
from relay.metrics import Metrics
from relay.service.branch import Shared, recall
from relay.service.figures import of_stopped_spool
from relay.service.rates import Rates
from relay.service.steering import Steering
from relay.shaper import Shaper
from relay.spool import Spool

if TYPE_CHECKING:
    from relay.config import Config

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
        ageing.load(await spool.state("ageing") or {})
        for hold in kept:
            ageing.stop(hold.key, hold.since_at)
        shared = Shared(
            spool=spool, holds=Holds(kept), ageing=ageing, metrics=Metrics(), clock=clock
        )
        figures = of_stopped_spool(spool, kept, clock.wall_ms(), clock.monotonic())
        names = [upstream.name for upstream in config.upstreams]
        shapers = {upstream.name: Shaper(upstream.rate) for upstream in config.upstreams}
        for name, shaper in shapers.items():
            await recall(shaper, name, spool, clock)
        rates = Rates(spool, clock, config.upstreams, shapers)
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

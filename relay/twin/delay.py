"""How long each reply of the twin takes to come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.twin.faults import Stage

if TYPE_CHECKING:
    import random

    from relay.twin.parameters import Latency


def reply_s(latency: Latency, stage: Stage, *, is_yes: bool, chance: random.Random) -> float:
    """The wait before a reply: the round trip, what the dot takes, perhaps a stall."""
    seconds = latency.round_trip_s(chance.random()) if latency.jitter else latency.rtt_s
    if stage is Stage.DOT:
        seconds += latency.accept_s(chance.gauss()) if is_yes else latency.refuse_s
    if latency.stall_share and chance.random() < latency.stall_share:
        seconds += chance.uniform(*latency.stall_s)
    return seconds

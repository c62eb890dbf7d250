"""What a run of the demo came to, held against the twin's ledger.

The relay's own word counts for nothing here but in two places that nobody else can know: the
attempts written beside each outcome, and the bytes of its spool. ``lost`` is what the mailer
was told ``250`` for and that is neither in the ledger nor still on the queue.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from relay import twin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from relay.mailer import Told
    from relay.twin import Ledger

WARM_UP_S = 10.0
"""The start, in which the limit is still unknown, does not count for its use."""
USE_GOOD = 0.95
"""From this share on, the limit was what held the relay back."""
BUSY = 0.85
"""From this share on, a processor has hardly anything left (the system takes its part, too)."""
OFTEN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The result. Shares are 0..1; ``use`` is None if all was over before the warm-up was."""

    accepted: int
    refused_at_intake: int
    delivered: int
    waiting: int
    lost: int
    twice: int
    attempts_by_throttling: int
    throttled: int
    refused_share: float
    use: float | None
    limits_per_s: tuple[float, ...]
    transactional: int
    transactional_slowest_s: float
    spool_bytes_per_message: int
    content_bytes_per_message: int
    intake_s: float
    duration_s: float
    relay_cpu_share: float
    doubles_cpu_share: float
    limited_by: str

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept: all that was accepted arrived, and once."""
        return not (self.lost or self.twice or self.waiting or self.refused_at_intake)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was seen of a run from outside. Moments are monotonic seconds."""

    told: Sequence[Told]
    transactional: Told
    began_at: float
    intake_ended_at: float
    drained_at: float
    waiting: int
    attempts_by_throttling: int
    spool_bytes_per_message: int
    relay_cpu_s: float
    doubles_cpu_s: float
    load: float
    """The machine's load average of a minute at its highest: threads that run or want to."""
    processors: int
    session_bound_share: float
    """The share of the relay's own figures that name its sessions as what it waits for."""


def audit(run: Run, ledger: Ledger) -> Audit:
    """Compare what was promised with what arrived."""
    told = [*run.told, run.transactional]
    accepted = {message_id for one in told for message_id, _ in one.accepted}
    arrived: Mapping[str, float] = {record.message_id: record.at for record in ledger.records}
    records = len(ledger.records)
    missing = len(accepted - arrived.keys())
    waits = [
        arrived[message_id] - at
        for message_id, at in run.transactional.accepted_at.items()
        if message_id in arrived
    ]
    seconds = max(run.drained_at - run.began_at, 1e-9)
    used = use(ledger, run.began_at + WARM_UP_S)
    return Audit(
        accepted=len(accepted),
        refused_at_intake=sum(
            len(one.refusals) + len(one.lost_at_dot) + len(one.given_up) for one in told
        ),
        delivered=len(accepted & arrived.keys()),
        waiting=min(missing, run.waiting),
        lost=max(0, missing - run.waiting),
        twice=len(ledger.twice()),
        attempts_by_throttling=run.attempts_by_throttling,
        throttled=ledger.total.throttled,
        refused_share=ledger.refused_share(),
        use=used,
        limits_per_s=tuple(rate for _, rate in ledger.limits),
        transactional=len(run.transactional.accepted),
        transactional_slowest_s=max(waits, default=0.0),
        spool_bytes_per_message=run.spool_bytes_per_message,
        content_bytes_per_message=sum(one.size_bytes for one in ledger.records) // max(1, records),
        intake_s=run.intake_ended_at - run.began_at,
        duration_s=seconds,
        relay_cpu_share=run.relay_cpu_s / seconds,
        doubles_cpu_share=run.doubles_cpu_s / seconds,
        limited_by=limited_by(used, run, seconds),
    )


def use(ledger: Ledger, since: float) -> float | None:
    """The share of the limit that was used from ``since`` to the last accepted message.

    What a bucket has saved up before ``since`` can push it a little above 1.
    """
    last = max((record.at for record in ledger.records), default=since)
    seen = twin.Audit(ledger)
    return seen.use(since, last) if seen.offered(since, last) >= 1 else None


def limited_by(used: float | None, run: Run, seconds: float) -> str:
    """What kept the rate where it was, in words."""
    if used is None:
        return "nothing: over before it was measured, ask for more --messages"
    if used >= USE_GOOD:
        return "the send limit of the account"
    relay, both = run.relay_cpu_s / seconds, (run.relay_cpu_s + run.doubles_cpu_s) / seconds
    if max(relay, both / run.processors, run.load / run.processors) >= BUSY:
        return f"this machine's processors ({run.processors}, load {run.load:.1f})"
    if run.session_bound_share >= OFTEN:
        return "the time a message takes and the sessions that may be open at once"
    return "the relay: it did not find, or not keep to, the limit"

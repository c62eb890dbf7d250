"""What can be set about the twin, with the defaults of the fact sheet.

No number about SES is certain (AWS publishes neither session caps nor burst depth), so
every number is a parameter. A default marked *observed* or *documented* comes from
facts/ses-smtp.md 7; the others are assumed there.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from typing import Literal

_P99_SIGMAS = 2.326
"""How many standard deviations above the mean the 99th percentile of a normal lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the twin lets a client wait; all zero answers at once.

    ``rtt_s`` is added to every reply: between 0.02 and 0.25 s outside AWS, about 0.001 s
    within a region. At the final dot an accept takes lognormally long on top, a refusal
    ``refuse_s`` (*observed* in Postfix logs: accepts with a median of 0.15 s and 1 s at
    the 99th percentile, refusals 0.03 s).
    """

    rtt_s: float = 0.05
    accept_median_s: float = 0.15
    accept_p99_s: float = 1.0
    refuse_s: float = 0.03

    def accept_s(self, gauss: float) -> float:
        """The wait before an accept, for ``gauss`` drawn from the standard normal."""
        if self.accept_median_s <= 0:
            return 0.0
        spread = math.log(max(1.0, self.accept_p99_s / self.accept_median_s)) / _P99_SIGMAS
        return self.accept_median_s * math.exp(spread * gauss)


NO_LATENCY = Latency(rtt_s=0, accept_median_s=0, accept_p99_s=0, refuse_s=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinConfig:
    """The account, the endpoint and the weather that a ``Twin`` plays.

    Raises ``ValueError`` for what cannot be played, and for a host that is not loopback:
    the twin has a public password and a public key and must meet no stranger.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one."""
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    """``starttls``: as SES on 587, commands that carry mail or secrets are refused before it."""
    cert_file: str = ""
    key_file: str = ""
    """Empty: the pair that comes with the package, see ``certificate_files``."""
    auth_required: bool = True
    username: str = "sandbox"
    password: str = field(default="sandbox", repr=False)

    rate_per_s: float = 14
    """Recipients a second (*observed*: most accounts that people write about have 14)."""
    burst: float | None = None
    """Depth of the bucket in recipients; None: one second's worth, also after a change."""
    rejected_cost: int = 0
    """What a message refused for its rate costs, in recipients; whether SES charges is unknown."""
    quota: int = 50_000
    """Recipients in any 24 hours (*observed* beside 14/s); 0: none."""
    quota_step_s: float = 3600
    """The quota comes back in steps of this (*observed*: hourly)."""

    connections_max: int = 100
    session_messages: tuple[int, int] = (100, 350)
    """Each session draws its cap from this range (*observed*: one user's ended at 350)."""
    idle_s: float = 10
    """*documented*: "about 10 seconds of inactivity". 0: never."""
    recipients_max: int = 50
    """*documented* ("Service quotas")."""
    size_max_bytes: int = 40 * 1024 * 1024
    """*documented*: 40 MB over SMTP."""
    once_only_headers: bool = True
    """Refuse a second Content-Type and its kin (*observed*, and *documented* as a list)."""

    latency: Latency = Latency()
    keep_content: bool = False
    """Keep every accepted message's bytes in the ledger, not just their hash."""
    ledger_max: int = 1_000_000
    """Accepted messages that the ledger remembers (roughly 1 kB each); older ones fall out."""
    seed: int | None = None
    """Makes caps, ids and latencies repeatable."""

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise ValueError(f"host: found {self.host!r}, wanted a loopback address")
        if not self.rate_per_s > 0:
            raise ValueError(f"rate_per_s: found {self.rate_per_s}, wanted more than 0")
        low, high = self.session_messages
        if not 1 <= low <= high:
            raise ValueError(f"session_messages: found {low}-{high}, wanted 1 <= low <= high")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""What can be set about the twin, with the defaults of the fact sheet.

No number about SES is certain (AWS publishes neither session caps nor burst depth), so
every number is a parameter. A default marked *observed* or *documented* comes from
facts/ses-smtp.md 7; the others are assumed there. What only some tests and scenarios want
(noise, strangers, faults) is off by default.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

_P99_SIGMAS = 2.326
"""How many standard deviations above the mean the 99th percentile of a normal lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the twin lets a client wait; all zero answers at once.

    ``rtt_s`` is added to every reply: between 0.02 and 0.25 s outside AWS, about 0.001 s
    within a region; ``jitter`` spreads it evenly by that share either way. At the final dot
    an accept takes lognormally long on top, a refusal ``refuse_s`` (*observed* in Postfix
    logs: accepts with a median of 0.15 s and 1 s at the 99th percentile, refusals 0.03 s).
    One reply in ``1 / stall_share`` stalls for a time drawn evenly from ``stall_s``.
    """

    rtt_s: float = 0.05
    jitter: float = 0.0
    accept_median_s: float = 0.15
    accept_p99_s: float = 1.0
    refuse_s: float = 0.03
    stall_share: float = 0.0
    stall_s: tuple[float, float] = (1.0, 60.0)

    def round_trip_s(self, chance: float) -> float:
        """The wait before any reply, for ``chance`` drawn evenly from 0..1."""
        return self.rtt_s * (1 + self.jitter * (2 * chance - 1))

    def accept_s(self, gauss: float) -> float:
        """The wait before an accept, for ``gauss`` drawn from the standard normal."""
        if self.accept_median_s <= 0:
            return 0.0
        spread = math.log(max(1.0, self.accept_p99_s / self.accept_median_s)) / _P99_SIGMAS
        return self.accept_median_s * math.exp(spread * gauss)


NO_LATENCY = Latency(rtt_s=0, accept_median_s=0, accept_p99_s=0, refuse_s=0)


class Farewell(StrEnum):
    """How a link ends once the last reply is out. Without TLS the first three are a FIN."""

    CLOSE_NOTIFY = "close-notify"
    """TLS says goodbye, then FIN: the polite way."""
    FIN = "fin"
    """FIN without TLS's goodbye (*observed*: Python's ``SSLEOFError``)."""
    USER_CANCELED = "user-canceled"
    """TLS's alert 90, then FIN (*observed*: Go's ``remote error: tls: user canceled``)."""
    RESET = "reset"
    """RST, which may overtake the reply."""
    ANY = "any"
    """Each session draws one of the four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Somebody else who sends through the same account, in bursts.

    Bursts come as a Poisson process, ``rate_per_s / burst`` a second; each takes ``burst``
    recipients at once, as far as the account admits them (facts 3: API users, other relays
    and other credentials of the account share its limits).
    """

    rate_per_s: float = 0.0
    burst: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What SES objects to in a message whose rate is fine; judged after the dot (facts 2, 5).

    ``None`` for the sets means: any is good. Identities are addresses or domains, in lower
    case. ``sandbox``: recipients have to be verified, too. ``paused`` and ``denied`` refuse
    everything.
    """

    verified: frozenset[str] | None = None
    sandbox: bool = False
    paused: bool = False
    denied: bool = False
    configuration_sets: frozenset[str] | None = None
    once_only_headers: bool = True
    """Refuse a second Content-Type and its kin (*observed*, and *documented* as a list)."""
    recipients_max: int = 50
    """*documented* ("Service quotas"): To, Cc and Bcc together."""
    region: str = "US-EAST-1"
    """As the refusal of an identity names it."""
    enforcement: Literal["HEALTHY", "PROBATION", "SHUTDOWN"] = "HEALTHY"
    """What the API tells of the account while it is not paused; paused, it tells SHUTDOWN."""


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
    ehlo: Literal["2025", "2020", "odd"] = "2025"
    """``2020`` offers SIZE 10485760 as well, ``odd`` repeats STARTTLS after TLS (*observed*)."""
    auth_required: bool = True
    username: str = "sandbox"
    password: str = field(default="sandbox", repr=False)
    other_users: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """More (name, password) pairs of the same account: they share its rate and its quota."""
    credentials_valid: bool = True
    """False: every login is answered 535, as with an IAM key that was deleted."""

    rate_per_s: float = 14
    """Recipients a second (*observed*: most accounts that people write about have 14)."""
    burst: float | None = None
    """Depth of the bucket in recipients; None: one second's worth, also after a change."""
    window: bool = False
    """Count in fixed seconds of the clock in place of a bucket: at most ``rate_per_s`` in each."""
    effective: float = 1.0
    """The share of ``rate_per_s`` that SES really accepts (*documented*: it can be less)."""
    rejected_cost: int = 0
    """What a message refused for its rate costs, in recipients; whether SES charges is unknown."""
    noise: float = 0.0
    """The share of messages refused for their rate although there is room."""
    rate_changes: tuple[tuple[float, float], ...] = ()
    """(seconds after the first message at the dot, new ``rate_per_s``), in order of time."""
    foreign: Foreign = Foreign()
    sigv2_text: bool = False
    """Refuse for the rate in the words for credentials of before January 2019."""
    quota: int = 50_000
    """Recipients in any 24 hours (*observed* beside 14/s); 0: none."""
    quota_used: int = 0
    """Recipients that others have sent, all of them just before the start."""
    quota_step_s: float = 3600
    """The quota comes back in steps of this (*observed*: hourly)."""
    quota_speed: float = 1.0
    """How fast the quota's 24 hours pass: at 1440 a day is over in a minute."""

    connections_max: int = 100
    session_messages: tuple[int, int] = (100, 350)
    """Each session draws its cap from this range (*observed*: one user's ended at 350)."""
    session_text: Literal["maximum", "too-many"] = "maximum"
    """Its words: "Maximum message count per session reached." or "Too many messages in one
    session" (both *observed*, the second in 2024)."""
    session_end: Farewell = Farewell.CLOSE_NOTIFY
    """How the link of a session that is over, or idle, comes to its end."""
    session_age_s: tuple[float, float] | None = (60.0, 1200.0)
    """Each session draws the age from here at which its link is closed without a word; None: any
    age. Only between transactions, as a load balancer drains its hosts (*assumed*)."""
    idle_s: float = 10
    """*documented*: "about 10 seconds of inactivity". 0: never."""
    size_max_bytes: int = 40 * 1024 * 1024
    """*documented*: 40 MB over SMTP."""
    bytewise: bool = False
    """Every reply comes one byte at a time (*observed* on TLS)."""
    policy: Policy = Policy()
    api_port: int | None = None
    """Where the account's HTTP API listens; 0: any free port, None: there is none."""
    api_lag_s: float = 0.0
    """How far the API's counter of what was sent lags behind (*observed*: 346 shown of 500)."""

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
        for name, found, is_good, wanted in self._claims():
            if not is_good:
                raise ValueError(f"{name}: found {found}, wanted {wanted}")

    def _claims(self) -> tuple[tuple[str, object, bool, str], ...]:
        """What must hold: the field, what it is, whether that is good, what would be."""
        low, high = self.session_messages
        times = [at for at, _ in self.rate_changes]
        rates = [self.rate_per_s, *(rate for _, rate in self.rate_changes)]
        youngest, oldest = self.session_age_s or (1.0, 1.0)
        return (
            ("rate_per_s", rates, all(0 < rate < math.inf for rate in rates), "more than 0"),
            ("session_messages", f"{low}-{high}", 1 <= low <= high, "1 <= low <= high"),
            ("session_age_s", self.session_age_s, 0 < youngest <= oldest, "0 < low <= high"),
            ("effective", self.effective, 0 < self.effective <= 1, "more than 0, at most 1"),
            ("noise", self.noise, 0 <= self.noise < 1, "0 or more, less than 1"),
            ("rate_changes", times, times == sorted(times), "times that rise"),
            ("api_lag_s", self.api_lag_s, self.api_lag_s >= 0, "0 or more"),
            ("quota_speed", self.quota_speed, self.quota_speed > 0, "more than 0"),
            ("foreign", self.foreign.burst, self.foreign.burst >= 1, "a burst of 1 or more"),
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""The configuration as frozen values: one class per table of ``relay.toml``, with its defaults.

Only shapes and defaults live here; ``relay.toml`` explains every key, ``parse`` checks
them. Each room is handed its own table and sees no other. Paths are as written in the
file; whoever loads the file resolves them against its folder. No secret is ever here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """``[listen]``: SMTP towards Listmonk."""

    host: tuple[str, ...] = ("127.0.0.1",)
    port: int = 2525
    hostname: str = ""
    auth: Literal["none", "required"] = "none"
    users_file: str = ""
    allow_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_required: bool = False
    connections_max: int = 500
    size_max_bytes: int = 41_943_040
    body_bytes_max: int = 268_435_456
    stall_max_s: float = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """``[spool]``: the durable store. None: chosen from the disk's size when it is opened."""

    path: str = "relay.db"
    free_min_bytes: int | None = None
    size_max_bytes: int | None = None
    compress: bool = True
    outcomes_keep_days: float = 30
    dead_keep_days: float = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """``[upstream.rate]``: recipients a second; a ceiling of 0 is none."""

    start_per_s: float = 10
    floor_per_s: float = 0.5
    ceiling_per_s: float = 0
    use_max: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """``[upstream.quota]``: recipients in any 24 hours; 0 is unknown."""

    daily_max: int = 0
    priority_reserve: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """``[upstream.breaker]``: when refusals stop being one message's fault."""

    same_text: int = 10
    rcpt_share: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One ``[[upstream]]``: an account at SES and how to talk to it."""

    name: str = "ses"
    host: str = "email-smtp.us-east-1.amazonaws.com"
    port: int = 587
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    from_domains: tuple[str, ...] = ()
    sessions_max: int = 200
    session_messages_max: int = 100
    session_age_max_s: float = 300
    idle_close_s: float = 6
    connect_timeout_s: float = 30
    reply_timeout_s: float = 60
    dot_timeout_s: float = 600
    in_doubt: Literal["resend", "hold"] = "resend"
    rate: Rate = field(default_factory=Rate)
    quota: Quota = field(default_factory=Quota)
    breaker: Breaker = field(default_factory=Breaker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """``[retry]``: when a deferred recipient is tried again."""

    first_s: float = 60
    factor: float = 2
    max_s: float = 3600
    jitter: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One ``[lane.NAME]``: a stream of mail and its share."""

    weight: float = 1
    floor: float = 0.1
    age_max_h: float = 336
    duplicate_window_h: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listmonk:
    """``[listmonk]``: its HTTP API, for bounces and campaign states."""

    url: str = field(default="", repr=False)
    api_user: str = ""
    token_file: str = ""
    report_bounces: bool = True
    follow_campaigns: bool = True
    poll_s: float = 15
    drop_delay_s: float = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """``[dashboard]``: HTTP for people and Prometheus."""

    host: str = "127.0.0.1"
    port: int = 8025
    token_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """``[alert]``: who is told when something needs a person; URLs of chats are secret in part."""

    url: str = field(default="", repr=False)
    command: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """``[log]``: the relay's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["logfmt", "json"] = "logfmt"


def _default_lanes() -> dict[str, Lane]:
    return {"bulk": Lane(), "priority": Lane(age_max_h=24)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole of ``relay.toml``."""

    listen: Listen = field(default_factory=Listen)
    spool: Spool = field(default_factory=Spool)
    upstreams: tuple[Upstream, ...] = field(default_factory=lambda: (Upstream(),))
    retry: Retry = field(default_factory=Retry)
    lanes: dict[str, Lane] = field(default_factory=_default_lanes)
    listmonk: Listmonk = field(default_factory=Listmonk)
    dashboard: Dashboard = field(default_factory=Dashboard)
    alert: Alert = field(default_factory=Alert)
    log: Log = field(default_factory=Log)

"""Every key of ``relay.toml`` and what it accepts: one row a key, nothing but rows.

The defaults stand in ``schema``, the reasons for users in ``relay.toml``. A bound that
is not plain sense has its reason here. ``NOT_YET`` lists keys that are read and checked
but change nothing in this version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.config import schema
from relay.config.checks import (
    Check,
    Each,
    choice,
    domain,
    flag,
    host_name,
    integer,
    label,
    line,
    network,
    number,
    path,
    url,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_DAY_S = 86_400
_YEAR_DAYS = 3660.0
_RATE_MAX = 100_000.0
# A try every 17 minutes. At a floor of next to nothing, an hour of refusals would be followed by
# years of silence.
_RATE_MIN = 0.001
_BYTES_MAX = 1 << 60


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file: the class it becomes, its keys, and the tables inside it."""

    becomes: type
    keys: Mapping[str, Check | Each]
    tables: Mapping[str, Table] = field(default_factory=dict)


_LISTEN = Table(
    schema.Listen,
    {
        "host": Each(host_name(), "an address or a list of 1 to 16", 1, 16, may_be_alone=True),
        "port": integer(0, 65_535),  # 0: the system picks one; for tests
        "hostname": host_name(may_be_empty=True),
        "auth": choice("none", "required"),
        "users_file": path(),
        "allow_networks": Each(network(), "a list of IP networks"),
        "tls_cert_file": path(),
        "tls_key_file": path(),
        "tls_required": flag(),
        "connections_max": integer(1, 100_000),
        # RFC 5321 §4.5.3.1.7: a server must take at least 64 KiB.
        "size_max_bytes": integer(65_536, 1 << 30),
        "body_bytes_max": integer(0, 1 << 40),  # a rule asks for size_max_bytes at least
        "stall_max_s": number(1, 30 * _DAY_S),
    },
)

_SPOOL = Table(
    schema.Spool,
    {
        "path": path(may_be_empty=False),
        "free_min_bytes": integer(0, _BYTES_MAX),
        "size_max_bytes": integer(1 << 20, _BYTES_MAX),
        "compress": flag(),
        "outcomes_keep_days": number(0, _YEAR_DAYS),
        "dead_keep_days": number(0, _YEAR_DAYS),
    },
)

_RATE = Table(
    schema.Rate,
    {
        "start_per_s": number(0, _RATE_MAX, above=True),
        "floor_per_s": number(_RATE_MIN, _RATE_MAX),
        "ceiling_per_s": number(0, _RATE_MAX),
        "use_max": number(0, 1, above=True),
    },
)

_QUOTA = Table(
    schema.Quota,
    {"daily_max": integer(0, 1_000_000_000), "priority_reserve": number(0, 1)},
)

_BREAKER = Table(
    schema.Breaker,
    {"same_text": integer(1, 1000), "rcpt_share": number(0, 1, above=True)},
)

_UPSTREAM = Table(
    schema.Upstream,
    {
        "name": label(),
        "host": host_name(),
        "port": integer(1, 65_535),
        "tls": choice("starttls", "implicit", "none"),
        "username": line('an SMTP user name of one line, or ""', 256),
        "password_file": path(),
        "ca_file": path(),
        "from_domains": Each(domain(), "a list of domains"),
        "sessions_max": integer(1, 10_000),
        # SES ends sessions at a number it does not publish; 350 was seen (facts, section 1).
        "session_messages_max": integer(1, 1000),
        "session_age_max_s": number(1, 3600),
        # SES closes at "about 10 seconds of inactivity"; what is sent just then is in doubt.
        "idle_close_s": number(0.5, 10, below=True),
        "connect_timeout_s": number(1, 600),
        "reply_timeout_s": number(1, 3600),
        # RFC 5321 §4.5.3.2.6 asks for 600; below 60 a slow accept becomes a duplicate.
        "dot_timeout_s": number(60, 3600),
        "in_doubt": choice("resend", "hold"),
    },
    {"rate": _RATE, "quota": _QUOTA, "breaker": _BREAKER},
)

_RETRY = Table(
    schema.Retry,
    {
        "first_s": number(1, _DAY_S),
        "factor": number(1, 100),
        "max_s": number(1, 7 * _DAY_S),
        "jitter": number(0, 1),
    },
)

_LISTMONK = Table(
    schema.Listmonk,
    {
        "url": url(),
        "api_user": line('an API user name of one line, or ""', 256),
        "token_file": path(),
        "report_bounces": flag(),
        "follow_campaigns": flag(),
        "poll_s": number(1, 3600),
        "drop_delay_s": number(0, 30 * _DAY_S),
    },
)

_DASHBOARD = Table(
    schema.Dashboard,
    {"host": host_name(), "port": integer(0, 65_535), "token_file": path()},
)

_ALERT = Table(
    schema.Alert,
    {
        "url": url(),
        "command": Each(line("a word of one line", 4096), "a list: the program, then its words"),
    },
)

_LOG = Table(
    schema.Log,
    {"level": choice("debug", "info", "warning", "error"), "format": choice("logfmt", "json")},
)

TABLES: Mapping[str, Table] = {
    "listen": _LISTEN,
    "spool": _SPOOL,
    "retry": _RETRY,
    "listmonk": _LISTMONK,
    "dashboard": _DASHBOARD,
    "alert": _ALERT,
    "log": _LOG,
}
"""The tables that stand once, by name."""

UPSTREAM = _UPSTREAM
"""Each ``[[upstream]]``."""

LANE = Table(
    schema.Lane,
    {
        "weight": number(0, 1000, above=True),
        "floor": number(0, 1),
        "age_max_h": number(0, 24 * 365, above=True),
        "duplicate_window_h": number(0, 24 * 365),
    },
)
"""Each ``[lane.NAME]``."""

TABLE_NAMES = (*TABLES, "upstream", "lane")

NOT_YET: Mapping[str, str] = {
    "spool.compress": "content is stored as it came",
    "lane.*.weight": "only bulk and priority run, and priority goes first",
    "lane.priority.floor": "priority goes first and needs no floor",
    "lane.*.duplicate_window_h": "no mail is compared with earlier mail",
    "lane.+": "mail goes to bulk or priority; no rule puts it into another lane",
    "listmonk.*": "Listmonk's HTTP API is not asked and not told anything",
    "alert.*": "nobody is told; watch the log or /metrics",
}
"""Keys without effect in this version: a pattern of keys, and what happens instead.

``*`` stands for any part of a key, ``lane.+`` for a lane that is not built in.
"""

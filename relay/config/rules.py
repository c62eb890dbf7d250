"""Contradictions: keys that are fine alone and cannot be used together.

A rule blames one key and names every key it looks at; it is asked only if all of them
were read without error, so that one mistake is reported once. Rules are rows; the few
that compare whole lists are functions below them.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay.config import schema
from relay.config.checks import address, show
from relay.envelope import PRIORITY
from relay.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# RFC 8314 §3.3 for 465, RFC 6409 §3.1 for 587; SES has 2465 and 2587 beside them (AWS,
# "Connecting to the Amazon SES SMTP endpoint"). The wrong kind waits for a greeting or a
# handshake that never comes.
_IMPLICIT_PORTS = frozenset({465, 2465})
_STARTTLS_PORTS = frozenset({25, 587, 2587})

_OPEN_PREFIX = {4: 8, 6: 7}
"""Networks wider than 10.0.0.0/8 and fc00::/7 are nobody's own: a relay open to them is open."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``blamed`` is wrong unless ``holds``; ``keys`` are the others it depends on.

    ``holds`` gets the table's dataclass. Keys are named within the table.
    """

    blamed: str
    keys: Sequence[str]
    holds: Callable[[Any], bool]
    wanted: str


LISTEN_RULES = (
    Rule(
        "users_file",
        ("auth",),
        lambda t: t.auth == "none" or t.users_file,
        'a file written by "relay user add", because auth = "required"',
    ),
    Rule(
        "tls_key_file",
        ("tls_cert_file",),
        lambda t: not t.tls_key_file or t.tls_cert_file,
        '"", or listen.tls_cert_file set as well',
    ),
    Rule(
        "tls_required",
        ("tls_cert_file",),
        lambda t: not t.tls_required or t.tls_cert_file,
        "false, or listen.tls_cert_file set as well",
    ),
    Rule(
        "body_bytes_max",
        ("size_max_bytes",),
        lambda t: t.body_bytes_max >= t.size_max_bytes,
        "at least listen.size_max_bytes, or the largest message would wait for ever",
    ),
    Rule(
        "allow_networks",
        ("auth", "host"),
        lambda t: t.auth == "required" or _lets_someone_in(t),
        'the networks that may send (listen.host is not loopback), or auth = "required"',
    ),
    Rule(
        "allow_networks",
        ("auth",),
        lambda t: t.auth == "required" or not any(map(_is_open, t.allow_networks)),
        'no network wider than /8 (IPv6: /7) unless auth = "required": an open relay',
    ),
)

SPOOL_RULES = (
    Rule(
        "dead_keep_days",
        ("outcomes_keep_days",),
        lambda t: t.dead_keep_days <= t.outcomes_keep_days,
        "at most spool.outcomes_keep_days: content is found by its outcome",
    ),
)

UPSTREAM_RULES = (
    Rule(
        "tls",
        ("host",),
        lambda t: t.tls != "none" or is_loopback(t.host),
        '"starttls" or "implicit"; "none" only towards loopback: passwords would go in clear',
    ),
    Rule(
        "port",
        ("tls",),
        lambda t: t.tls != "starttls" or t.port not in _IMPLICIT_PORTS,
        '587, 2587 or 25 with tls = "starttls" (this port wants "implicit")',
    ),
    Rule(
        "port",
        ("tls",),
        lambda t: t.tls != "implicit" or t.port not in _STARTTLS_PORTS,
        '465 or 2465 with tls = "implicit" (this port wants "starttls")',
    ),
    Rule(
        "password_file",
        ("username",),
        lambda t: not t.password_file or t.username,
        '"", or username set as well',
    ),
    Rule(
        "ca_file",
        ("tls",),
        lambda t: not t.ca_file or t.tls != "none",
        '"" with tls = "none": there is no certificate to verify',
    ),
)

RATE_RULES = (
    Rule(
        "floor_per_s",
        ("start_per_s",),
        lambda t: t.floor_per_s <= t.start_per_s,
        "at most start_per_s",
    ),
    Rule(
        "start_per_s",
        ("ceiling_per_s",),
        lambda t: not t.ceiling_per_s or t.start_per_s <= t.ceiling_per_s,
        "at most ceiling_per_s",
    ),
)

RETRY_RULES = (
    Rule("max_s", ("first_s",), lambda t: t.max_s >= t.first_s, "at least retry.first_s"),
)

LISTMONK_RULES = (
    Rule("url", ("api_user",), lambda t: t.url or not t.api_user, "Listmonk's address, too"),
    Rule("api_user", ("url",), lambda t: t.api_user or not t.url, "the API user, too"),
    Rule(
        "token_file",
        ("api_user",),
        lambda t: not t.token_file or t.api_user,
        '"", or listmonk.api_user set as well',
    ),
)

DASHBOARD_RULES = (
    Rule(
        "token_file",
        ("host",),
        lambda t: t.token_file or is_loopback(t.host),
        "a file, because dashboard.host is not loopback",
    ),
)

RULES = {
    schema.Listen: LISTEN_RULES,
    schema.Spool: SPOOL_RULES,
    schema.Upstream: UPSTREAM_RULES,
    schema.Rate: RATE_RULES,
    schema.Retry: RETRY_RULES,
    schema.Listmonk: LISTMONK_RULES,
    schema.Dashboard: DASHBOARD_RULES,
}
"""The rules of each table, by the class it becomes."""


def broken_rules(table: object, prefix: str, bad: set[str]) -> Iterator[ConfigError]:
    """The errors that ``table``, found at ``prefix``, has in itself; ``bad`` keys are not asked."""
    for rule in RULES.get(type(table), ()):
        looked_at = {f"{prefix}.{key}" for key in (rule.blamed, *rule.keys)}
        if looked_at.isdisjoint(bad) and not rule.holds(table):
            found = show(getattr(table, rule.blamed))
            yield ConfigError(f"{prefix}.{rule.blamed}", found, rule.wanted)


def clashes(config: schema.Config, bad: set[str]) -> Iterator[ConfigError]:
    """The errors between tables; ``bad`` keys are not asked."""
    for find in (_same_names, _same_domains, _loops, _same_ports, _floors):
        for clash in find(config):
            if bad.isdisjoint((clash.blamed, *clash.keys)):
                yield ConfigError(clash.blamed, clash.found, clash.wanted)


@dataclass(frozen=True, slots=True)
class _Clash:
    """One finding between tables: full keys here."""

    blamed: str
    keys: Sequence[str]
    found: str
    wanted: str


def _same_names(config: schema.Config) -> Iterator[_Clash]:
    names = [upstream.name for upstream in config.upstreams]
    for n, name in enumerate(names):
        if name in names[:n]:
            key = f"upstream[{names.index(name)}].name"
            blamed = f"upstream[{n}].name"
            yield _Clash(blamed, [key], show(name), f"a name of its own ({key} is the same)")


def _same_domains(config: schema.Config) -> Iterator[_Clash]:
    seen: dict[str, str] = {}
    for n, upstream in enumerate(config.upstreams):
        key = f"upstream[{n}].from_domains"
        for domain, times in Counter(upstream.from_domains).items():
            if times > 1 or domain in seen:
                first = seen.get(domain, key)
                yield _Clash(key, [first], show(domain), f"each domain once (it is in {first})")
            seen.setdefault(domain, key)


def _loops(config: schema.Config) -> Iterator[_Clash]:
    for n, upstream in enumerate(config.upstreams):
        at = f"upstream[{n}]"
        names_us = upstream.host.lower() == config.listen.hostname.lower() != ""
        if upstream.port == config.listen.port and (
            names_us or _reaches(upstream.host, config.listen.host)
        ):
            keys = [f"{at}.port", "listen.host", "listen.port", "listen.hostname"]
            wanted = "another server than this relay itself: mail would go round in a loop"
            yield _Clash(f"{at}.host", keys, show(upstream.host), wanted)


def _same_ports(config: schema.Config) -> Iterator[_Clash]:
    listen, dashboard = config.listen, config.dashboard
    if dashboard.port == listen.port != 0 and _overlap(dashboard.host, listen.host):
        keys = ["dashboard.host", "listen.host", "listen.port"]
        yield _Clash("dashboard.port", keys, show(dashboard.port), "another port than listen.port")


def _floors(config: schema.Config) -> Iterator[_Clash]:
    # The priority lane goes first and needs none: its floor is not in the sum.
    others = {name: lane for name, lane in config.lanes.items() if name != PRIORITY}
    floors = {f"lane.{name}.floor": lane.floor for name, lane in others.items()}
    total = sum(floors.values())
    if total > 1 + 1e-9:
        largest = max(floors, key=floors.__getitem__)
        wanted = "floors of all lanes but priority that add up to at most 1"
        yield _Clash(largest, [*floors], f"{show(floors[largest])}, {total:g} in all", wanted)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant by ``host``."""
    found = address(host)
    return host.lower() == "localhost" if found is None else found.is_loopback


def _addresses(host: str) -> set[str]:
    found = address(host)
    if found is not None:
        return {str(found)}
    return {"127.0.0.1", "::1"} if is_loopback(host) else {host.lower()}


def _is_wildcard(host: str) -> bool:
    found = address(host)
    return found is not None and found.is_unspecified


def _reaches(host: str, listened: Sequence[str]) -> bool:
    """Whether a connection to ``host`` would meet a socket bound to one of ``listened``."""
    if is_loopback(host) and any(map(_is_wildcard, listened)):
        return True
    return any(_addresses(host) & _addresses(one) for one in listened)


def _overlap(host: str, others: Sequence[str]) -> bool:
    """Whether sockets bound to ``host`` and to one of ``others`` would want the same address."""
    return _is_wildcard(host) or any(map(_is_wildcard, others)) or _reaches(host, others)


def _lets_someone_in(listen: schema.Listen) -> bool:
    networks = [ipaddress.ip_network(text) for text in listen.allow_networks]
    if all(map(is_loopback, listen.host)):
        return bool(networks)
    return any(not network.is_loopback for network in networks)


def _is_open(text: str) -> bool:
    network = ipaddress.ip_network(text)
    return network.prefixlen < _OPEN_PREFIX[network.version]

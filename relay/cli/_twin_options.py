"""The options of ``relay sandbox`` that shape the twin, and what becomes of them.

Those named after a field of ``TwinConfig`` set that field; the others are rows of
``_SHAPED``. Only what was really given counts, so that a scenario's settings stand where
the command line is silent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from relay.twin import NO_LATENCY, Farewell, Foreign, TwinConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PORT = 2587
"""The higher of SES's two STARTTLS ports; the lower needs root."""

_DEFAULTS = TwinConfig()
_SHARE = click.FloatRange(0, 1)


def _pair(
    mark: str,
    wanted: str,
    number: Callable[[str], float] = float,
    alone: Callable[[float], tuple[float, float]] | None = None,
) -> Callable[[str], tuple[float, float]]:
    """What reads two numbers with ``mark`` between them; of a lone one, ``alone`` makes both."""

    def read(text: str) -> tuple[float, float]:
        one, found, two = text.partition(mark)
        try:
            first = number(one)
            return alone(first) if alone and not found else (first, number(two))
        except ValueError:
            raise click.BadParameter(f"found {text!r}, wanted {wanted}") from None

    return read


_COUNTS = _pair("-", "a number or LOW-HIGH", int, lambda n: (n, n))
_AGES = _pair("-", "a number or LOW-HIGH", float, lambda n: (n, n))
_CHANGE = _pair(":", "SECONDS:RATE")
_FOREIGN = _pair(":", "RATE or RATE:BURST", float, lambda rate: (rate, Foreign().burst))

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--host", default=_DEFAULTS.host, show_default=True, help="A loopback address."),
    click.option("--port", default=PORT, show_default=True, help="0: any free one."),
    click.option(
        "--limit",
        "rate_per_s",
        type=float,
        default=_DEFAULTS.rate_per_s,
        show_default=True,
        help="Maximum send rate, recipients a second.",
    ),
    click.option("--burst", type=float, help="Recipients at once.  [default: a second's worth]"),
    click.option("--window/--bucket", help="Count in fixed seconds, or in a bucket (the default)."),
    click.option("--effective", type=float, metavar="SHARE", help="Of the limit, really accepted."),
    click.option("--noise", type=float, metavar="SHARE", help="Refused for the rate at random."),
    click.option("--rejected-cost", type=click.IntRange(0), help="Recipients a refusal costs."),
    click.option(
        "--change",
        "rate_changes",
        type=_CHANGE,
        metavar="SECONDS:RATE",
        multiple=True,
        help="Another limit so long after the first message; repeatable.",
    ),
    click.option(
        "--foreign",
        type=_FOREIGN,
        metavar="RATE[:BURST]",
        help="Somebody else sends so many recipients a second, in bursts.",
    ),
    click.option(
        "--quota",
        type=click.IntRange(0),
        default=_DEFAULTS.quota,
        show_default=True,
        help="Recipients in 24 h; 0: any number.",
    ),
    click.option("--quota-speed", type=float, help="At 1440 the quota's day is over in a minute."),
    click.option(
        "--connections",
        "connections_max",
        type=click.IntRange(0),
        default=_DEFAULTS.connections_max,
        show_default=True,
        help="Connections at the same time.",
    ),
    click.option(
        "--session-messages",
        type=_COUNTS,
        metavar="N|LOW-HIGH",
        default="{}-{}".format(*_DEFAULTS.session_messages),
        show_default=True,
        help="Messages until a session is ended with 421; each draws from the range.",
    ),
    click.option(
        "--session-age",
        "session_age_s",
        type=_AGES,
        metavar="S|LOW-HIGH",
        default="60-1200",
        show_default=True,
        help="Seconds until a session is closed without a word.",
    ),
    click.option(
        "--session-end",
        type=click.Choice([str(way) for way in Farewell]),
        default=str(_DEFAULTS.session_end),
        show_default=True,
        help="How the link of a session that is over ends.",
    ),
    click.option(
        "--idle",
        "idle_s",
        type=float,
        default=_DEFAULTS.idle_s,
        show_default=True,
        help="Seconds of silence after which a session is cut; 0: never.",
    ),
    click.option(
        "--latency",
        "rtt_ms",
        type=float,
        default=_DEFAULTS.latency.rtt_s * 1000,
        show_default=True,
        help="Round trip in ms; 0 answers at once, at the final dot, too.",
    ),
    click.option("--jitter", type=_SHARE, metavar="SHARE", help="Of the round trip, either way."),
    click.option("--stalls", type=_SHARE, metavar="SHARE", help="Of the replies, 1-60 s late."),
    click.option("--bytewise/--whole", help="Replies come one byte at a time, or whole (default)."),
    click.option(
        "--profile",
        "ehlo",
        type=click.Choice(["2025", "2020", "odd"]),
        default=_DEFAULTS.ehlo,
        show_default=True,
        help="What EHLO offers: SIZE (2020), STARTTLS inside TLS (odd).",
    ),
    click.option(
        "--tls",
        type=click.Choice(["starttls", "implicit", "none"]),
        default=_DEFAULTS.tls,
        show_default=True,
    ),
    click.option(
        "--auth/--no-auth",
        "auth_required",
        default=True,
        show_default=True,
        help="Require a login.",
    ),
    click.option("--user", "username", default=_DEFAULTS.username, show_default=True),
    click.option("--password", default=_DEFAULTS.password, show_default=True),
    click.option("--paused", is_flag=True, help="Sending is paused for this account."),
    click.option("--denied", is_flag=True, help="IAM denies this user to send."),
    click.option(
        "--verified",
        multiple=True,
        metavar="IDENTITY",
        help="An address or domain that may send, and no other; repeatable.",
    ),
    click.option("--sandboxed", is_flag=True, help="Recipients must be --verified, too."),
    click.option("--api-port", type=int, help="Serve GetSendQuota and GetAccount; 0: any port."),
    click.option("--seed", type=int, help="Makes caps, ids and latencies repeatable."),
)


def twin_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with all options that shape a twin."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def twin_config(base: TwinConfig, given: Mapping[str, Any]) -> TwinConfig:
    """``base`` with what the command line gave; raises ``ValueError`` for nonsense."""
    plain = {name: value for name, value in given.items() if name not in _SHAPED}
    config = replace(base, **plain)
    for name, shape in _SHAPED.items():
        if name in given:
            config = shape(config, given[name])
    return config


def _round_trip(config: TwinConfig, rtt_ms: float) -> TwinConfig:
    """``--latency``: none at all if it is none."""
    latency = replace(config.latency, rtt_s=rtt_ms / 1000) if rtt_ms > 0 else NO_LATENCY
    return replace(config, latency=latency)


def _jitter(config: TwinConfig, share: float) -> TwinConfig:
    return replace(config, latency=replace(config.latency, jitter=share))


def _stalls(config: TwinConfig, share: float) -> TwinConfig:
    return replace(config, latency=replace(config.latency, stall_share=share))


def _foreign(config: TwinConfig, pair: tuple[float, float]) -> TwinConfig:
    rate_per_s, burst = pair
    return replace(config, foreign=Foreign(rate_per_s=rate_per_s, burst=int(burst)))


def _paused(config: TwinConfig, paused: bool) -> TwinConfig:
    return replace(config, policy=replace(config.policy, paused=paused))


def _denied(config: TwinConfig, denied: bool) -> TwinConfig:
    return replace(config, policy=replace(config.policy, denied=denied))


def _verified(config: TwinConfig, identities: tuple[str, ...]) -> TwinConfig:
    verified = frozenset(identity.lower() for identity in identities)
    return replace(config, policy=replace(config.policy, verified=verified))


def _sandboxed(config: TwinConfig, sandboxed: bool) -> TwinConfig:
    """Without ``--verified`` nobody is."""
    verified = config.policy.verified or frozenset()
    return replace(config, policy=replace(config.policy, sandbox=sandboxed, verified=verified))


_SHAPED: dict[str, Callable[[TwinConfig, Any], TwinConfig]] = {
    "rtt_ms": _round_trip,
    "jitter": _jitter,
    "stalls": _stalls,
    "foreign": _foreign,
    "session_end": lambda config, way: replace(config, session_end=Farewell(way)),
    "paused": _paused,
    "denied": _denied,
    "verified": _verified,
    "sandboxed": _sandboxed,
}
"""Options that are not a field; in the order in which they take effect."""

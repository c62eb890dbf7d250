"""The words for what is known of a rate: one wording for status, page, metrics' readers and logs.

Pure. Rates are said with three digits, as a person would at 0.52/s, 14.0/s and 1000/s; an error
is said with the digits of its rate and never as nothing.
"""

from __future__ import annotations

from enum import StrEnum
from math import isfinite, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from relay.figures import UpstreamFigures

PHASES = ("idle", "searching", "settling", "holding", "probing")
"""What a shaper can be doing (``ShaperState.phase``)."""
DIGITS = 3
DECIMALS_MAX = 2
SHOWN_PER_S = 0.01
"""The least rate that is more than 0.00."""
GUESS_SHARE = 0.5
"""An error from here on says no more than "about"."""
AT_BOUND_SHARE = 0.995
"""A rate so near to a bound of ``relay.toml`` is held there by it."""


class KnownBy(StrEnum):
    """How the limit that is shown came to be known."""

    NOBODY = ""
    CONFIRMED = "confirmed"
    ESTIMATED = "estimated"
    REMEMBERED = "remembered"
    OPERATOR = "operator"
    AWS = "aws"


_KNOWN: Mapping[KnownBy, tuple[str, str]] = {
    KnownBy.NOBODY: ("not known yet", "not known yet"),
    KnownBy.CONFIRMED: ("confirmed {}", "confirmed"),
    KnownBy.ESTIMATED: ("estimated {}, not confirmed yet", "not confirmed yet"),
    KnownBy.REMEMBERED: ("remembered, last confirmed {}", "remembered from an earlier run"),
    KnownBy.OPERATOR: ("set by an operator {}, not confirmed yet", "set by an operator"),
    KnownBy.AWS: ("told by AWS {}, not confirmed yet", "told by AWS"),
}
"""How a limit is known, with the time of it and without."""


def span(ms: float) -> str:
    """So much time, in the unit that leaves a number of at least 2; below 0 is said as none."""
    seconds = max(0, round(ms / 1000))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def per_s(rate: float) -> str:
    """``0.52/s``, ``14.0/s``, ``1000/s``; nothing at all is ``0/s``."""
    if rate == 0:
        return "0/s"
    return f"{rate:.{_decimals(rate)}f}/s"


def limit_in_words(limit_per_s: float | None, error_share: float) -> str:
    """``14.0/s ± 0.1``, ``about 14.0/s`` if it is hardly more than a guess."""
    if limit_per_s is None:
        return "not known yet"
    if error_share >= GUESS_SHARE:
        return f"about {per_s(limit_per_s)}"
    decimals = _decimals(limit_per_s)
    # At least one step: no limit is known without an error.
    error = limit_per_s * error_share * 10**decimals
    steps = max(1, round(error)) if isfinite(error) else error
    return f"{per_s(limit_per_s)} ± {steps / 10**decimals:.{decimals}f}"


def known_in_words(known_by: str, known_at: int | None, now: int) -> str:
    """How a limit is known, and since when; times are wall milliseconds."""
    dated, undated = _KNOWN[KnownBy(known_by)]
    return undated if known_at is None else dated.format(f"{span(now - known_at)} ago")


def change_in_words(before_per_s: float | None, after_per_s: float | None, cause: str) -> str:
    """A move of the learned limit with its cause, as an event."""
    was = "not known before" if before_per_s is None else f"was {per_s(before_per_s)}"
    now = "not known any more" if after_per_s is None else per_s(after_per_s)
    return f"limit {now}, {was}: {cause}"


def rate_in_words(one: UpstreamFigures, now: int) -> str:
    """What the shaper of an upstream does at ``now`` (wall milliseconds), and what it knows."""
    if one.session_bound:
        return _session_bound(one)
    if one.phase == "idle":
        return _idle(one, now)
    return _at_a_bound(one) or _IN_PHASE.get(one.phase, _other)(one, now)


def _idle(one: UpstreamFigures, _: int) -> str:
    last = "limit" if one.limit_per_s is None else "last known"
    return f"idle; {last} {_limit(one)}"


def _searching(one: UpstreamFigures, _: int) -> str:
    return f"searching, {per_s(one.rate_per_s)} so far"


def _settling(one: UpstreamFigures, now: int) -> str:
    if one.limit_per_s is None:
        return "settling: a limit was met, and is being measured"
    return f"settling near {_limit(one)}, {_known(one, now)}"


def _holding(one: UpstreamFigures, now: int) -> str:
    if one.limit_per_s is None:
        return f"holding {per_s(one.rate_per_s)}, limit not known yet"
    share = f"{per_s(one.rate_per_s)}, use_max {one.use_max:g} of " if _is_shared(one) else ""
    return f"holding {share}{_limit(one)}, {_known(one, now)}"


def _is_shared(one: UpstreamFigures) -> bool:
    """Whether ``use_max`` is at work; the shaper leaves no share of what is but a guess."""
    limit_per_s = one.limit_per_s or 0.0
    return one.use_max < 1 and one.rate_per_s < limit_per_s * (1 + one.use_max) / 2


def _probing(one: UpstreamFigures, now: int) -> str:
    if one.limit_per_s is None:
        return f"probing, {per_s(one.rate_per_s)} so far"
    return f"probing for more than {per_s(one.limit_per_s)}, {_known(one, now)}"


def _other(one: UpstreamFigures, now: int) -> str:
    known = "" if one.limit_per_s is None else f", {_known(one, now)}"
    return f"{one.phase}, limit {_limit(one)}{known}"


_IN_PHASE: Mapping[str, Callable[[UpstreamFigures, int], str]] = {
    "searching": _searching,
    "settling": _settling,
    "holding": _holding,
    "probing": _probing,
}


def _session_bound(one: UpstreamFigures) -> str:
    carried, is_seen = per_s(one.sent_per_s), one.sent_per_s >= SHOWN_PER_S
    carry = "session carries" if one.sessions_busy == 1 else "sessions carry"
    so_far = "" if is_seen else " so far"
    is_open = one.limit_per_s is None or one.limit_per_s < one.sent_per_s
    limit = f"at least {carried}" if is_open and is_seen else _limit(one)
    return f"session-bound: {one.sessions_busy} {carry} {carried}{so_far}, the limit is {limit}"


def _at_a_bound(one: UpstreamFigures) -> str:
    """What is said if ``relay.toml``, not the limit, keeps the rate where it is; else ""."""
    usable_per_s = None if one.limit_per_s is None else one.limit_per_s * one.use_max
    limit = "limit not known" if usable_per_s is None else f"limit {_limit(one)}"
    if 0 < one.ceiling_per_s * AT_BOUND_SHARE <= one.rate_per_s and (
        usable_per_s is None or usable_per_s > one.ceiling_per_s
    ):
        return f"held down to ceiling_per_s, {per_s(one.ceiling_per_s)}; {limit}"
    if usable_per_s is not None and usable_per_s < one.floor_per_s:
        return f"held up to floor_per_s, {per_s(one.floor_per_s)}; {limit}"
    return ""


def _limit(one: UpstreamFigures) -> str:
    return limit_in_words(one.limit_per_s, one.error_share)


def _known(one: UpstreamFigures, now: int) -> str:
    return known_in_words(one.known_by, one.known_at, now)


def _decimals(rate: float) -> int:
    """Digits after the point that make ``DIGITS`` in all, at most ``DECIMALS_MAX``."""
    if not isfinite(rate):
        return 0
    # Rounded before it is measured: 99.96 would be written with four digits otherwise.
    rounded = max(1.0, float(f"{rate:.{DIGITS - 1}e}"))
    return min(DECIMALS_MAX, max(0, DIGITS - 1 - int(log10(rounded))))

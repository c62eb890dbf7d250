"""When a deferred recipient is tried again.

Exponential back-off with a cap and jitter, from ``[retry]``. Waiting longer each time keeps a
trouble of hours from eating the rate; the cap keeps a mended trouble from going unnoticed;
jitter keeps a thousand messages deferred together from coming back together. AWS advises 5 s,
10 s, 30 s, then 20 minutes for 400-class replies (documented); the default here, 1, 2, 4 … 60
minutes, gives a campaign's mail that it reaches a breaker's hold (``breaker``) first.

There is no last attempt: mail ends by age (``lane.*.age_max_h``), not by count.

Pure: chance is an argument, ``jitter`` in 0..1. Times are wall milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay import config

IN_DOUBT_MS = 600_000
"""Ten minutes (design 6), which is how long a server may think after the dot (RFC 5321
§4.5.3.2.6): a sooner try would meet the first while it may still be under way."""

DOUBTS_MAX = 5
"""Attempts after which mail that ends in doubt once more is kept until someone decides. Each
may be one more copy in the same mailbox: an upstream that takes mail and never says so (a link
that breaks on large messages) would fill it for the fourteen days that a campaign lives."""


def due_at(retry: config.Retry, attempts: int, now_ms: int, jitter: float) -> int:
    """When to try again after the ``attempts``-th attempt (from 1) was deferred.

    The wait is ``first_s * factor ** (attempts - 1)``, at most ``max_s``, and then moved by up
    to the share ``retry.jitter`` either way: down for ``jitter`` 0, up for 1.
    """
    return now_ms + _wait_ms(retry, attempts, jitter)


def in_doubt_at(retry: config.Retry, attempts: int, now_ms: int, jitter: float) -> int:
    """When to try again after the ``attempts``-th attempt ended in doubt.

    Ten minutes, or as ``due_at`` once that is longer: each try may be one more copy in the
    same mailbox, so those that keep ending in doubt come ever less often.
    """
    return now_ms + max(IN_DOUBT_MS, _wait_ms(retry, attempts, jitter))


def _wait_ms(retry: config.Retry, attempts: int, jitter: float) -> int:
    try:
        # As a float, for a whole number to the ten-thousandth would be exact, and huge.
        wait_s = retry.first_s * float(retry.factor) ** (attempts - 1)
    except OverflowError:  # From about the thousandth attempt on.
        wait_s = retry.max_s
    share = 1 + retry.jitter * (2 * jitter - 1)
    return round(min(wait_s, retry.max_s) * share * 1000)

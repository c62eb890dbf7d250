"""Holds, and the breakers that set and lift them.

``breaker`` has the theory and the decisions, ``counts`` how often who was refused with what,
``holds`` the store of what is held by whom. Pure.
"""

from relay.breaker.breaker import PROBE_FIRST_MS, PROBE_MAX_MS, RCPT_WINDOW, Breaker, Decision
from relay.breaker.counts import SUBJECTS_MAX, TEXT_CHARS_MAX, TEXTS_MAX, Counts, masked
from relay.breaker.holds import (
    PROBE_LOST_MS,
    Hold,
    Holds,
    Source,
    account_key,
    campaign_key,
    configuration_set_key,
    in_doubt_key,
    sandbox_key,
    sender_key,
)

__all__ = [
    "PROBE_FIRST_MS",
    "PROBE_LOST_MS",
    "PROBE_MAX_MS",
    "RCPT_WINDOW",
    "SUBJECTS_MAX",
    "TEXTS_MAX",
    "TEXT_CHARS_MAX",
    "Breaker",
    "Counts",
    "Decision",
    "Hold",
    "Holds",
    "Source",
    "account_key",
    "campaign_key",
    "configuration_set_key",
    "in_doubt_key",
    "masked",
    "sandbox_key",
    "sender_key",
]

"""What each reply of SES means for the envelope.

``words`` has the seven verdicts, ``table`` the one table of replies and the choices behind it,
``judging`` looks a reply up and knows what to do with a text that no row knows. Pure: knows
replies and nothing else, no envelope, no rate, no clock.
"""

from relay.verdict.judging import judge, judge_lost, judge_unreachable
from relay.verdict.table import TABLE, Row
from relay.verdict.words import (
    Bounced,
    Deferred,
    Ending,
    Held,
    InDoubt,
    Judgement,
    Kind,
    Limit,
    Scope,
    Sent,
    SessionEnded,
    Throttled,
    Verdict,
    kind_of,
)

__all__ = [
    "TABLE",
    "Bounced",
    "Deferred",
    "Ending",
    "Held",
    "InDoubt",
    "Judgement",
    "Kind",
    "Limit",
    "Row",
    "Scope",
    "Sent",
    "SessionEnded",
    "Throttled",
    "Verdict",
    "judge",
    "judge_lost",
    "judge_unreachable",
    "kind_of",
]

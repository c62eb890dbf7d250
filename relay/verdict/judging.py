"""From a reply, or from none, to a verdict: the table first, then the class's default."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, assert_never

from relay.reply import Reply, Stage
from relay.verdict.table import ADDRESS_CODES, FROM_MAIL, TABLE, Seen
from relay.verdict.words import (
    Bounced,
    Deferred,
    Ending,
    Held,
    InDoubt,
    Judgement,
    Scope,
    Sent,
    SessionEnded,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.errors import Unreachable

_ENHANCED = re.compile(r"\A\s*[245]\.\d{1,3}\.\d{1,3}\s+")
"""RFC 2034 §4. ``Reply.read`` has split it off; a reply made by other means may still have it."""
_CLOSING = 421
"""Never charged to the envelope, whatever it says: the session is what ends."""


def judge(reply: Reply, recipients: Sequence[str] = ()) -> Judgement:
    """What ``reply`` means; ``recipients`` are those it decides about, as sent in RCPT TO.

    For replies that decide: every refusal, and what comes after the dot.
    """
    text = _ENHANCED.sub("", reply.text)
    for row in TABLE:
        if reply.stage in row.stages and reply.code in row.codes:
            found = row.text.search(text)
            if found:
                return Judgement(row.verdict(Seen(reply, found, recipients)), row.name, known=True)
    return Judgement(_by_class(reply), f"unknown-{_class_of(reply.code)}", known=False)


def judge_lost(stage: Stage, text: str) -> Verdict:
    """What it means that no reply came at ``stage``; DOT is all that follows the 354."""
    return InDoubt(text) if stage is Stage.DOT else SessionEnded(Ending.LINK, text)


def judge_unreachable(failure: Unreachable) -> Verdict:
    """What it means that no session could be opened.

    A peer that cannot prove who it is, or offers no encryption, holds the account: the next
    connection would meet the same, and nothing may go out in plain text. No reply stands
    behind it, so the hold carries one with code 0.
    """
    if failure.trusted:
        return SessionEnded(Ending.LINK, str(failure))
    return Held(Reply(Stage.CONNECT, 0, str(failure)), Scope.ACCOUNT)


def _class_of(code: int) -> str:
    """The name of the code's class; "code" for what is no SMTP code at all.

    421 is a class of its own (RFC 5321 §4.2.1: the server closes the channel).
    """
    if code == _CLOSING:
        return str(code)
    return f"{code // 100}xx" if 200 <= code < 600 else "code"


def _by_class(reply: Reply) -> Verdict:
    """The default of the code's class at that stage."""
    match reply.code // 100:
        case 2 if reply.stage is Stage.DOT:
            return Sent(reply, "")
        case 2 | 3:
            # A good answer where we had to be told of a refusal: we lost our place.
            return SessionEnded(Ending.OUR_BUG, str(reply))
        case 4 if reply.stage in FROM_MAIL and reply.code != _CLOSING:
            return Deferred(reply)
        case 4:
            return SessionEnded(Ending.SERVER, str(reply))
        case 5:
            return _refused(reply)
        case _:
            return judge_lost(reply.stage, str(reply))


def _refused(reply: Reply) -> Verdict:
    """The default of an unknown 5xx: at fault is whoever the stage is about."""
    match reply.stage:
        case Stage.MAIL:
            return Held(reply, Scope.SENDER)
        case Stage.RCPT:
            return Bounced(reply, per_recipient=reply.code in ADDRESS_CODES)
        case Stage.DATA | Stage.DOT:
            return Bounced(reply, per_recipient=False)
        case Stage.RSET:
            return SessionEnded(Ending.OUR_BUG, str(reply))
        case Stage.CONNECT | Stage.EHLO | Stage.STARTTLS | Stage.AUTH:
            return Held(reply, Scope.ACCOUNT)
        case _:
            assert_never(reply.stage)

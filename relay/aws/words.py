"""An account as AWS describes it, and why it may say nothing.

Pure. An answer is read field by field: what is missing or absurd is None, and the rest still
counts, since AWS adds fields and values as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RATE_MIN_PER_S = 1.0
"""A sandbox's, the smallest there is (documented). From less a shaper would need a quarter of an
hour to find its way up."""
RATE_MAX_PER_S = 100_000.0
"""As in ``relay.toml``: more recipients a second than any account has (500 was seen)."""

DAY_MAX = 1e12
"""Recipients a day; more than the e-mail of the world (some 4e11 a day, *assumed*). Beyond it the
number is none."""


class Enforcement(StrEnum):
    """The account's reputation (*documented*, "GetAccount")."""

    HEALTHY = "HEALTHY"
    PROBATION = "PROBATION"
    SHUTDOWN = "SHUTDOWN"


_STANDINGS = {one.value: one for one in Enforcement}


class Silence(StrEnum):
    """Why nothing is known, in the words of the log."""

    EXTRA = "the extra [aws] is not installed"
    CREDENTIALS = "no AWS credentials that work"
    DENIED = "neither ses:GetAccount nor ses:GetSendQuota is allowed"
    UNREACHABLE = "AWS cannot be reached"
    LATE = "AWS did not answer in time"
    REFUSED = "AWS refused to answer"
    ANOTHER = "the AWS credentials belong to another account than the SMTP user name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What AWS says of one account in one region; None is what it did not say.

    ``rate_max_per_s`` and ``sent_24_h`` are in recipients. ``GetSendQuota`` tells the first three
    only. A limit of -1 (none, *documented*) is None. ``id`` is the account's twelve digits as the
    key ID in use has them.
    """

    rate_max_per_s: float | None = None
    max_24_h: int | None = None
    sent_24_h: int | None = None
    sending_enabled: bool | None = None
    production_access: bool | None = None
    enforcement: Enforcement | None = None
    id: str | None = None


def troubles(account: Account) -> tuple[str, ...]:
    """What is wrong with ``account``, in words for people; nothing is held because of it."""
    paused = account.sending_enabled is False or account.enforcement is Enforcement.SHUTDOWN
    said = {
        "AWS has paused sending for this account": paused,
        "AWS has this account under review (PROBATION)": (
            account.enforcement is Enforcement.PROBATION
        ),
        # "GetAccount": documented.
        "sandbox account: only verified recipients, 200 a day, 1/s": (
            account.production_access is False
        ),
    }
    return tuple(text for text, holds in said.items() if holds)


def read_account(answer: Mapping[str, object], account_id: str | None) -> Account:
    """``GetAccount``'s answer in our words."""
    quota = answer.get("SendQuota")
    return _account(
        quota if isinstance(quota, dict) else {},
        account_id,
        sending_enabled=_claim(answer.get("SendingEnabled")),
        production_access=_claim(answer.get("ProductionAccessEnabled")),
        enforcement=_STANDINGS.get(str(answer.get("EnforcementStatus"))),
    )


def read_quota(answer: Mapping[str, object], account_id: str | None) -> Account:
    """``GetSendQuota``'s answer in our words."""
    return _account(answer, account_id)


def _account(
    quota: Mapping[str, object],
    account_id: str | None,
    *,
    sending_enabled: bool | None = None,
    production_access: bool | None = None,
    enforcement: Enforcement | None = None,
) -> Account:
    max_24_h = _number(quota.get("Max24HourSend"), DAY_MAX)
    sent_24_h = _number(quota.get("SentLast24Hours"), DAY_MAX)
    return Account(
        # 0 is no rate to start from: an account that may not send says so in other fields.
        rate_max_per_s=_number(quota.get("MaxSendRate"), RATE_MAX_PER_S, RATE_MIN_PER_S),
        max_24_h=None if max_24_h is None else round(max_24_h),
        sent_24_h=None if sent_24_h is None else round(sent_24_h),
        sending_enabled=sending_enabled,
        production_access=production_access,
        enforcement=enforcement,
        id=account_id,
    )


def _number(value: object, greatest: float, least: float = 0.0) -> float | None:
    """``value`` if it is a number within ``least..greatest``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if least <= value <= greatest else None  # false for NaN, too


def _claim(value: object) -> bool | None:
    return value if isinstance(value, bool) else None

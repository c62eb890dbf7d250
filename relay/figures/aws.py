"""What AWS says of an account, as people see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsFigures:
    """AWS's own figures of one account, as of ``said_at``; None is what it did not say.

    ``rate_max_per_s`` and the two of 24 hours are in recipients; ``enforcement`` is "HEALTHY",
    "PROBATION" or "SHUTDOWN"; ``troubles`` says in words what is wrong.
    """

    said_at: int
    rate_max_per_s: float | None
    max_24_h: int | None
    sent_24_h: int | None
    sending_enabled: bool | None
    production_access: bool | None
    enforcement: str | None
    troubles: tuple[str, ...]

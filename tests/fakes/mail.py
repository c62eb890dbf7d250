"""Envelopes made with one line."""

from __future__ import annotations

from relay.envelope import Envelope, Recipient
from relay.lanes import lane_of


def envelope(
    number: int,
    *,
    campaign: str = "",
    cost: int = 1,
    upstream: str = "ses",
    sender: str = "news@lists.example.com",
    received_at: int = 1_800_000_000_000,
) -> Envelope:
    recipients = tuple(Recipient(n, f"r{number}-{n}@example.org") for n in range(cost))
    return Envelope(
        id=number,
        content_id=number,
        sender=sender,
        recipients=recipients,
        upstream=upstream,
        lane=lane_of(campaign),
        campaign=campaign,
        message_id=f"<{number}@lists.example.com>",
        size_bytes=1000,
        received_at=received_at,
    )

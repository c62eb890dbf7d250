"""The account behind the endpoint: what SES decides once it has a whole message.

MAIL and RCPT look at syntax only; rate, quota and content are judged after the dot
(*observed*). Nothing is charged unless the message is accepted, but for
``rejected_cost``. The order of the tests is *assumed*: size, rate, quota, content.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from relay.twin import addresses, texts
from relay.twin.content import Head
from relay.twin.ledger import Accepted, Ledger
from relay.twin.limits import Bucket, Quota

if TYPE_CHECKING:
    import random

    from relay.clock import Clock
    from relay.twin.faults import Transaction
    from relay.twin.parameters import TwinConfig


class Account:
    """One AWS account in one region: its limits, its rules and its ledger."""

    def __init__(
        self, config: TwinConfig, ledger: Ledger, clock: Clock, chance: random.Random
    ) -> None:
        self._config, self._ledger, self._clock, self._chance = config, ledger, clock, chance
        self.once_only_headers = config.once_only_headers
        self.bucket = Bucket(config.rate_per_s, config.burst, clock.monotonic())
        self.quota = Quota(config.quota, config.quota_step_s)

    def judge(self, transaction: Transaction) -> Accepted | str:
        """What becomes of a complete message: its record, or the reply that refuses it."""
        now = self._clock.monotonic()
        head = Head(transaction.content or b"")
        refusal = self._limit(transaction, now) or self._objection(transaction, head)
        if refusal is not None:
            return refusal
        cost = len(transaction.recipients)
        self.bucket.take(cost, now)
        self.quota.take(cost, now)
        record = self._record(transaction, head, now)
        self._ledger.accepted(record)
        return record

    def attempted(self) -> None:
        """Count a message that has reached the dot."""
        self._ledger.attempted(self._clock.monotonic())

    def refused(self, text: str) -> None:
        """Count a reply that said no, at whatever stage."""
        self._ledger.refused(text, self._clock.monotonic())

    def change_rate(self, rate_per_s: float, burst: float | None) -> None:
        """Another limit from now on."""
        self.bucket.change(rate_per_s, burst, self._clock.monotonic())

    def _limit(self, transaction: Transaction, now: float) -> str | None:
        content = transaction.content
        if content is None or len(content) > self._config.size_max_bytes:
            return texts.TOO_LONG
        if not self.bucket.admits(now):
            self.bucket.take(self._config.rejected_cost, now)
            return texts.RATE
        return None if self.quota.admits(now) else texts.QUOTA

    def _objection(self, transaction: Transaction, head: Head) -> str | None:
        limit = self._config.recipients_max
        if len(transaction.recipients) > limit:
            return texts.TOO_MANY_RECIPIENTS.format(limit=limit)
        if self.once_only_headers and (name := head.duplicate()):
            return texts.DUPLICATE_HEADER.format(name=name)
        envelope = (transaction.sender or "", *transaction.recipients)
        return next(filter(None, map(addresses.objection, envelope)), None)

    def _record(self, transaction: Transaction, head: Head, now: float) -> Accepted:
        content = transaction.content or b""
        wall_ms = self._clock.wall_ms()
        received = head.first(b"received")
        bare = content if received is None else content[: received.start] + content[received.end :]
        return Accepted(
            id=texts.message_id(wall_ms, self._chance),
            wall_ms=wall_ms,
            at=now,
            session=transaction.session,
            sender=transaction.sender or "",
            recipients=tuple(transaction.recipients),
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            sha256_bare=hashlib.sha256(bare).hexdigest(),
            received=head.text(b"received"),
            message_id=head.text(b"message-id"),
            campaign=head.text(b"x-listmonk-campaign"),
            subscriber=head.text(b"x-listmonk-subscriber"),
            content=content if self._config.keep_content else None,
        )

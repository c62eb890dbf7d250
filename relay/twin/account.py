"""The account behind the endpoint: what SES decides once it has a whole message.

MAIL and RCPT look at syntax only; rate, quota and content are judged after the dot
(*observed*). Nothing is charged unless the message is accepted, but for
``rejected_cost``. The order of the tests is *assumed*: size, rate, quota, policy.

What happens by itself (scheduled changes of the rate, a stranger's bursts) is made up
for whenever somebody looks: each at its own moment, in order, so that the outcome does
not depend on how often that is.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from typing import TYPE_CHECKING

from relay.twin import policy, texts
from relay.twin.content import Head
from relay.twin.ledger import Accepted, Ledger
from relay.twin.limits import Bucket, Bursts, Quota, Window

if TYPE_CHECKING:
    from relay.clock import Clock
    from relay.twin.faults import Transaction
    from relay.twin.parameters import Policy, TwinConfig


class Account:
    """One AWS account in one region: its limits, its rules and its ledger.

    ``policy`` and ``credentials_valid`` may be set at any moment.
    """

    def __init__(
        self, config: TwinConfig, ledger: Ledger, clock: Clock, chance: random.Random
    ) -> None:
        now = clock.monotonic()
        self._config, self._ledger, self._clock, self._chance = config, ledger, clock, chance
        self.policy: Policy = config.policy
        self.credentials_valid = config.credentials_valid
        self._rate_per_s = config.rate_per_s
        real = config.rate_per_s * config.effective
        self._bucket = Window(real, now) if config.window else Bucket(real, config.burst, now)
        self._ledger.limited(self._bucket.rate_per_s, now)
        self._quota = Quota(
            config.quota,
            config.quota_step_s,
            used=config.quota_used,
            speed=config.quota_speed,
            now=now,
        )
        self._refusal = texts.SIGV2 if config.sigv2_text else texts.RATE
        self._changes: deque[tuple[float, float]] = deque()
        """What is still to come of the schedule; it begins with the first message."""
        self._began = False
        strangers = random.Random(chance.getrandbits(64) if config.foreign.rate_per_s else 0)  # noqa: S311
        self._bursts = Bursts(config.foreign.rate_per_s / config.foreign.burst, strangers, now)
        self._next_at = self._bursts.next_at

    @property
    def rate_per_s(self) -> float:
        """The limit in force as the account's owner is told it, recipients a second."""
        self.catch_up()
        return self._rate_per_s

    @property
    def quota_limit(self) -> int:
        """Recipients in 24 hours; 0: any number."""
        return self._quota.limit

    @property
    def quota_sent(self) -> int:
        """Recipients of the last 24 hours that count for the quota."""
        return self._quota.sent(self.catch_up())

    def judge(self, transaction: Transaction) -> Accepted | str:
        """What becomes of a complete message: its record, or the reply that refuses it."""
        now = self.catch_up()
        refusal = self._limit(transaction, now)
        if refusal is not None:
            return refusal
        head = Head(transaction.content or b"")
        message = policy.Message(transaction.sender or "", transaction.recipients, head)
        objection = policy.objection(self.policy, message)
        if objection is not None:
            return objection
        self._bucket.take(len(transaction.recipients), now)
        self._quota.take(_quota_cost(transaction.recipients), now)
        record = self._record(transaction, head, now)
        self._ledger.accepted(record)
        return record

    def attempted(self) -> None:
        """Count a message that has reached the dot; the first starts the schedule of rates."""
        now = self.catch_up()
        if not self._began:
            self._began = True
            self._changes.extend(
                (now + after_s, rate) for after_s, rate in self._config.rate_changes
            )
            self._look_ahead()
        self._ledger.attempted(now)

    def refused(self, text: str) -> None:
        """Count a reply that said no, at whatever stage."""
        self._ledger.refused(text, self.catch_up())

    def change_rate(self, rate_per_s: float, burst: float | None) -> None:
        """Another limit from now on; what the schedule still holds comes all the same."""
        self._change(rate_per_s, burst, self.catch_up())

    def skip(self, seconds: float) -> None:
        """Put the quota's clock forward, and no other."""
        self.catch_up()
        self._quota.skip(seconds)

    def sent_until(self, lag_s: float) -> int:
        """``quota_sent`` without what came in the last ``lag_s`` seconds."""
        sent, since = self.quota_sent, self._clock.monotonic() - lag_s
        if lag_s <= 0:
            return sent
        for record in reversed(self._ledger.records):
            if record.at <= since:
                break
            sent -= _quota_cost(record.recipients)
        for at, recipients in reversed(self._ledger.foreign):
            if at <= since:
                break
            sent -= recipients
        return max(0, sent)

    def catch_up(self) -> float:
        """Let happen what was due until now; returns now."""
        now = self._clock.monotonic()
        while self._next_at <= now:
            at = self._next_at
            if self._changes and self._changes[0][0] <= at:
                self._change(self._changes.popleft()[1], self._config.burst, at)
            else:
                self._burst(at)
                self._bursts.advance()
            self._look_ahead()
        return now

    def _look_ahead(self) -> None:
        change_at = self._changes[0][0] if self._changes else math.inf
        self._next_at = min(change_at, self._bursts.next_at)

    def _change(self, rate_per_s: float, burst: float | None, at: float) -> None:
        self._rate_per_s = rate_per_s
        self._bucket.change(rate_per_s * self._config.effective, burst, at)
        self._ledger.limited(self._bucket.rate_per_s, at)

    def _burst(self, at: float) -> None:
        """The stranger sends to one recipient at a time, and gives up at the first refusal."""
        admitted = 0
        while (
            admitted < self._config.foreign.burst
            and self._bucket.admits(at)
            and self._quota.admits(at)
        ):
            self._bucket.take(1, at)
            self._quota.take(1, at)
            admitted += 1
        if admitted:
            self._ledger.taken(admitted, at)

    def _limit(self, transaction: Transaction, now: float) -> str | None:
        content = transaction.content
        if content is None or len(content) > self._config.size_max_bytes:
            return texts.TOO_LONG
        if not self._bucket.admits(now):
            self._bucket.take(self._config.rejected_cost, now)
            return self._refusal
        if self._config.noise and self._chance.random() < self._config.noise:
            return self._refusal
        return None if self._quota.admits(now) else texts.QUOTA

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


def _quota_cost(recipients: list[str] | tuple[str, ...]) -> int:
    """The mailbox simulator counts for the rate, not for the quota (*documented*)."""
    return sum(not recipient.lower().endswith(policy.SIMULATOR) for recipient in recipients)

"""From a finished SMTP transaction to envelopes in the spool.

No wire here: a transaction and its content come in, a reply goes out. The one change to
the content is the ``Received:`` field in front of it (RFC 5321 §4.4); it tells neither the
client's address nor the name it gave, which would show a private network to every reader.

P1: ``keep`` answers 250 only after ``spool.append`` has returned.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from relay.envelope import Envelope, Recipient, id_text, redact, split
from relay.errors import SpoolFull
from relay.lanes import lane_of
from relay.listener import headers, replies

if TYPE_CHECKING:
    from relay import config
    from relay.clock import Clock
    from relay.listener.observer import Observer

log = logging.getLogger(__name__)

RECIPIENTS_MAX = 10_000
"""Recipients of one transaction. Listmonk has one a message, a notice a handful; whatever
is refused is lost, so the limit only bounds memory (some 10 MB with the longest addresses)."""

RECEIVED_MAX = 50
"""``Received:`` fields that mean a loop (Postfix, ``hopcount_limit``)."""

FULL_RETRY_S = 1.0
"""Between tries when the spool says it has room and then has not, a race of others' mail."""

UpstreamOf = Callable[[str], str]
"""Which upstream, by name, mail of this sender goes to."""


class Spool(Protocol):
    """What the listener needs of the spool; the tests have one in memory."""

    @property
    def has_room(self) -> bool:
        """New mail can be taken."""

    async def wait_for_room(self) -> None:
        """Return when it can."""

    def new_id(self) -> int:
        """The next envelope id."""

    async def append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        """Return when they are durable."""


@dataclass(slots=True)
class Mail:
    """One transaction between MAIL and the answer to its dot."""

    sender: str
    recipients: dict[str, None] = field(default_factory=dict)
    """In order; the same address twice is one recipient."""


@dataclass(frozen=True, slots=True)
class Via:
    """How the client speaks to us: what the ``with`` of ``Received:`` says (RFC 3848)."""

    is_extended: bool
    is_encrypted: bool
    auth_user: str

    def __str__(self) -> str:
        if not self.is_extended:
            return "SMTP"
        return "ESMTP" + "S" * self.is_encrypted + "A" * bool(self.auth_user)


@dataclass(frozen=True, slots=True)
class _About:
    """What the envelopes of one message have in common."""

    sender: str
    fields: headers.Fields
    size_bytes: int
    auth_user: str
    received_at: int


@dataclass(slots=True, kw_only=True)
class Intake:
    """The way into the spool, shared by all connections."""

    listen: config.Listen
    hostname: str
    spool: Spool
    clock: Clock
    upstream_of: UpstreamOf
    observer: Observer
    _stalled: int = field(default=0, init=False)

    async def wait_for_room(self) -> bool:
        """Stall a MAIL until there is room; False if that took ``stall_max_s``."""
        self._count_stall(1)
        try:
            async with asyncio.timeout(self.listen.stall_max_s):
                await self.spool.wait_for_room()
        except TimeoutError:
            return False
        finally:
            self._count_stall(-1)
        return True

    async def keep(self, mail: Mail, content: bytes, via: Via) -> bytes:
        """Spool the message and return the reply to its dot.

        Cancelled while it waits, the message is withdrawn unless its batch is being written.

        Raises:
            RelayError: the spool could not keep it.
        """
        fields = headers.read(content)
        if fields.received >= RECEIVED_MAX:
            return replies.LOOP
        parts = split(tuple(mail.recipients))
        ids = [self.spool.new_id() for _ in parts]
        now_ms = self.clock.wall_ms()
        content = self._trace(ids[0], now_ms, via) + content
        about = _About(mail.sender, fields, len(content), via.auth_user, now_ms)
        envelopes = [
            self._envelope(one, ids[0], part, about) for one, part in zip(ids, parts, strict=True)
        ]
        try:
            async with asyncio.timeout(self.listen.stall_max_s):
                await self._append(envelopes, content)
        except TimeoutError:
            return replies.NO_ROOM
        self._tell(envelopes)
        return b"250 2.0.0 Ok: queued as " + envelopes[0].name.encode()

    async def _append(self, envelopes: Sequence[Envelope], content: bytes) -> None:
        stalls = not self.spool.has_room
        if stalls:
            self._count_stall(1)
        try:
            while True:
                try:
                    return await self.spool.append(envelopes, content)
                except SpoolFull:
                    await self.clock.sleep(FULL_RETRY_S)
                    await self.spool.wait_for_room()
        finally:
            if stalls:
                self._count_stall(-1)

    def _envelope(
        self, envelope_id: int, content_id: int, addresses: Iterable[str], about: _About
    ) -> Envelope:
        fields = about.fields
        return Envelope(
            id=envelope_id,
            content_id=content_id,
            sender=about.sender,
            recipients=tuple(Recipient(n, address) for n, address in enumerate(addresses)),
            upstream=self.upstream_of(about.sender),
            lane=lane_of(fields.campaign),
            campaign=fields.campaign,
            subscriber=fields.subscriber,
            message_id=fields.message_id,
            configuration_set=fields.configuration_set,
            auth_user=about.auth_user,
            size_bytes=about.size_bytes,
            received_at=about.received_at,
        )

    def _trace(self, content_id: int, received_at: int, via: Via) -> bytes:
        """The ``Received:`` field: RFC 5321 §4.4 without its optional and private parts."""
        date, name = _date(received_at // 1000), id_text(content_id)
        return (
            f"Received: by {self.hostname} (listmonk-relay) with {via}\r\n id {name}; {date}\r\n"
        ).encode()

    def _tell(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            self.observer.received(envelope)
            if log.isEnabledFor(logging.INFO):
                log.info(
                    "envelope received",
                    extra={
                        "envelope": envelope.name,
                        "lane": envelope.lane,
                        "campaign": envelope.campaign,
                        "sender": redact(envelope.sender),
                        "recipients": envelope.cost,
                        "size_bytes": envelope.size_bytes,
                    },
                )

    def _count_stall(self, change: int) -> None:
        """Keep count, and say so loudly when the first client begins to wait."""
        self._stalled += change
        self.observer.stalled(change > 0)
        if change > 0 and self._stalled == 1:
            log.warning("clients stalled: no room in the spool")
        elif not self._stalled:
            log.info("clients no longer stalled")


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    """The moment as RFC 5322 §3.3 writes it, in UTC; made once a second."""
    return formatdate(second).replace("-0000", "+0000")


def hostname_of(listen: config.Listen, machine: str) -> str:
    """The name we go by: ``listen.hostname``, else the machine's; only what a header can bear."""
    return re.sub(r"[^A-Za-z0-9.:\[\]-]", "", listen.hostname or machine) or "localhost"


def by_domain(upstreams: Sequence[config.Upstream]) -> UpstreamOf:
    """The upstream whose ``from_domains`` has the sender's domain, or the nearest one above it.

    Without a match: the first that takes any domain (an empty ``from_domains``), else the first.
    """
    rules = {domain.lower(): one.name for one in reversed(upstreams) for domain in one.from_domains}
    default = next((one.name for one in upstreams if not one.from_domains), upstreams[0].name)

    def upstream_of(sender: str) -> str:
        domain = sender.rpartition("@")[2].lower()
        while domain:
            if domain in rules:
                return rules[domain]
            domain = domain.partition(".")[2]
        return default

    return upstream_of if rules else lambda sender: default  # noqa: ARG005

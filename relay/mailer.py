"""A double of Listmonk's mailer, for the demo and for tests (facts: listmonk-wire.md).

One command at a time, five round trips a message, random header order, headers unfolded,
quoted-printable HTML, ``X-Listmonk-*`` headers, connections reused and closed without
QUIT, the stray dot after a refused message, and the retry rules of smtppool v2: a link
lost before the dot's reply is tried again on another connection, everything else is lost.
What it was told is kept, so that whoever drives it can hold the relay to its word. It
shares no code with ``listener``, which it tests, and talks to loopback only in our hands.
"""

from __future__ import annotations

import asyncio
import binascii
import time
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import Iterable, Iterator

REPLY_LINE_MAX = 1 << 20
"""Bytes in a line of a reply; far more than any server writes."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One message as Listmonk would render it."""

    message_id: str
    sender: str
    recipient: str
    content: bytes


def make_mail(
    rng: random.Random,
    number: int,
    *,
    campaign: str = "",
    body_bytes: int = 4000,
    extra: tuple[tuple[str, str], ...] = (),
) -> Mail:
    """A campaign message, or a transactional one if ``campaign`` is empty."""
    recipient, sender = f"reader{number}@example.org", "news@lists.example.com"
    message_id = f"<{rng.getrandbits(120):024x}.{number}@lists.example.com>"
    subscriber = str(uuid.UUID(int=rng.getrandbits(128)))
    headers = [
        ("From", f'"Example Lists" <{sender}>'),
        ("To", f"<{recipient}>"),
        ("Subject", "=?UTF-8?q?Weekly_notes_=E2=80=94_=E2=84=96_7?="),
        ("Date", formatdate()),
        ("Message-Id", message_id),
        ("Mime-Version", "1.0"),
        ("Content-Type", "text/html; charset=UTF-8"),
        ("Content-Transfer-Encoding", "quoted-printable"),
        *extra,
    ]
    if campaign:
        root = "https://lists.example.com/subscription"
        headers += [
            ("X-Listmonk-Campaign", campaign),
            ("X-Listmonk-Subscriber", subscriber),
            ("List-Unsubscribe", f"<{root}/{campaign}/{subscriber}>"),
            ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ]
    rng.shuffle(headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    line = f"<p>Dear Reader {number}, café, naïve, 今日は.</p>\n.a line with a dot\n.\n"
    text = (line * (body_bytes // len(line) + 1))[:body_bytes]
    body = binascii.b2a_qp(text.encode()).replace(b"\n", b"\r\n")
    return Mail(message_id, sender, recipient, head.encode() + b"\r\n" + body)


class Lost(Exception):
    """The connection ended."""


class Connection:
    """One pooled connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(
        cls, host: str, port: int, *, starttls: ssl.SSLContext | None = None
    ) -> Connection:
        """Connect and say EHLO. Raises: Lost, OSError."""
        reader, writer = await asyncio.open_connection(host, port, limit=REPLY_LINE_MAX)
        connection = cls(reader, writer)
        try:
            await connection.reply()
            await connection.command("EHLO localhost")
            if starttls is not None:
                await connection.command("STARTTLS")
                await writer.start_tls(starttls)
                await connection.command("EHLO localhost")
        except BaseException:
            connection.close()
            raise
        return connection

    async def reply(self) -> tuple[int, str]:
        """The server's next reply: code, and its lines. Raises: Lost."""
        lines = []
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError as error:
                raise Lost from error
            if not line.endswith(b"\n"):
                raise Lost
            lines.append(line[4:].decode().strip())
            if line[3:4] != b"-":
                return int(line[:3]), "\n".join(lines)

    async def write(self, data: bytes) -> None:
        """Send as it is. Raises: Lost."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise Lost from error

    async def command(self, line: str) -> tuple[int, str]:
        """Send a line and wait for its reply. Raises: Lost."""
        await self.write(line.encode() + b"\r\n")
        return await self.reply()

    async def send(self, mail: Mail, told: Told) -> bool:
        """One message; True: accepted, False: refused. Raises Lost with ``told.at_dot`` set."""
        for line in (f"MAIL FROM:<{mail.sender}> BODY=8BITMIME", f"RCPT TO:<{mail.recipient}>"):
            code, text = await self.command(line)
            if code // 100 != 2:
                told.refusals.append(f"{code} {text}")
                await self.command("RSET")
                return False
        code, text = await self.command("DATA")
        if code != 354:
            told.refusals.append(f"{code} {text}")
            await self.command("RSET")
            return False
        stuffed = mail.content.replace(b"\r\n.", b"\r\n..")
        end = b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
        told.at_dot = True
        await self.write(stuffed + end)
        code, text = await self.reply()
        told.at_dot, told.answered = False, True
        if code != 250:
            told.refusals.append(f"{code} {text}")
            await self.command("\r\n." if end != b".\r\n" else ".")
        else:
            told.accepted.append((mail.message_id, text.rsplit(" ", 1)[-1]))
            told.accepted_at[mail.message_id] = time.monotonic()
        await self.command("RSET")
        return code == 250

    def close(self) -> None:
        """End without QUIT, as Listmonk's pool does."""
        self._writer.transport.abort()


@dataclass(slots=True)
class Told:
    """What the relay said: accepted (Message-ID, queue id), refused, and links lost."""

    accepted: list[tuple[str, str]] = field(default_factory=list)
    accepted_at: dict[str, float] = field(default_factory=dict)
    """By Message-ID, monotonic seconds."""
    refusals: list[str] = field(default_factory=list)
    lost_at_dot: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    at_dot: bool = False
    answered: bool = False
    """The dot was answered: a link lost after that costs nothing but the connection."""


class Client:
    """A pool of ``connections`` workers that share a queue of mail."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connections: int = 10,
        attempts: int = 30,
        retry_delay_s: float = 0.2,
        starttls: ssl.SSLContext | None = None,
    ) -> None:
        self._host, self._port, self._connections = host, port, connections
        self._attempts, self._retry_delay_s, self._starttls = attempts, retry_delay_s, starttls
        self.told = Told()

    async def send(self, mails: Iterable[Mail]) -> Told:
        """Send all, made as they are needed; what became of each is in the answer."""
        queue = iter(mails)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._connections):
                tasks.create_task(self._worker(queue))
        return self.told

    async def _worker(self, queue: Iterator[Mail]) -> None:
        connection: Connection | None = None
        # One for all workers but for the two flags, which belong to a connection.
        told = Told(
            self.told.accepted,
            self.told.accepted_at,
            self.told.refusals,
            self.told.lost_at_dot,
            self.told.given_up,
        )
        try:
            for mail in queue:
                connection = await self._deliver(mail, connection, told)
        finally:
            if connection is not None:
                connection.close()

    async def _deliver(
        self, mail: Mail, connection: Connection | None, told: Told
    ) -> Connection | None:
        """Send one message by smtppool's rules; the connection to go on with."""
        for _ in range(self._attempts):
            told.at_dot = told.answered = False
            try:
                connection = connection or await Connection.open(
                    self._host, self._port, starttls=self._starttls
                )
                await connection.send(mail, told)
            except (Lost, OSError):
                if connection is not None:
                    connection.close()
                connection = None
                if told.answered:
                    return None
                if told.at_dot:
                    told.lost_at_dot.append(mail.message_id)
                    return None
                await asyncio.sleep(self._retry_delay_s)
            else:
                return connection
        told.given_up.append(mail.message_id)
        return None

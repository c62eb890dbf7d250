"""Python's own smtplib against a twin, step by step: a client that we did not write."""

from __future__ import annotations

import asyncio
import smtplib
from typing import TYPE_CHECKING, Any

from relay.twin import (
    NO_LATENCY,
    Fault,
    Stage,
    Twin,
    TwinConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.clock import ManualClock

PATIENCE_S = 30
OPEN = TwinConfig(
    tls="none",
    auth_required=False,
    latency=NO_LATENCY,
    rate_per_s=1e6,
    quota=0,
    session_messages=(1000, 1000),
)
SENDER, READER = "news@lists.example.com", "reader@example.org"
HEAD = f"From: {SENDER}\r\nTo: {READER}\r\nSubject: notes\r\n"
CONTENT = f"{HEAD}\r\nHello.\r\n"


class Client(smtplib.SMTP):
    """smtplib step by step, with raw addresses."""

    def __init__(self, port: int, timeout_s: float = PATIENCE_S) -> None:
        super().__init__("127.0.0.1", port, local_hostname="localhost", timeout=timeout_s)

    def say(self, line: str) -> str:
        """The whole reply to a command, as ``code text``."""
        code, text = self.docmd(line)
        return f"{code} {text.decode()}"

    def message(
        self, sender: str = SENDER, readers: tuple[str, ...] = (READER,), content: str = CONTENT
    ) -> tuple[Stage, str]:
        """The stage that decided, and its reply."""
        reply = self.say(f"MAIL FROM:<{sender}>")
        if not reply.startswith("250"):
            return Stage.MAIL, reply
        for reader in readers:
            reply = self.say(f"RCPT TO:<{reader}>")
            if not reply.startswith("250"):
                return Stage.RCPT, reply
        reply = self.say("DATA")
        if not reply.startswith("354"):
            return Stage.DATA, reply
        self.send(content.encode() + b".\r\n")
        code, text = self.getreply()
        return Stage.DOT, f"{code} {text.decode()}"


def reply_text(error: smtplib.SMTPResponseException) -> str:
    """Smtplib keeps the server's text as bytes; typeshed allows both."""
    text = error.smtp_error
    return text if isinstance(text, str) else text.decode()


async def drive(
    config: TwinConfig,
    use: Callable[[Client], Any],
    *,
    fault: Fault | None = None,
    clock: ManualClock | None = None,
) -> tuple[Any, Twin]:
    """What ``use`` makes of a session with a twin of that kind; the twin is over by then."""
    twin = Twin(config, fault=fault, clock=clock)
    port = await twin.start()

    def play() -> Any:  # noqa: ANN401  # whatever the test wants
        try:
            client = Client(port)
        except smtplib.SMTPConnectError as error:
            return Stage.CONNECT, f"{error.smtp_code} {reply_text(error)}"
        try:
            client.ehlo()
            return use(client)
        finally:
            client.close()

    try:
        return await asyncio.to_thread(play), twin
    finally:
        await twin.stop()


def advance(loop: asyncio.AbstractEventLoop, clock: ManualClock, seconds: float) -> None:
    """Turn the twin's clock from the client's thread."""
    asyncio.run_coroutine_threadsafe(clock.advance(seconds), loop).result(PATIENCE_S)

"""The listener on the real spool: what is answered with 250 is there after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.clock import SystemClock
from relay.envelope import BULK
from relay.spool import Spool
from tests.fakes.dialogue import CAMPAIGN, MESSAGE, Talk, listening_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from relay.listener import Listener


async def open_spool(path: Path) -> Spool:
    return await Spool.open(
        path / "relay.db",
        config.Spool(free_min_bytes=0),
        clock=SystemClock(),
        create=True,
        ballast_bytes=0,
    )


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    opened = await open_spool(tmp_path)
    yield opened
    await opened.close()


async def talk_to(listener: Listener) -> Talk:
    return await Talk.to(listener.sockets[0].getsockname()[1])


async def test_what_was_answered_with_250_is_in_the_spool(spool: Spool, tmp_path: Path) -> None:
    """P1, over a close and an open: envelope, recipients and content."""
    async with listening_on(spool) as listener:
        talk = await talk_to(listener)
        heard = await talk.say("S: 220 *\n" + MESSAGE + MESSAGE)
        await talk.close()
    await spool.close()

    again = await open_spool(tmp_path)
    try:
        now_ms = SystemClock().wall_ms() + 1000
        due = await again.read_due("ses", BULK, CAMPAIGN, now_ms=now_ms, limit=10)
        contents = [await again.read_content(one.envelope.content_id) for one in due]
    finally:
        await again.close()

    names = [one.envelope.name for one in due]
    assert [line.split()[-1] for line in heard if "queued" in line] == names
    for name, content in zip(names, contents, strict=True):
        assert content.startswith(b"Received: by relay.test ")
        assert f" id {name};".encode() in content
        assert content.endswith(b"\r\n\r\nDear reader\r\n")


async def test_many_recipients_share_one_content(spool: Spool) -> None:
    """Three envelopes, one content, one answer."""
    async with listening_on(spool) as listener:
        talk = await talk_to(listener)
        await talk.say(
            "S: 220 *\nC: MAIL FROM:<a@b>\nS: 250 *\n"
            + "".join(f"C: RCPT TO:<r{n}@example.com>\nS: 250 *\n" for n in range(101))
            + "C: DATA\nS: 354 *\nC: x\nC: .\nS: 250 2.0.0 Ok: queued as *"
        )
        await talk.close()

    assert list(spool.depth().values()) == [101]

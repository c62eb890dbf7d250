"""What the dispatcher does with mail that stands on a damaged page of the spool."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from relay.dispatcher import books
from relay.errors import ContentDamaged, SpoolDamaged
from tests.fakes.house import House, open_house

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from relay.spool import Settlement, Spool

MALFORMED = "database disk image is malformed"


class Damaged:
    """A spool on whose bad pages stand the first ``bad`` envelopes; ``tries`` counts writes there.

    With ``is_content``, their content cannot be read either, so that they are never sent.
    """

    _spool: Spool

    def __init__(self, bad: int, *, is_content: bool = False) -> None:
        self._bad, self._is_content = bad, is_content
        self._first: list[int] = []
        self.tries: Counter[int] = Counter()
        self.reads = 0

    def over(self, spool: Spool) -> Spool:
        self._spool = spool
        return cast("Spool", self)

    def __getattr__(self, name: str) -> object:
        return getattr(self._spool, name)

    def new_id(self) -> int:
        made = self._spool.new_id()
        if len(self._first) < self._bad:
            self._first.append(made)
        return made

    async def read_content(self, content_id: int) -> bytes:
        content = await self._spool.read_content(content_id)
        if self._is_content and content.startswith(b"bad"):
            self.reads += 1
            raise ContentDamaged(MALFORMED)
        return content

    async def settle(self, settlement: Settlement) -> int | None:
        self._write(settlement.envelope.id)
        return await self._spool.settle(settlement)

    async def quarantine(self, envelope_id: int, reason: str) -> None:
        self._write(envelope_id)
        await self._spool.quarantine(envelope_id, reason)

    def _write(self, envelope_id: int) -> None:
        if envelope_id in self._first:
            self.tries[envelope_id] += 1
            raise SpoolDamaged(MALFORMED)


def waiting(house: House) -> int:
    return sum(house.spool.depth().values())


async def test_p2_settlement_on_a_damaged_page_is_in_nobodys_way(tmp_path: Path) -> None:
    """Tried a few times and given up: the rest is sent and settled, that one not sent again."""
    spool = Damaged(1)
    async with open_house(tmp_path, wrap=spool.over) as house:
        await house.keep(5)

        await house.until(lambda: waiting(house) == 1)
        await house.pass_time(120)
        house.dispatcher.reread()
        await house.pass_time(120)

        assert len(house.upstream.sent) == 5
        assert await house.statuses() == ["waiting", *["sent"] * 4]
        assert list(spool.tries.values()) == [books.REFUSED_TRIES]


async def test_p3_many_settlements_on_damaged_pages_stop_dispatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may come twice after the next start is bounded, however much is damaged."""
    monkeypatch.setattr(books, "UNWRITABLE_MAX", 3)
    spool = Damaged(40)
    async with open_house(tmp_path, wrap=spool.over, sessions_max=2) as house:
        await house.keep(40)

        await house.until(lambda: "cannot be noted down" in house.dispatcher.doing)
        await house.pass_time(120)
        house.dispatcher.reread()
        await house.pass_time(120)

        # Of those under way when the third was given up, each may be one more.
        under_way_max = int(books.REFUSED_TRIES * books.RETRY_S / 0.1) * 2
        assert 3 <= len(house.upstream.sent) <= 3 + under_way_max
        assert len(house.upstream.sent) < 40
        assert "cannot be noted down" in house.dispatcher.doing


async def test_p2_content_that_cannot_even_be_quarantined_is_in_nobodys_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps its lease until the next start: not read again and again, and the rest is sent."""
    spool = Damaged(1, is_content=True)
    async with open_house(tmp_path, wrap=spool.over) as house:
        await house.keep(1, content=b"bad: x\r\n\r\nx\r\n")
        await house.keep(4)

        await house.until(lambda: waiting(house) == 1)
        await house.pass_time(120)
        house.dispatcher.reread()
        await house.pass_time(120)

        assert len(house.upstream.sent) == 4
        assert await house.statuses() == ["waiting", *["sent"] * 4]
        assert spool.reads == 1
        assert house.upstream.snapshot().busy == 0
        assert house.rooms.shaper.snapshot().under_way == 0
    assert "envelope not quarantined, leased until the next start" in caplog.messages

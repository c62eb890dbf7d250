"""The write-ahead log in the long run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.spool import room
from tests.fakes.spool_file import keep, open_spool

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

MIB = 1 << 20


async def test_log_is_cut_after_a_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large message does not leave a log that each later commit tries to copy away."""
    monkeypatch.setattr(room, "WAL_MAX_BYTES", 4 * MIB)
    wal = tmp_path / "relay.db-wal"
    async with open_spool(tmp_path) as spool:
        await keep(spool, body=bytes(8 * MIB))
        assert wal.stat().st_size > 8 * MIB

        for _ in range(2):
            await keep(spool)

        assert wal.stat().st_size == spool._upkeep.limits.wal_calm_bytes

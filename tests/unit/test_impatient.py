"""The relay that asks again soon, which scenarios in real time need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay import config
from relay.breaker import breaker
from relay.quota import Quota, quota
from tests.fakes import impatient

if TYPE_CHECKING:
    import pytest

NOW = 1_000_000


def test_impatient_relay_asks_for_the_quota_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits that it shortens are those that the room reads, wherever they are kept."""
    for name in ("PROBE_FIRST_MS", "PROBE_MAX_MS"):
        monkeypatch.setattr(quota, name, getattr(quota, name))
        monkeypatch.setattr(breaker, name, getattr(breaker, name))

    impatient.hurry()
    spent = Quota(config.Quota())
    spent.spent(NOW)

    assert spent.next_at(NOW) == NOW + impatient.FIRST_MS
    assert breaker._wait_ms(0) == impatient.FIRST_MS

"""Room: what the disk must keep back, and when mail is invited."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.schema import Spool as Config
from relay.spool.gate import Gate
from relay.spool.room import Limits, Usage, disk_for_mail, judge
from tests.fakes.clock import ManualClock

MIB = 1 << 20
SIZES = st.integers(0, 1 << 12).map(lambda pages: pages * 4096)
LIMITS = st.builds(
    Limits,
    free_min_bytes=SIZES,
    size_max_bytes=SIZES,
    wal_max_bytes=SIZES,
    ballast_bytes=SIZES,
)
USAGES = st.builds(
    Usage,
    page_bytes=st.just(4096),
    pages=st.integers(1000, 1 << 12),
    free_pages=st.integers(0, 1000),
    file_bytes=SIZES,
    wal_bytes=SIZES,
    ballast_bytes=SIZES,
    disk_free_bytes=SIZES,
)


@given(USAGES, LIMITS)
def test_room_never_spends_what_others_claim(usage: Usage, limits: Limits) -> None:
    """With slack left, the log and the ballast can still be written in full, on the disk."""
    room = judge(usage, limits)

    if room.slack_bytes >= 0:
        claims = max(0, limits.wal_max_bytes - usage.wal_bytes) + max(
            0, limits.ballast_bytes - usage.ballast_bytes
        )
        assert usage.disk_free_bytes >= claims
        assert room.free_bytes >= limits.free_min_bytes
        assert room.used_bytes <= limits.size_max_bytes
    assert room.free_bytes >= 0
    assert 0 <= room.vacuum_bytes <= usage.free_pages * usage.page_bytes


@given(USAGES, LIMITS, st.integers(1, 1000))
def test_settled_mail_makes_room(usage: Usage, limits: Limits, pages: int) -> None:
    """Pages that become free count as room unless the disk itself is short."""
    after = replace(usage, free_pages=usage.free_pages + pages, pages=usage.pages + pages)
    fits = replace(after, file_bytes=after.pages * 4096)
    before = replace(fits, free_pages=usage.free_pages)
    if disk_for_mail(fits, limits) < 0:
        assert judge(fits, limits).vacuum_bytes > 0
    else:
        assert judge(fits, limits).slack_bytes == judge(before, limits).slack_bytes + pages * 4096


@pytest.mark.parametrize(
    ("disk_bytes", "expected"),
    [
        (64 * MIB, (64 * MIB // 20, 32 * MIB, 4 * MIB, 4 * MIB)),
        (1 << 40, (1 << 30, 1 << 39, 64 * MIB, 64 * MIB)),
    ],
)
def test_defaults_follow_the_size_of_the_disk(
    disk_bytes: int, expected: tuple[int, int, int, int]
) -> None:
    """design.md 9: the smaller of 1 GiB and 5 %; half the disk. Ballast 64 MiB or a 16th."""
    assert Limits.of(Config(), disk_bytes) == Limits(
        free_min_bytes=expected[0],
        size_max_bytes=expected[1],
        wal_max_bytes=expected[2],
        ballast_bytes=expected[3],
    )
    configured = Limits.of(Config(free_min_bytes=0, size_max_bytes=7), disk_bytes, 0)
    assert (configured.free_min_bytes, configured.size_max_bytes) == (0, 7)
    assert configured.ballast_bytes == 0


def _usage(free_bytes: int) -> Usage:
    return Usage(
        page_bytes=4096,
        pages=1,
        free_pages=0,
        file_bytes=4096,
        wal_bytes=0,
        ballast_bytes=0,
        disk_free_bytes=free_bytes,
    )


LARGE = Limits(free_min_bytes=160, size_max_bytes=1 << 40, wal_max_bytes=0, ballast_bytes=0)
"""Its margin is 10 bytes: mail is invited above 170 and again above 200."""


def _gate(free_bytes: int) -> Gate:
    return Gate(LARGE, judge(_usage(free_bytes), LARGE), ManualClock())


@pytest.mark.parametrize(
    ("free_bytes", "invited", "taken"),
    [(171, True, True), (170, False, True), (161, False, True), (160, False, False)],
)
async def test_mail_under_way_is_taken_when_none_is_invited(
    free_bytes: int, invited: bool, taken: bool
) -> None:
    """Between the two limits a client past MAIL is still served."""
    gate = _gate(free_bytes)

    assert (gate.has_room, gate.admits(1)) == (invited, taken)


async def test_room_returns_with_some_to_spare() -> None:
    """A spool at its limit does not blink: it invites again once a few margins are free."""
    gate = _gate(170)

    gate.measured(judge(_usage(200), LARGE))
    assert not gate.has_room
    gate.measured(judge(_usage(201), LARGE))
    assert gate.has_room
    gate.measured(judge(_usage(171), LARGE))
    assert gate.has_room


async def test_message_that_cannot_fit_waits_alone() -> None:
    """A byte is written to the log and to the file: twice its size must be free."""
    gate = _gate(1000)

    assert gate.admits(500)
    assert not gate.admits(501)


async def test_wall_lets_nobody_in_but_one_who_tries() -> None:
    """After a failed write nothing is invited or taken until a trial passes."""
    gate = _gate(1000)
    gate.hit_wall("full")
    assert (gate.has_room, gate.admits(1), gate.is_trying) == (False, False, False)

    gate.open_trial(anyone_waits=True)
    assert (gate.has_room, gate.admits(1), gate.is_trying) == (False, True, True)
    gate.hit_wall("full")
    assert not gate.admits(1)

    gate.open_trial(anyone_waits=True)
    gate.passed()
    assert (gate.has_room, gate.admits(1), gate.is_trying) == (True, True, False)
    await asyncio.wait_for(gate.wait(), 1)


async def test_wall_is_forgotten_when_nobody_waits_at_it() -> None:
    """With all clients gone there is no one to try: the next to come will see."""
    gate = _gate(1000)
    gate.hit_wall("full")

    gate.open_trial(anyone_waits=False)

    assert gate.has_room

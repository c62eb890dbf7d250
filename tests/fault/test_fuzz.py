"""The SMTP session under a hostile client: hundreds of thousands of sessions made by a grammar.

Each is played with the real connection on a wire in memory, and followed by a model that
says what may be answered and must be kept (``tests/fakes/smtp_model.py``). A coverage-guided
fuzzer would need clang and an instrumented interpreter; the dialogue has few branches, and
the grammar reaches every reply (the test says so).
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from relay import config
from relay.listener.connection import GONE_GRACE_S
from relay.listener.users import Plain, Users, put
from tests.fakes import smtp_grammar as grammar
from tests.fakes.smtp_play import FRIEND, STRANGER, Case, Score, play, watched
from tests.fakes.wire import Loop, Shop

CASES = (
    Case(FRIEND, has_users=False, auth="none", tls=True),
    Case(FRIEND, has_users=True, auth="none", tls=True),
    Case(FRIEND, has_users=True, auth="required", tls=False),
    Case(STRANGER, has_users=True, auth="required", tls=True),
    Case(STRANGER, has_users=False, auth="none", tls=False),
)


async def run(seed: int, count: int, folder: Path, score: Score) -> None:
    """So many sessions, a little of each case."""
    chance = Random(seed)
    put(folder / "users", grammar.NAME.decode(), Plain(grammar.SECRET.decode()))
    users = Users.load(folder / "users")
    listen = config.Listen(size_max_bytes=grammar.SIZE_MAX_BYTES)
    shops = [
        Shop(users if case.has_users else None, case.tls, replace(listen, auth=case.auth))
        for case in CASES
    ]
    for number in range(count):
        which = number % len(CASES)
        session = grammar.session(chance)
        try:
            await play(shops[which], CASES[which], session, score)
        except BaseException as error:
            error.add_note(f"seed {seed}, session {number}, {CASES[which]}, {session}")
            raise
        shops[which].forget()


RESIDENT_GROWTH_MAX_BYTES = 8 << 20
"""Over a whole run, after the first tenth of it: what the allocator may have kept for itself."""

OBJECTS_GROWTH_MAX = 500
"""Python's, over the same: the caches of interned strings and compiled patterns, and the score."""


def fuzz(seed: int, count: int, folder: Path) -> Score:
    """So many sessions; memory must not grow with them."""
    score = Score()
    with watched(score), asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run(-seed, max(50, count // 10), folder, score))
        gc.collect()
        objects, resident = len(gc.get_objects()), resident_bytes()
        runner.run(run(seed, count, folder, score))
        # The grace of messages whose client has left, which holds on to them.
        runner.run(asyncio.sleep(1.1 * GONE_GRACE_S))
        gc.collect()
        assert len(gc.get_objects()) - objects < OBJECTS_GROWTH_MAX
        score.grown_bytes = resident_bytes() - resident
        assert score.grown_bytes < RESIDENT_GROWTH_MAX_BYTES
    return score


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize(
    ("seed", "sessions"),
    [(1, 1_500), *(pytest.param(n, 20_000, marks=pytest.mark.slow) for n in range(2, 12))],
)
def test_no_session_crashes_hangs_or_smuggles(seed: int, sessions: int, tmp_path: Path) -> None:
    """Every command gets its one answer, what was accepted is kept as sent, and nothing else is."""
    begun = time.perf_counter()

    score = fuzz(seed, sessions, tmp_path)

    took_s = time.perf_counter() - begun
    print(
        f"fuzz: {score.sessions} sessions in {took_s:.0f} s, {score.sent_bytes / 1e6:.0f} MB,"
        f" {score.replies} replies, {score.accepted} messages accepted and {score.in_the_air}"
        f" in the air, RSS +{score.grown_bytes / 1e6:.1f} MB; 0 crashes, 0 hangs, 0 forged;"
        f" {dict(sorted(score.codes.items()))}"
    )
    assert score.accepted > sessions // 4
    assert score.codes.keys() >= CODES


CODES = {"214", "220", "221", "235", "250", "252", "334", "354", "500", "501", "502", "503"} | {
    *("504", "530", "535", "550", "552", "553", "554")
}
"""Every reply that the listener can give without a fault of its own, but the rarest."""

"""The upstream fails at each stage, in every way there is; the mail is taken all the same.

The rows of one table (``upstream_rows``), one after the other through one relay process:
while a fault lasts mail is accepted, after it all of it arrives. What a row may cost is
written in the row: nothing (P4), an attempt, or, where the link ends behind the 354, a copy
too many (P3).

    .venv/bin/python -m pytest -m slow -s tests/fault/test_upstream_faults.py
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from relay.mailer import Client
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.running import PATIENCE_S, relay_and_twin
from tests.fakes.spool_file import query, until
from tests.fakes.trouble import take_minutes, wait_no_longer
from tests.fault.upstream_rows import (
    ALL,
    BEFORE_MAIL,
    MESSAGES,
    OPENINGS,
    Cost,
    Row,
    Scene,
    Strikes,
)

if TYPE_CHECKING:
    from pathlib import Path

MAILS_MAX = 300
"""That a row may take until its fault has struck."""
LOOK_S = 0.3
"""How long a row waits for its fault before it sends one more mail."""
UPSTREAM = """
connect_timeout_s = 1
reply_timeout_s = 1
dot_timeout_s = 60
idle_close_s = 0.5
session_messages_max = 3
[upstream.rate]
start_per_s = 100
[retry]
first_s = 1
max_s = 2
"""
TWIN = TwinConfig(rate_per_s=100, latency=NO_LATENCY, quota=0, seed=1)


async def play(scene: Scene, row: Row) -> None:
    """Send until the fault has struck, end it, and see the row's mail arrive."""
    # A held upstream is left alone: no fault can strike it again.
    strikes, sent = Strikes(1 if row.is_held else scene.strikes), set[str]()
    scene.end_sessions()
    # By the clock: after the row before, the pool may wait some seconds to open a session.
    began = time.monotonic()
    async with row.strike(scene, strikes):
        while not strikes.enough.is_set() or (row.is_held and not await scene.is_held()):
            assert time.monotonic() - began < PATIENCE_S, f"never struck: {row}"
            if not strikes.enough.is_set():
                # The row before may have been noticed late: what it has held would meet no fault,
                # and a session that outlived it would walk none of the first stages. (QUIT needs
                # a session that is left alone.)
                await scene.release()
                if row.stage in BEFORE_MAIL:
                    scene.end_sessions()
            if len(sent) < MAILS_MAX:
                sent |= await scene.send(row.cost)
            with_patience = asyncio.wait_for(strikes.enough.wait(), LOOK_S)
            await asyncio.gather(with_patience, return_exceptions=True)
    await scene.release()
    in_doubt = strikes.count if row.cost is Cost.DOUBT else 0
    scene.doubts += in_doubt
    await until(lambda: len(sent - scene.arrived()) <= in_doubt, PATIENCE_S)


@pytest.mark.parametrize(
    ("rows", "strikes"),
    [
        pytest.param(OPENINGS, 1, id="openings"),
        pytest.param(MESSAGES, 1, id="messages"),
        pytest.param(ALL, 1, id="once", marks=pytest.mark.slow),
        pytest.param(ALL, 3, id="thrice", marks=pytest.mark.slow),
    ],
)
async def test_p3_p4_upstream_faults_lose_nothing_and_cost_nothing(
    tmp_path: Path, rows: tuple[Row, ...], strikes: int
) -> None:
    """Lost 0; twice only behind the 354; the end of a session and a throttle cost no attempt."""
    if rows is ALL:
        take_minutes()
    async with relay_and_twin(tmp_path, TWIN, upstream=UPSTREAM) as (relay, twin):
        client = Client("127.0.0.1", relay.smtp_port, connections=1)
        scene = Scene(tmp_path, relay, twin, client, strikes)
        for row in rows:
            await play(scene, row)
        # Ten minutes for what may have arrived, which is for nobody to know.
        [[in_doubt]] = query(tmp_path, "SELECT count(*) FROM recipient WHERE in_doubt = 1")
        assert bool(scene.doubts) <= int(str(in_doubt)) <= scene.doubts
        await wait_no_longer(relay)

        ids = twin.ledger.copies(lambda record: record.message_id)
        twice = {key: n for (key, _), n in ids.items() if n > 1}
        facts = f"{scene.number} mails, lost {len(scene.costs.keys() - scene.arrived())}"
        print(f"\nupstream faults: {len(rows)} rows x {strikes}, {facts}, twice {len(twice)}")
        assert scene.costs.keys() == scene.arrived()
        assert not client.told.refusals
        assert {scene.costs[str(key)] for key in twice} <= {Cost.DOUBT}
        assert sum(twice.values()) - len(twice) <= scene.doubts
        check_costs(scene)


def check_costs(scene: Scene) -> None:
    """One outcome each, *sent*, and the attempts that the rows allow (P2, P4)."""
    rows = query(scene.folder, "SELECT message_id, outcome, attempts, in_doubt FROM outcome")
    assert Counter(message_id for message_id, *_ in rows) == Counter(list(scene.costs))
    for message_id, outcome, attempts, in_doubt in rows:
        cost = scene.costs[str(message_id)]
        assert outcome == "sent"
        assert attempts == 1 or cost is not Cost.NOTHING
        assert not in_doubt or cost is Cost.DOUBT

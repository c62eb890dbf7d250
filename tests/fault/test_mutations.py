"""Each promise broken on purpose, and the test that bears its name seen to fail.

A mutation is one line of the program replaced in a copy of the tree; the named test is then run
in that copy, in a process of its own. Long form only: ``-m slow`` prints the table. In CI the
lines to be replaced are looked up, so that no mutation dies silently when the code moves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST_MAX_S = 240


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``; ``test`` must see it."""

    promise: str
    what: str
    file: str
    old: str
    new: str
    test: str


P1_ORDER = "tests/integration/test_listener_life.py::test_p1_250_is_said_only_after_the_commit"
POWER = "tests/fault/test_power_cut.py::test_p1_p2_p3_a_power_cut_takes_nothing_that_was_answered"
KILLS = "tests/fault/test_kills.py::test_p1_p2_p3_p4_kill_9_at_any_stage_loses_nothing"
CRASH = "tests/fault/test_spool_crash.py::test_p1_p2_p3_nothing_acknowledged_is_lost_by_kill_9"
UPSTREAM = "tests/fault/test_upstream_faults.py"
MUTATIONS = (
    Mutation(
        "P1",
        "fsync off",
        "relay/spool/connection.py",
        '"PRAGMA synchronous = FULL"',
        '"PRAGMA synchronous = OFF"',
        POWER,
    ),
    Mutation(
        "P1",
        "fsync only at checkpoints",
        "relay/spool/connection.py",
        '"PRAGMA synchronous = FULL"',
        '"PRAGMA synchronous = NORMAL"',
        POWER,
    ),
    Mutation(
        "P1",
        "250 before commit, at the wire",
        "relay/listener/intake.py",
        "                await self._append(envelopes, content)\n",
        "                asyncio.ensure_future(self._append(envelopes, content))  # noqa\n",
        P1_ORDER,
    ),
    Mutation(
        "P1",
        "250 before commit, in the spool",
        "relay/spool/spool.py",
        "        await self._writer.append(envelopes, content)\n",
        "        self._early = __import__('asyncio').ensure_future("
        "self._writer.append(envelopes, content))\n",
        CRASH,
    ),
    Mutation(
        "P2",
        "settle before reply",
        "relay/upstream/session.py",
        "        return _checked(await self._link.submit(stuff(content), "
        "self._upstream.dot_timeout_s))\n",
        "        self._late = __import__('asyncio').ensure_future("
        "self._link.submit(stuff(content), self._upstream.dot_timeout_s))\n"
        "        return Reply(Stage.DOT, 250, 'Ok')\n",
        KILLS,
    ),
    Mutation(
        "P2",
        "no outcome is written",
        "relay/spool/settling.py",
        '    db.execute(\n        WRITE["add_outcome"],',
        '    (lambda *_: None)(\n        WRITE["add_outcome"],',
        CRASH,
    ),
    Mutation(
        "P3",
        "attempts not yet noted down have no bound",
        "relay/dispatcher/books.py",
        "if self._failing > 0 or self._unsettled >= UNSETTLED_MAX:",
        "if self._failing > 0:",
        "tests/fault/test_kills.py::test_p3_a_disk_that_hangs_bounds_what_goes_twice",
    ),
    Mutation(
        "P3",
        "what a crash left parked stays parked",
        "relay/service/upkeep.py",
        "                await self._spool.release(key)\n",
        "                pass\n",
        "tests/integration/test_service.py::test_mail_parked_under_a_hold_that_is_gone_waits_again",
    ),
    Mutation(
        "P4",
        "an attempt counted on a throttle",
        "relay/lifecycle.py",
        '(Kind.THROTTLED, ""): Fate(Next.HEAD),',
        '(Kind.THROTTLED, ""): Fate(Next.HEAD, costs=1),',
        "tests/fault/test_main_job.py::test_all_mail_arrives_once_and_unchanged",
    ),
    Mutation(
        "P4",
        "an attempt counted on an ended session",
        "relay/lifecycle.py",
        '(Kind.SESSION_ENDED, ""): Fate(Next.HEAD),',
        '(Kind.SESSION_ENDED, ""): Fate(Next.HEAD, costs=1),',
        UPSTREAM,
    ),
    Mutation(
        "P2",
        "the age clock runs while held",
        "relay/dispatcher/books.py",
        "            self._rooms.ageing.stop(hold.key, hold.since_at)\n",
        "            pass\n",
        "tests/fault/test_held.py",
    ),
    Mutation(
        "P1",
        "half a command is not handed over",
        "relay/listener/connection.py",
        "            unread=encoded(unread),\n",
        "",
        "tests/fault/test_restart.py::test_half_a_command_is_not_lost_between_two_relays",
    ),
    Mutation(
        "P1",
        "served before systemd has forgotten it",
        "relay/listener/listener.py",
        "        if not await handover.forgotten(self._clock):\n",
        "        asyncio.ensure_future(handover.forgotten(self._clock))\n        if False:\n",
        "tests/integration/test_handover.py",
    ),
    Mutation(
        "P1",
        "systemd keeps our clients for ever",
        "relay/listener/handover.py",
        "    told = systemd.forget(CLIENT_NAME) and systemd.forget(STANDINGS_NAME)\n",
        "    told = True\n",
        "tests/fault/test_restart.py::test_idle_connections_live_on_over_restarts",
    ),
)


def name_of(mutation: Mutation) -> str:
    return mutation.what


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_line_to_be_broken_is_there_once(mutation: Mutation) -> None:
    """A mutation that changes nothing would prove nothing."""
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_broken_promise_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    """The test passes on the program as it is and fails on the broken one."""
    for part in ("relay", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    whole = run(tmp_path, mutation.test)
    assert whole.returncode == 0, whole.stdout[-3000:]

    broken = tmp_path / mutation.file
    broken.write_text(broken.read_text().replace(mutation.old, mutation.new))
    done = run(tmp_path, mutation.test)

    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    print(f"\n{mutation.promise:8} {mutation.what:45} {mutation.test.partition('::')[0]}: caught")
    assert done.returncode == 1, done.stdout[-3000:]
    assert failed


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """The test, in the tree at ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", test],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=TEST_MAX_S,
    )

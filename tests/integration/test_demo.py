"""``relay demo`` as a user meets it: a process, with and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from relay.cli import main
from relay.service import demo as play

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 240
SMALL = ("--messages", "60", "--limit", "60", "--seed", "7")
GOOD = play.Audit(
    accepted=1,
    refused_at_intake=0,
    delivered=1,
    waiting=0,
    lost=0,
    twice=0,
    attempts_by_throttling=0,
    throttled=0,
    refused_share=0.0,
    use=None,
    limits_per_s=(10.0,),
    transactional=0,
    transactional_slowest_s=0.0,
    spool_bytes_per_message=1,
    content_bytes_per_message=1,
    intake_s=1.0,
    duration_s=1.0,
    relay_cpu_share=0.1,
    doubles_cpu_share=0.1,
    limited_by="nothing",
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "relay", "demo", *words]


def test_demo_delivers_everything_once_and_says_so_in_json(tmp_path: Path) -> None:
    """Real relay, real sockets: nothing lost, nothing twice, no attempt spent; no file stays."""
    ended = subprocess.run(
        command(*SMALL, "--json"),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    audit = json.loads(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    assert audit["accepted"] == audit["delivered"] == 60 + audit["transactional"]
    assert (audit["lost"], audit["twice"], audit["waiting"]) == (0, 0, 0)
    assert audit["attempts_by_throttling"] == 0
    assert audit["transactional"] > 0
    assert audit["content_bytes_per_message"] > 39_000
    assert audit["limits_per_s"] == [60, 40]
    assert list(tmp_path.iterdir()) == []


def test_demo_speaks_plain_lines_into_a_pipe() -> None:
    """No colours, no cursor movement, and the audit at the end."""
    ended = subprocess.run(
        command(*SMALL), capture_output=True, timeout=PATIENCE_S, check=False, text=True
    )

    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert "accepted from Listmonk" in ended.stdout
    assert "0  lost" in ended.stdout


def test_demo_draws_on_a_terminal() -> None:
    """Bars and rates that are redrawn in place, then the audit."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(*SMALL), stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        seen = b"".join(iter(lambda: _read(ours), b""))
        code = process.wait(PATIENCE_S)
    os.close(ours)

    assert code == 0, seen
    assert b"\x1b[" in seen
    assert b"limit (not told)" in seen
    assert b"attempts spent on throttling" in seen


@pytest.mark.parametrize("trouble", ["lost", "twice", "waiting", "refused_at_intake"])
def test_demo_fails_if_a_promise_was_broken(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, with and without --json, and the number is shown."""
    wrong: dict[str, Any] = {trouble: 3}
    bad = replace(GOOD, **wrong)
    monkeypatch.setattr(play, "run", _returning(bad))

    shown = CliRunner().invoke(main, ["demo"])
    told = CliRunner().invoke(main, ["demo", "--json"])

    assert (shown.exit_code, told.exit_code) == (1, 1)
    assert " 3  " in shown.output
    assert json.loads(told.output)[trouble] == 3


def _returning(audit: play.Audit) -> Callable[..., play.Audit]:
    return lambda *_: audit


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65_536)
    except OSError:  # the other end is closed: Linux says EIO
        return b""

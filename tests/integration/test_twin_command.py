"""``relay sandbox`` as a process of its own."""

from __future__ import annotations

import json
import re
import signal
import smtplib
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest
from click.testing import CliRunner

from relay.cli.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = "from relay.cli.sandbox import sandbox; sandbox()"
FREE = ("--port", "0", "--latency", "0", "--tls", "none")


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and what it said when it began to listen."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *FREE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            stream = process.stderr if "--json" in options else process.stdout
            assert stream is not None
            yield process, _banner(stream)
        finally:
            process.kill()


def _banner(stream: IO[str]) -> str:
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith("and RELAY_SES_PASSWORD") or line == "end\n":
            break
    return "".join(lines)


def _port(banner: str) -> int:
    match = re.search(r"^  port = (\d+)$", banner, re.MULTILINE)
    assert match
    return int(match[1])


def _send(port: int, n: int) -> list[int]:
    with smtplib.SMTP("127.0.0.1", port, timeout=15) as client:
        client.login("sandbox", "sandbox")
        codes = []
        for m in range(n):
            client.mail("a@example.com")
            client.rcpt("b@example.org")
            codes.append(client.data(f"Message-ID: <{m}@x>\r\n\r\nx\r\n".encode())[0])
            client.rset()
        return codes


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_sandbox_says_how_to_reach_it_and_sums_up(stop: signal.Signals) -> None:
    """The banner is lines for relay.toml, a signal ends it with a summary and exit code 0."""
    with running("--limit", "3") as (process, banner):
        codes = _send(_port(banner), 5)
        process.send_signal(stop)
        out, err = process.communicate(timeout=15)

    assert 'host = "127.0.0.1"' in banner
    assert 'username = "sandbox"' in banner
    assert codes[:3] == [250, 250, 250]
    assert 454 in codes
    assert f"accepted {codes.count(250)} messages to {codes.count(250)} recipients of 5" in out
    assert f"454 for the rate {codes.count(454)}" in out
    assert err == ""
    assert process.returncode == 0


def test_json_is_all_there_is_on_stdout() -> None:
    """A script can read the summary as it stands."""
    with running("--json", "--limit", "1000", "--session-messages", "2", "--seed", "7") as (
        process,
        banner,
    ):
        with pytest.raises(smtplib.SMTPServerDisconnected):
            _send(_port(banner), 3)  # MAIL gets 421, the rest finds the link closed
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=15)

    summary = json.loads(out)
    assert summary["accepted"] == summary["attempts"] == 2
    assert summary["twice"] == 0
    assert list(summary["refused"]) == [
        "421 Connection closed by server. Maximum message count per session reached."
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--host", "0.0.0.0"], "wanted a loopback address"),
        (["--limit", "0"], "wanted more than 0"),
        (["--session-messages", "many"], "wanted a number or LOW-HIGH"),
        (["--session-messages", "9-3"], "wanted 1 <= low <= high"),
        (["--tls", "sometimes"], "'sometimes' is not one of"),
    ],
)
def test_options_that_cannot_be_played_are_named(options: list[str], complaint: str) -> None:
    """Exit code 2, and a text that says what would do."""
    result = CliRunner().invoke(sandbox, options)

    assert result.exit_code == 2
    assert complaint in result.output


def test_taken_port_is_named() -> None:
    """No traceback when another sandbox is already there."""
    with running() as (_, banner):
        port = str(_port(banner))
        second = subprocess.run(
            [sys.executable, "-m", "relay", "sandbox", "--port", port],
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )

    assert second.returncode == 70
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
    assert "Traceback" not in second.stderr

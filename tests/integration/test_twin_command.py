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

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from relay.cli._twin_options import twin_config, twin_options
from relay.cli.sandbox import sandbox
from relay.twin import NO_LATENCY, SCENARIOS, Farewell, Foreign, Latency, Policy, TwinConfig

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
        (["--scenario", "bliss"], "'bliss' is not one of"),
        (["--change", "20"], "found '20', wanted SECONDS:RATE"),
        (["--change", "20:0"], "wanted more than 0"),
        (["--change", "20:28", "--change", "10:28"], "wanted times that rise"),
        (["--foreign", "lots"], "wanted RATE or RATE:BURST"),
        (["--foreign", "5:0"], "wanted a burst of 1 or more"),
        (["--effective", "1.5"], "wanted more than 0, at most 1"),
        (["--noise", "1"], "wanted 0 or more, less than 1"),
        (["--quota-speed", "0"], "wanted more than 0"),
        (["--rejected-cost", "-1"], "is not in the range"),
        (["--session-age", "9-3"], "wanted 0 < low <= high"),
        (["--jitter", "2"], "is not in the range"),
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


def _settings(*arguments: str, base: TwinConfig | None = None) -> TwinConfig:
    """What ``arguments`` make of ``base``."""
    made: list[TwinConfig] = []

    @click.command()
    @twin_options
    @click.pass_context
    def command(context: click.Context, /, **options: object) -> None:
        default = ParameterSource.DEFAULT
        given = {k: v for k, v in options.items() if context.get_parameter_source(k) != default}
        made.append(twin_config(base or TwinConfig(), given))

    command(list(arguments), standalone_mode=False)
    return made[0]


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ("--limit 3 --burst 5 --seed 7", {"rate_per_s": 3, "burst": 5, "seed": 7}),
        ("--window --effective 0.8", {"window": True, "effective": 0.8}),
        ("--noise 0.01 --rejected-cost 1", {"noise": 0.01, "rejected_cost": 1}),
        ("--change 20:28 --change 40:56", {"rate_changes": ((20, 28), (40, 56))}),
        ("--foreign 5", {"foreign": Foreign(rate_per_s=5)}),
        ("--foreign 5:20", {"foreign": Foreign(rate_per_s=5, burst=20)}),
        ("--quota 9 --quota-speed 1440", {"quota": 9, "quota_speed": 1440}),
        ("--session-messages 3", {"session_messages": (3, 3)}),
        ("--session-age 5-20", {"session_age_s": (5, 20)}),
        ("--session-end reset", {"session_end": Farewell.RESET}),
        ("--profile odd --bytewise", {"ehlo": "odd", "bytewise": True}),
        ("--latency 0 --connections 4 --idle 3", {"latency": NO_LATENCY, "connections_max": 4}),
        ("--latency 20 --jitter 0.5", {"latency": Latency(rtt_s=0.02, jitter=0.5)}),
        ("--stalls 0.01", {"latency": Latency(stall_share=0.01)}),
        ("--paused", {"policy": Policy(paused=True)}),
        ("--denied", {"policy": Policy(denied=True)}),
        (
            "--verified Example.com --verified a@x.org --sandboxed",
            {"policy": Policy(sandbox=True, verified=frozenset({"example.com", "a@x.org"}))},
        ),
        ("--api-port 0 --no-auth", {"api_port": 0, "auth_required": False}),
    ],
)
def test_options_set_what_they_say(arguments: str, fields: dict[str, object]) -> None:
    """Each switch, and nothing beside it."""
    config = _settings(*arguments.split())

    assert {name: getattr(config, name) for name in fields} == fields


def test_no_option_changes_nothing() -> None:
    """Defaults that help shows are the twin's own, and a scenario's settings stand."""
    base = SCENARIOS["caps"].config

    assert _settings(base=base) == base
    assert _settings("--connections", "9", base=base).session_messages == base.session_messages


def test_list_tells_what_each_scenario_plays() -> None:
    """A line each, name and sentence."""
    result = CliRunner().invoke(sandbox, ["--list"])

    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == len(SCENARIOS)
    for line, (name, scenario) in zip(lines, SCENARIOS.items(), strict=True):
        assert line.split(maxsplit=1) == [name, scenario.words]


def test_scenario_is_played_and_options_go_before_it() -> None:
    """The banner tells the story; its limit of 14/s is overruled, its 535s are not."""
    options = ("--scenario", "expired-credentials", "--limit", "7", "--api-port", "0")
    with running(*options) as (process, banner):
        with (
            smtplib.SMTP("127.0.0.1", _port(banner), timeout=15) as client,
            pytest.raises(smtplib.SMTPAuthenticationError) as refused,
        ):
            client.login("sandbox", "sandbox")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=15)

    assert f"expired-credentials: {SCENARIOS['expired-credentials'].words}" in banner
    assert "limits: 7 recipients/s" in banner
    assert re.search(r"GetSendQuota and GetAccount on port \d+", banner)
    assert refused.value.smtp_code == 535
    assert "x 535 Authentication Credentials Invalid" in out
    assert process.returncode == 0

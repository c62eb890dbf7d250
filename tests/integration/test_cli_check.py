"""``relay check`` on real files, and what every command shares: finding and reading them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relay import config
from relay.cli import main
from relay.cli._load import FILE_BYTES_MAX, load, locate
from relay.errors import ConfigError

REFERENCE = Path(__file__).parents[2] / "relay.toml"


def check(path: Path) -> Result:
    return CliRunner().invoke(main, ["check", "-c", str(path)])


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_reference_is_right_and_silent() -> None:
    """The file that everybody begins with draws no remark."""
    told = check(REFERENCE)

    assert (told.exit_code, told.output) == (0, f"{REFERENCE}: ok\n")


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    """One block an error with key, found, wanted and the nearest key; exit code 78."""
    path = written(
        tmp_path / "relay.toml",
        '[listen]\nport = "smtp"\nhots = "::1"\n[[upstream]]\npassword = "hunter2"\n',
    )

    told = check(path)

    assert told.exit_code == 78
    assert told.stdout == ""
    assert told.stderr == (
        "listen.hots\n    found   an unknown key\n    wanted  a key of [listen]\n"
        "    perhaps listen.host was meant\n"
        'listen.port\n    found   "smtp"\n    wanted  a whole number from 0 to 65535\n'
        "upstream[0].password\n    found   a secret, not shown here\n"
        "    wanted  it in a file named by password_file, in the systemd credential "
        '"ses-password", or in the environment as RELAY_SES_PASSWORD: no secret may stand here\n'
    )


def test_keys_without_effect_are_told_and_are_no_error(tmp_path: Path) -> None:
    """A key for a later version is right, but nobody should rely on it."""
    path = written(tmp_path / "relay.toml", "[lane.bulk]\nweight = 3\nfloor = 0.2\n")

    told = check(path)

    assert told.exit_code == 0
    assert told.stdout.startswith("lane.bulk.weight\n    has no effect yet: ")
    assert told.stdout.endswith(f"{path}: ok\n")
    assert "floor" not in told.stdout


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[listen]\nport = \n", "at line 2, column 8"),
        ("[listen]\n[listen]\n", "at line 2"),
        (b"[listen]\n# \xff\n", "a byte that is not UTF-8 in line 2"),
        ("# " + "x" * FILE_BYTES_MAX, "a huge file"),
        (f"a = {'1' * 5000}", "beyond all measure"),
        (f"a = {'[' * 100_000}", "beyond all measure"),
    ],
)
def test_a_file_that_is_not_toml_is_told_with_its_line(
    tmp_path: Path, content: str | bytes, found: str
) -> None:
    """The reader's own words, without a traceback, whatever the file holds."""
    path = written(tmp_path / "relay.toml", content)

    told = check(path)

    assert told.exit_code == 78
    assert told.stderr.startswith(f"{path}\n")
    assert found in told.stderr


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Missing, or a folder: the system's reason, exit code 78."""
    for path, reason in ((tmp_path / "no.toml", "No such file"), (tmp_path, "Is a directory")):
        told = check(path)

        assert told.exit_code == 78
        assert reason in told.stderr


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """An editor on Windows puts one in front, and nobody can see it."""
    path = written(tmp_path / "relay.toml", b"\xef\xbb\xbf[listen]\r\nport = 26\r\n")

    assert load(path).listen.port == 26


def test_the_file_is_looked_for_in_order(tmp_path: Path) -> None:
    """What ``-c`` names, even if it is missing; else the first place; else built-in defaults."""
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    given = tmp_path / "given.toml"
    assert locate(None, (first, second)) is None
    written(second, "")
    assert locate(None, (first, second)) == second
    written(first, "")
    assert locate(None, (first, second)) == first
    assert locate(given, (first, second)) == given


def test_paths_count_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the working directory, from which ``-c`` itself counts."""
    folder = tmp_path / "etc"
    folder.mkdir()
    written(folder / "relay.toml", '[spool]\npath = "x.db"\n')
    monkeypatch.chdir(tmp_path)

    assert load(Path("etc/relay.toml")).spool.path == str(folder / "x.db")
    assert load(None) == config.resolve(config.Config(), tmp_path)


def test_errors_name_the_file_for_any_command(tmp_path: Path) -> None:
    """``load`` raises what the command line knows how to tell."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml")

    assert caught.value.key == str(tmp_path / "none.toml")


def test_check_does_not_import_what_it_does_not_need() -> None:
    """Quick enough to sit in a deploy script: no SMTP, no SQLite, no HTTP, no event loop."""
    code = (
        "import sys; from relay.cli import main\n"
        f"main(['check', '-c', {str(REFERENCE)!r}], standalone_mode=False)\n"
        "print(sorted({'asyncio', 'sqlite3', 'aiohttp', 'aiosmtpd', 'aiosmtplib', 'rich'}"
        " & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_relay_is_the_command() -> None:
    """Without the script in PATH, as in a container, ``python -m relay`` does the same."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "check", "-c", str(REFERENCE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, f"{REFERENCE}: ok\n")

"""``relay user add`` and the file it writes."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from relay.cli import main
from relay.config import Listen
from relay.errors import ConfigError
from relay.listener import Users, auth, users, users_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def relay_toml(tmp_path: Path) -> Path:
    path = tmp_path / "relay.toml"
    path.write_text('[listen]\nusers_file = "users"\n')
    return path


def run(relay_toml: Path, *arguments: str, password: str = "one two\n") -> Result:
    return CliRunner().invoke(
        main, ["user", "add", *arguments, "-c", str(relay_toml)], input=password
    )


def test_added_user_can_log_in(relay_toml: Path, tmp_path: Path) -> None:
    """The file is made beside relay.toml, for its owner alone, and holds no password."""
    result = run(relay_toml, "listmonk")

    path = tmp_path / "users"
    assert (result.exit_code, result.output) == (0, f"listmonk: added in {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "one two" not in path.read_text()
    passwords = auth.Passwords(Users.load(path))
    assert asyncio.run(passwords.is_right("listmonk", "one two"))
    assert passwords.mechanisms() == ["PLAIN", "LOGIN"]


def test_user_added_again_has_a_new_password(relay_toml: Path, tmp_path: Path) -> None:
    """Other users and comments stay; ``--cram`` keeps the secret itself."""
    path = tmp_path / "users"
    path.touch(mode=0o600)
    path.write_text("# mine\nother:plain:x\n")
    run(relay_toml, "listmonk", password="old")
    result = run(relay_toml, "--cram", "listmonk", password="new\nrest")

    assert result.output == f"listmonk: new password in {path}\n"
    assert path.read_text() == "# mine\nother:plain:x\nlistmonk:plain:new\n"
    assert list(tmp_path.glob(".users*")) == []
    assert auth.Passwords(Users.load(path)).mechanisms() == ["PLAIN", "LOGIN", "CRAM-MD5"]


@pytest.mark.parametrize("password", ["", "\n", " x\n", "a\tb\n"])
def test_password_that_cannot_be_kept_is_refused(relay_toml: Path, password: str) -> None:
    """Exit code 2, nothing written."""
    result = run(relay_toml, "listmonk", password=password)

    assert result.exit_code == 2
    assert not (relay_toml.parent / "users").exists()


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a\n"])
def test_name_that_cannot_be_kept_is_refused(relay_toml: Path, name: str) -> None:
    """Exit code 2, nothing written."""
    assert run(relay_toml, name).exit_code == 2
    assert not (relay_toml.parent / "users").exists()


def test_without_a_users_file_it_says_which_key_is_missing(relay_toml: Path) -> None:
    """Exit code 78, and what to write where."""
    relay_toml.write_text("")

    result = run(relay_toml, "listmonk")

    assert result.exit_code == 78
    assert 'users_file = "users"' in result.output


def test_file_that_cannot_be_written_is_told(relay_toml: Path) -> None:
    """The reason, without a traceback."""
    relay_toml.write_text('[listen]\nusers_file = "no/such/folder/users"\n')

    result = run(relay_toml, "listmonk")

    assert result.exit_code == 70
    assert "cannot be written: No such file or directory" in result.output


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_users_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """At load, with the command that mends it."""
    path = tmp_path / "users"
    users.put(path, "a", users.Plain("b"))
    path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        users_of(Listen(users_file=str(path)))


def test_users_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    """A ConfigError with the reason."""
    path = tmp_path / "users"
    with pytest.raises(ConfigError, match="No such file"):
        users_of(Listen(users_file=str(path)))
    path.touch(mode=0o600)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        users_of(Listen(users_file=str(path)))
    assert users_of(Listen()) is None

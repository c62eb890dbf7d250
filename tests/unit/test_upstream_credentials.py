"""Where the SMTP password comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.errors import ConfigError
from relay.upstream import find_password

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "BH7/secret+="


def private(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def test_upstream_without_username_needs_no_password() -> None:
    """No AUTH, no secret: not even one that lies around is looked at."""
    assert find_password(config.Upstream(), {"RELAY_SES_PASSWORD": SECRET}) == ""


def test_password_file_goes_before_credential_goes_before_environment(tmp_path: Path) -> None:
    """The order that the module's docstring promises."""
    private(tmp_path / "file", "from file\n")
    private(tmp_path / "ses-password", "from credential\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path), "RELAY_SES_PASSWORD": "from environment"}
    named = config.Upstream(username="AKIA", password_file=str(tmp_path / "file"))
    unnamed = config.Upstream(username="AKIA")

    assert find_password(named, environment) == "from file"
    assert find_password(unnamed, environment) == "from credential"
    (tmp_path / "ses-password").unlink()
    assert find_password(unnamed, environment) == "from environment"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_line_end_is_no_part_of_the_password(tmp_path: Path, end: str) -> None:
    """Editors add it; spaces, which a password may have, stay."""
    private(tmp_path / "file", f" {SECRET} {end}".encode())
    upstream = config.Upstream(username="AKIA", password_file=str(tmp_path / "file"))

    assert find_password(upstream, {}) == f" {SECRET} "


@pytest.mark.parametrize("environment", [{}, {"RELAY_SES_PASSWORD": ""}])
def test_username_without_password_is_a_config_error(environment: dict[str, str]) -> None:
    """The error names the key and all three places to put the secret."""
    with pytest.raises(ConfigError) as caught:
        find_password(config.Upstream(username="AKIA"), environment)

    assert caught.value.key == "upstream.password_file"
    assert "ses-password" in caught.value.wanted
    assert "RELAY_SES_PASSWORD" in caught.value.wanted


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"two\nlines\n", b"x" * 1025, b"\xff\xfe" + SECRET.encode()]
)
def test_file_that_holds_no_password_is_an_error_without_its_content(
    tmp_path: Path, raw: bytes
) -> None:
    """It is named by its path; nothing of what is in it shows, and nothing else is tried."""
    private(tmp_path / "file", raw)
    upstream = config.Upstream(username="AKIA", password_file=str(tmp_path / "file"))

    with pytest.raises(ConfigError) as caught:
        find_password(upstream, {"RELAY_SES_PASSWORD": "environment"})

    assert str(tmp_path / "file") in caught.value.found
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_missing_file_is_an_error_though_the_environment_has_a_password(tmp_path: Path) -> None:
    """A named file that is gone is a mistake to mend, not a reason to log in as somebody else."""
    upstream = config.Upstream(username="AKIA", password_file=str(tmp_path / "gone"))

    with pytest.raises(ConfigError, match="No such file"):
        find_password(upstream, {"RELAY_SES_PASSWORD": SECRET})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_password_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """It names the command that mends it."""
    path = private(tmp_path / "file", SECRET, mode)
    upstream = config.Upstream(username="AKIA", password_file=str(path))

    with pytest.raises(ConfigError) as caught:
        find_password(upstream, {})

    assert caught.value.wanted == f"mode 0600: run chmod 600 {path}"


def test_credential_of_systemd_may_show_its_mask_as_group(tmp_path: Path) -> None:
    """0440 in the credentials folder; the same file elsewhere is refused."""
    private(tmp_path / "ses-password", SECRET, 0o440)

    assert find_password(config.Upstream(username="AKIA"), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    with pytest.raises(ConfigError, match="chmod 600"):
        find_password(
            config.Upstream(username="AKIA", password_file=str(tmp_path / "ses-password")), {}
        )

"""Files that hold a secret: which are read, which are refused, and in what words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay import private
from relay.errors import ConfigError

KEY = "listen.users_file"
NOBODY = 65_534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def file(folder: Path, mode: int = 0o600, content: bytes = b"canary") -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refused(path: Path, bytes_max: int = 100) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        private.read(path, KEY, bytes_max, environment={})
    assert caught.value.key == KEY
    assert str(path) in caught.value.found
    assert "canary" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_file_that_only_its_owner_reads_is_read(tmp_path: Path, mode: int) -> None:
    """Whether or not the owner may write to it."""
    assert private.read(file(tmp_path, mode), KEY, 6) == b"canary"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """With the mode that it has and the command that mends it."""
    path = file(tmp_path, mode)

    error = refused(path)

    assert error.found == f"{path} with mode {mode:04o}"
    assert error.wanted == f"mode 0600: run chmod 600 {path}"


@as_root
def test_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """He could change it at any time, though nobody else can read it."""
    path = file(tmp_path)
    os.chown(path, NOBODY, NOBODY)

    error = refused(path)

    assert error.found == f"{path} belongs to user {NOBODY}"
    assert error.wanted == f"our own file: run chown 0 {path}"


@as_root
def test_root_may_own_what_another_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a credential of systemd's does before version 254, by an ACL."""
    path = file(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)

    assert private.read(path, KEY, 6) == b"canary"


def test_link_counts_as_what_is_at_its_end(tmp_path: Path) -> None:
    """Docker, Kubernetes and NixOS put secrets in place by links; the file itself is judged."""
    path = file(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert private.read(link, KEY, 6) == b"canary"

    path.chmod(0o644)

    assert "0644" in refused(link).found


def test_file_exchanged_after_a_look_is_judged_by_what_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is asked: a private file under that name by then is no excuse."""
    path = file(tmp_path, 0o644)
    really_open = os.open

    def open_and_exchange(*args: object, **more: object) -> int:
        descriptor = really_open(*args, **more)  # type: ignore[arg-type]
        path.unlink()
        file(tmp_path, 0o600)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_exchange)

    assert "0644" in refused(path).found


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A folder, a FIFO that nobody writes to, a missing file: told, not waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)

    assert "not a plain file" in refused(pipe).found
    assert "not a plain file" in refused(Path("/dev/null")).found
    assert "No such file" in refused(tmp_path / "missing").found
    assert "directory" in refused(tmp_path).found or "plain" in refused(tmp_path).found


def test_longer_file_is_the_wrong_file(tmp_path: Path) -> None:
    """And is not read whole."""
    path = file(tmp_path, content=b"canary" * 100)

    assert refused(path, 599).found == f"{path}: longer than 599 bytes"
    assert len(private.read(path, KEY, 600)) == 600


@pytest.mark.parametrize(
    ("mode", "in_folder", "expected"),
    [
        (0o600, False, True),
        (0o400, False, True),
        (0o440, False, False),
        (0o660, True, False),
        (0o440, True, True),
        (0o444, True, False),
    ],
)
def test_secret_is_private(tmp_path: Path, mode: int, in_folder: bool, expected: bool) -> None:
    """0600; as a systemd credential 0440, too, which is how newer ones show it."""
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)} if in_folder else {}

    found = private.is_private(tmp_path / "users", 0o100000 | mode, environment=environment)

    assert found is expected

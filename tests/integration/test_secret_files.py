"""Each file with a secret in it is judged before the relay starts, by the same rules."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trustme

from relay import config
from relay.dashboard import read_token
from relay.errors import ConfigError
from relay.listener import users_of
from relay.listener.access import tls_context
from relay.upstream import find_password

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOBODY = 65_534

READERS: dict[str, Callable[[Path], object]] = {
    "listen.users_file": lambda path: users_of(config.Listen(users_file=str(path))),
    "dashboard.token_file": read_token,
    "upstream.password_file": lambda path: find_password(
        config.Upstream(username="AKIA", password_file=str(path)), {}
    ),
}
ALL = pytest.mark.parametrize("key", READERS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("canary:plain:canary\n")
    path.chmod(0o600)
    return path


def refused(key: str, path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        READERS[key](path)
    assert caught.value.key == key
    assert "canary" not in str(caught.value)
    return caught.value


@ALL
def test_private_file_is_read(key: str, file: Path) -> None:
    """Mode 0600, ours."""
    assert READERS[key](file)


@ALL
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o606])
def test_file_that_others_can_read_is_refused(key: str, file: Path, mode: int) -> None:
    """The relay does not start, and says which chmod would let it."""
    file.chmod(mode)

    assert refused(key, file).wanted == f"mode 0600: run chmod 600 {file}"


@ALL
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_file_of_another_user_is_refused(key: str, file: Path) -> None:
    """Though its mode is right."""
    os.chown(file, NOBODY, NOBODY)

    assert refused(key, file).wanted == f"our own file: run chown 0 {file}"


@ALL
def test_file_that_is_no_text_is_refused_without_its_content(key: str, file: Path) -> None:
    """The decoding error would quote it; it is not even the cause."""
    file.write_bytes(b"canary\xff\n")

    assert refused(key, file).__cause__ is None


def test_key_that_all_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not refused: mail would stop, and who wanted the key has it already."""
    issued = trustme.CA().issue_cert("relay.test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    listen = config.Listen(tls_cert_file=str(cert), tls_key_file=str(key))

    for mode in (0o600, 0o640, 0o644):
        key.chmod(mode)
        assert tls_context(listen) is not None

    [warned] = [one for one in caplog.records if one.message.startswith("TLS key open to all")]
    assert getattr(warned, "file", "") == str(key)

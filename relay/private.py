"""Files that hold a secret: read only if nobody else can have read or written them.

The descriptor is asked, not the name: between a look at a name and the opening of it the file
could be exchanged. Links are followed, since that is how Docker, Kubernetes and NixOS put
secrets in place; what counts is the file at their end. It must belong to root or to whoever
runs the relay: another owner could have put it there, and could read or change it.

The folder is not asked: who may write to it can put another file in, but not one that is ours.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from relay.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read(
    path: Path, key: str, bytes_max: int, *, environment: Mapping[str, str] = os.environ
) -> bytes:
    """What is in the file at ``path``, which the configuration's ``key`` names.

    Raises: ConfigError if it cannot be read, is none of ours, too open, or too long; it
    names the path and what to run, and shows nothing of what is in the file.
    """
    try:
        # A FIFO in its place must not hold up the start.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            _judge(path, key, found, environment)
            content = file.read(bytes_max + 1)
    except OSError as error:
        reason = f"{path}: {error.strerror or error}"
        raise ConfigError(key, reason, "a file that the relay can read") from error
    if len(content) > bytes_max:
        raise ConfigError(key, f"{path}: longer than {bytes_max} bytes", "a shorter file")
    return content


def _judge(path: Path, key: str, found: os.stat_result, environment: Mapping[str, str]) -> None:
    """Raises: ConfigError if a file like this cannot hold a secret."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(key, f"{path}: not a plain file", "a plain file")
    if found.st_uid not in {0, os.geteuid()}:
        owner, ours = found.st_uid, os.geteuid()
        raise ConfigError(
            key, f"{path} belongs to user {owner}", f"our own file: run chown {ours} {path}"
        )
    mode = stat.S_IMODE(found.st_mode)
    if not is_private(path, mode, environment=environment):
        raise ConfigError(key, f"{path} with mode {mode:04o}", f"mode 0600: run chmod 600 {path}")


def is_private(path: Path, mode: int, *, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a secret with these permission bits is for its owner's eyes only.

    Mode 0600 or less. In the credentials folder 0440 is as good: from systemd 254 on the
    mask of a credential's ACL shows as its group's bits (systemd#29435).
    """
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    is_credential = bool(folder) and path.is_relative_to(folder)
    return not mode & (0o037 if is_credential else 0o077)

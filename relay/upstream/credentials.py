"""The SMTP password, from where secrets may live; never from ``relay.toml``.

Precedence, first one set wins, and one that is set but cannot be used is an error rather
than a reason to look further (a silent fall-through would log in with an old password):

1. ``upstream.password_file``: what the operator wrote for this very upstream;
2. ``$CREDENTIALS_DIRECTORY/ses-password``: a systemd credential (``LoadCredential=``);
3. ``$RELAY_SES_PASSWORD``: the environment, which only root and the relay's own user can read
   (``/proc/PID/environ`` has mode 0400, proc(5): *documented*); but children inherit it, and
   ``systemctl show`` tells it to everyone if it was set by ``Environment=`` in a unit.

Files must be for the relay's eyes only (``relay.private``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from relay import private
from relay.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay import config

KEY = "upstream.password_file"
CREDENTIAL = "ses-password"
VARIABLE = "RELAY_SES_PASSWORD"

PASSWORD_BYTES_MAX = 1024
"""An SES password has 44 characters; a file far longer is the wrong file."""

_WANTED = (
    f"a file with the SMTP password, a systemd credential {CREDENTIAL!r}, or ${VARIABLE},"
    " because username is set"
)


def find_password(upstream: config.Upstream, environment: Mapping[str, str]) -> str:
    """The password of ``upstream``; "" if it has no username. One final line end is cut off.

    ``password_file`` must already be an absolute path, or one from the working directory.

    Raises: ConfigError: a username without a password, or a file that cannot be used.
    """
    if not upstream.username:
        return ""
    if upstream.password_file:
        return _read(Path(upstream.password_file), environment)
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    if folder and (credential := Path(folder) / CREDENTIAL).exists():
        return _read(credential, environment)
    password = environment.get(VARIABLE, "")
    if not password:
        raise ConfigError(KEY, "no password anywhere", _WANTED)
    return password


def _read(path: Path, environment: Mapping[str, str]) -> str:
    """The one line in the file at ``path``; errors name the path, never what is in it."""
    raw = private.read(path, KEY, PASSWORD_BYTES_MAX, environment=environment)
    try:
        password = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        # Not chained: that exception's text quotes the file.
        raise ConfigError(KEY, f"{path}: not UTF-8 text", "a file with one line") from None
    if not password or "\n" in password:
        found = f"{path}: empty, or several lines"
        raise ConfigError(KEY, found, "a file with the password on one line")
    return password

"""The users file: who may log in, one user a line.

::

    # written by: relay user add listmonk
    listmonk:scrypt:16384$8$1$<salt>$<hash>
    other:plain:the secret itself

``scrypt`` (RFC 7914; base64 salt and hash) is enough for LOGIN and PLAIN. CRAM-MD5 never
shows the server a password, so it works only for a ``plain`` entry. The file must belong
to its owner alone (mode 0600), because of ``plain``. It is read again when it changes: a
user added to a running relay can log in at once.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from relay import private
from relay.errors import ConfigError, ConfigErrors

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_KEY = "listen.users_file"
_WANTED = 'a readable file, as "relay user add" makes it'

FILE_BYTES_MAX = 4 << 20
"""Some 30,000 users; more is the wrong file."""

SCRYPT_N, SCRYPT_R, SCRYPT_P = 16_384, 8, 1
"""16 MiB and some 50 ms a check: RFC 7914 §2's interactive login."""
_N_MAX, _R_MAX, _P_MAX = 1 << 20, 16, 16
_MEMORY_MAX_BYTES = 1 << 31
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Scrypt:
    """A password as its hash."""

    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes = field(repr=False)

    def __str__(self) -> str:
        """As it stands in the file."""
        salt, digest = (base64.b64encode(part).decode() for part in (self.salt, self.digest))
        return f"scrypt:{self.n}${self.r}${self.p}${salt}${digest}"

    def hash(self, password: bytes) -> bytes:
        """``password`` under this entry's salt and cost; takes tens of milliseconds."""
        return hashlib.scrypt(
            password,
            salt=self.salt,
            n=self.n,
            r=self.r,
            p=self.p,
            maxmem=_MEMORY_MAX_BYTES - 1,
            dklen=len(self.digest),
        )


@dataclass(frozen=True, slots=True)
class Plain:
    """A password as it is."""

    secret: str = field(repr=False)

    def __str__(self) -> str:
        """As it stands in the file."""
        return f"plain:{self.secret}"


Secret = Scrypt | Plain


def scrypt(password: str) -> Scrypt:
    """A new entry for ``password``, with a salt of its own."""
    bare = Scrypt(SCRYPT_N, SCRYPT_R, SCRYPT_P, secrets.token_bytes(16), bytes(_HASH_BYTES))
    return Scrypt(bare.n, bare.r, bare.p, bare.salt, bare.hash(password.encode()))


def is_name(name: str) -> bool:
    """Whether ``name`` can stand in the file: printable, no colon, no comment, no blanks around."""
    return bool(name) and name.isprintable() and ":" not in name and name == name.strip(" #")


def is_secret(secret: str) -> bool:
    """Whether ``secret`` can be a password: not empty, printable, and no blanks around."""
    return bool(secret) and secret.isprintable() and secret == secret.strip()


def parse(text: str) -> dict[str, Secret]:
    """The users in the file's text.

    Raises:
        ConfigErrors: lines that cannot be read, all of them; no secret is shown.
    """
    users: dict[str, Secret] = {}
    errors: list[ConfigError] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        secret = _parse_secret(rest)
        if secret is None or not is_name(name):
            wanted = '"NAME:scrypt:…" or "NAME:plain:SECRET", as "relay user add" writes it'
            errors.append(ConfigError(_KEY, f"line {number}", wanted))
        elif name in users:
            errors.append(ConfigError(_KEY, f"{name!r} again in line {number}", "each user once"))
        else:
            users[name] = secret
    if errors:
        raise ConfigErrors(errors)
    return users


def _parse_secret(text: str) -> Secret | None:
    kind, _, rest = text.partition(":")
    if kind == "plain" and is_secret(rest):
        return Plain(rest)
    if kind == "scrypt":
        return _parse_scrypt(rest)
    return None


def _parse_scrypt(text: str) -> Scrypt | None:
    try:
        n, r, p, salt, digest = text.strip().split("$")
        entry = Scrypt(int(n), int(r), int(p), _decode(salt), _decode(digest))
    except (ValueError, binascii.Error):
        return None
    return entry if _is_bearable(entry) else None


def _is_bearable(entry: Scrypt) -> bool:
    """Whether a check of it works at all and stays within bounds of time and memory."""
    return (
        1 < entry.n <= _N_MAX
        and entry.n & (entry.n - 1) == 0
        and 0 < entry.r <= _R_MAX
        and 0 < entry.p <= _P_MAX
        and 128 * entry.n * entry.r < _MEMORY_MAX_BYTES // 2
        and 16 <= len(entry.digest) <= 64
    )


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


class Users:
    """The users of one file, as it is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: Mapping[str, Secret] = {}
        self._stamp: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Users:
        """The users in the file at ``path``.

        Raises:
            ConfigError, ConfigErrors: it cannot be read, others may read it, or a line is wrong.
        """
        users = cls(path)
        users._read()
        return users

    def refresh(self) -> None:
        """Read the file again if it has changed; if it is wrong now, keep what was and warn."""
        try:
            if self._stat() != self._stamp:
                self._read()
        except (ConfigError, ConfigErrors, OSError) as error:
            log.warning("users file not read again", extra={"error": str(error)})

    def find(self, name: str) -> Secret | None:
        """The entry of ``name``."""
        return self._entries.get(name)

    @property
    def has_plain(self) -> bool:
        """Whether anybody can log in with CRAM-MD5."""
        return any(isinstance(entry, Plain) for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def _stat(self) -> tuple[int, ...]:
        found = self._path.stat()
        return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid)

    def _read(self) -> None:
        try:
            stamp = self._stat()
            text = private.read(self._path, _KEY, FILE_BYTES_MAX).decode()
        except OSError as error:
            found = f"{self._path}: {error.strerror or error}"
            raise ConfigError(_KEY, found, _WANTED) from error
        except UnicodeDecodeError:
            # Not chained: that exception's text quotes the file.
            raise ConfigError(_KEY, f"{self._path}: not UTF-8", _WANTED) from None
        self._entries = parse(text)
        self._stamp = stamp


def put(path: Path, name: str, secret: Secret) -> bool:
    """Give ``name`` this entry in the file at ``path``; True if it had one before.

    The file is replaced as a whole: a reader sees the old one or the new one, a crash
    leaves one of the two. Other lines stay as they are, and so does the owner.
    """
    old = path.read_text("utf-8").splitlines() if path.exists() else []
    kept = [line for line in old if line.partition(":")[0] != name]
    _replace(path, "\n".join([*kept, f"{name}:{secret}", ""]))
    return len(kept) < len(old)


def _replace(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` with mode 0600, on disk when this returns."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if path.exists():
                owner = path.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

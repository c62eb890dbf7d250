"""Entries of a users file that are checked at once."""

from __future__ import annotations

from relay.listener import users


def cheap(password: str) -> users.Scrypt:
    """An entry whose hash costs nothing."""
    bare = users.Scrypt(2, 1, 1, b"salt", bytes(32))
    return users.Scrypt(bare.n, bare.r, bare.p, bare.salt, bare.hash(password.encode()))

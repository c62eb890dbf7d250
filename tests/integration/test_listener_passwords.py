"""What a check of a password does: the same steps, whoever is named, so that time tells nothing."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import pytest

from relay.listener import Users, auth, users
from tests.fakes.passwords import cheap

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "tanstaaftanstaaf"


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Users:
    """A user with a hash and one with a plain secret; what is hashed for nobody is cheap, too."""
    monkeypatch.setattr(auth, "_NOBODY", cheap(""))
    path = tmp_path / "users"
    users.put(path, "listmonk", cheap("secret one"))
    users.put(path, "cram", users.Plain(SECRET))
    return Users.load(path)


@pytest.mark.parametrize("name", ["listmonk", "cram", "nobody"])
async def test_check_takes_the_same_steps_whoever_is_named(
    known: Users, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One hash at one cost and one comparison: for a hashed entry, a plain one, and none at all."""
    hashed: list[tuple[int, int, int]] = []
    compared: list[tuple[int, int]] = []
    hash_once, compare = users.Scrypt.hash, hmac.compare_digest

    def note_hash(entry: users.Scrypt, password: bytes) -> bytes:
        hashed.append((entry.n, entry.r, entry.p))
        return hash_once(entry, password)

    def note_comparison(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(users.Scrypt, "hash", note_hash)
    monkeypatch.setattr(hmac, "compare_digest", note_comparison)
    passwords = auth.Passwords(known)

    assert not await passwords.is_right(name, "wrong")
    assert not await passwords.is_right(name, "wrong")

    assert hashed == [(2, 1, 1)] * 2
    assert len(compared) == 2


@pytest.mark.parametrize("name", ["listmonk", "cram", "nobody"])
def test_cram_check_takes_the_same_steps_whoever_is_named(
    known: Users, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One keyed hash and one comparison of two digests, whether or not there is a secret."""
    compared: list[tuple[int, int]] = []

    def note_comparison(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    passwords = auth.Passwords(known)
    monkeypatch.setattr(hmac, "compare_digest", note_comparison)

    assert not passwords.is_right_answer(name, b"<1@relay>", "0" * 32)

    assert compared == [(32, 32)]


async def test_right_pair_of_a_plain_entry_is_hashed_once(
    known: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the others: a campaign opens fifty connections."""
    hashed: list[bytes] = []

    def note(_: users.Scrypt, password: bytes) -> bytes:
        hashed.append(password)
        return bytes(32)

    monkeypatch.setattr(users.Scrypt, "hash", note)
    passwords = auth.Passwords(known)

    for _ in range(3):
        assert await passwords.is_right("cram", SECRET)

    assert hashed == [SECRET.encode()]

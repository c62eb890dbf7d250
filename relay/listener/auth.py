"""Logging in: AUTH PLAIN (RFC 4616), LOGIN, CRAM-MD5 (RFC 2195), and checking a password.

The prompts of LOGIN must be ``Username:`` and ``Password:`` to the letter; with aiosmtpd's
own, Listmonk gives up (facts: listmonk-wire.md). CRAM-MD5 is what Listmonk's form offers
first. A check with scrypt takes tens of milliseconds of a core, and a campaign opens tens of
connections at once, so it runs in threads, a few at a time, and a pair that was right
is remembered (as a keyed hash; the key lives only as long as the process).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from relay.listener import replies
from relay.listener.logins import FRIENDS, STRANGERS, Queue
from relay.listener.users import SCRYPT_N, SCRYPT_P, SCRYPT_R, Plain, Scrypt, Secret

if TYPE_CHECKING:
    from relay.listener.users import Users

CHECKS_MAX = 2
"""scrypt checks at once: each takes a core, and 16 MiB."""

REMEMBERED_MAX = 1_024
"""Pairs that were right, and as many that were wrong; the oldest is forgotten first."""

Ask = Callable[[bytes], Awaitable[bytes]]
"""Sends a challenge and returns the decoded answer. Raises ``AuthBroken``."""


class AuthBroken(Exception):
    """The exchange itself went wrong; ``reply`` says how."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply.decode())
        self.reply = reply


_NOBODY = Scrypt(SCRYPT_N, SCRYPT_R, SCRYPT_P, b"nobody", bytes(32))
"""What is hashed for a name that is not in the file, or has a plain secret there: so each check
takes as long as that of an entry that ``relay user add`` has written."""


class Passwords:
    """Checks names and passwords against the users file."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._turns = asyncio.Semaphore(CHECKS_MAX)
        self.friends, self.strangers = Queue(FRIENDS), Queue(STRANGERS)

    def mechanisms(self) -> list[str]:
        """What can be offered to the users as they are now; nothing if there are none."""
        self._users.refresh()
        if not len(self._users):
            return []
        return [name for name in MECHANISMS if name != "CRAM-MD5" or self._users.has_plain]

    def proof(self, name: str) -> str:
        """What changes with the user's password, and does not tell it; "" if there is no such."""
        self._users.refresh()
        entry = self._users.find(name)
        return "" if entry is None else hashlib.sha256(f"{name}\0{entry}".encode()).hexdigest()

    def knows(self, name: str) -> bool:
        """Whether there is such a user now."""
        self._users.refresh()
        return self._users.find(name) is not None

    async def is_right(self, name: str, password: str) -> bool:
        """Whether ``name`` may log in with ``password``.

        As slow for a name that is not there. Only a right pair is quick, from its second time on.
        """
        self._users.refresh()
        entry = self._users.find(name)
        pair = self._pair(name, password, entry)
        if pair in self._right:
            self._right.move_to_end(pair)
            return True
        hashed = entry if isinstance(entry, Scrypt) else _NOBODY
        async with self._turns:
            digest = await asyncio.to_thread(hashed.hash, password.encode())
        if isinstance(entry, Plain):
            is_right = hmac.compare_digest(entry.secret.encode(), password.encode())
        else:
            is_right = hmac.compare_digest(digest, hashed.digest) and entry is not None
        _remember(self._right if is_right else self._wrong, pair)
        return is_right

    def is_old_mistake(self, name: str, password: str) -> bool:
        """Whether this very pair was found wrong before: to bring it again is no new guess."""
        self._users.refresh()
        return self._pair(name, password, self._users.find(name)) in self._wrong

    def is_right_answer(self, name: str, challenge: bytes, answer: str) -> bool:
        """Whether ``answer`` is what the secret of ``name`` makes of a CRAM-MD5 challenge."""
        self._users.refresh()
        entry = self._users.find(name)
        secret = entry.secret if isinstance(entry, Plain) else secrets.token_hex()
        # MD5 is what RFC 2195 prescribes; HMAC-MD5 is not broken.
        wanted = hmac.new(secret.encode(), challenge, hashlib.md5).hexdigest()
        is_right = hmac.compare_digest(wanted.encode(), answer.lower().encode())
        return is_right and isinstance(entry, Plain)

    def _pair(self, name: str, password: str, entry: Secret | None) -> bytes:
        """The pair's keyed hash; the entry is part of it, so a new password ends the old one."""
        parts = (name, password, str(entry))
        text = b"".join(len(part).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.digest(self._key, text, "sha256")


def _remember(pairs: OrderedDict[bytes, None], pair: bytes) -> None:
    pairs[pair] = None
    if len(pairs) > REMEMBERED_MAX:
        pairs.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """What an exchange came to: whose name was given, and a check of the secret, not yet made."""

    name: str
    check: Callable[[], Awaitable[bool]] = field(repr=False)
    is_old_mistake: Callable[[], bool] = field(repr=False, default=lambda: False)
    """Never with CRAM-MD5: the same wrong password looks different each time."""


async def plain(passwords: Passwords, initial: bytes | None, ask: Ask) -> Claim:
    """``[authorise as] NUL name NUL password`` in one message (RFC 4616 §2)."""
    message = await ask(b"") if initial is None else initial
    parts = message.split(b"\0")
    if len(parts) != 3:
        raise AuthBroken(replies.AUTH_MALFORMED)
    return _claim(passwords, parts[1], parts[2])


async def login(passwords: Passwords, initial: bytes | None, ask: Ask) -> Claim:
    """Name and password one by one (draft-murchison-sasl-login, as Listmonk speaks it)."""
    name = await ask(b"Username:") if initial is None else initial
    return _claim(passwords, name, await ask(b"Password:"))


async def cram_md5(passwords: Passwords, initial: bytes | None, ask: Ask) -> Claim:
    """``name SP hexadecimal HMAC-MD5 of our challenge`` (RFC 2195 §2)."""
    if initial is not None:
        raise AuthBroken(replies.AUTH_MALFORMED)
    challenge = f"<{secrets.token_hex(16)}@relay>".encode()
    name, blank, answer = _text(await ask(challenge)).rpartition(" ")
    if not blank:
        raise AuthBroken(replies.AUTH_MALFORMED)

    async def check() -> bool:
        return passwords.is_right_answer(name, challenge, answer)

    return Claim(name, check)


MECHANISMS = {"PLAIN": plain, "LOGIN": login, "CRAM-MD5": cram_md5}


def prompt(challenge: bytes) -> bytes:
    """The reply that sends ``challenge``; RFC 4954 §4 wants the blank even before nothing."""
    return b"334 " + base64.b64encode(challenge)


def decode(text: bytes) -> bytes:
    """What the client sent, out of base64; ``*`` calls the exchange off (RFC 4954 §4).

    Raises:
        AuthBroken: called off, or not base64.
    """
    if text == b"*":
        raise AuthBroken(replies.AUTH_CALLED_OFF)
    if text == b"=":
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise AuthBroken(replies.AUTH_NOT_BASE64) from error


def _claim(passwords: Passwords, name: bytes, password: bytes) -> Claim:
    pair = (_text(name), _text(password))
    return Claim(
        pair[0], partial(passwords.is_right, *pair), partial(passwords.is_old_mistake, *pair)
    )


def _text(message: bytes) -> str:
    try:
        return message.decode()
    except UnicodeDecodeError as error:
        raise AuthBroken(replies.AUTH_MALFORMED) from error

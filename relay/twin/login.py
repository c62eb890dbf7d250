"""The AUTH exchange: PLAIN and LOGIN, as SES offers them and nothing else.

Whatever is wrong with the credentials, be it the base64 around them, gets the same 535;
the connection stays usable (*observed*).
"""

from __future__ import annotations

import base64
import binascii
from enum import Enum, auto

from relay.twin import texts


class _Wanted(Enum):
    """What the next line of the exchange is to hold."""

    PLAIN = auto()
    USERNAME = auto()
    PASSWORD = auto()


class Login:
    """One attempt to log in as one of ``users``; in vain if they are ``is_valid`` no more."""

    __slots__ = ("_is_valid", "_name", "_pairs", "_wanted", "succeeded")

    def __init__(self, *users: tuple[str, str], is_valid: bool = True) -> None:
        self._pairs = {(name.encode(), password.encode()) for name, password in users}
        self._is_valid = is_valid
        self._wanted = _Wanted.PLAIN
        self._name = b""
        self.succeeded = False

    def start(self, mechanism: str, initial: str) -> str:
        """The reply to AUTH, with the initial response or without (empty)."""
        match mechanism.upper():
            case "PLAIN":
                self._wanted, challenge = _Wanted.PLAIN, texts.PLAIN_CHALLENGE
            case "LOGIN":
                self._wanted, challenge = _Wanted.USERNAME, texts.LOGIN_USERNAME
            case _:
                return texts.AUTH_UNKNOWN
        return self.go_on(initial) if initial else challenge

    def go_on(self, line: str) -> str:
        """The reply to the client's next line; 334 asks for another."""
        if line.strip() == "*":
            return texts.AUTH_CANCELLED
        try:
            secret = base64.b64decode(line.strip(), validate=True)
        except (binascii.Error, ValueError):
            return texts.AUTH_WRONG
        match self._wanted:
            case _Wanted.USERNAME:
                self._name, self._wanted = secret, _Wanted.PASSWORD
                return texts.LOGIN_PASSWORD
            case _Wanted.PASSWORD:
                return self._check((self._name, secret))
            case _Wanted.PLAIN:
                # RFC 4616 §2: authorization id, NUL, name, NUL, password.
                return self._check(tuple(secret.split(b"\0")[1:]))

    def _check(self, pair: tuple[bytes, ...]) -> str:
        self.succeeded = self._is_valid and pair in self._pairs
        return texts.AUTHENTICATED if self.succeeded else texts.AUTH_WRONG

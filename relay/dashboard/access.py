"""Who may see what: the token, the ``Host`` of a request, and pages of other sites.

Off loopback everything but ``/healthz`` wants the token: as ``Authorization: Bearer`` from
programs, as HTTP Basic (any user name, the token as password) from browsers, since neither a
typed address nor an ``EventSource`` can send a header of its choice (HTML Standard, §9.2
"Server-sent events": its constructor takes no headers; *documented*).

On loopback no token is needed, and that is what DNS rebinding abuses: a page from
``evil.example``, whose name suddenly resolves to 127.0.0.1, is same-origin with us and could
read everything. Its requests still carry ``Host: evil.example``, so a name that is not this
machine's makes a request one from outside: it needs the token, and where there is none it is
refused with 421 (RFC 9110 §15.5.20) and a text that says what to do. IP literals need no
name server and cannot be rebound; programs that send no ``Host`` (HTTP/1.0) are no browsers.

A reverse proxy on this machine that passes its public ``Host`` on looks the same as a
rebound page, and this way it need not be told apart: with ``dashboard.token_file`` set, the
token opens the page behind it; without, the page stays shut rather than open to all the
world. ``/metrics`` and ``/readyz`` follow the same rules: who sends how much, and whether it
goes out, is nobody's business either, and a scraper or a probe on this machine asks by address
or as ``localhost`` anyway. Only ``/healthz`` is open; it says nothing but that we live.

Guessing the token is bounded: after ``TOKENS.free`` wrong ones from one origin, the next is
looked at only after a wait that doubles up to ``TOKENS.longest_s``; until then even the right
one gets 429, for else the wait would not keep anybody from guessing. A reverse proxy makes all
its clients one origin: a guesser behind it can keep the others out for as long as he goes on.
No token is asked for by programs on this machine that use a local name.

Other sites' pages can also send requests without reading the answers; a few streams left
open so would take all viewers' places. ``/api/`` answers none that the browser marks as
another site's (``Sec-Fetch-Site``, W3C Fetch Metadata; sent to loopback over plain HTTP, too).

``now`` is monotonic seconds. No edge but ``read_token``; knows nothing of aiohttp.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from relay import private
from relay.config import is_loopback
from relay.errors import ConfigError
from relay.guesses import Guesses, Patience, origin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_KEY = "dashboard.token_file"
TOKEN_BYTES_MAX = 4_096
"""A file far longer than a token is the wrong file; a header could not carry it either."""

TOKENS = Patience(free=10, first_s=1.0, longest_s=10.0)
"""A browser with an old password tries it a few times; then some 8,600 guesses a day."""

_OPEN = "/healthz"
"""Open to all: a load balancer has no token."""
_OWN_SITE = frozenset({"", "same-origin", "none"})
"""``Sec-Fetch-Site`` of no browser, of our page, and of an address that somebody typed."""
CHALLENGES = ("Bearer", 'Basic realm="relay", charset="UTF-8"')


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that may not be carried out."""

    status: int
    text: str
    challenges: tuple[str, ...] = ()
    retry_after_s: int = 0
    is_wrong_guess: bool = False


_TOKEN_NEEDED = Refusal(401, "a token is needed\n", CHALLENGES)
_TOKEN_WRONG = replace(_TOKEN_NEEDED, is_wrong_guess=True)
_MISDIRECTED = Refusal(
    421,
    "The relay's page is shown under localhost or an IP address only, lest a foreign page reach "
    "it by DNS rebinding. Behind a reverse proxy: set dashboard.token_file, and give the token "
    "as the password; or let the proxy send 'Host: localhost' and ask for a password itself.\n",
)
_OTHER_SITE = Refusal(403, "asked for by a page of another site\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of a request decides whether it is carried out; header values as they came."""

    path: str
    peer: str
    hosts: Sequence[str]
    authorization: str = field(default="", repr=False)
    fetch_site: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """The rules for one server; ``host`` is what it is bound to."""

    host: str
    token: str = field(repr=False)
    guesses: Guesses = field(default_factory=lambda: Guesses(TOKENS))

    def refusal(self, now: float, asked: Asked) -> Refusal | None:
        """Why a request is not carried out, None if it is."""
        if asked.path == _OPEN:
            return None
        if self._is_outside(asked.hosts):
            refusal = self._token_refusal(now, asked) if self.token else _MISDIRECTED
            if refusal is not None:
                return refusal
        if asked.path.startswith("/api/") and asked.fetch_site not in _OWN_SITE:
            return _OTHER_SITE
        return None

    def _is_outside(self, hosts: Iterable[str]) -> bool:
        return not is_loopback(self.host) or not all(map(_names_this_machine, hosts))

    def _token_refusal(self, now: float, asked: Asked) -> Refusal | None:
        given, origin = _given(asked.authorization), origin_of(asked.peer)
        if not given:
            return _TOKEN_NEEDED
        wait_s = self.guesses.wait_s(now, origin)
        if wait_s:
            text = "too many wrong tokens from your address: wait\n"
            return Refusal(429, text, retry_after_s=math.ceil(wait_s))
        if hmac.compare_digest(given, self.token.encode()):
            self.guesses.right(origin)
            return None
        self.guesses.wrong(now, origin)
        return _TOKEN_WRONG


def read_token(path: Path) -> str:
    """The token in a file that only its owner may read.

    Raises: ConfigError if it cannot be read, others may read it, or it is empty.
    """
    raw = private.read(path, _KEY, TOKEN_BYTES_MAX)
    try:
        token = raw.decode().strip()
    except UnicodeDecodeError:
        # Not chained: that exception's text quotes the file.
        raise ConfigError(_KEY, f"{path}: not UTF-8", "a token on one line") from None
    if not token:
        raise ConfigError(_KEY, f"{path}: an empty file", "a token on one line")
    return token


def _names_this_machine(host: str) -> bool:
    """Whether a ``Host`` header needs no name server to lead here: ``name[:port]``."""
    name, _, port = host.rpartition(":")
    name = name if name and port.isdecimal() else host
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name.lower() == "localhost"
    return True


def _given(authorization: str) -> bytes:
    """The token in an ``Authorization`` header; empty if there is none to be found."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() != "basic":
        # aiohttp hands in bytes that are not UTF-8 as surrogates.
        return authorization.removeprefix("Bearer ").encode(errors="surrogateescape")
    try:
        return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    except ValueError:
        return b""

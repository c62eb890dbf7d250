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
world. ``/healthz``, ``/readyz`` and ``/metrics`` are for machines and ask for no ``Host``, so
that no probe or scrape through such a proxy breaks; they tell counts and our own words, no
campaign and no address.

Other sites' pages can also send requests without reading the answers; a few streams left
open so would take all viewers' places. ``/api/`` answers none that the browser marks as
another site's (``Sec-Fetch-Site``, W3C Fetch Metadata; sent to loopback over plain HTTP, too).

Pure but for ``read_token``; knows nothing of aiohttp.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.errors import ConfigError
from relay.systemd import is_private

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_OPEN = "/healthz"
"""Open to all: a load balancer has no token."""
_FOR_MACHINES = frozenset({_OPEN, "/readyz", "/metrics"})
_OWN_SITE = frozenset({"", "same-origin", "none"})
"""``Sec-Fetch-Site`` of no browser, of our page, and of an address that somebody typed."""
CHALLENGES = ("Bearer", 'Basic realm="relay", charset="UTF-8"')


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that may not be carried out."""

    status: int
    text: str
    challenges: tuple[str, ...] = ()


_TOKEN_NEEDED = Refusal(401, "a token is needed\n", CHALLENGES)
_MISDIRECTED = Refusal(
    421,
    "The relay's page is shown under localhost or an IP address only, lest a foreign page reach "
    "it by DNS rebinding. Behind a reverse proxy: set dashboard.token_file, and give the token "
    "as the password; or let the proxy send 'Host: localhost' and ask for a password itself.\n",
)
_OTHER_SITE = Refusal(403, "asked for by a page of another site\n")


@dataclass(frozen=True, slots=True)
class Access:
    """The rules for one server; ``host`` is what it is bound to."""

    host: str
    token: str

    def refusal(
        self, path: str, hosts: Iterable[str], authorization: str, fetch_site: str
    ) -> Refusal | None:
        """Why a request is not carried out, None if it is; header values as they came."""
        if path == _OPEN:
            return None
        if self._is_outside(path, hosts):
            if not self.token:
                return _MISDIRECTED
            if not hmac.compare_digest(_given(authorization), self.token.encode()):
                return _TOKEN_NEEDED
        if path.startswith("/api/") and fetch_site not in _OWN_SITE:
            return _OTHER_SITE
        return None

    def _is_outside(self, path: str, hosts: Iterable[str]) -> bool:
        if not is_loopback(self.host):
            return True
        return path not in _FOR_MACHINES and not all(map(_names_this_machine, hosts))


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """The token in a file that only its owner may read.

    Raises: ConfigError if the file is missing, readable by others, or empty.
    """
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("dashboard.token_file", str(error), "a readable text file") from error
    if not is_private(path, mode):
        raise ConfigError("dashboard.token_file", f"mode {mode & 0o777:o}", "mode 0600: chmod it")
    if not token:
        raise ConfigError("dashboard.token_file", "an empty file", "a token on one line")
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

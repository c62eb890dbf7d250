"""From nothing to a session that takes mail: connect, greeting, EHLO, STARTTLS, AUTH.

Every way to fail leaves as ``Unreachable`` or ``Refused`` and with the connection closed;
cancellation closes it, too. Nothing but EHLO and STARTTLS is ever said before TLS.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relay.errors import SessionLost, Unreachable
from relay.reply import Reply, Stage

from .face import Refused
from .link import Link, connect, read_extensions, tls_context

if TYPE_CHECKING:
    import ssl
    from typing import Self

    from relay import config


@dataclass(frozen=True, slots=True)
class Access:
    """All that an opening needs; the password is in no ``repr``.

    ``helo`` is our name for EHLO; "" stands for the literal of our own address.
    """

    upstream: config.Upstream
    password: str = field(repr=False)
    context: ssl.SSLContext | None = field(repr=False)
    helo: str = ""

    @classmethod
    def build(cls, upstream: config.Upstream, password: str, helo: str = "") -> Self:
        """Read what has to be read, once. Raises: ConfigError: ``ca_file``."""
        return cls(upstream, password, tls_context(upstream), helo)


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection ready for MAIL, and the names of the extensions it offers (lower case)."""

    link: Link
    extensions: frozenset[str]


async def open_link(access: Access) -> Opened:
    """A connection that is encrypted as configured and logged in.

    Raises: Unreachable; Refused(reply): the peer said no, at ``reply.stage``.
    """
    implicit = access.upstream.tls == "implicit"
    link = await connect(access.upstream, access.context if implicit else None)
    try:
        return await _introduce(link, access)
    except SessionLost as lost:
        link.abort()
        raise Unreachable(str(lost)) from lost
    except BaseException:
        link.abort()
        raise


async def _introduce(link: Link, access: Access) -> Opened:
    upstream = access.upstream
    if upstream.tls == "none":
        # The config has checked the name; this is where the name really led.
        link.require_loopback()
    _expect(220, await link.greeting(upstream.connect_timeout_s))
    extensions, methods = await _hello(link, access)
    if upstream.tls == "starttls":
        await _encrypt(link, access, extensions)
        extensions, methods = await _hello(link, access)
    if upstream.username:
        await _log_in(link, access, methods)
    return Opened(link, extensions)


async def _hello(link: Link, access: Access) -> tuple[frozenset[str], frozenset[str]]:
    """Extensions and AUTH methods on offer. No HELO: without EHLO there is no TLS."""
    name = (access.helo or link.local_literal()).encode("ascii")
    reply = await link.ask(Stage.EHLO, b"EHLO", name, timeout_s=access.upstream.reply_timeout_s)
    return read_extensions(_expect(250, reply))


async def _encrypt(link: Link, access: Access, extensions: frozenset[str]) -> None:
    """TLS, or no session: what was offered before it is forgotten (RFC 3207 §4.2)."""
    if "starttls" not in extensions or access.context is None:
        raise Unreachable("the peer does not offer STARTTLS", trusted=False)
    upstream = access.upstream
    reply = await link.secure(access.context, upstream.host, upstream.connect_timeout_s)
    _expect(220, reply)


async def _log_in(link: Link, access: Access, methods: frozenset[str]) -> None:
    """AUTH PLAIN (RFC 4616), else LOGIN. One try: SES's 535 is about both alike."""
    if "plain" in methods:
        await _log_in_plain(link, access)
    elif "login" in methods:
        await _log_in_login(link, access)
    else:
        raise Unreachable("the peer offers neither AUTH PLAIN nor AUTH LOGIN")


async def _log_in_plain(link: Link, access: Access) -> None:
    upstream = access.upstream
    secret = _base64(f"\0{upstream.username}\0{access.password}")
    timeout_s = upstream.reply_timeout_s
    _expect(235, await link.ask(Stage.AUTH, b"AUTH PLAIN", secret, timeout_s=timeout_s))


async def _log_in_login(link: Link, access: Access) -> None:
    """Name and password each to its own prompt; the prompts' wording differs, none is read."""
    upstream = access.upstream
    name, secret = _base64(upstream.username), _base64(access.password)
    for words, wanted in ((b"AUTH LOGIN", 334), (name, 334), (secret, 235)):
        reply = await link.ask(Stage.AUTH, words, timeout_s=upstream.reply_timeout_s)
        _expect(wanted, reply)


def _expect(code: int, reply: Reply) -> Reply:
    """``reply`` itself if it has ``code``. Raises: Refused on 4xx and 5xx, else Unreachable."""
    if reply.code == code:
        return reply
    if reply.code >= 400:
        raise Refused(reply)
    raise Unreachable(f"at {reply.stage}: wanted {code}, was told {reply}")


def _base64(text: str) -> bytes:
    return base64.b64encode(text.encode("utf-8"))

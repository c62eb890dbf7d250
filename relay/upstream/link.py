"""One SMTP connection as questions and answers, each with its stage and its time limit.

This is the only module that knows aiosmtplib; its exceptions stop here. It stands on
``aiosmtplib.protocol.SMTPProtocol`` and not on ``aiosmtplib.SMTP``, because the latter

- raises one and the same error for DATA's 354 and for the dot, which decide between
  "send again" and "in doubt";
- drops bytes that come unasked. SES says ``451 4.4.2 Timeout waiting for data from
  client.`` unasked before it hangs up, and bytes left over behind a reply would be taken
  for the answer to the next command. Here they end the connection;
- waits with ``asyncio.wait_for``, which before Python 3.12 can swallow a cancellation
  that meets a reply (bpo-37658). Here each wait is under ``asyncio.timeout``;
- normalises the content twice (SIZE, DATA) by regular expression.

Invariant: after any exception but a refusal the connection is of no more use, and the
caller closes it. Nothing here counts, retries or judges.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from typing import TYPE_CHECKING, cast

from aiosmtplib.errors import SMTPException, SMTPResponseException
from aiosmtplib.esmtp import parse_esmtp_extensions
from aiosmtplib.protocol import SMTPProtocol

from relay import loops
from relay.errors import ConfigError, SessionLost, Unreachable
from relay.reply import Reply, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiosmtplib.response import SMTPResponse

    from relay import config

CHUNK_BYTES = 256 * 1024
"""What is handed to the transport in one go: most messages whole, 40 MB without a pause of
the loop for its encryption or a second copy of it in the transport's buffer."""

REPLY_CHARS_MAX = 2048
"""What is kept of a reply's text; it is stored with each recipient. SES's longest (access
denied, with two ARNs) has about 400."""

_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")


class Link(SMTPProtocol):
    """The connection. ``on_lost`` is called once it is gone, for whatever reason."""

    def __init__(self, on_lost: Callable[[], None] = lambda: None) -> None:
        super().__init__(asyncio.get_running_loop())
        self.on_lost = on_lost
        self.lost = asyncio.Event()
        self.spoke_unasked = False

    @property
    def answered(self) -> bool:
        """True if a reply, or the end of the connection, lies ready to be read."""
        return self._response_waiter is not None and self._response_waiter.done()

    def data_received(self, data: bytes) -> None:
        """Take a reply's bytes; bytes that nobody asked for end the connection.

        A reply that came complete before them still counts.
        """
        if not self._response_pending or self.answered:
            self._end_for_unasked()
            return
        super().data_received(data)
        if self.answered and self._buffer:
            self._end_for_unasked()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits for a reply or for the end."""
        super().connection_lost(exc)
        self.lost.set()
        self.on_lost()

    async def ask(self, stage: Stage, *words: bytes, timeout_s: float) -> Reply:
        """The reply to the command made of ``words``.

        Raises: SessionLost(stage): no reply in time, none at all, or none that is SMTP.
        """
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.execute_command(*words)
        except (SMTPException, OSError) as error:  # OSError: TimeoutError, too
            raise _lost(stage, error, timeout_s) from error
        return _read(stage, response)

    async def greeting(self, timeout_s: float) -> Reply:
        """What the peer says first. Raises: SessionLost(CONNECT)."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.read_response()
        except (SMTPException, OSError) as error:
            raise _lost(Stage.CONNECT, error, timeout_s) from error
        return _read(Stage.CONNECT, response)

    async def submit(self, stuffed: bytes, timeout_s: float) -> Reply:
        """The reply to the content, ``stuffed`` and with its final dot.

        Each chunk has ``timeout_s`` to be taken, and so has the reply after the last: a
        shorter limit on the way could only turn a slow peer into mail in doubt. A refusal
        that comes before the dot counts, and ends the connection, since the peer would
        read the rest of the content as commands.

        Raises: SessionLost(DOT).
        """
        try:
            response = await self._submit(memoryview(stuffed), timeout_s)
        except (SMTPException, OSError) as error:
            raise _lost(Stage.DOT, error, timeout_s) from error
        return _read(Stage.DOT, response)

    async def _submit(self, stuffed: memoryview, timeout_s: float) -> SMTPResponse:
        self._response_pending = True
        async with asyncio.timeout(timeout_s) as limit:
            try:
                complete = await self._write(stuffed, limit, timeout_s)
            except OSError:
                if not self.answered:
                    raise
                complete = False
            response = await self.read_response()
        if complete:
            return response
        self.abort()
        if response.code < 400:
            raise SMTPResponseException(response.code, "answered before the final dot")
        return response

    async def _write(self, stuffed: memoryview, limit: asyncio.Timeout, timeout_s: float) -> bool:
        """Write all of it and return True, or stop at a reply before its end.

        Waits for room before each chunk but the first, so that after the last one, which
        holds the dot, nothing but the reply is waited for.
        """
        loop = asyncio.get_running_loop()
        for at in range(0, len(stuffed), CHUNK_BYTES):
            await self._drain_helper()
            if self.answered:
                return False
            # write() is typed for bytes; transports take any buffer, and this one is no copy.
            self.write(cast("bytes", stuffed[at : at + CHUNK_BYTES]))
            limit.reschedule(loop.time() + timeout_s)
        return True

    async def secure(self, context: ssl.SSLContext, hostname: str, timeout_s: float) -> Reply:
        """Turn the connection into a TLS one (RFC 3207); returns the reply to STARTTLS.

        A reply other than 220 is returned and changes nothing.

        Raises: Unreachable(trusted=False): the certificate, or bytes behind the 220, which
        are either a broken peer or somebody on the way (CVE-2011-0411).
        SessionLost(STARTTLS).
        """
        try:
            async with asyncio.timeout(timeout_s):
                response = await self.start_tls(context, server_hostname=hostname)
        except SMTPResponseException as error:
            if error.code > 0:
                return _reply(Stage.STARTTLS, error.code, error.message)
            raise _lost(Stage.STARTTLS, error, timeout_s) from error
        except (SMTPException, OSError) as error:
            if _is_tls_failure(error):
                raise _distrust(error) from error
            if self.spoke_unasked:
                raise Unreachable("data injected before TLS", trusted=False) from error
            raise _lost(Stage.STARTTLS, error, timeout_s) from error
        return _read(Stage.STARTTLS, response)

    def require_loopback(self) -> None:
        """Raises Unreachable(trusted=False) if the peer is not on this machine."""
        if self.transport is None or not is_loopback(self.transport.get_extra_info("peername")):
            self.abort()
            raise Unreachable("plain text is for loopback only", trusted=False)

    def local_literal(self) -> str:
        """Our end's address as RFC 5321 §4.1.3 writes it: a name for EHLO that needs no DNS."""
        name = self.transport and self.transport.get_extra_info("sockname")
        address = str(name[0]).partition("%")[0] if name else "127.0.0.1"
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"

    def close(self) -> None:
        """Close in order: what was written goes out, TLS says goodbye."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            loops.abort(cast("asyncio.WriteTransport", self.transport))

    def _end_for_unasked(self) -> None:
        self.spoke_unasked = True
        self.abort()


async def connect(upstream: config.Upstream, context: ssl.SSLContext | None) -> Link:
    """A connection on which the greeting is still to be read.

    ``context`` is for implicit TLS, else None. The name is resolved anew each time (SES's
    addresses "change often") and all its addresses are tried, each for its share of what
    is left of ``connect_timeout_s``, so that one that swallows packets cannot use it up.

    Raises: Unreachable.
    """
    try:
        async with asyncio.timeout(upstream.connect_timeout_s):
            return await _connect_first(upstream, context)
    except TimeoutError as error:
        raise Unreachable(f"no connection within {upstream.connect_timeout_s:g} s") from error
    except OSError as error:
        if _is_tls_failure(error):
            raise _distrust(error) from error
        raise Unreachable(f"no connection: {error}") from error


async def _connect_first(upstream: config.Upstream, context: ssl.SSLContext | None) -> Link:
    """The first address that takes us. Raises what the last one raised; TLS failures at once."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + upstream.connect_timeout_s
    found = await loop.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
    failure: OSError = OSError("the name has no address")
    for n, (*_, address) in enumerate(found):
        share_s = (ends_at - loop.time()) / (len(found) - n)
        try:
            async with asyncio.timeout(share_s):
                _, link = await loop.create_connection(
                    Link,
                    str(address[0]),
                    int(address[1]),
                    ssl=context,
                    server_hostname=upstream.host if context else None,
                )
        except OSError as error:
            if _is_tls_failure(error):
                raise
            failure = error
        else:
            return link
    raise failure


def tls_context(upstream: config.Upstream) -> ssl.SSLContext | None:
    """How to check the peer: TLS 1.2 or later, certificate and host name; None for no TLS.

    ``ca_file`` replaces the system's authorities, it does not add to them: who names one
    wants no other. Reads files; called once, when the pool is built.

    Raises: ConfigError: ``ca_file`` cannot be used.
    """
    if upstream.tls == "none":
        return None
    try:
        context = ssl.create_default_context(cafile=upstream.ca_file or None)
    except OSError as error:  # ssl.SSLError, too
        found = f"{upstream.ca_file!r}: {error}"
        raise ConfigError("upstream.ca_file", found, "a file of PEM certificates") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def read_extensions(reply: Reply) -> tuple[frozenset[str], frozenset[str]]:
    """From a reply to EHLO: the extensions' names and AUTH's methods, in lower case."""
    names, methods = parse_esmtp_extensions(reply.text)
    return frozenset(names), frozenset(methods)


def is_loopback(peername: tuple[str, ...] | None) -> bool:
    """Whether a socket's ``peername`` is on this machine; an unknown one is not."""
    if not peername:
        return False
    address = ipaddress.ip_address(peername[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _read(stage: Stage, response: SMTPResponse) -> Reply:
    """The reply in our words. Raises: SessionLost: a code that SMTP does not have."""
    if not 200 <= response.code <= 599:
        raise SessionLost(stage, f"not an SMTP reply: {response.code}")
    return _reply(stage, response.code, response.message)


def _reply(stage: Stage, code: int, text: str) -> Reply:
    return Reply.read(stage, code, _printable(text))


def _printable(text: str) -> str:
    """``text`` as it can be stored and shown: bounded, no control characters, no surrogates.

    aiosmtplib decodes with "surrogateescape"; such text would break SQLite and the log.
    """
    return _UNPRINTABLE.sub("\ufffd", text[:REPLY_CHARS_MAX])


def _lost(stage: Stage, error: Exception, timeout_s: float) -> SessionLost:
    match error:
        case TimeoutError():
            text = f"no reply within {timeout_s:g} s"
        case SMTPResponseException():
            text = _printable(f"not an SMTP reply: {error.message}")
        case _:
            text = str(error) or type(error).__name__
    return SessionLost(stage, text)


def _is_tls_failure(error: Exception) -> bool:
    """Whether the peer failed to prove itself, rather than the link broke (an EOF in mid-TLS)."""
    broken = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    if not isinstance(error, ssl.SSLError) or isinstance(error, broken):
        return False
    # Python up to 3.11.3 has no class of its own for this one (*observed*, 3.11.2).
    return error.reason != "UNEXPECTED_EOF_WHILE_READING"


def _distrust(error: Exception) -> Unreachable:
    return Unreachable(f"TLS: {error}", trusted=False)

"""TLS's alert 90, ``user_canceled``: a warning that OpenSSL offers no call to send.

So the record is made by hand: the key log of a context that serves one session only tells
the server's traffic secret, RFC 8446 §7.1 and §7.3 make the key of it, and the record goes
out beneath TLS. OpenSSL 3.0 and Go 1.26 take the record, ignore the warning and meet the end
of the link just as without it (*observed* with this code, November 2026); older Go gave up
with ``remote error: tls: user canceled`` (*observed* by users of Listmonk, facts 1). TLS 1.3
only, and only with ``cryptography`` installed; whoever lacks either gets the end alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_WARNING, _USER_CANCELED = 1, 90
_ALERT, _APPLICATION_DATA = 21, 23
_IV_BYTES, _TAG_BYTES = 12, 16
_SECRET = re.compile(r"^SERVER_TRAFFIC_SECRET_0 \w+ (\w+)$", re.MULTILINE)

# Suite: the hash behind its secrets, and the bytes of its key (RFC 8446 appendix B.4).
_SUITES = {
    "TLS_AES_128_GCM_SHA256": ("sha256", 16),
    "TLS_AES_256_GCM_SHA384": ("sha384", 32),
    "TLS_CHACHA20_POLY1305_SHA256": ("sha256", 32),
}

_LOG = logging.getLogger(__name__)


class KeyLog:
    """What ``context``, which must serve one session only, writes about its keys."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed by ``user_canceled``)
        context.keylog_filename = self._file.name
        context.num_tickets = 0  # tickets are records, too, and nobody counts them here

    def user_canceled(self, suite: str, records: int) -> bytes:
        """The alert's record, ``records`` after the handshake; nothing if it cannot be made.

        Wrong if the client has asked for new keys since.
        """
        with self._file:
            found = _SECRET.search(Path(self._file.name).read_text(encoding="ascii"))
        if found is None or suite not in _SUITES:
            _LOG.warning("no alert in this version of TLS", extra={"suite": suite})
            return b""
        return _record(suite, bytes.fromhex(found[1]), records)

    def close(self) -> None:
        """Forget the keys; may be called twice."""
        self._file.close()


def _record(suite: str, secret: bytes, sequence: int) -> bytes:
    try:
        from cryptography.hazmat.primitives.ciphers import aead  # noqa: PLC0415  (optional)
    except ImportError:
        _LOG.warning("no alert without the package cryptography")
        return b""
    digest, key_bytes = _SUITES[suite]
    key = _expand(secret, b"key", key_bytes, digest)
    static = int.from_bytes(_expand(secret, b"iv", _IV_BYTES, digest), "big")
    nonce = (static ^ sequence).to_bytes(_IV_BYTES, "big")
    inner = bytes((_WARNING, _USER_CANCELED, _ALERT))
    # On the wire every record says that it is application data of TLS 1.2 (RFC 8446 §5.2).
    head = struct.pack(">BHH", _APPLICATION_DATA, 0x0303, len(inner) + _TAG_BYTES)
    cipher = aead.ChaCha20Poly1305(key) if "CHACHA20" in suite else aead.AESGCM(key)
    return head + cipher.encrypt(nonce, inner, head)


def _expand(secret: bytes, label: bytes, length: int, digest: str) -> bytes:
    """HKDF-Expand-Label without a context, for lengths within one block of the hash."""
    full = b"tls13 " + label
    info = struct.pack(">HB", length, len(full)) + full + b"\0"
    return hmac.new(secret, info + b"\1", getattr(hashlib, digest)).digest()[:length]

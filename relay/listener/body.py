"""The content of one message, taken off the wire in chunks.

Pure: fed with bytes, it says where the message ends and what it was. Chunks are joined
and searched for the end marker as a whole, not line by line: of what a message costs
aiosmtpd, its line loop is the largest part.

Invariants, against SMTP smuggling (CVE-2023-51764, CVE-2024-27305 and kin):

- only ``CRLF . CRLF`` ends a message (RFC 5321 §4.1.1.4), whatever the chunks;
- dots are unstuffed after a real CRLF only (RFC 5321 §4.5.2), and before bare line ends
  are normalised, so that no byte of the content can become part of a marker later;
- ``content()`` holds no bare CR and no bare LF.
"""

from __future__ import annotations

ENDLESS_FACTOR = 2
"""So many times the size allowed, a message is read no further. Listmonk's client reads an answer
only after its dot, and a refused message must leave its connection in step (facts: listmonk.md
1), so an honest one that is a little too big is read to its end. To read on for ever would be free
for the sender and not for us."""

_END = b"\r\n.\r\n"
_STUFFED = b"\r\n."


class BodyReader:
    """One message between the 354 and the end marker.

    ``size_max_bytes`` counts as RFC 1870 §5 says: with line ends, without the doubled
    dots and the marker. A message over it is still read to its end, but not kept, unless
    it ``is_endless``.
    """

    __slots__ = ("_counted", "_dots", "_raw", "_size_max_bytes", "_taken_bytes", "too_big")

    def __init__(self, size_max_bytes: int) -> None:
        self._size_max_bytes = size_max_bytes
        # The CRLF that ended the DATA command counts: a lone ".CRLF" is an empty message.
        self._raw = bytearray(b"\r\n")
        self._dots = self._counted = self._taken_bytes = 0
        self.too_big = False

    @property
    def held_bytes(self) -> int:
        """Memory that this message takes now."""
        return len(self._raw)

    @property
    def is_endless(self) -> bool:
        """So much has come without an end that it is not worth waiting for one."""
        return self._taken_bytes > ENDLESS_FACTOR * self._size_max_bytes

    def feed(self, data: bytes) -> bytes | None:
        """Take the next chunk. None: the message goes on; else the bytes that follow it."""
        raw = self._raw
        self._taken_bytes += len(data)
        # The marker may have begun in any of the last four bytes of the chunk before.
        search_from = max(0, len(raw) - len(_END) + 1)
        raw += data
        at = raw.find(_END, search_from)
        if at < 0:
            self._bound()
            return None
        rest = bytes(raw[at + len(_END) :])
        del raw[at + 2 :]
        self._bound()
        return rest

    def content(self) -> bytes:
        """The message: dots unstuffed, every line ended by CRLF. Only after its end."""
        return normalised(bytes(self._raw).replace(_STUFFED, b"\r\n")[2:])

    def _bound(self) -> None:
        """Drop what is held once it is over the size; keep what a marker may begin with."""
        if self.too_big or self._is_over():
            self.too_big = True
            del self._raw[: -len(_END) + 1]

    def _is_over(self) -> bool:
        size_bytes = len(self._raw) - 2
        if size_bytes <= self._size_max_bytes:
            return False
        # Each byte is counted once, and only in messages that come near the limit.
        self._dots += self._raw.count(_STUFFED, self._counted)
        self._counted = max(0, len(self._raw) - len(_STUFFED) + 1)
        # The CR of a marker that is not all there yet is no part of the message.
        marker_bytes = 1 if self._raw.endswith(_END[:-1]) else 0
        return size_bytes - self._dots - marker_bytes > self._size_max_bytes


def normalised(content: bytes) -> bytes:
    """``content`` with each bare CR and each bare LF made a CRLF; the same object if none is."""
    lines = content.count(b"\r\n")
    if lines == content.count(b"\n") == content.count(b"\r"):
        return content
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")

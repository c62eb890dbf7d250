"""Content as it goes over the wire after 354: CRLF only, dot-stuffed once.

The listener stores content with CRLF alone, so nothing is to be done but to look; it is
looked at again because a bare CR or LF let through here is an SMTP smuggling hole at the
next server (CVE-2023-51764 and kin). ``bytes.count`` runs at memory speed, a regular
expression over 50 kB does not, so the expression runs only when the counts disagree.
"""

from __future__ import annotations

import re

_BARE_ENDING = re.compile(rb"\r\n|\n|\r")


def normalise(content: bytes) -> bytes:
    """``content`` with CRLF as its only line ending, and one at its end (RFC 5321 §2.3.8).

    Without NUL, which no mail may hold (RFC 2045 §2.7, §2.8): a server that drops it before
    it looks for the end could find one within. The same object if nothing had to change.
    Empty content stays empty: RFC 5321 §4.1.1.4 lets the dot follow the command line's own
    CRLF.
    """
    if b"\0" in content:
        content = content.replace(b"\0", b"")
    pairs = content.count(b"\r\n")
    if content.count(b"\n") != pairs or content.count(b"\r") != pairs:
        content = _BARE_ENDING.sub(b"\r\n", content)
    if content and not content.endswith(b"\r\n"):
        content += b"\r\n"
    return content


def stuff(content: bytes) -> bytes:
    """Normalised ``content`` with a dot before each leading dot (RFC 5321 §4.5.2), and the end."""
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + b".\r\n"

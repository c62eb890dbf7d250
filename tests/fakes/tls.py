"""A TLS client that sees how a link ends, on every Python from 3.11.0 on.

Python up to 3.11.3 (Debian 12 has 3.11.2) takes an end without TLS's goodbye for an orderly one
unless it is told not to, and then raises a plain ``SSLError`` for it (*observed*, 3.11.2).
"""

from __future__ import annotations

import ssl

from relay.twin import certificate_files

_CUT = "UNEXPECTED_EOF_WHILE_READING"


def trusting() -> ssl.SSLContext:
    """A context for which the twin's certificate is the only authority."""
    context = ssl.create_default_context(cafile=str(certificate_files()[0]))
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def kind_of(error: OSError) -> type[OSError]:
    """Its class; ``SSLEOFError`` for an end without goodbye, whatever this Python calls it."""
    is_cut = isinstance(error, ssl.SSLError) and error.reason == _CUT
    return ssl.SSLEOFError if is_cut else type(error)

"""A certificate for a server that has nothing to protect.

The pair beside this file is for ``localhost``, 127.0.0.1 and ::1 only. **Its key is
public**: anyone who has this package has it. It lets the twin speak TLS on a machine
with nothing but Python (the standard library cannot make certificates), and it signs
itself, so that a client that is to trust the twin can name it as its ``ca_file``. Never
put it into a trust store that anything else uses.
"""

from __future__ import annotations

import ssl
from pathlib import Path

_FOLDER = Path(__file__).parent


def certificate_files() -> tuple[Path, Path]:
    """The public test certificate, which is its own CA, and its key."""
    return _FOLDER / "localhost.pem", _FOLDER / "localhost.key.pem"


def server_context(cert_file: str, key_file: str) -> ssl.SSLContext:
    """TLS >= 1.2, as SES has it now (*documented*), with that pair or, if empty, ours."""
    ours, our_key = certificate_files()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert_file or ours, (key_file or None) if cert_file else our_key)
    return context

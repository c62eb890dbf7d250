"""Certificates that a relay must not believe, for a twin to show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from relay.twin import certificate_files

HERE = "127.0.0.1"
"""The name by which the relay calls its upstream in tests."""


def known_authority() -> trustme.CA:
    """The one that the relay trusts in tests; like all of it, known to everybody."""
    certificate, key = map(Path, certificate_files())
    return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())


def write(folder: Path, leaf: trustme.LeafCert) -> tuple[str, str]:
    """The paths of its certificate and key."""
    certificate, key = folder / "leaf.pem", folder / "leaf.key.pem"
    leaf.cert_chain_pems[0].write_to_path(str(certificate))
    leaf.private_key_pem.write_to_path(str(key))
    return str(certificate), str(key)


def good(folder: Path, name: str = HERE) -> tuple[str, str]:
    """What the relay does believe."""
    return write(folder, known_authority().issue_cert(name))


def other_name(folder: Path) -> tuple[str, str]:
    return write(folder, known_authority().issue_cert("127.0.0.2"))


def other_authority(folder: Path) -> tuple[str, str]:
    return write(folder, trustme.CA().issue_cert(HERE))


def expired(folder: Path) -> tuple[str, str]:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    return write(folder, known_authority().issue_cert(HERE, not_after=yesterday))

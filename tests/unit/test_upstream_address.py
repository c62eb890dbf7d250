"""Addresses on their way out."""

from __future__ import annotations

import pytest

from relay.reply import Reply, Stage
from relay.upstream.address import encode_address


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("ann@example.com", b"ann@example.com"),
        ("ann@müller.example", b"ann@xn--mller-kva.example"),
        ("ann@MÜLLER.example", b"ann@xn--mller-kva.example"),
        ("ann@faß.example", b"ann@xn--fa-hia.example"),
        ("ann@news。müller.example", b"ann@news.xn--mller-kva.example"),
        ("ann@a_b.müller.example", b"ann@a_b.xn--mller-kva.example"),
        ('"a@b"@müller.example', b'"a@b"@xn--mller-kva.example'),
        ("", b""),
        ("postmaster", b"postmaster"),
        ("odd..local.@example.com", b"odd..local.@example.com"),
    ],
)
def test_address_leaves_in_ascii(address: str, wanted: bytes) -> None:
    """Domains become Punycode by IDNA 2008; what is ASCII already stays untouched."""
    assert encode_address(address, Stage.RCPT) == wanted


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT])
@pytest.mark.parametrize(
    ("address", "enhanced"),
    [
        ("änn@example.com", "5.6.7"),
        ("änn", "5.6.7"),
        ("ann@-ü.example", "5.1.2"),
        ("ann@" + "ü" * 70 + ".example", "5.1.2"),
        ("ann@exam\udce4ple.com", "5.1.2"),
        ("ann@b\uff1e.example", "5.1.2"),
        ("ann@ü.example\uff1e size\uff1d1", "5.1.2"),
        ("ann@b\uff02.example", "5.1.2"),
        ("ann@evil.example\uff20ü.example", "5.1.2"),
        ("ann@example.com>\r\nRCPT TO:<eve@example.com", "5.1.3"),
        ("a\0nn@example.com", "5.1.3"),
        ("ann\x7f@müller.example", "5.1.3"),
    ],
)
def test_address_without_ascii_form_is_refused_here(
    stage: Stage, address: str, enhanced: str
) -> None:
    """What SES could not take, or what would smuggle a command, never reaches the wire."""
    reply = encode_address(address, stage)

    assert isinstance(reply, Reply)
    assert (reply.stage, reply.code, reply.enhanced) == (stage, 553, enhanced)

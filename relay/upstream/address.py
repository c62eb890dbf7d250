"""An address as SES can take it: ASCII, or a refusal that we speak in the peer's place.

SES offers no SMTPUTF8 (facts: Amazon SES guide, "Sending raw email": local part must be
7-bit, "the domain … encoded using Punycode"), so the domain is encoded and a non-ASCII
local part has no way out. Control characters are refused as well: a CR or LF would end
the command and start another. So is a domain that contains more than host names do once it
is encoded: UTS 46 turns a full-width bracket into the ``>`` that ends the path. Everything else
goes out as it came; the peer judges it.
"""

from __future__ import annotations

import re

import idna

from relay.reply import Reply, Stage

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED = re.compile(r"[A-Za-z0-9._-]*")
"""RFC 5321 §4.1.2: letters, digits and hyphens in labels; the underscore is met in the wild."""


def encode_address(address: str, stage: Stage) -> bytes | Reply:
    """``address`` in ASCII, or the refusal at ``stage`` (MAIL or RCPT) that it earns.

    Code 553 is the one SES uses for addresses it cannot take ("Invalid email address").
    """
    if _CONTROL.search(address):
        return Reply(stage, 553, "the address contains a control character", "5.1.3")
    if address.isascii():
        return address.encode("ascii")
    local, at, domain = address.rpartition("@")
    if not at or not local.isascii():
        # RFC 6531 §3.5 and RFC 5248: X.6.7, "Non-ASCII addresses not permitted …".
        return Reply(stage, 553, "the upstream takes only ASCII before the @", "5.6.7")
    try:
        encoded = _encode_domain(domain)
    except (idna.IDNAError, UnicodeError):
        return Reply(stage, 553, "the domain has no ASCII form (IDNA 2008)", "5.1.2")
    if not _ENCODED.fullmatch(encoded):
        return Reply(stage, 553, "the domain is none once it is encoded (UTS 46)", "5.1.2")
    return f"{local}@{encoded}".encode("ascii")


def _encode_domain(domain: str) -> str:
    """Each label that needs it as Punycode; the others as they are (``_dmarc`` is no host name).

    UTS 46 first: people type capitals and full-width dots, IDNA 2008 alone refuses them.
    """
    labels = idna.uts46_remap(domain, std3_rules=False).split(".")
    return ".".join(
        label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels
    )

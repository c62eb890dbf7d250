"""Which addresses SES takes at MAIL and RCPT, and which only displease it after the dot.

*observed* (a Postfix log of odd addresses, 2020): a stray ``>`` is refused at RCPT with
501, while leading dots, double dots, ``<`` and spaces in the local part get 250. A
missing or malformed domain is named after the dot (554, JavaMail's words). 553 is
*documented* for MAIL and RCPT without saying when; taken here for what SubEthaSMTP's
parser refuses and for non-ASCII, as SES offers no SMTPUTF8 (*assumed*).
"""

from __future__ import annotations

import re
from email.utils import getaddresses

from relay.twin import texts

_DOMAIN = re.compile(r"[A-Za-z0-9._-]+|\[[^\s\[\]]+\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ILLEGAL = re.compile(r"[:;,()\[\]]")
_SIMPLE = re.compile(
    r"""\s*(?:(?:"[^"\\]*"|[^"<>()@,:;\\]*)<([^\s"<>()@,:;\\]+@[\w.-]+)>|([^\s"<>()@,:;\\]+@[\w.-]+))\s*"""
)
"""One address alone, after a display name or bare, without comments, groups or escapes."""


def extract(path: str) -> str | None:
    """The address in what follows ``FROM:`` or ``TO:``; None if its brackets do not pair.

    Parameters after the address are ignored, as SubEthaSMTP ignores unknown ones.
    """
    path = path.lstrip()
    if not path.startswith("<"):
        return path.partition(" ")[0]
    address, bracket, rest = path[1:].partition(">")
    if not bracket or (rest and not rest.startswith(" ")):
        return None
    return address.strip()


def refusal(path: str, unusable: str) -> tuple[str, str | None]:
    """The address in ``path``, and the reply that refuses it or None.

    ``unusable`` is the command's own 501, for an empty address or unpaired brackets.
    """
    address = extract(path)
    if not address:
        return "", unusable
    local, at, domain = address.rpartition("@")
    if not address.isascii() or (at and not (local and domain)) or " " in domain:
        return address, texts.ADDRESS_INVALID.format(address=address)
    return address, None


def objection(address: str) -> str | None:
    """What SES says after the dot about an address it let pass before, or None.

    The words are JavaMail's. Odd local parts pass (*observed*: dots, ``<``, spaces); what
    does not is a colon and its kin in a quoted one (*observed* for the colon) and control
    characters (*assumed*).
    """
    local, at, domain = address.rpartition("@")
    if not (at and local and domain):
        return _incomplete(local, at)
    if not _DOMAIN.fullmatch(domain):
        return texts.DOMAIN_ILLEGAL
    if _CONTROL.search(local):
        return texts.LOCAL_CONTROL
    if local.startswith('"') and _ILLEGAL.search(local):
        return texts.LOCAL_ILLEGAL.format(address=address)
    return None


def _incomplete(local: str, at: str) -> str:
    if not at:
        return texts.DOMAIN_MISSING
    return texts.DOMAIN_EMPTY if local else texts.LOCAL_MISSING


def in_header(value: str) -> list[str]:
    """The addresses in the value of a From, To or Cc field, without their display names."""
    simple = _SIMPLE.fullmatch(value)
    if simple is not None:  # nearly every message, and some 20 times as fast
        return [simple[1] or simple[2]]
    found = [address for _, address in getaddresses([value]) if address]
    # What the library cannot read at all is left to the objections.
    return found or ([value.strip().strip("<>")] if "@" in value else [])


def is_covered(address: str, verified: frozenset[str]) -> bool:
    """True if the address, its domain or a domain above that is a verified identity.

    Subdomains of a verified domain may be used (*documented*, "Verified identities").
    """
    address = address.lower()
    domain = address.rpartition("@")[2]
    while domain and domain not in verified:
        domain = domain.partition(".")[2]
    return bool(domain) or address in verified

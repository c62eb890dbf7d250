"""Which addresses SES takes at MAIL and RCPT, and which only displease it after the dot.

*observed* (a Postfix log of odd addresses, 2020): a stray ``>`` is refused at RCPT with
501, while leading dots, double dots, ``<`` and spaces in the local part get 250. A
missing or malformed domain is named after the dot (554, JavaMail's words). 553 is
*documented* for MAIL and RCPT without saying when; taken here for what SubEthaSMTP's
parser refuses and for non-ASCII, as SES offers no SMTPUTF8 (*assumed*).
"""

from __future__ import annotations

import re

from relay.twin import texts

_DOMAIN = re.compile(r"[A-Za-z0-9._-]+|\[[^\s\[\]]+\]")


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
    """What SES says after the dot about an address it let pass before, or None."""
    _, at, domain = address.rpartition("@")
    if not at:
        return texts.DOMAIN_MISSING
    return None if _DOMAIN.fullmatch(domain) else texts.DOMAIN_ILLEGAL

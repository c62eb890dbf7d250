"""Which part of AWS an SMTP host belongs to, and whose a key ID is.

Pure. A host that is none of SES's own has no region and is never asked about: the credentials
that lie about on a machine say nothing of somebody else's mail server.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A region's API; ``fips`` asks for the one with validated cryptography, as the host has it."""

    region: str
    fips: bool = False


_REGION = r"(?P<region>[a-z]{2,4}(?:-[a-z]{2,12}){1,3}-\d{1,2})"
_HOSTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "Amazon Simple Email Service endpoints and quotas", China and FIPS included: documented.
        rf"email-smtp(?P<fips>-fips)?\.{_REGION}\.amazonaws\.com(?:\.cn)?\.?",
        # A VPC endpoint by its own name, in one zone or in all (facts/ses-smtp.md 1: observed).
        rf"vpce-[a-z0-9-]{{1,63}}\.email-smtp(?P<fips>-fips)?\.{_REGION}\.vpce\.amazonaws\.com(?:\.cn)?\.?",
        # Dual stack; in third parties' allow-lists only (facts/ses-smtp.md 1: observed).
        rf"email-smtp(?P<fips>-fips)?\.{_REGION}\.api\.aws\.?",
    )
)
_KEY_ID = re.compile(r"A[KS]IA[Q-Z2-7][A-Z2-7]{15}")
"""Keys of IAM users and of roles whose ID says which account they belong to. Older ones (made
before about 2019) begin with AKIAI or AKIAJ and do not (*observed* by others, see below)."""


def endpoint_of(host: str) -> Endpoint | None:
    """Where the account behind the SMTP ``host`` can be asked about; None if that is not SES."""
    for pattern in _HOSTS:
        if found := pattern.fullmatch(host):
            region, fips = found["region"].lower(), found["fips"] is not None
            return Endpoint(region=region, fips=fips)
    return None


def account_of_key(key_id: str) -> str | None:
    """The twelve digits of the account that ``key_id`` belongs to; None if it does not tell.

    AWS does not document this; *observed*: A. Steele, "AWS Access Key ID formats" (2020), and T.
    Be'ery, "A short note on AWS KEY ID" (2023): after four letters comes base32, and in its
    first six bytes, one bit in, the account. So it serves to notice that two keys differ, never
    to prove that they belong together.
    """
    if not _KEY_ID.fullmatch(key_id):
        return None
    first = int.from_bytes(base64.b32decode(key_id[4:])[:6], "big")
    account = (first & 0x7FFF_FFFF_FF80) >> 7
    return f"{account:012d}" if account < 10**12 else None

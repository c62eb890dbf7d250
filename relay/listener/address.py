"""The argument of MAIL and RCPT: a path and its parameters.

Pure, and one pattern instead of aiosmtpd's e-mail parser, which takes longer than all the
rest of a command. It is generous, since a refused recipient is a lost subscriber
(facts: listmonk.md 1): an address that SES will not have is accepted, bounced by SES and
then has an outcome. Refused is only what could not be sent on as one address in
``<...>``: control characters, blanks and angle brackets outside quotes, bytes that are not UTF-8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ADDRESS_MAX = 1_024
"""Characters; RFC 5321 §4.5.3.1.3 allows a path of 256 octets."""

_NOT_PLAIN = r'\s"<>\x00-\x1f\x7f'
_ARGUMENT = re.compile(
    rf"""
    (?P<keyword>FROM|TO) \s* : \s*
    (?:
      <
        (?: @ [^:{_NOT_PLAIN}]* : )?        # a source route, ignored: RFC 5321 appendix C
        (?P<path> (?: "(?: [^"\\\x00-\x1f\x7f] | \\[^\x00-\x1f\x7f] )*+" | [^{_NOT_PLAIN}]++ )*+ )
      >
      | (?P<bare> [^{_NOT_PLAIN}]+ )        # without brackets, as people type it
    )
    (?: \s+ (?P<parameters> .* ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Path:
    """One address and the parameters after it, by upper-case keyword ("" without a value)."""

    address: str
    parameters: dict[str, str]


def read(keyword: str, argument: str) -> Path | None:
    """The path in ``argument`` after ``FROM:`` or ``TO:``; None if there is no usable one.

    ``<>`` gives the empty address.
    """
    match = _ARGUMENT.fullmatch(argument)
    if match is None or match["keyword"].upper() != keyword:
        return None
    address = match["path"] if match["bare"] is None else match["bare"]
    if len(address) > ADDRESS_MAX:
        return None
    parameters = match["parameters"]
    return Path(address, _read_parameters(parameters) if parameters else {})


def _read_parameters(text: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in text.split())
    return {name.upper(): value for name, _, value in pairs}

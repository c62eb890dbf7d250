"""Everything SES says over SMTP, byte for byte, and the ids it gives.

The texts are those of facts/ses-smtp.md 1, 2 and 7. Where no trace of SES was found they
are SubEthaSMTP's, whose texts SES shares wherever both are known (*assumed*). Full stops
are part of a text: throttles, timeouts and ``Transaction failed`` end with one, 501, 530
and 535 do not (*observed*).
"""

from __future__ import annotations

import string
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

HOST = "email-smtp.amazonaws.com"
"""Also in other regions: the name carries none (*observed*)."""

SIZE_2020 = "SIZE 10485760"
"""Gone from every transcript since SES takes messages of 40 MB (*observed*)."""

OK = "250 Ok"
BYE = "221 Bye"
GO_AHEAD = "354 End data with <CR><LF>.<CR><LF>"
READY_FOR_TLS = "220 Ready to start TLS"

# AUTH
PLAIN_CHALLENGE = "334 Ok"
LOGIN_USERNAME = "334 VXNlcm5hbWU6"
LOGIN_PASSWORD = "334 UGFzc3dvcmQ6"  # noqa: S105  (the prompt "Password:", not one)
AUTHENTICATED = "235 Authentication successful."
AUTH_NEEDED = "530 Authentication required"
AUTH_WRONG = "535 Authentication Credentials Invalid"
AUTH_AGAIN = "503 Refusing any other AUTH command."
AUTH_CANCELLED = "501 Authentication canceled by client."
AUTH_SYNTAX = "501 Syntax: AUTH mechanism [initial-response]"
AUTH_UNKNOWN = "504 The requested authentication mechanism is not supported"

# STARTTLS
TLS_NEEDED = "530 Must issue a STARTTLS command first"
TLS_SYNTAX = "501 Syntax error (no parameters allowed)"
TLS_ACTIVE = "454 TLS not available due to temporary reason: TLS already active"
TLS_MISSING = "454 TLS not supported"

# Commands
HELO_SYNTAX = "501 Syntax: {verb} hostname"
MAIL_SYNTAX = "501 Syntax: MAIL FROM: <address>"
RCPT_SYNTAX = "501 Syntax: RCPT TO: <address>"
MAIL_INVALID = "501 Invalid MAIL FROM address provided"
RCPT_INVALID = "501 Invalid RCPT TO address provided"
ADDRESS_INVALID = "553 <{address}> Invalid email address"
SENDER_TWICE = "503 Sender already specified."
MAIL_FIRST = "503 Error: need MAIL command"
RCPT_FIRST = "503 Error: need RCPT command"
VRFY_DISABLED = "502 VRFY command is disabled"
EXPN_DISABLED = "502 EXPN command is disabled"
NOT_IMPLEMENTED = "500 Error: command not implemented"
BAD_SYNTAX = "500 Error: bad syntax"
LINE_TOO_LONG = "501 Input line length is too long!"
NEWLINE_UNPAIRED = (
    "501 Syntax error at character position {position}."
    " CR and LF must be CRLF paired.  See RFC 2821 #2.7.1."
)

# The end of a session
CONNECTIONS_SPENT = "421 Too many concurrent SMTP connections"
SESSION_SPENT = "421 Connection closed by server. Maximum message count per session reached."
SESSION_SPENT_2024 = "421 Connection closed by server. Too many messages in one session"
IDLE = "451 4.4.2 Timeout waiting for data from client."
IDLE_2017 = "421 Timeout waiting for data from client."
"""What it was until about 2017."""

# Troubles of SES itself (*documented* with 451, *observed* with 454), and of the account
TEMPORARY_451 = "451 Temporary service failure"
TEMPORARY_454 = "454 Temporary service failure"
AUTH_TEMPORARY = "454 Temporary authentication failure"
NOT_SUBSCRIBED = "535 Account not subscribed to SES"

# After the final dot
RATE = "454 Throttling failure: Maximum sending rate exceeded."
QUOTA = "454 Throttling failure: Daily message quota exceeded."
TOO_LONG = "552 Message is too long."
TOO_MANY_RECIPIENTS = "554 Transaction failed: Recipient count exceeds {limit}."
DUPLICATE_HEADER = "554 Transaction failed: Duplicate header '{name}'."
SIGV2 = "454 Throttling failure: Maximum SigV2 SMTP sending rate exceeded."
THROTTLES = frozenset({RATE, SIGV2})
"""What is said to a message that comes too fast."""
ACCESS_DENIED = (
    "554 Access denied: User `arn:aws:iam::{account}:user/{user}' is not authorized to perform"
    " `ses:SendRawEmail' on resource `arn:aws:ses:{region}:{account}:{resource}'"
)
PAUSED = (
    "554 Message rejected: Sending paused for this account. For more information, please check"
    " the inbox of the email address associated with your AWS account."
)
UNVERIFIED = (
    "554 Message rejected: Email address is not verified. The following identities failed the"
    " check in region {region}: {identities}"
)
CONFIGURATION_SET_UNKNOWN = "554 Configuration set <{name}> does not exist."
"""The API's words with the code that they would have here (*assumed*)."""
EXPECTED_SEMICOLON = "554 Transaction failed: Expected ';', got \"{found}\""
EXPECTED_DISPOSITION = "554 Transaction failed: Expected disposition, got {found}"
LOCAL_MISSING = "554 Transaction failed: Missing local name"
LOCAL_ILLEGAL = (
    "554 Transaction failed: Address contains illegal characters in user name: '<{address}>'."
)
LOCAL_CONTROL = "554 Transaction failed: Local address contains control or whitespace"
DOMAIN_EMPTY = "554 Transaction failed: Missing domain"
DOMAIN_MISSING = "554 Transaction failed: Missing final '@domain'"
DOMAIN_ILLEGAL = "554 Transaction failed: Domain contains illegal character"

_CAPITALS = string.ascii_uppercase + string.digits
_LETTERS = string.ascii_letters + string.digits

REGION = "0100"
"""The id's first four digits: us-east-1 (*observed*)."""


def greeting(chance: random.Random) -> str:
    """A greeting with the two random marks, 9 and 20 characters, that SES puts there."""
    mark = "".join(chance.choices(_CAPITALS, k=9))
    token = "".join(chance.choices(_LETTERS, k=20))
    return f"220 {HOST} ESMTP SimpleEmailService-d-{mark} {token}"


def ehlo(*, starttls: bool, size: bool = False) -> str:
    """The EHLO reply seen since 2023, and with ``size`` until about 2022.

    It ends in ``250 Ok``, which is no capability.
    """
    sizes = [SIZE_2020] if size else []
    offers = [HOST, "8BITMIME", *sizes, *(["STARTTLS"] if starttls else []), "AUTH PLAIN LOGIN"]
    return "\r\n".join([*(f"250-{offer}" for offer in offers), OK])


def message_id(wall_ms: int, chance: random.Random) -> str:
    """60 characters: region, 12 hex digits of the acceptance's Unix ms, a UUID, six zeros."""
    unique = uuid.UUID(int=chance.getrandbits(128), version=4)
    return f"{REGION}{wall_ms:012x}-{unique}-000000"


def message_id_time(ses_id: str) -> int:
    """The moment of acceptance that an id tells, ms since the epoch."""
    return int(ses_id[len(REGION) : len(REGION) + 12], 16)

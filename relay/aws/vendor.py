"""The one door to boto3: asks, and turns every ending into a word of ours.

boto3, not aiobotocore: one call in five minutes needs no event loop, and aiobotocore holds
botocore to a window of a few releases. Nothing is kept from one question to the next, neither
client nor credentials: a key that was renewed counts at once, and no idle connection is left.

Credentials come by boto3's default chain. An SMTP password of SES is derived from a secret key
and is none (facts/ses-smtp.md 4), so it is never tried. No text of AWS or botocore leaves this
module: a credential process may print a secret into its error.
"""

from __future__ import annotations

import logging

import boto3
from botocore import exceptions
from botocore.config import Config
from botocore.parsers import ResponseParserError

from relay.aws.place import Endpoint, account_of_key
from relay.aws.words import Account, Silence, read_account, read_quota

CONNECT_S = 5.0
"""For TCP and TLS; AWS is near or away."""
READ_S = 10.0
"""Between two bytes of an answer of some hundred."""

_FOREIGN_LOGGERS = ("boto3", "botocore", "urllib3")
"""They tell of a failed refresh with a warning and a traceback each time; a ``Silence`` does."""
_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})
"""v1's and v2's word for a right that is missing (*documented*, "Common Errors")."""
_BAD_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""*documented* ("Common Errors" of SES v1 and v2): expired, deleted, wrong or unknown keys."""
_UNREACHABLE = (exceptions.ConnectionError, exceptions.HTTPClientError)
_NO_ANSWER = (
    *(exceptions.BotoCoreError, ResponseParserError),
    *(LookupError, ValueError, TypeError, AttributeError),
)
"""How botocore's parsers stumble over a page that is no answer, as of a proxy or a captive portal
(*observed* with botocore 1.44.8: HTML in place of XML is a KeyError)."""


def account_at(endpoint: Endpoint) -> Account | Silence:
    """What AWS says of the account at ``endpoint``, or why it says nothing. Blocks."""
    for name in _FOREIGN_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        session = boto3.session.Session()
        key_id = _key_id(session)
    except _UNREACHABLE:
        return Silence.UNREACHABLE  # whoever lends a role
    except (exceptions.BotoCoreError, exceptions.ClientError, OSError, ValueError):
        # OSError, ValueError: a file of theirs that cannot be read, a process that cannot be run.
        return Silence.CREDENTIALS
    try:
        account = _ask(session, endpoint, account_of_key(key_id))
    except exceptions.ClientError as error:
        return _silence_of(error)
    except _UNREACHABLE:
        return Silence.UNREACHABLE
    except _NO_ANSWER:
        return Silence.REFUSED
    # HTML in place of JSON is read as an answer with nothing in it (observed as above).
    return Silence.REFUSED if account == Account(id=account.id) else account


def _key_id(session: boto3.session.Session) -> str:
    """The public half of the credentials that count now. Raises: NoCredentialsError, and more."""
    credentials = session.get_credentials()
    if credentials is None:
        raise exceptions.NoCredentialsError
    return str(credentials.get_frozen_credentials().access_key)


def _ask(session: boto3.session.Session, endpoint: Endpoint, account_id: str | None) -> Account:
    """``GetAccount``; if that is not allowed, ``GetSendQuota``, which says less."""
    settings = Config(
        region_name=endpoint.region,
        use_fips_endpoint=endpoint.fips,
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"total_max_attempts": 1},  # the next poll is the next attempt
        max_pool_connections=1,
    )
    v2 = session.client("sesv2", config=settings)
    try:
        return read_account(v2.get_account(), account_id)
    except exceptions.ClientError as error:
        if _code(error) not in _DENIED:
            raise
    finally:
        v2.close()
    v1 = session.client("ses", config=settings)
    try:
        return read_quota(v1.get_send_quota(), account_id)
    finally:
        v1.close()


def _silence_of(error: exceptions.ClientError) -> Silence:
    code = _code(error)
    if code in _DENIED:
        return Silence.DENIED
    return Silence.CREDENTIALS if code in _BAD_CREDENTIALS else Silence.REFUSED


def _code(error: exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))

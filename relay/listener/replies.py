"""What the listener says, and what it says to each of our failures.

Listmonk shows the text of a refusal to its user, so each says what to do about it. All
are ASCII and short enough for one reply line (RFC 5321 §4.5.3.1.5: 512 octets).
"""

from __future__ import annotations

from relay.errors import RelayError, SpoolFull

OK = b"250 2.0.0 Ok"
MAIL_OK = b"250 2.1.0 Ok"
RCPT_OK = b"250 2.1.5 Ok"
GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>"
BYE = b"221 2.0.0 Bye"
HELP = b"214 2.0.0 EHLO MAIL RCPT DATA RSET NOOP AUTH STARTTLS QUIT"
VRFY = b"252 2.5.0 Not verified; send to it and see"
EXPN = b"502 5.5.1 EXPN is not offered"
TLS_GO_AHEAD = b"220 2.0.0 Ready to start TLS"
AUTH_OK = b"235 2.7.0 Authentication successful"

UNKNOWN = b"500 5.5.2 Command not recognized"
LINE_TOO_LONG = b"500 5.5.2 Command line too long"
NOT_TEXT = b"501 5.5.2 The command is not UTF-8"
MAIL_SYNTAX = b"501 5.5.4 Syntax: MAIL FROM:<address> [parameters]"
RCPT_SYNTAX = b"501 5.5.4 Syntax: RCPT TO:<address>"
NO_ARGUMENT = b"501 5.5.4 No argument is allowed here"
NEED_MAIL = b"503 5.5.1 Send MAIL first"
NEED_RCPT = b"503 5.5.1 Send MAIL and RCPT first"

SENDER_BAD = b"553 5.1.7 The sender is not an address that could be sent on"
SENDER_EMPTY = (
    b"550 5.1.7 The empty sender <> cannot be sent on: Amazon SES refuses it;"
    b" use a verified address as sender"
)
RECIPIENT_BAD = b"553 5.1.3 The recipient is not an address that could be sent on"
RECIPIENTS_TOO_MANY = b"452 4.5.3 Too many recipients in one message; send the rest in another"
BODY_BINARY = b"501 5.5.4 BODY can be 7BIT or 8BITMIME"
PARAMETER_UNKEEPABLE = b"555 5.5.4 REQUIRETLS cannot be promised on the way to Amazon SES"
LOOP = (
    b"554 5.4.6 Routing loop: the message has passed 50 servers;"
    b" is the upstream in relay.toml this relay itself?"
)

NO_ROOM = (
    b"452 4.3.1 No room in the spool for longer than listen.stall_max_s;"
    b" free some disk, then send again"
)
SURPRISE = b"451 4.3.0 The relay had a problem of its own; its log says more; send again later"

TLS_FIRST = (
    b"530 5.7.0 Must issue a STARTTLS command first: choose STARTTLS in Listmonk's SMTP settings"
)
TLS_NONE = b"502 5.5.1 STARTTLS is not set up here: set listen.tls_cert_file in relay.toml"
TLS_ALREADY = b"503 5.5.1 TLS is active already"

AUTH_FIRST = (
    b"530 5.7.0 Authentication required: in Listmonk's SMTP settings choose LOGIN"
    b" and a user made with: relay user add NAME"
)
AUTH_NONE = (
    b"502 5.5.1 AUTH is not set up here: choose no authentication in Listmonk's SMTP settings,"
    b" or set listen.users_file in relay.toml"
)
AUTH_ALREADY = b"503 5.5.1 Logged in already"
AUTH_IN_MAIL = b"503 5.5.1 AUTH is not allowed within a mail transaction"
AUTH_SYNTAX = b"501 5.5.4 Syntax: AUTH mechanism [initial response]"
AUTH_UNKNOWN = b"504 5.5.4 Unknown mechanism: choose LOGIN in Listmonk's SMTP settings"
AUTH_CRAM_NONE = (
    b"504 5.5.4 CRAM-MD5 needs a user made with: relay user add --cram NAME;"
    b" or choose LOGIN in Listmonk's SMTP settings"
)
COMMANDS_TOO_MANY = b"421 4.7.0 Too many commands without a login"
AUTH_WRONG = (
    b"535 5.7.8 Wrong user name or password: correct them in Listmonk's SMTP settings,"
    b" or set a new password with: relay user add NAME"
)
AUTH_CRAM_WRONG = (
    b"535 5.7.8 Wrong user name or password, or the user was made without --cram: choose LOGIN"
    b" in Listmonk's SMTP settings, or run: relay user add --cram NAME"
)
AUTH_TOO_OFTEN = (
    b"421 4.7.0 Too many wrong logins on one connection; correct the user name and password"
    b" in Listmonk's SMTP settings"
)
AUTH_CALLED_OFF = b"501 5.7.0 Authentication called off"
AUTH_NOT_BASE64 = b"501 5.5.2 That is not base64"
AUTH_MALFORMED = b"501 5.5.2 That is not what the mechanism asks for"

FAILURES: dict[type[RelayError], bytes] = {RelayError: SURPRISE, SpoolFull: NO_ROOM}
"""Each of our failures has the reply of its nearest ancestor here. Always 4xx: P1."""


def of_failure(error: BaseException) -> bytes:
    """The reply to a failure of ours; a surprise gets 451, and nothing of its text."""
    known = (FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES)
    return next(known, SURPRISE)


def too_big(size_max_bytes: int) -> bytes:
    """A message over the size, refused by what it declares or by what it is."""
    return b"552 5.3.4 Message too big: listen.size_max_bytes is %d" % size_max_bytes


def stranger(peer: str, *, may_log_in: bool) -> bytes:
    """Why ``peer`` may not send, and the line of relay.toml that would let it."""
    code = "530 5.7.0" if may_log_in else "550 5.7.1"
    way_out = ", or log in" if may_log_in else ""
    return (
        f"{code} Not an open relay: {peer} is not in allow_networks;"
        f' in relay.toml under [listen] add "{peer}" to allow_networks{way_out}'
    ).encode("ascii", "replace")

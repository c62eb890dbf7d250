"""Sessions as a hostile client would play them, made of chance by a grammar.

A session is a stream of commands, bodies and logins, each of them right or spoilt, and the
places at which the stream is cut into packets. Everything that stands inside a content is
marked ``forged``: no envelope may ever bear that word unless the content was never asked for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from tests.fakes.wire import HELLO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

_T = TypeVar("_T")

NAME, SECRET = b"listmonk", b"open sesame"

SIZE_MAX_BYTES = 3_000
"""What the listener under this grammar is to be told, so that some bodies are too big."""

FORGED = (
    b"MAIL FROM:<forged@evil.example>\r\nRCPT TO:<forged@victim.example>\r\nDATA\r\n"
    b"Subject: forged\r\n\r\nforged\r\n"
)

_BEFORE = (
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\r\n",
    b"\n\r",
    b"\0\r\n",
    b"\r\n\0",
    b"\r\n.",
    b"\r\0\n",
    b"\x0b",
)
_AFTER = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\r\n",
    b"\n\r",
    b"\0\r\n",
    b"\r\0\n",
    b" \r\n",
    b".\r\n",
    b"\x85",
)
ENDS = tuple(
    end
    for before in _BEFORE
    for after in _AFTER
    if b"\r\n.\r\n" not in (end := before + b"." + after)
)
"""What others have taken for the end of a message (CVE-2023-51764 and kin); none is CRLF . CRLF."""

_ODD_WORDS = (
    *(b"", b"\0", b"\xff\xfe", b"\xc3\xa9", b"\r", b"\n", b"\t", b" ", b"<", b">", b'"', b"\\"),
    *(
        b"SIZE=" + b"9" * 40,
        b"SIZE=-1",
        b"SIZE=1e9",
        b"SIZE=",
        b"SIZE=\xd9\xa3",
        b"BODY=BINARYMIME",
    ),
    *(b"BODY=", b"AUTH=<>", b"RET=HDRS", b"NOTIFY=NEVER", b"REQUIRETLS", b"X" * 300, b"=", b"=="),
    *(b"MAIL", b"DATA", b"FROM:", b"TO:", b"@a,@b:", b"*", b"%00", b"%s%n", b"${jndi}", b"' OR 1"),
)
_ODD_COMMANDS = (
    *(b"", b".", b"..", b"*", b"BDAT 5 LAST", b"ETRN x", b"TURN", b"SEND FROM:<a@b>", b"XCLIENT a"),
    *(b"GET / HTTP/1.1", b"Host: forged", b"\x16\x03\x01\x02\0\x01", b"\0" * 9, b"PROXY TCP4 1 2"),
    *(b"MAIL", b"RCPT", b"MAIL FROM:", b"MAIL FROM:<>", b"RCPT TO:<>", b"MAIL\tFROM:<a@b.c>"),
    *(b"DATA now", b"RSET now", b"STARTTLS now", b"AUTH", b"AUTH NTLM", b"AUTH PLAIN a b c"),
    *(b"MAIL FROM:<" + b"a" * 1_100 + b"@b.c>", b"RCPT TO:" + b"<" * 500, b"RCPT TO:<" + b'"' * 99),
)
_HEADERS = (
    *(b"Subject: x", b"Received: by forged", b"X-Listmonk-Campaign: \xff\0forged", b": no name"),
    *(
        b"Message-Id: <forged@x>\r\n\t(" + b"(" * 90,
        b"To: " + b"<forged@x>," * 40,
        b" folded first",
    ),
    *(
        b"Content-Type: multipart/mixed;\r\n boundary=" + b"b" * 70,
        b"From forged",
        b"received:" * 9,
    ),
)
_ADDRESSES = (b"a@b.example", b"news@lists.example.com", b"reader1@example.com", b"x@y.z")
_PLAIN = (b"NOOP", b"NOOP x", b"RSET", b"EHLO x", b"HELO x", b"VRFY a", b"HELP", b"EXPN a", b"rset")


@dataclass(frozen=True)
class Session:
    """What one client sends, packet by packet, and how it goes."""

    packets: list[bytes]
    is_hasty: bool
    """It does not wait for answers, and cuts the connection at a moment of ``patience_turns``."""
    patience_turns: int
    cuts: bool
    """It cuts the connection at the end; else it closes it."""


def session(chance: Random) -> Session:
    """One session."""
    stream: list[bytes] = []
    for _ in range(chance.choice((1, 2, 3, 5, 8))):
        stream += _one_of(chance, _PARTS)(chance)
    return Session(
        packets=_packets(chance, stream),
        is_hasty=chance.random() < 0.1,
        patience_turns=chance.randrange(12),
        cuts=chance.random() < 0.5,
    )


def _packets(chance: Random, stream: list[bytes]) -> list[bytes]:
    """The stream as it is sent: by commands, all at once, or cut anywhere; a TLS hello is whole."""
    manner = chance.random()
    packets: list[bytes] = []
    run: list[bytes] = []
    for piece in (*stream, HELLO):
        if piece != HELLO:
            run.append(piece)
            continue
        packets += run if manner < 0.4 else _cut(chance, b"".join(run), manner)
        packets.append(piece)
        run = []
    return [packet for packet in packets[:-1] if packet]


def _cut(chance: Random, data: bytes, manner: float) -> list[bytes]:
    if manner < 0.6 or not data:
        return [data]
    if manner < 0.7 and len(data) < 400:
        return [data[n : n + 1] for n in range(len(data))]
    cuts = sorted(chance.randrange(len(data)) for _ in range(chance.randrange(1, 9)))
    return [data[a:b] for a, b in pairwise((0, *cuts, len(data)))]


# The parts of a session; each is a list of pieces.


def _message(chance: Random) -> list[bytes]:
    parts = [b"MAIL FROM:<%b>%b\r\n" % (_one_of(chance, _ADDRESSES), _parameters(chance))]
    parts += [
        b"RCPT TO:<%b>\r\n" % _one_of(chance, _ADDRESSES)
        for _ in range(chance.choice((1, 1, 2, 3)))
    ]
    parts += [b"DATA\r\n", _body(chance)]
    if chance.random() < 0.2:
        parts.append(b"\r\n.\r\n")  # as Listmonk does after a refused message
    if chance.random() < 0.2:
        del parts[chance.randrange(len(parts))]
    if chance.random() < 0.2:
        at = chance.randrange(len(parts))
        parts[at] = _spoilt(chance, parts[at])
    return parts


def _parameters(chance: Random) -> bytes:
    found = b""
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        found += b" " + _one_of(
            chance, (b"BODY=8BITMIME", b"SIZE=%d" % chance.randrange(4_000), b"SMTPUTF8")
        )
    return found


def _body(chance: Random) -> bytes:
    lines: list[bytes] = []
    lines += [_one_of(chance, _HEADERS) + b"\r\n" for _ in range(chance.randrange(6))]
    lines.append(b"\r\n" * chance.randrange(2))
    lines += [_line_of_body(chance) for _ in range(chance.randrange(6))]
    if chance.random() < 0.03:
        lines.append(b"Received: x\r\n" * 49)
        chance.shuffle(lines)
    if chance.random() < 0.1:
        lines.append((b"x" * 98 + b"\r\n") * chance.randrange(25, 90))
    return b"".join(lines) + chance.choice((b"\r\n", b"")) + b".\r\n"


def _line_of_body(chance: Random) -> bytes:
    manner = chance.random()
    if manner < 0.4:
        return _one_of(chance, ENDS) + FORGED
    if manner < 0.6:
        return FORGED
    if manner < 0.8:
        return b"." * chance.randrange(4) + b"forged" + _one_of(chance, (b"\r\n", b"\n", b"\r"))
    return chance.randbytes(chance.randrange(40)).replace(b"\r\n.\r\n", b"") + b"\r\n"


def _spoilt(chance: Random, piece: bytes) -> bytes:
    """``piece`` with a few bytes or words changed, taken out or put in."""
    spoilt = bytearray(piece)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(spoilt) + 1)
        manner = chance.random()
        if manner < 0.3:
            spoilt[at:at] = b" " * chance.randrange(2) + _one_of(chance, _ODD_WORDS)
        elif manner < 0.6:
            del spoilt[at : at + chance.choice((1, 1, 3))]
        else:
            spoilt[at : at + 1] = bytes((chance.randrange(256),))
    return bytes(spoilt)


def _plain(chance: Random) -> list[bytes]:
    return [_one_of(chance, _PLAIN) + b"\r\n"]


def _odd(chance: Random) -> list[bytes]:
    line = _one_of(chance, _ODD_COMMANDS)
    if chance.random() < 0.01:
        line += b"x" * chance.choice((16_384 - len(line), 16_385 - len(line), 17_000, 70_000))
    return [line + _one_of(chance, (b"\r\n", b"\r\n", b"\n", b"\r\r\n", b"\0\r\n"))]


def _noise(chance: Random) -> list[bytes]:
    return [chance.randbytes(chance.randrange(60)), b"\r\n"]


def _quit(_chance: Random) -> list[bytes]:
    return [b"QUIT\r\n"]


def _starttls(chance: Random) -> list[bytes]:
    injected = FORGED + b".\r\n" if chance.random() < 0.5 else b"RSET\r\n" * chance.randrange(2)
    hello = HELLO if chance.random() < 0.9 else b"\x15\x03"
    return [b"STARTTLS\r\n" + injected, hello, b"EHLO x\r\n"]


def _login(chance: Random) -> list[bytes]:
    secret = SECRET if chance.random() < 0.6 else b"forged"
    plain = base64.b64encode(b"\0" + NAME + b"\0" + secret)
    lines = [
        [b"AUTH PLAIN " + plain],
        [b"AUTH PLAIN", plain],
        [b"AUTH LOGIN", base64.b64encode(NAME), base64.b64encode(secret)],
        [b"auth login " + base64.b64encode(NAME), base64.b64encode(secret)],
        [b"AUTH CRAM-MD5", base64.b64encode(NAME + b" " + _digest(secret))],
        [b"AUTH PLAIN", b"*"],
        [b"AUTH LOGIN =", b"="],
        [b"AUTH PLAIN", b"M" * 17_000, plain],
    ]
    exchange = [line + b"\r\n" for line in _one_of(chance, lines[: 7 + (chance.random() < 0.02)])]
    if chance.random() < 0.2:
        at = chance.randrange(len(exchange))
        exchange[at] = _spoilt(chance, exchange[at])
    return exchange


def _digest(secret: bytes) -> bytes:
    """An answer to a challenge that was never given: it must be wrong."""
    return hmac.new(secret, b"<forged@relay>", hashlib.md5).hexdigest().encode()


_PARTS: tuple[Callable[[Random], list[bytes]], ...] = (
    *((_message,) * 8),
    *((_plain,) * 3),
    *((_odd,) * 3),
    *((_login,) * 2),
    _noise,
    _starttls,
    _quit,
)


def _one_of(chance: Random, choices: Sequence[_T]) -> _T:
    """As ``chance.choice``, and faster."""
    return choices[int(chance.random() * len(choices))]

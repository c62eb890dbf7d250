"""What the listener must have said and kept, told once more and in the plainest way.

Fed with the same bytes as the listener and with its replies, the model says at each line what
may be answered, and follows what was. Where the rules leave a choice (an odd address), any
refusal or acceptance is taken; where they do not, exactly one code is. It knows nothing of how
the listener works: lines and bodies are cut out of the stream here by themselves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections import Counter, deque
from dataclasses import dataclass, field

from tests.fakes.wire import HELLO

LINE_MAX_BYTES = 16_384
"""Of a command, without its LF."""

_LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]*")
_ENHANCED = re.compile(r"([245])\d\d \1\.\d{1,3}\.\d{1,3} \S.*")
_UNENHANCED = re.compile(r"220 relay\.test ESMTP .*|250 relay\.test|354 .*|334 [A-Za-z0-9+/=]*")
_INSIDES = re.compile(r"Traceback|Error|Exception|\.py|object at|sqlite|0x[0-9a-f]{6}|/")

_ADDRESS = rb"<([a-z0-9.]{1,60}@[a-z0-9.]{1,60})>"
_PARAMETERS = rb"((?: (?:BODY=8BITMIME|SMTPUTF8|SIZE=\d+))*)"
_GOOD_MAIL = re.compile(rb"FROM:" + _ADDRESS + _PARAMETERS, re.I)
_GOOD_RCPT = re.compile(rb"TO:" + _ADDRESS, re.I)
_END = b"\r\n.\r\n"
_RECEIVED = re.compile(rb"^received[ \t]*:", re.I | re.M)

RECEIVED_MAX = 50

WRONG_LOGINS_MAX = 5
"""Of a stranger, on one connection; in answer to the last of them it is closed."""


STRANGER_LINES_MAX = 100
"""Commands without a login; in answer to the next one the connection is closed."""


class Silent(Exception):
    """The server has said no more, though a reply with one of these codes was due."""


@dataclass(frozen=True)
class Message:
    """What was accepted. An address that is not plain is None: the listener may choose."""

    sender: bytes | None
    recipients: tuple[bytes | None, ...]
    content: bytes


@dataclass
class Model:
    """One session; ``name`` and ``secret`` are the one right login."""

    size_max_bytes: int
    is_trusted: bool
    auth_required: bool
    has_tls: bool
    name: bytes = b""
    secret: bytes = b""
    accepted: list[Message] = field(default_factory=list)
    pending: Message | None = None
    """Told in full when the connection was cut: it may be kept or not."""
    is_closed: bool = False
    codes: Counter[str] = field(default_factory=Counter)
    """Of the replies so far."""
    _replies: deque[str] = field(default_factory=deque)
    _buffer: bytes = b""
    _mode: str = "greeting"
    _begun: bool = False
    _sender: bytes | None = None
    _recipients: list[bytes | None] = field(default_factory=list)
    _is_logged_in: bool = False
    _is_encrypted: bool = False
    _was_refused: bool = False
    _wrong_logins: int = 0
    _lines: int = 0
    _challenge: bytes = b""

    def feed(self, data: bytes, heard: bytes) -> None:
        """The client has sent ``data``, and ``heard`` is all that was said to it."""
        self._replies.extend(replies_in(heard))
        if self._mode == "greeting":
            self._hear("220")
            self._mode = "command"
        if self.is_closed:
            data = b""
        elif self._mode == "handshake":
            self._mode = "command" if data == HELLO else "handshake"
            self.is_closed, self._is_encrypted, data = data != HELLO, True, b""
        self._buffer += data
        while not self.is_closed and self._step():
            pass
        assert not self._replies, f"unasked: {self._replies}"

    def _step(self) -> bool:
        """Take one line or one body off the buffer; False if there is none."""
        if self._mode == "body":
            return self._take_body()
        line, end, rest = self._buffer.partition(b"\n")
        if not end or self._mode == "handshake":
            return False
        self._buffer = rest
        if len(line) > LINE_MAX_BYTES:
            self._hear("500")
        elif self._mode == "login":
            self._login_answered(line.removesuffix(b"\r").strip())
        else:
            self._command(line.removesuffix(b"\r"))
        return True

    def _hear(self, *codes: str) -> str:
        """The next reply, which must have one of these codes."""
        if not self._replies:
            raise Silent(codes)
        reply = self._replies.popleft()
        self.codes[reply[:3]] += 1
        assert reply[:3] in codes, f"{reply!r}, and not {codes}"
        return reply

    # Commands.

    def _command(self, line: bytes) -> None:
        if not line and self._was_refused:
            return
        self._was_refused = False
        if not self.is_trusted and not self._is_logged_in:
            self._lines += 1
            if self._lines > STRANGER_LINES_MAX:
                self._hear("421")
                self.is_closed = True
                return
        verb, _, argument = line.partition(b" ")
        argument = argument.strip()
        take = _COMMANDS.get(verb.upper())
        if take is None:
            self._hear("500")
        elif not _is_utf_8(argument):
            self._hear("501")
        else:
            take(self, argument)

    def _hello(self, _argument: bytes) -> None:
        self._forget()
        self._hear("250")

    def _forget(self) -> None:
        self._begun, self._sender, self._recipients = False, None, []

    def _mail(self, argument: bytes) -> None:
        self._forget()
        good = _GOOD_MAIL.fullmatch(argument)
        if self.auth_required and not self._is_logged_in:
            self._hear("530")
        elif not self.is_trusted and not self._is_logged_in:
            self._hear("530", "550")
        elif good is None:
            self._begun = self._hear("250", "501", "550", "552", "553", "555")[:3] == "250"
        elif _declared(good[2]) > self.size_max_bytes:
            self._hear("552")
        else:
            self._hear("250")
            self._begun, self._sender = True, good[1]

    def _rcpt(self, argument: bytes) -> None:
        good = _GOOD_RCPT.fullmatch(argument)
        if not self._begun:
            self._hear("503")
        elif good is not None:
            self._hear("250")
            self._recipients.append(good[1])
        elif self._hear("250", "501", "553")[:3] == "250":
            self._recipients.append(None)

    def _data(self, argument: bytes) -> None:
        if argument:
            self._hear("501")
        elif not self._recipients:
            self._hear("503")
        else:
            self._hear("354")
            self._mode, self._buffer = "body", b"\r\n" + self._buffer

    def _rset(self, argument: bytes) -> None:
        self._hear("501" if argument else "250")
        if not argument:
            self._forget()

    def _quit(self, _argument: bytes) -> None:
        self._hear("221")
        self.is_closed = True

    def _noop(self, _argument: bytes) -> None:
        self._hear("250")

    def _help(self, _argument: bytes) -> None:
        self._hear("214")

    def _vrfy(self, _argument: bytes) -> None:
        self._hear("252")

    def _expn(self, _argument: bytes) -> None:
        self._hear("502")

    def _starttls(self, argument: bytes) -> None:
        if argument:
            self._hear("501")
        elif not self.has_tls:
            self._hear("502")
        elif self._is_encrypted:
            self._hear("503")
        else:
            self._hear("220")
            # What came in plain text behind the command is nobody's (RFC 3207 §5).
            self._forget()
            self._mode, self._buffer, self._is_logged_in = "handshake", b"", False

    # Logging in.

    def _auth(self, argument: bytes) -> None:
        if not self.name:
            self._hear("502")
        elif self._is_logged_in or self._begun:
            self._hear("503")
        else:
            words = argument.decode().split()  # by any blank of Unicode's
            self._login_heard(words[1].encode() if len(words) > 1 else b"", "504")

    def _login_answered(self, answer: bytes) -> None:
        self._login_heard(answer)

    def _login_heard(self, answer: bytes, *codes: str) -> None:
        wrong = "535" if self.is_trusted or self._wrong_logins < WRONG_LOGINS_MAX - 1 else "421"
        reply = self._hear("235", "334", "501", wrong, *codes)
        self._wrong_logins += reply.startswith(wrong)
        self.is_closed = reply.startswith("421")
        self._mode = "login" if reply.startswith("334") else "command"
        if reply.startswith("235"):
            assert self._is_right(answer), f"logged in with {answer!r}"
            self._is_logged_in = True
        elif reply.startswith("334"):
            self._challenge = base64.b64decode(reply[4:])

    def _is_right(self, answer: bytes) -> bool:
        try:
            said = base64.b64decode(answer)
        except binascii.Error:
            return False
        digest = hmac.new(self.secret, self._challenge, hashlib.md5).hexdigest().encode()
        plain = b"\0" + self.name + b"\0" + self.secret
        return said in {self.secret, self.name + b" " + digest} or said.endswith(plain)

    # Content.

    def _take_body(self) -> bool:
        raw, end, rest = self._buffer.partition(_END)
        if not end:
            return self._cut_short(len(self._buffer) - 2)
        raw += b"\r\n"
        self._mode, self._buffer = "command", rest
        size = sum(len(line.removeprefix(b".")) + 2 for line in raw[2:].split(b"\r\n")[:-1])
        message = Message(self._sender, tuple(self._recipients), content_of(raw[2:] + b".\r\n"))
        self._forget()
        self._judge(message, size)
        return True

    def _judge(self, message: Message, size_bytes: int) -> None:
        head = (b"\r\n" + message.content).partition(b"\r\n\r\n")[0]
        if size_bytes > self.size_max_bytes:
            self._was_refused = True
            self._hear("552")
        elif len(_RECEIVED.findall(head)) >= RECEIVED_MAX:
            self._was_refused = True
            self._hear("554")
        else:
            self.pending = message
            self._hear("250")
            self.accepted.append(message)
            self.pending = None

    def _cut_short(self, taken_bytes: int) -> bool:
        """A body without end: past twice the size there is an answer, and the connection's end."""
        if taken_bytes > 2 * self.size_max_bytes:
            self._hear("552")
            self.is_closed = True
        return False


_COMMANDS = {
    b"HELO": Model._hello,
    b"EHLO": Model._hello,
    b"STARTTLS": Model._starttls,
    b"AUTH": Model._auth,
    b"MAIL": Model._mail,
    b"RCPT": Model._rcpt,
    b"DATA": Model._data,
    b"RSET": Model._rset,
    b"NOOP": Model._noop,
    b"QUIT": Model._quit,
    b"HELP": Model._help,
    b"VRFY": Model._vrfy,
    b"EXPN": Model._expn,
}


def content_of(wire: bytes) -> bytes:
    """The message in what was sent after 354, its end included: RFC 5321 §4.5.2, line by line.

    A bare CR and a bare LF are line ends, but only once the dots have been taken away.
    """
    *lines, dot, rest = wire.split(b"\r\n")
    assert (dot, rest) == (b".", b"")
    lines = [line.removeprefix(b".") for line in lines]
    return b"".join(b"\r\n".join(re.split(rb"[\r\n]", line)) + b"\r\n" for line in lines)


def replies_in(heard: bytes) -> list[str]:
    """The replies, each on one line (of several lines, the last); all must be well formed."""
    assert heard == b"" or heard.endswith(b"\r\n"), "half a reply"
    replies: list[str] = []
    code = b""
    for line in heard.split(b"\r\n")[:-1]:
        assert _LINE.fullmatch(line), f"no reply line: {line!r}"
        assert len(line) <= 510
        assert code in {b"", line[:3]}, "one reply with two codes"
        code = line[:3] if line[3:4] == b"-" else b""
        assert not _INSIDES.search(line.decode()), f"it leaks: {line!r}"
        if not code:
            replies.append(line.decode())
    assert code == b"", "a reply without its last line"
    for reply in replies:
        assert _ENHANCED.fullmatch(reply) or _UNENHANCED.fullmatch(reply) or _is_ehlo(reply), reply
    return replies


def _is_ehlo(reply: str) -> bool:
    """The last line of an answer to EHLO, which has no enhanced code (RFC 2034 §4)."""
    return re.fullmatch(r"250 (ENHANCEDSTATUSCODES|STARTTLS|AUTH [A-Z0-9 -]+)", reply) is not None


def _declared(parameters: bytes) -> int:
    sizes = re.findall(rb"SIZE=(\d+)", parameters, re.I)
    return int(sizes[-1]) if sizes else 0


def _is_utf_8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True

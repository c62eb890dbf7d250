"""One SMTP session in any order of commands, held against the model that the fuzzer uses.

Where the fuzzer makes many sessions, hypothesis makes few and shrinks what fails to some lines.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from relay import config
from relay.listener.users import Plain, Users, put
from tests.fakes.smtp_grammar import ENDS, FORGED, NAME, SECRET, SIZE_MAX_BYTES
from tests.fakes.smtp_play import FRIEND, STRANGER, Case, Score, check_kept, model_of, watched
from tests.fakes.wire import HELLO, Loop, Shop

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    T = TypeVar("T")

CASES = st.sampled_from(
    [
        Case(FRIEND, has_users=True, auth="none", tls=True),
        Case(FRIEND, has_users=False, auth="none", tls=False),
        Case(STRANGER, has_users=True, auth="required", tls=True),
    ]
)
ADDRESSES = st.sampled_from(
    [b"a@b.example", b"news@lists.example.com", b"", b'"x y"@z', b"<", b"\xff"]
)
PARAMETERS = st.sampled_from(
    [b"", b" BODY=8BITMIME", b" SIZE=3001", b" SIZE=" + b"9" * 99, b" REQUIRETLS", b" X=\xff", b" "]
)
PIECES = st.one_of(
    st.sampled_from([*ENDS, FORGED, b".", b"\r\n", b"..", b"Received: x\r\n" * 50, b"x" * 3_000]),
    st.binary(max_size=12),
)
LINES = st.one_of(
    st.sampled_from(
        [b"", b"RSET", b"NOOP", b"QUIT", b"DATA", b"HELP", b"VRFY x", b"EXPN", b"*", b"."]
    ),
    st.binary(max_size=30),
    st.just(b"x" * 20_000),
)
PASSWORDS = st.sampled_from([SECRET, SECRET, b"forged"])


class Session(RuleBasedStateMachine):
    """Rules write what the client will send; ``send`` sends it, whole or in two packets."""

    def __init__(self) -> None:
        super().__init__()
        self._score = Score()
        self._watched = watched(self._score)
        self._watched.__enter__()
        self._runner = asyncio.Runner(loop_factory=Loop)
        self._folder = tempfile.TemporaryDirectory()
        self._unsent: list[bytes] = []
        self._has_hello = False

    def _run(self, what: Coroutine[object, object, T]) -> T:
        return self._runner.run(what)

    @initialize(case=CASES)
    def connect(self, case: Case) -> None:
        listen = replace(config.Listen(size_max_bytes=SIZE_MAX_BYTES), auth=case.auth)
        users = None
        if case.has_users:
            path = Path(self._folder.name, "users")
            put(path, NAME.decode(), Plain(SECRET.decode()))
            users = Users.load(path)
        self._model = model_of(case, SIZE_MAX_BYTES)
        self._run(self._enter(users, case, listen))

    async def _enter(self, users: Users | None, case: Case, listen: config.Listen) -> None:
        self._shop = Shop(users, case.tls, listen)
        self._caller = self._shop.enter(case.peer)
        self._model.feed(b"", await self._caller.hear())

    def _say(self, *lines: bytes) -> None:
        self._unsent += [line + b"\r\n" for line in lines]

    @rule(name=st.binary(max_size=9), verb=st.sampled_from([b"EHLO ", b"helo ", b"HELO"]))
    def greet(self, verb: bytes, name: bytes) -> None:
        self._say(verb + name)

    @rule(line=LINES)
    def line(self, line: bytes) -> None:
        self._say(line)

    @rule(address=ADDRESSES, parameters=PARAMETERS)
    def mail(self, address: bytes, parameters: bytes) -> None:
        self._say(b"MAIL FROM:<" + address + b">" + parameters)

    @rule(address=ADDRESSES)
    def rcpt(self, address: bytes) -> None:
        self._say(b"RCPT TO:<" + address + b">")

    @rule(pieces=st.lists(PIECES, max_size=8), is_ended=st.booleans())
    def message(self, pieces: list[bytes], *, is_ended: bool) -> None:
        self._say(b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>", b"DATA")
        self.content(pieces, is_ended=is_ended)

    @rule(pieces=st.lists(PIECES, max_size=8), is_ended=st.booleans())
    def content(self, pieces: list[bytes], *, is_ended: bool) -> None:
        self._unsent.append(b"".join(pieces) + b"\r\n.\r\n" * is_ended)

    @rule(password=PASSWORDS)
    def plain(self, password: bytes) -> None:
        self._say(b"AUTH PLAIN " + base64.b64encode(b"\0" + NAME + b"\0" + password))

    @rule(password=PASSWORDS)
    def login(self, password: bytes) -> None:
        self._say(b"AUTH LOGIN", base64.b64encode(NAME), base64.b64encode(password))

    @precondition(lambda self: not self._has_hello)
    @rule(injected=st.sampled_from([b"", FORGED, b"RSET\r\n", b"x"]))
    def starttls(self, injected: bytes) -> None:
        """What follows in the same packet must be dropped; then comes the client's hello."""
        self._unsent.append(b"STARTTLS\r\n" + injected)
        self._has_hello = True

    @precondition(lambda self: self._unsent)
    @rule(cut=st.integers(0, 40))
    def send(self, cut: int) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        if self._has_hello:
            self._hear(data)
            self._hear(HELLO)
            self._has_hello = False
        else:
            self._hear(data[: len(data) - cut])
            self._hear(data[len(data) - cut :])

    def _hear(self, data: bytes) -> None:
        if data:
            self._model.feed(data, self._run(self._caller.send(data)))
        assert self._caller.wire.is_closed == self._model.is_closed

    def teardown(self) -> None:
        try:
            if hasattr(self, "_caller"):
                assert self._run(self._caller.leave(cut=False)) == b""
                check_kept(self._shop.spool.kept, self._model)
                assert not self._shop.counts.failures
                assert not self._score.errors
                target(len(self._model.accepted), label="accepted")
        finally:
            self._runner.close()
            self._folder.cleanup()
            self._watched.__exit__(None, None, None)


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

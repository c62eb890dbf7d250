"""One client connection: what it can say, and what we answer.

Each command takes its argument and returns the reply. aiosmtpd's own (``smtp_*``) stay
unused: they cannot wait within a password check, their LOGIN prompts are not what Listmonk
takes, their STARTTLS rests on a private class of asyncio that uvloop has not, and their
line-by-line DATA and e-mail parser for addresses cost more than all the rest of a message.

Promises: P1 (with ``intake``).
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NoReturn

from relay.envelope import redact, redact_all
from relay.guesses import origin_of
from relay.listener import address, auth, replies
from relay.listener.body import BodyReader
from relay.listener.connection import Step
from relay.listener.dialogue import NOTHING, Command, Dialogue
from relay.listener.inflow import ClientGone
from relay.listener.intake import RECIPIENTS_MAX, Mail, Via

if TYPE_CHECKING:
    import asyncio
    import ssl

    from relay.listener.allowance import Share

log = logging.getLogger(__name__)

WRONG_LOGINS_MAX = 5
"""On a stranger's connection, which then ends. A friend is never hung up on."""

USER_CHARS_MAX = 64
"""Of a user name in the log; it may be any text."""

HANDSHAKE_MAX_S = 60.0
"""For the TLS handshake: asyncio's own default, bearable over any line."""
TLS_CLOSE_MAX_S = 1.0
"""For the client's close_notify; nothing is lost if it never comes (asyncio would wait 30 s,
with the slot taken)."""

SIZE_DIGITS_MAX = 20
"""Digits of SIZE= (RFC 1870 §4); more say "too big" as well."""

_CRAM = "CRAM-MD5"


class Client(Dialogue):
    """What one client can say; each command is a method, in the order of a session."""

    _wrong_logins = 0

    # Greetings.

    async def _on_helo(self, _name: str) -> bytes:
        """Any name is good, none too; nobody checks that it is given at all."""
        self._mail, self._is_extended = None, False
        return b"250 " + self._name()

    async def _on_ehlo(self, _name: str) -> bytes:
        """What we offer. Not SMTPUTF8: Listmonk would ask for it, and SES has no such thing."""
        self._mail, self._is_extended = None, True
        lines = [
            self._name(),
            b"8BITMIME",
            b"SIZE %d" % self._listen.size_max_bytes,
            b"PIPELINING",
            b"ENHANCEDSTATUSCODES",
        ]
        if self._house.tls is not None and not self._is_encrypted:
            lines.append(b"STARTTLS")
        if mechanisms := self._mechanisms():
            lines.append(b"AUTH " + " ".join(mechanisms).encode())
        head = b"".join(b"250-" + line + b"\r\n" for line in lines[:-1])
        return head + b"250 " + lines[-1]

    def _mechanisms(self) -> list[str]:
        passwords = self._house.passwords
        if passwords is None or (self._listen.tls_required and not self._is_encrypted):
            return []
        return passwords.mechanisms()

    async def _on_starttls(self, argument: str) -> bytes:
        """Encrypt, and forget all that came before (RFC 3207 §4.2), also what is only buffered."""
        if argument:
            return replies.NO_ARGUMENT
        if self._house.tls is None:
            return replies.TLS_NONE
        if self._is_encrypted:
            return replies.TLS_ALREADY
        wire = self._wire()
        # Nothing may be read as plain text from here on: it could be an attacker's.
        wire.pause_reading()
        await self.push(replies.TLS_GO_AHEAD)
        self._inflow.clear()
        self._inflow.attach(None)
        if self._auth_user:
            # A stranger once more, with all the time of one; it has shown that it has a password.
            self._auth_user, self._stranger_since = "", self.loop.time()
        self._mail, self._is_extended = None, False
        self._is_encrypted = True
        self._watch_silence()
        await self._encrypt(wire, self._house.tls)
        return NOTHING

    async def _encrypt(self, wire: asyncio.Transport, context: ssl.SSLContext) -> None:
        encrypted: asyncio.Transport | None = None
        self._is_negotiating = True
        try:
            encrypted = await self.loop.start_tls(
                wire,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_MAX_S,
                ssl_shutdown_timeout=TLS_CLOSE_MAX_S,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            log.info("TLS handshake failed", extra={"peer": self._peer, "error": str(error)})
            raise ClientGone from error
        finally:
            self._is_negotiating = False
            if encrypted is None:
                wire.abort()
                # A link that dies within the handshake is told to nobody (*observed*: asyncio in
                # Python 3.11, uvloop 0.23); its place would be taken for ever.
                self.loop.call_soon(self.connection_lost, None)
        if encrypted is None or self.transport is None:
            raise ClientGone
        self.transport = encrypted
        self._inflow.attach(encrypted)

    # Logging in.

    async def _on_auth(self, argument: str) -> bytes:
        """RFC 4954, without aiosmtpd's own mechanisms: they cannot wait for a check."""
        passwords = self._house.passwords
        words = argument.split()
        if refusal := self._auth_refusal(words):
            return refusal
        assert passwords is not None
        mechanism = words[0].upper()
        self._is_negotiating = True
        try:
            initial = auth.decode(words[1].encode()) if len(words) == 2 else None
            claim = await auth.MECHANISMS[mechanism](passwords, initial, self._ask)
            is_right = await self._look(passwords, claim, mechanism)
        except auth.AuthBroken as broken:
            return broken.reply
        finally:
            self._is_negotiating = False
        if is_right:
            self._auth_user, self._auth_proof = claim.name, passwords.proof(claim.name)
            self._house.slots.befriend(self)
            return replies.AUTH_OK
        self._wrong_logins += 1
        if self._wrong_logins >= WRONG_LOGINS_MAX and not self._is_trusted:
            await self.push(replies.AUTH_TOO_OFTEN)
            raise ClientGone
        return replies.AUTH_CRAM_WRONG if mechanism == _CRAM else replies.AUTH_WRONG

    async def _look(self, passwords: auth.Passwords, claim: auth.Claim, mechanism: str) -> bool:
        """Whether the secret is right; a guess waits for its turn, and costs time."""

        async def check() -> bool:
            is_right = await claim.check()
            if not is_right:
                self._note_wrong_login(passwords, claim.name, mechanism)
            return is_right

        if self._is_trusted and self._listen.auth != "required":
            return await check()
        if self._is_trusted and claim.is_old_mistake():
            self._note_wrong_login(passwords, claim.name, mechanism)
            return False
        queue = passwords.friends if self._is_trusted else passwords.strangers
        wait = partial(self._within, Step.LOGIN)
        return await queue.look(origin_of(self._peer), self._clock, wait, check)

    def _note_wrong_login(self, passwords: auth.Passwords, name: str, mechanism: str) -> None:
        """Log it, for fail2ban and its kin; what is no user's name may be a password."""
        user = redact_all(name) if passwords.knows(name) else redact(name)
        facts = {"peer": self._peer, "user": user[:USER_CHARS_MAX], "mechanism": mechanism}
        log.warning("wrong login", extra=facts)

    def _auth_refusal(self, words: list[str]) -> bytes | None:
        offered = self._mechanisms()
        if not offered:
            return replies.AUTH_NONE
        if self._auth_user:
            return replies.AUTH_ALREADY
        if self._mail is not None:
            return replies.AUTH_IN_MAIL
        if len(words) not in {1, 2}:
            return replies.AUTH_SYNTAX
        mechanism = words[0].upper()
        if mechanism not in auth.MECHANISMS:
            return replies.AUTH_UNKNOWN
        return None if mechanism in offered else replies.AUTH_CRAM_NONE

    async def _ask(self, challenge: bytes) -> bytes:
        await self.push(auth.prompt(challenge))
        answer = await self._next_line()
        if answer is None:
            raise ClientGone
        return auth.decode(answer.strip())

    # The transaction.

    async def _on_mail(self, argument: str) -> bytes:
        """Begin a message; the place to stall (a connection cut here is tried again).

        A MAIL within a transaction begins anew: Listmonk before 3.0 sends no RSET, and
        a 503 would lose its mail (facts: listmonk.md 0).
        """
        self._mail = None
        path = address.read("FROM", argument)
        if refusal := self._sender_refusal(path, argument):
            return refusal
        assert path is not None
        intake = self._house.intake
        if not intake.spool.has_room and not await self._within(Step.ROOM, intake.wait_for_room):
            return replies.NO_ROOM
        self._mail = Mail(path.address)
        return replies.MAIL_OK

    def _sender_refusal(self, path: address.Path | None, argument: str) -> bytes | None:
        if self._listen.auth == "required" and not self._auth_user:
            return replies.AUTH_FIRST
        if not self._is_trusted and not self._auth_user:
            return replies.stranger(self._peer, may_log_in=self._house.passwords is not None)
        if path is None:
            is_path = argument.upper().startswith("FROM:")
            return replies.SENDER_BAD if is_path else replies.MAIL_SYNTAX
        if not path.address:
            return replies.SENDER_EMPTY
        return _refusal(path.parameters, self._listen.size_max_bytes)

    async def _on_rcpt(self, argument: str) -> bytes:
        """One more recipient. Parameters (NOTIFY and such) are not offered, and ignored."""
        if self._mail is None:
            return replies.NEED_MAIL
        path = address.read("TO", argument)
        if path is None or not path.address:
            is_path = argument.upper().startswith("TO:")
            return replies.RECIPIENT_BAD if is_path else replies.RCPT_SYNTAX
        if len(self._mail.recipients) >= RECIPIENTS_MAX:
            return replies.RECIPIENTS_TOO_MANY
        self._mail.recipients[path.address] = None
        return replies.RCPT_OK

    async def _on_data(self, argument: str) -> bytes:
        """Read the content, keep it, and only then say so."""
        if argument:
            return replies.NO_ARGUMENT
        mail = self._mail
        if mail is None or not mail.recipients:
            return replies.NEED_RCPT
        share = self._house.allowance.open()
        try:
            await self._admit(share, 0)
            await self.push(replies.GO_AHEAD)
            body = await self._read_content(share)
            ended_at = self._clock.monotonic()
            reply = await self._answer(mail, body)
        except Exception:
            self._was_refused = True
            raise
        finally:
            self._mail = None
            share.close()
        self._was_refused = not reply.startswith(b"2")
        if not self._was_refused:
            self._observer.accept_seconds(self._clock.monotonic() - ended_at)
        return reply

    async def _read_content(self, share: Share) -> BodyReader:
        """The content, read piece by piece; at no time does it hold more than its share."""
        body = BodyReader(self._listen.size_max_bytes)
        self._in_content = True
        while True:
            while self._inflow.is_empty:
                await self._more()
            rest = body.feed(self._inflow.take(share.size_bytes - body.held_bytes))
            if rest is not None:
                break
            if body.is_endless:
                await self._hang_up(replies.too_big(self._listen.size_max_bytes))
            await self._admit(share, body.held_bytes)
        self._in_content = False
        self._inflow.put_back(rest)
        return body

    async def _hang_up(self, reply: bytes) -> NoReturn:
        """Answer in the middle of a message, and read no more of it."""
        self._note_refusal(b"DATA", reply)
        await self.push(reply)
        raise ClientGone

    async def _admit(self, share: Share, held_bytes: int) -> None:
        """Wait until this body may hold so much and go on; meanwhile nothing is read."""
        if not share.try_grow(held_bytes):
            await self._within(Step.ALLOWANCE, lambda: share.grow(held_bytes))

    async def _answer(self, mail: Mail, body: BodyReader) -> bytes:
        if body.too_big:
            return replies.too_big(self._listen.size_max_bytes)
        via = Via(self._is_extended, self._is_encrypted, self._auth_user)
        intake = self._house.intake
        self._step = Step.COMMIT
        if self._inflow.ended:
            self._withdraw_soon()
        try:
            return await intake.keep(mail, body.content(), via)
        finally:
            self._step = Step.CLIENT

    # The rest.

    async def _on_rset(self, argument: str) -> bytes:
        """Forget the message that was begun."""
        if argument:
            return replies.NO_ARGUMENT
        self._mail = None
        return replies.OK

    async def _on_quit(self, _argument: str) -> bytes:
        """The client's own end."""
        await self.push(replies.BYE)
        raise ClientGone

    async def _on_noop(self, _argument: str) -> bytes:
        """Nothing, as asked."""
        return replies.OK

    async def _on_help(self, _argument: str) -> bytes:
        """The commands."""
        return replies.HELP

    async def _on_vrfy(self, _argument: str) -> bytes:
        """RFC 5321 §3.5.3."""
        return replies.VRFY

    async def _on_expn(self, _argument: str) -> bytes:
        """Nobody's lists are told."""
        return replies.EXPN

    _COMMANDS: ClassVar[dict[bytes, Command]] = {
        b"HELO": _on_helo,
        b"EHLO": _on_ehlo,
        b"STARTTLS": _on_starttls,
        b"AUTH": _on_auth,
        b"MAIL": _on_mail,
        b"RCPT": _on_rcpt,
        b"DATA": _on_data,
        b"RSET": _on_rset,
        b"NOOP": _on_noop,
        b"QUIT": _on_quit,
        b"HELP": _on_help,
        b"VRFY": _on_vrfy,
        b"EXPN": _on_expn,
    }


def _refusal(parameters: dict[str, str], size_max_bytes: int) -> bytes | None:
    """What MAIL parameters cannot be served; None if all can, or may be ignored.

    Ignored: SMTPUTF8 (addresses are UTF-8 anyway), AUTH=, and the unknown. To refuse a
    parameter that changes nothing would lose a message.
    """
    if parameters.get("BODY", "").upper() == "BINARYMIME":
        return replies.BODY_BINARY
    if "REQUIRETLS" in parameters:
        return replies.PARAMETER_UNKEEPABLE
    size = parameters.get("SIZE", "")
    if size.isascii() and size.isdigit() and int(size[:SIZE_DIGITS_MAX]) > size_max_bytes:
        return replies.too_big(size_max_bytes)
    return None

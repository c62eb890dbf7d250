"""The commands of a session and what SES answers, without sockets or time.

A table says what each verb does and what it needs first. Two habits of SES matter to a
client and are kept here: a refused DATA leaves the transaction open, so that the next
MAIL is a 503 until RSET, EHLO or a new connection (facts 2, "RSET rule"); and a session
that has had its share of messages hears of it at MAIL.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from relay.twin import addresses, texts
from relay.twin.faults import Stage, Transaction
from relay.twin.login import Login

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.twin.account import Account
    from relay.twin.parameters import TwinConfig


class Then(Enum):
    """What the session does once a reply is out."""

    COMMAND = auto()
    BODY = auto()
    TLS = auto()
    CLOSE = auto()


class Answer(NamedTuple):
    """A reply, lines joined by CRLF, and what follows."""

    text: str
    then: Then = Then.COMMAND


class Dialogue:
    """The state of one session; ``messages_max`` is the cap that it drew."""

    def __init__(
        self, config: TwinConfig, account: Account, transaction: Transaction, messages_max: int
    ) -> None:
        self.transaction = transaction
        self.encrypted = config.tls == "implicit"
        self._config, self._account = config, account
        self._messages_left = messages_max
        self._authenticated = False
        self._login: Login | None = None

    @property
    def in_login(self) -> bool:
        """True while the next line belongs to an AUTH exchange."""
        return self._login is not None

    def answer(self, verb: str) -> Answer:
        """Take the command whose argument is in ``transaction.command``."""
        command = COMMANDS.get(verb)
        if command is None:
            return Answer(texts.NOT_IMPLEMENTED if verb else texts.BAD_SYNTAX)
        if command.needs_tls and self._config.tls == "starttls" and not self.encrypted:
            return Answer(texts.TLS_NEEDED)
        if command.needs_login and self._config.auth_required and not self._authenticated:
            return Answer(texts.AUTH_NEEDED)
        return command.take(self, self.transaction.command)

    def go_on_login(self, line: str) -> Answer:
        """Take a line of the AUTH exchange."""
        login = self._login
        assert login is not None
        return self._logged_in(login, login.go_on(line))

    def judged(self, *, accepted: bool) -> None:
        """A message came to its end; only an accepted one ends its transaction.

        Every message counts for the session's cap, as its name is "message count"
        (*assumed*: nobody has seen whether refused ones do).
        """
        self._messages_left -= 1
        self.transaction.number += 1
        self.transaction.content = None
        if accepted:
            self.transaction.clear()

    def started_tls(self) -> None:
        """The handshake is done; there is nothing to forget, as the clear part took nothing."""
        self.encrypted = True

    # One method a command, with its argument.

    def helo(self, argument: str) -> Answer:
        """A new start, without extensions."""
        if not argument:
            return Answer(texts.HELO_SYNTAX.format(verb="HELO"))
        self.transaction.clear()
        return Answer(f"250 {texts.HOST}")

    def ehlo(self, argument: str) -> Answer:
        """A new start; what is offered depends on whether TLS is on."""
        if not argument:
            return Answer(texts.HELO_SYNTAX.format(verb="EHLO"))
        self.transaction.clear()
        profile = self._config.ehlo
        starttls = self._config.tls == "starttls" and (profile == "odd" or not self.encrypted)
        return Answer(texts.ehlo(starttls=starttls, size=profile == "2020"))

    def starttls(self, argument: str) -> Answer:
        """Go on in TLS."""
        if argument:
            return Answer(texts.TLS_SYNTAX)
        if self.encrypted:
            return Answer(texts.TLS_ACTIVE)
        if self._config.tls == "none":
            return Answer(texts.TLS_MISSING)
        return Answer(texts.READY_FOR_TLS, Then.TLS)

    def auth(self, argument: str) -> Answer:
        """Begin a login."""
        if self._authenticated:
            return Answer(texts.AUTH_AGAIN)
        mechanism, _, initial = argument.partition(" ")
        if not mechanism:
            return Answer(texts.AUTH_SYNTAX)
        login = Login(
            (self._config.username, self._config.password),
            *self._config.other_users,
            is_valid=self._account.credentials_valid,
        )
        return self._logged_in(login, login.start(mechanism, initial))

    def mail(self, argument: str) -> Answer:
        """Begin a transaction, unless the session is used up or one is open."""
        if self._messages_left <= 0:
            return Answer(_SPENT[self._config.session_text], Then.CLOSE)
        if self.transaction.sender is not None:
            return Answer(texts.SENDER_TWICE)
        path = _path(argument, "FROM:", texts.MAIL_SYNTAX)
        if isinstance(path, Answer):
            return path
        address, refusal = addresses.refusal(path, texts.MAIL_INVALID)
        if refusal is not None:
            return Answer(refusal)
        self.transaction.sender = address
        return _OK

    def rcpt(self, argument: str) -> Answer:
        """Add a recipient."""
        if self.transaction.sender is None:
            return Answer(texts.MAIL_FIRST)
        path = _path(argument, "TO:", texts.RCPT_SYNTAX)
        if isinstance(path, Answer):
            return path
        address, refusal = addresses.refusal(path, texts.RCPT_INVALID)
        if refusal is not None:
            return Answer(refusal)
        self.transaction.recipients.append(address)
        return _OK

    def data(self, _argument: str) -> Answer:
        """Ask for the message."""
        if self.transaction.sender is None:
            return Answer(texts.MAIL_FIRST)
        if not self.transaction.recipients:
            return Answer(texts.RCPT_FIRST)
        return _GO_AHEAD

    def rset(self, _argument: str) -> Answer:
        """Drop the transaction."""
        self.transaction.clear()
        return _OK

    def noop(self, _argument: str) -> Answer:
        """Nothing; counts as a sign of life."""
        return _OK

    def quit(self, _argument: str) -> Answer:
        """The end."""
        return Answer(texts.BYE, Then.CLOSE)

    def vrfy(self, _argument: str) -> Answer:
        """Not for strangers."""
        return Answer(texts.VRFY_DISABLED)

    def expn(self, _argument: str) -> Answer:
        """Not for strangers either."""
        return Answer(texts.EXPN_DISABLED)

    def _logged_in(self, login: Login, text: str) -> Answer:
        """Note how far the login is after saying ``text``: 334 asks for more."""
        self._login = login if text.startswith("334") else None
        self._authenticated = login.succeeded
        return Answer(text)


class Command(NamedTuple):
    """What a verb does, the stage it counts as, and what must have come before.

    Which commands need TLS or a login is SubEthaSMTP's registry (*assumed*), and agrees
    with a transcript in which RSET got ``250 Ok`` after a refused AUTH.
    """

    stage: Stage
    take: Callable[[Dialogue, str], Answer]
    needs_tls: bool = True
    needs_login: bool = False


COMMANDS = {
    "HELO": Command(Stage.EHLO, Dialogue.helo, needs_tls=False),
    "EHLO": Command(Stage.EHLO, Dialogue.ehlo, needs_tls=False),
    "STARTTLS": Command(Stage.STARTTLS, Dialogue.starttls, needs_tls=False),
    "AUTH": Command(Stage.AUTH, Dialogue.auth),
    "MAIL": Command(Stage.MAIL, Dialogue.mail, needs_login=True),
    "RCPT": Command(Stage.RCPT, Dialogue.rcpt, needs_login=True),
    "DATA": Command(Stage.DATA, Dialogue.data, needs_login=True),
    "RSET": Command(Stage.RSET, Dialogue.rset),
    "NOOP": Command(Stage.OTHER, Dialogue.noop, needs_tls=False),
    "QUIT": Command(Stage.OTHER, Dialogue.quit, needs_tls=False),
    "VRFY": Command(Stage.OTHER, Dialogue.vrfy, needs_login=True),
    "EXPN": Command(Stage.OTHER, Dialogue.expn, needs_login=True),
}

_SPENT = {"maximum": texts.SESSION_SPENT, "too-many": texts.SESSION_SPENT_2024}
_OK = Answer(texts.OK)
_GO_AHEAD = Answer(texts.GO_AHEAD, Then.BODY)


def stage_of(verb: str) -> Stage:
    """The stage a command counts as."""
    command = COMMANDS.get(verb)
    return Stage.OTHER if command is None else command.stage


def _path(argument: str, keyword: str, syntax: str) -> str | Answer:
    """What follows ``FROM:`` or ``TO:``, or the complaint that it is missing."""
    if argument[: len(keyword)].upper() != keyword:
        return Answer(f'{syntax}  Error in parameters: "{argument}"')
    path = argument[len(keyword) :]
    return path if path.strip() else Answer(syntax)

"""The table of what an upstream can do wrong: at which stage, how, and what it may cost.

Each row is a block inside which the fault lasts. Most are faults of the twin; the others
take its place, or end a session that rests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from relay.mailer import Client, make_mail
from relay.twin import Cut, Say, Stage, Stall, Trickle, Twin, texts, weather
from tests.fakes import impostor
from tests.fakes.spool_file import until
from tests.fakes.trouble import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from relay.twin import Action, Fault, Transaction
    from tests.fakes.running import RunningRelay

MAILS = 3
"""Sent at one time."""
BARE_EHLO = "250-email-smtp.amazonaws.com\r\n250-8BITMIME\r\n250-AUTH PLAIN LOGIN\r\n250 Ok"


class Cost(Enum):
    """What a fault may cost a mail."""

    NOTHING = "nothing"
    ATTEMPT = "an attempt"
    DOUBT = "ten minutes, or a copy too many"


@dataclass
class Strikes:
    """How often a fault has struck by now."""

    wanted: int = 1
    count: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def strike(self) -> None:
        self.count += 1
        if self.count >= self.wanted:
            self.enough.set()


@dataclass
class Scene:
    """The relay, what is behind it, and what it was sent."""

    folder: Path
    relay: RunningRelay
    twin: Twin
    client: Client
    strikes: int
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    number: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)
    """By Message-ID."""
    doubts: int = 0
    """Strikes behind the 354."""

    async def send(self, cost: Cost) -> set[str]:
        """A few mails, all of them accepted at once; their Message-IDs."""
        mails = [make_mail(self.rng, self.number + n, body_bytes=200) for n in range(MAILS)]
        self.number += MAILS
        await self.client.send(mails)
        sent = {mail.message_id for mail in mails}
        assert sent <= dict(self.client.told.accepted).keys()
        self.costs.update(dict.fromkeys(sent, cost))
        return sent

    def arrived(self) -> set[str]:
        return {record.message_id for record in self.twin.ledger.records}

    async def is_held(self) -> bool:
        """Whether anything is, and the reason is there for people to read."""
        holds = (await ask(self.relay, "status"))["holds"]
        return bool(holds) and all(hold["reason"] for hold in holds)

    async def release(self) -> None:
        """Lift what is held, as an operator would."""
        for hold in (await ask(self.relay, "status"))["holds"]:
            await ask(self.relay, "release", key=hold["key"])

    def end_sessions(self) -> None:
        """Those that rest; the next mail needs a new one, and that walks all stages."""
        for session in list(self.twin._shared.sessions):
            if session._is_resting():
                session.abort()


Strike = Callable[[Scene, Strikes], AbstractAsyncContextManager[None]]
"""Inside the block the fault lasts, and counts how often it has struck."""


@dataclass(frozen=True)
class Row:
    """One fault at one stage."""

    stage: str
    kind: str
    strike: Strike
    cost: Cost = Cost.NOTHING
    is_held: bool = False
    """The upstream is at fault as a whole, and somebody must say so or a probe find out."""

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind}"


# -- Ways to fail --------------------------------------------------------------------------


def fault(make: Callable[[], Fault], *, lead: Fault | None = None) -> Strike:
    """The twin does wrong what ``make`` makes, while it lasts; ``lead`` leads up to it."""

    @asynccontextmanager
    async def lasting(scene: Scene, strikes: Strikes) -> AsyncIterator[None]:
        of = make()

        def counted(stage: Stage, transaction: Transaction) -> Action | None:
            action = of(stage, transaction)
            if action is not None:
                strikes.strike()
            return action or (lead(stage, transaction) if lead else None)

        scene.twin.fault = counted
        yield
        scene.twin.fault = None

    return lasting


def at(stage: Stage, action: Action, *, lead: Fault | None = None) -> Strike:
    return fault(partial(weather.at, stage, action), lead=lead)


def second_ehlo(action: Action) -> Fault:
    """At the EHLO inside TLS."""
    greeted: set[int] = set()

    def strike(stage: Stage, transaction: Transaction) -> Action | None:
        if stage is not Stage.EHLO:
            return None
        if transaction.session in greeted:
            return action
        greeted.add(transaction.session)
        return None

    return strike


@asynccontextmanager
async def stripped(scene: Scene, strikes: Strikes) -> AsyncIterator[None]:
    """Somebody on the way takes STARTTLS out of the offer, and listens for the password."""
    overheard, his = [], set()

    def strike(stage: Stage, transaction: Transaction) -> Action | None:
        if stage is Stage.CONNECT:
            his.add(transaction.session)  # others may be behind STARTTLS already
        if stage is Stage.EHLO:
            strikes.strike()
            return Say(BARE_EHLO)
        if stage is Stage.AUTH and transaction.session in his:
            overheard.append(transaction.command)
        return None

    scene.twin.fault = strike
    yield
    scene.twin.fault = None
    assert not overheard


@asynccontextmanager
async def away(scene: Scene, strikes: Strikes) -> AsyncIterator[None]:
    """Nobody listens."""
    await scene.twin.stop()
    noted = scene.relay.log.count("session not opened")
    watching = asyncio.ensure_future(
        until(lambda: scene.relay.log.count("session not opened") >= noted + strikes.wanted)
    )
    watching.add_done_callback(lambda _: strikes.enough.set())
    yield
    await watching
    await scene.twin.start()


def shown(certificate: Callable[[Path], tuple[str, str]]) -> Strike:
    """Somebody else answers, with a certificate that proves nothing."""

    @asynccontextmanager
    async def lasting(scene: Scene, strikes: Strikes) -> AsyncIterator[None]:
        cert_file, key_file = certificate(scene.folder)
        await scene.twin.stop()
        config = replace(scene.twin.config, port=scene.twin.port)
        other = Twin(replace(config, cert_file=cert_file, key_file=key_file))
        await other.start()
        watching = asyncio.ensure_future(until(lambda: other.ledger.tls_failures > 0))
        watching.add_done_callback(lambda _: strikes.enough.set())
        yield
        await watching
        await other.stop()
        assert not other.ledger.total.attempts
        await scene.twin.start()

    return lasting


def between(end: Callable[[Any], None]) -> Strike:
    """A session that rests between two messages ends."""

    @asynccontextmanager
    async def lasting(scene: Scene, strikes: Strikes) -> AsyncIterator[None]:
        def answered(stage: Stage, transaction: Transaction) -> None:
            if stage is Stage.DOT and transaction.number == 1:
                # The twin answers at once; the next command cannot be there before this.
                asyncio.get_running_loop().call_soon(cut, transaction)

        def cut(transaction: Transaction) -> None:
            for session in list(scene.twin._shared.sessions):
                if session._dialogue.transaction is transaction and session._is_resting():
                    end(session)
                    strikes.strike()

        scene.twin.fault = answered
        yield
        scene.twin.fault = None

    return lasting


def _say_unasked(session: Any) -> None:  # noqa: ANN401  # the twin's own
    session._link.write((texts.IDLE + "\r\n").encode())
    session._end()


# -- The table -----------------------------------------------------------------------------

RST, FIN, LATE = Cut(reset=True), Cut(), Stall(inf)
BYE, LATER, NEVER = "421 Closing down", "451 Try again later", "554 No service here"
GARBAGE = Say("\x16\x03\x00garbage")

ANYWHERE: dict[str, Action] = {
    "RST": RST,
    "FIN": FIN,
    "hangs": LATE,
    "byte by byte": Trickle(),
    "garbage": GARBAGE,
    "endless": Say("250-" + "x" * 40_000),
    "421": Say(BYE, close=True),
}
OPENING = {Stage.CONNECT, Stage.EHLO, Stage.STARTTLS, Stage.AUTH}
LEADS = {Stage.RSET: weather.at(Stage.DOT, Say(texts.RATE))}
"""RSET is said after a refusal only."""


def rows_at(stage: Stage) -> Iterator[Row]:
    """The kinds that make sense at a stage with a reply."""
    lead = LEADS.get(stage)
    for kind, action in ANYWHERE.items():
        cost = Cost.NOTHING
        if stage is Stage.DOT and kind not in ("byte by byte", "421"):
            cost = Cost.DOUBT
        yield Row(stage, kind, at(stage, action, lead=lead), cost)
    if stage in OPENING:
        yield Row(stage, "4xx", at(stage, Say(LATER)))
        yield Row(stage, "5xx", at(stage, Say(NEVER)), is_held=True)
    elif stage in (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT):
        yield Row(stage, "4xx", at(stage, Say(LATER)), Cost.ATTEMPT)
        yield Row(stage, "454 throttle", at(stage, Say(texts.RATE)))


ALL: tuple[Row, ...] = (
    Row("connect", "refused", away),
    *(row for stage in Stage if stage not in (Stage.TLS, Stage.BODY) for row in rows_at(stage)),
    *(
        Row("EHLO in TLS", kind, fault(partial(second_ehlo, action)))
        for kind, action in ANYWHERE.items()
    ),
    Row("EHLO", "STARTTLS stripped", stripped, is_held=True),
    Row("TLS", "RST", at(Stage.TLS, RST)),
    Row("TLS", "FIN", at(Stage.TLS, FIN)),
    Row("TLS", "hangs", at(Stage.TLS, LATE)),
    Row("TLS", "garbage", at(Stage.TLS, GARBAGE), is_held=True),
    Row("TLS", "other name", shown(impostor.other_name), is_held=True),
    Row("TLS", "other CA", shown(impostor.other_authority), is_held=True),
    Row("TLS", "expired", shown(impostor.expired), is_held=True),
    Row("body", "RST", at(Stage.BODY, RST), Cost.DOUBT),
    Row("body", "FIN", at(Stage.BODY, FIN), Cost.DOUBT),
    Row("body", "hangs", at(Stage.BODY, LATE), Cost.DOUBT),
    Row("dot, accepted", "RST", at(Stage.DOT, Cut(reset=True, done=True)), Cost.DOUBT),
    Row("dot, accepted", "FIN", at(Stage.DOT, Cut(done=True)), Cost.DOUBT),
    Row("between messages", "RST", between(lambda session: session._cut(reset=True))),
    Row("between messages", "FIN", between(lambda session: session._cut(reset=False))),
    Row("between messages", "451 unasked", between(_say_unasked)),
)
IN_CI = frozenset(
    {
        ("connect", "refused"),
        ("connect", "RST"),
        ("EHLO", "STARTTLS stripped"),
        ("starttls", "FIN"),
        ("TLS", "RST"),
        ("TLS", "other name"),
        ("EHLO in TLS", "421"),
        ("auth", "5xx"),
        ("mail", "RST"),
        ("mail", "byte by byte"),
        ("rcpt", "421"),
        ("data", "FIN"),
        ("data", "454 throttle"),
        ("body", "RST"),
        ("dot", "FIN"),
        ("dot", "4xx"),
        ("dot, accepted", "RST"),
        ("rset", "garbage"),
        ("other", "RST"),
        ("between messages", "FIN"),
        ("between messages", "451 unasked"),
    }
)
"""Each stage, by a kind or two; none that waits for a time limit."""
SHORT = tuple(row for row in ALL if (row.stage, row.kind) in IN_CI)
BEFORE_MAIL = {"connect", "EHLO", "starttls", "TLS", "EHLO in TLS", "auth"}
OPENINGS = tuple(row for row in SHORT if row.stage in BEFORE_MAIL)
MESSAGES = tuple(row for row in SHORT if row.stage not in BEFORE_MAIL)

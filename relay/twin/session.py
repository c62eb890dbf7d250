"""One connection to the twin: bytes in, replies out, time in between.

A plain asyncio protocol, as the twin must never be what a test waits for. One step at a
time: while a reply is on its way (latency, a stall, a trickle) what the client sends is
kept, and reading stops at a limit. A test's fault is asked before each step. Nothing
that goes wrong here reaches the listener: it is counted, logged and ends this session.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, assert_never, cast

from relay.twin import texts
from relay.twin.content import Body
from relay.twin.delay import reply_s
from relay.twin.dialogue import Answer, Dialogue, Then, stage_of
from relay.twin.faults import Action, Cut, Say, Stage, Stall, Transaction, Trickle
from relay.twin.link import Link, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.twin.shared import Shared

LINE_MAX = 2_048
"""Bytes in a command; RFC 4954 §4 wants 12,288 for AUTH, SES's own secrets need under 100."""

INPUT_MAX = 64 * 1024
"""Bytes a client may send ahead of a late reply before we stop reading."""

REST_S = 0.1
"""An old session is closed only when its last reply has been out for as long, so that no
``250`` is lost to it; one that never rests so long is closed at its next MAIL."""

_LOG = logging.getLogger(__name__)


class Session(asyncio.Protocol):
    """A client's session, from greeting to close."""

    def __init__(self, shared: Shared) -> None:
        self._shared, self._config = shared, shared.config
        self._loop = asyncio.get_running_loop()
        self._input = bytearray()
        self._body: Body | None = None
        self._body_begun = False
        self._is_over = False
        self._has_begun = False
        self._closing = False
        self._waiting = False
        """A reply is on its way: no further step until it is out."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._heard_at = self._loop.time()
        """When the client last spoke or was spoken to."""
        self._dies_at = math.inf
        """When the session will be too old."""
        self._owed: str | None = None
        """The id of an accepted message whose 250 has not been written yet."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or refuse if the account has all its connections."""
        shared = self._shared
        # uvloop's transports have asyncio.Transport's methods without being one.
        plain = cast("asyncio.Transport", transport)
        self._link = Link(plain, shared)
        self._is_over = len(shared.sessions) >= self._config.connections_max
        shared.sessions.add(self)
        transaction = Transaction(session=shared.ledger.opened())
        cap = shared.chance.randint(*self._config.session_messages)
        self._dialogue = Dialogue(self._config, shared.account, transaction, cap)
        if self._config.session_age_s is not None:
            self._dies_at = self._heard_at + shared.chance.uniform(*self._config.session_age_s)
        self._look_at_clock()
        if self._config.tls == "implicit":
            # Not by asyncio's own TLS server: that forgets a handshake when it is closed.
            self._contained(self._start_tls)
        else:
            self._contained(self._greet)

    def data_received(self, data: bytes) -> None:
        """Keep what came and go on, unless a reply is still on its way."""
        self._heard_at = self._loop.time()
        self._input += data
        if not self._waiting:
            self._contained(self._work)
        if self._waiting and len(self._input) > INPUT_MAX:
            self._link.pause_reading()

    def pause_writing(self) -> None:
        """``link.OUTPUT_MAX`` is reached: this client does not read."""
        self._cut(reset=True)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's)
        """Forget the session; note an accepted message whose sender never heard of it."""
        if self not in self._shared.sessions:
            return
        self._shared.sessions.discard(self)
        if not self._shared.sessions:
            self._shared.empty.set()
        self._shared.ledger.closed()
        self._link.forget()
        self._closing = True
        for timer in self._timers.values():
            timer.cancel()
        if self._owed is not None:
            self._shared.ledger.unanswered.add(self._owed)

    # What has come in.

    def _work(self) -> None:
        """Take steps as long as there is input and no reply is awaited."""
        while self._input and not self._waiting and not self._closing:
            if not (self._take_line() if self._body is None else self._take_body(self._body)):
                break

    def _take_line(self) -> bool:
        """Take one command; False if it is not complete."""
        end = self._input.find(b"\n")
        if max(end, len(self._input) if end < 0 else 0) > LINE_MAX:
            self._answer(Stage.OTHER, Answer(texts.LINE_TOO_LONG, Then.CLOSE))
            return False
        if end < 0:
            return False
        line = bytes(self._input[: end + 1])
        del self._input[: end + 1]
        if not line.endswith(b"\r\n"):
            text = texts.NEWLINE_UNPAIRED.format(position=end)
            self._answer(Stage.OTHER, Answer(text, Then.CLOSE))
            return False
        self._take_command(line[:-2].decode("utf-8", "surrogateescape"))
        return True

    def _take_command(self, line: str) -> None:
        dialogue = self._dialogue
        if dialogue.in_login:
            self._answer(Stage.AUTH, dialogue.go_on_login(line))
            return
        verb, _, argument = line.strip().partition(" ")
        verb = verb.upper()
        dialogue.transaction.command = argument.strip()
        stage = stage_of(verb)
        if stage is Stage.MAIL and self._is_resting() and self._loop.time() >= self._dies_at:
            self._end()
        else:
            self._step(stage, lambda: dialogue.answer(verb))

    def _take_body(self, body: Body) -> bool:
        """Take all input as content; False if the dot has not come."""
        if not self._body_begun:
            self._body_begun = True
            if not self._goes_on(self._scripted(Stage.BODY)):
                return False
        rest = body.feed(self._input)
        self._input = bytearray(rest or b"")
        if rest is None:
            return False
        self._body = None
        self._dialogue.transaction.content = body.content()
        self._shared.account.attempted()
        self._step(Stage.DOT, self._judge)
        return True

    # Steps, and the faults that change them.

    def _step(self, stage: Stage, do: Callable[[], Answer]) -> None:
        """Take the step and answer it, unless a fault has it otherwise."""
        match self._scripted(stage):
            case None:
                self._answer(stage, do())
            case Say(text, close):
                if stage is Stage.DOT:
                    self._dialogue.judged(accepted=False)
                self._answer(stage, Answer(text, Then.CLOSE if close else Then.COMMAND))
            case Cut(reset, done):
                if done:
                    do()
                self._cut(reset=reset)
            case Stall(seconds):
                self._answer(stage, do(), late_s=seconds)
            case Trickle(gap_s):
                self._answer(stage, do(), gap_s=gap_s)
            case action:
                assert_never(action)

    def _scripted(self, stage: Stage) -> Action | None:
        fault = self._shared.fault
        return None if fault is None else fault(stage, self._dialogue.transaction)

    def _goes_on(self, action: Action | None) -> bool:
        """Apply a fault in mid-body, where no reply is due; False if it stops the body."""
        match action:
            case Cut(reset, _):
                self._cut(reset=reset)
                return False
            case Stall(seconds):
                self._wait(seconds, self._work)
                return False
            case _:
                return True

    def _greet(self) -> None:
        """The first step, once TLS is there if it is to come first."""
        self._has_begun = True
        text = texts.CONNECTIONS_SPENT if self._is_over else texts.greeting(self._shared.chance)
        answer = Answer(text, Then.CLOSE if self._is_over else Then.COMMAND)
        self._step(Stage.CONNECT, lambda: answer)

    def _judge(self) -> Answer:
        """The step at the dot."""
        judged = self._shared.account.judge(self._dialogue.transaction)
        if isinstance(judged, str):
            self._dialogue.judged(accepted=False)
            return Answer(judged)
        self._dialogue.judged(accepted=True)
        self._owed = judged.id
        return Answer(f"{texts.OK} {judged.id}")

    # Replies.

    def _answer(
        self, stage: Stage, answer: Answer, *, late_s: float = 0.0, gap_s: float | None = None
    ) -> None:
        """Count the reply and send it after its latency; byte by byte if there is a gap."""
        is_yes = answer.text[0] not in "45"
        if not is_yes:
            self._shared.account.refused(answer.text)
        latency, chance = self._config.latency, self._shared.chance
        delay_s = late_s + reply_s(latency, stage, is_yes=is_yes, chance=chance)
        if gap_s is None and self._config.bytewise:
            gap_s = 0.0
        if gap_s is not None:
            gap, left = gap_s, wire(answer.text)
            self._wait(delay_s, lambda: self._trickle(left, answer.then, gap))
        elif delay_s > 0:
            self._wait(delay_s, lambda: self._speak_late(answer))
        else:
            self._speak(answer)

    def _speak(self, answer: Answer) -> None:
        """Write the reply and do what follows it."""
        if answer.then is Then.TLS:
            # Nothing may be read between 220 and the handshake: it would be ClientHello.
            self._link.pause_reading()
        self._link.write(wire(answer.text))
        self._follow(answer.then)

    def _speak_late(self, answer: Answer) -> None:
        self._speak(answer)
        self._work()

    def _trickle(self, left: bytes, then: Then, gap_s: float) -> None:
        """Write one byte, and the rest of ``left`` in the same way after a gap."""
        if len(left) == 1 and then is Then.TLS:
            self._link.pause_reading()
        self._link.write(left[:1])
        if len(left) > 1:
            self._wait(gap_s, lambda: self._trickle(left[1:], then, gap_s))
        else:
            self._follow(then)
            self._work()

    def _follow(self, then: Then) -> None:
        """The reply is out: go where it leads."""
        self._owed = None
        self._heard_at = self._loop.time()
        match then:
            case Then.COMMAND:
                pass
            case Then.BODY:
                self._body, self._body_begun = Body(self._config.size_max_bytes), False
            case Then.CLOSE:
                self._end()
            case Then.TLS:
                self._start_tls()
            case _:
                assert_never(then)

    # Time.

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Take no step until ``then`` is called, ``seconds`` from now; infinity is never."""
        self._waiting = True
        if math.isfinite(seconds):
            self._timers["reply"] = self._loop.call_later(
                seconds, self._contained, self._end_wait, then
            )

    def _end_wait(self, then: Callable[[], None]) -> None:
        self._waiting = False
        if self._closing:
            return
        then()
        # Not before: what has piled up is to be taken first, and TLS starts with a pause.
        if not (self._waiting or self._closing):
            self._link.resume_reading()

    def _look_at_clock(self) -> None:
        """Cut a client that is silent and a session that is old; look again when it may be so."""
        now = self._loop.time()
        idle_left_s = self._idle_left_s(now)
        if now >= self._dies_at and self._is_resting() and now - self._heard_at >= REST_S:
            self._end()
        elif idle_left_s <= 0:
            self._shared.account.refused(texts.IDLE)
            self._link.write(wire(texts.IDLE))
            self._end()
        else:
            wait_s = min(idle_left_s, max(self._dies_at - now, REST_S))
            if math.isfinite(wait_s):
                look = self._loop.call_later(wait_s, self._contained, self._look_at_clock)
                self._timers["clock"] = look

    def _idle_left_s(self, now: float) -> float:
        """How long the client may still be silent; while it waits for us, the whole time."""
        idle_s = self._config.idle_s
        if idle_s <= 0:
            return math.inf
        return idle_s if self._waiting else self._heard_at + idle_s - now

    def _is_resting(self) -> bool:
        """True between transactions, while no reply is on its way."""
        dialogue = self._dialogue
        return (
            not (self._waiting or self._input or dialogue.in_login)
            and dialogue.transaction.sender is None
        )

    # Ends, and TLS.

    def _end(self) -> None:
        """The session is over."""
        self._closing = True
        self._link.end()

    def _cut(self, *, reset: bool) -> None:
        """End without a word: RST, or FIN."""
        self._closing = True
        self._link.cut(reset=reset)

    def abort(self) -> None:
        """The twin stops: drop the link."""
        self._closing = True
        self._link.abort()

    def _contained(self, step: Callable[..., None], *arguments: object) -> None:
        """Run ``step``; whatever it raises ends this session and no other."""
        try:
            step(*arguments)
        except Exception:
            _LOG.exception("twin session broke")
            self._shared.ledger.broken += 1
            self.abort()

    def _start_tls(self) -> None:
        """Begin the handshake, unless a fault has it otherwise."""
        self._input.clear()  # what came in the clear after STARTTLS is not to be trusted
        self._waiting = True
        match self._scripted(Stage.TLS):
            case Say(text):
                self._shared.ledger.tls_failures += 1
                self._link.garble(self, text)
            case Cut(reset, _):
                self._shared.ledger.tls_failures += 1
                self._cut(reset=reset)
            case Stall(seconds):
                self._link.resume_reading()  # ClientHello is kept; and only who reads hears FIN
                self._wait(seconds, self._shake_hands)
            case _:
                self._shake_hands()

    def _shake_hands(self) -> None:
        self._waiting = True
        self._link.start_tls(self, self._take_early, self._shaken)

    def _take_early(self) -> bytes:
        early = bytes(self._input)
        self._input.clear()
        return early

    def _shaken(self, is_encrypted: bool) -> None:  # noqa: FBT001  (a callback's one argument)
        """Go on in TLS; a failed handshake ends the session."""
        if not is_encrypted:
            self._shared.ledger.tls_failures += not self._closing
            # asyncio closes a link that ends in its handshake, but tells the protocol nothing.
            self.connection_lost(None)
            return
        self._dialogue.started_tls()
        self._heard_at = self._loop.time()
        self._waiting = False
        self._contained(self._work if self._has_begun else self._greet)

"""When refusals stop being one message's fault: mail is kept, and a probe asks when it may go.

Two ways to a hold:

- **At once**, when the verdict is *held*: the text says that the account, the sender's
  identity or the configuration set is at fault. Nothing is lost by believing it the first
  time, since the envelope stays as it was.
- **By counting**, when the same refusal meets message after message: one broken template
  must not bounce a hundred thousand people. For each (campaign, or sender where there is no
  campaign; text, masked) a leaky count (``counts``) goes up by one for a refusal and down by
  ``rcpt_share`` for an acceptance. The refusal after which the next could pass ``same_text``
  trips; hence from one lift to the next at most ``same_text`` messages bounce with one text,
  plus ``rcpt_share`` of those accepted. Deferrals (storms of 451) count alike. Recipients
  refused on their own (RCPT; blacklisted) have one count whatever the text, with room for
  ``rcpt_share`` of ``RCPT_WINDOW`` and a leak of ``rcpt_share`` for each recipient accepted:
  it trips when they are more than that share of the last few hundred.

While the breaker holds a campaign or sender, each further refusal of it (mail in flight, or a
probe) is *held*: kept, uncharged. Counts are dropped when they trip, so whoever lifts the
hold (a probe, an operator) lets the next ``same_text`` count from nothing. They are not
kept over a restart: that costs at most ``same_text`` more bounces.

**Probes.** One envelope under way for each hold, first after ``PROBE_FIRST_MS``, then twice as
long after each refusal, up to ``PROBE_MAX_MS``. The refusals that end a hold are mended by
people or by DNS: a minute suits a password just corrected, an hour a sender that waits for a
domain. A paused account begins at an hour: AWS staff must act, and hammering a paused
account makes no friend (facts, 2: "probe hourly or slower"). An accepted probe lifts
the breaker's source on that key and no other. A probe that was throttled, lost, deferred with
another text or refused for something else says nothing: asked again after the wait that the
refusals so far have earned.

**What an envelope may be held by**: its account, campaign, sender and configuration set. The
sender is the envelope's, letter for letter: if SES verifies a whole domain, each of its
senders is held by its own first refusal, which loses nothing. A configuration set that the
envelope did not ask for comes with the sender's identity, so then the sender is held. The
sandbox's hold blocks nobody: each envelope to an unverified recipient is parked on its own, and
there is no probe, since one recipient's answer says nothing about another's.

A campaign is held as a whole, whatever upstream refused it, and is probed by whichever
upstream has mail of it.

Pure: ``now_ms`` is wall milliseconds. ``Holds`` is changed at once, so that the next envelope is
blocked; the ``Decision`` names each change, for the spool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

from relay.breaker.counts import Counts, masked
from relay.breaker.holds import (
    Hold,
    Holds,
    Source,
    account_key,
    campaign_key,
    configuration_set_key,
    sandbox_key,
    sender_key,
)
from relay.verdict import (
    Bounced,
    Deferred,
    Held,
    InDoubt,
    Scope,
    Sent,
    SessionEnded,
    Throttled,
    Verdict,
)

if TYPE_CHECKING:
    from relay import config
    from relay.envelope import Envelope
    from relay.reply import Reply

PROBE_FIRST_MS = 60_000
PROBE_MAX_MS = 3_600_000
"""An hour (design 7), reached at the sixth refused probe."""
RCPT_WINDOW = 200
"""Recipients over which the share of refused ones is judged (design 7: 5 % of 200)."""
REASON_CHARS_MAX = 500

_DOUBLINGS_MAX = 6
_RECIPIENTS_REFUSED = "too many recipients refused"
_ONLY_BREAKER = frozenset({Source.BREAKER})


@dataclass(frozen=True, slots=True)
class Decision:
    """What a verdict comes to once the breaker has seen it.

    ``verdict`` may have turned into *held*; ``key`` is then the hold that keeps the
    envelope, else "". ``add`` are holds to write over those of the same key and source,
    ``lift`` are (key, source) to delete.
    """

    verdict: Verdict
    key: str = ""
    add: tuple[Hold, ...] = ()
    lift: tuple[tuple[str, Source], ...] = ()


class Breaker:
    """The breaker of one upstream, over the holds of the whole relay."""

    def __init__(self, config: config.Breaker, upstream: str, holds: Holds) -> None:
        self._upstream = upstream
        self._holds = holds
        self._counts = Counts(config.rcpt_share)
        self._same_text = config.same_text
        self._share = config.rcpt_share
        self._recipients_max = max(1.0, config.rcpt_share * RCPT_WINDOW)
        self._not_before: dict[str, int] = {}

    # -- What a verdict comes to ---------------------------------------------------------

    def judged(
        self,
        envelope: Envelope,
        verdict: Verdict,
        now_ms: int,
        *,
        recipients: int | None = None,
        probe_of: str = "",
    ) -> Decision:
        """What is to become of ``verdict``, and which holds it sets, changes or lifts.

        ``recipients`` is how many it is about (1 for a refusal to RCPT), by default all of the
        envelope's. ``probe_of`` is the key that this attempt was to probe, if any.
        """
        match verdict:
            case Sent():
                cost = envelope.cost if recipients is None else recipients
                self._counts.accepted(self._subject(envelope), cost)
                decision = Decision(verdict)
            case Held():
                decision = self._hold(verdict, self._key(verdict, envelope), now_ms)
            case Bounced() | Deferred():
                cost = envelope.cost if recipients is None else recipients
                decision = self._refused(envelope, verdict, cost, now_ms)
            case Throttled() | InDoubt() | SessionEnded():
                decision = Decision(verdict)
            case _:
                assert_never(verdict)
        return self._probed(decision, verdict, probe_of, now_ms) if probe_of else decision

    def opening_failed(self, verdict: Verdict, now_ms: int, *, probe_of: str = "") -> Decision:
        """As ``judged``, for a session that could not be opened: no envelope was tried."""
        decision = Decision(verdict)
        if isinstance(verdict, Held):
            decision = self._hold(verdict, account_key(self._upstream), now_ms)
        return self._probed(decision, verdict, probe_of, now_ms) if probe_of else decision

    # -- What is in the way --------------------------------------------------------------

    def blocking(self, envelope: Envelope) -> str | None:
        """The key of a hold that keeps ``envelope`` back, the widest first; None if it is free."""
        if not self._holds:
            return None
        return next((key for key in self.keys(envelope) if self._holds.held(key)), None)

    def may_probe(self, envelope: Envelope, key: str, *, through_breakers: bool = False) -> bool:
        """Whether ``envelope`` can be the probe of ``key``: nothing but that keeps it back.

        With ``through_breakers`` other holds of breakers do not count, either. That is
        the second choice, for when nothing else waits: a held account whose only mail is a
        held campaign would else never be asked again.
        """
        keys = self.keys(envelope)
        others = [other for other in keys if other != key and self._holds.held(other)]
        if through_breakers:
            others = [other for other in others if self._holds.sources(other) != _ONLY_BREAKER]
        return key in keys and not others

    # -- Probes --------------------------------------------------------------------------

    def probe_due(self, now_ms: int) -> str | None:
        """The key that should be probed now, the longest due first; None if none."""
        due = [(at, hold.key) for hold, at in self._probes(now_ms) if at <= now_ms]
        return min(due)[1] if due else None

    def next_probe_at(self, now_ms: int) -> int | None:
        """When the next probe is due, at the latest ``PROBE_MAX_MS`` from now; None if none."""
        return min((at for _, at in self._probes(now_ms)), default=None)

    def probe_started(self, key: str, now_ms: int) -> None:
        """An envelope goes out as the probe of ``key``; ``judged`` will tell how it ended."""
        self._holds.probe_started(key, now_ms)

    def probe_missed(self, key: str, now_ms: int) -> None:
        """This upstream has no envelope to probe ``key`` with: ask again after the same time."""
        hold = self._holds.get(key, Source.BREAKER)
        if hold is not None:
            kept = {k: at for k, at in self._not_before.items() if self._holds.held(k)}
            self._not_before = {**kept, key: now_ms + _wait_ms(hold.probes)}

    def _probes(self, now_ms: int) -> list[tuple[Hold, int]]:
        """Holds that a probe may free, and when: none for what others hold, too.

        While the account is held it alone is asked: no other probe could get through.
        """
        if not self._holds:
            return []
        account = account_key(self._upstream)
        held = [
            hold
            for hold in self._holds.of(Source.BREAKER)
            if hold.next_probe_at
            and self._is_mine(hold.key)
            and self._holds.sources(hold.key) == _ONLY_BREAKER
            and not self._holds.probing(hold.key, now_ms)
        ]
        if self._holds.held(account):
            held = [hold for hold in held if hold.key == account]
        return [(hold, self._probe_at(hold, now_ms)) for hold in held]

    def _probe_at(self, hold: Hold, now_ms: int) -> int:
        """When ``hold`` may be probed; now, if the clock was set back since that was fixed."""
        at = max(hold.next_probe_at, self._not_before.get(hold.key, 0))
        return at if at - now_ms <= PROBE_MAX_MS else now_ms

    def _is_mine(self, key: str) -> bool:
        mine = (sender_key(self._upstream, ""), configuration_set_key(self._upstream, ""))
        return key == account_key(self._upstream) or key.startswith((*mine, campaign_key("")))

    # -- Leaves --------------------------------------------------------------------------

    def keys(self, envelope: Envelope) -> list[str]:
        """The keys of all that can keep ``envelope`` back, the widest first."""
        keys = [account_key(self._upstream)]
        if envelope.campaign:
            keys.append(campaign_key(envelope.campaign))
        keys.append(sender_key(self._upstream, envelope.sender))
        if envelope.configuration_set:
            keys.append(configuration_set_key(self._upstream, envelope.configuration_set))
        return keys

    def _subject(self, envelope: Envelope) -> str:
        """The key of whose refusals are counted together."""
        if envelope.campaign:
            return campaign_key(envelope.campaign)
        return sender_key(self._upstream, envelope.sender)

    def _key(self, verdict: Held, envelope: Envelope) -> str:
        """The key of what a verdict of *held* is about."""
        match verdict.scope:
            case Scope.ACCOUNT:
                return account_key(self._upstream)
            case Scope.SANDBOX:
                return sandbox_key(self._upstream)
            case Scope.CONFIGURATION_SET if envelope.configuration_set:
                return configuration_set_key(self._upstream, envelope.configuration_set)
            case Scope.CAMPAIGN:
                return self._subject(envelope)
            case Scope.SENDER | Scope.CONFIGURATION_SET:
                return sender_key(self._upstream, envelope.sender)
            case _:
                assert_never(verdict.scope)

    def _hold(self, verdict: Held, key: str, now_ms: int) -> Decision:
        """Hold ``key``, unless mail sent before has already seen to that."""
        if self._holds.get(key, Source.BREAKER) is not None:
            return Decision(verdict, key)
        asks = verdict.scope is not Scope.SANDBOX
        next_probe_at = now_ms + _wait_ms(0, slow=verdict.slow) if asks else 0
        return Decision(
            verdict, key, add=(self._set(key, _said(verdict.reply), now_ms, next_probe_at),)
        )

    def _set(self, key: str, reason: str, now_ms: int, next_probe_at: int) -> Hold:
        hold = Hold(key, Source.BREAKER, reason, since_at=now_ms, next_probe_at=next_probe_at)
        self._holds.add(hold)
        self._not_before.pop(key, None)
        return hold

    def _refused(
        self, envelope: Envelope, verdict: Bounced | Deferred, recipients: int, now_ms: int
    ) -> Decision:
        """Count a refusal, and hold what it is counted for once there were enough of them."""
        subject = self._subject(envelope)
        if self._holds.get(subject, Source.BREAKER) is not None:
            return Decision(_kept(envelope, verdict.reply), subject)
        if isinstance(verdict, Bounced) and verdict.per_recipient:
            level = self._counts.recipients_refused(subject, recipients)
            limit, reason = self._recipients_max, self._share_reason(verdict.reply)
        else:
            reason = _trouble(verdict.reply)
            level, limit = self._counts.refused(subject, reason), float(self._same_text)
        if level + 1 <= limit:
            return Decision(verdict)
        self._counts.forget(subject)
        return Decision(verdict, add=(self._set(subject, reason, now_ms, now_ms + _wait_ms(0)),))

    def _share_reason(self, reply: Reply) -> str:
        return f"{_RECIPIENTS_REFUSED} (over {self._share:.1%}), last: {_trouble(reply)}"

    def _probed(self, decision: Decision, verdict: Verdict, key: str, now_ms: int) -> Decision:
        """``decision`` with what the probe of ``key`` showed; ``verdict`` is as SES meant it."""
        was_under_way = self._holds.probe_ended(key)
        hold = self._holds.get(key, Source.BREAKER)
        if hold is None:
            return decision
        if isinstance(verdict, Sent):
            self._holds.lift(key, Source.BREAKER)
            return replace(decision, lift=((key, Source.BREAKER),))
        if not was_under_way:
            return decision
        hold = _asked(hold, decision, verdict, now_ms)
        self._holds.add(hold)
        return replace(decision, add=(*decision.add, hold))


def _asked(hold: Hold, decision: Decision, verdict: Verdict, now_ms: int) -> Hold:
    """``hold`` after a probe that did not lift it: asked later if it was told no again."""
    refused = decision.key == hold.key and _is_no(verdict, hold)
    probes = hold.probes + refused
    reason = _said(verdict.reply) if refused and isinstance(verdict, Held) else hold.reason
    wait_ms = _wait_ms(probes, slow=refused and isinstance(verdict, Held) and verdict.slow)
    return replace(hold, reason=reason, probes=probes, next_probe_at=now_ms + wait_ms)


def _is_no(verdict: Verdict, hold: Hold) -> bool:
    """Whether it refuses what is held; a deferral does only if deferrals led to the hold."""
    return not isinstance(verdict, Deferred) or _trouble(verdict.reply) == hold.reason


def _kept(envelope: Envelope, reply: Reply) -> Held:
    if envelope.campaign:
        return Held(reply, Scope.CAMPAIGN, envelope.campaign)
    return Held(reply, Scope.SENDER, envelope.sender)


def _trouble(reply: Reply) -> str:
    """What refusals of one cause have in common; also the reason shown for their hold."""
    return f"{reply.code} {masked(reply.text)}"


def _said(reply: Reply) -> str:
    """The reply as a reason; code 0 stands for a failure without one."""
    return (str(reply) if reply.code else reply.text)[:REASON_CHARS_MAX]


def _wait_ms(probes: int, *, slow: bool = False) -> int:
    """How long to wait after ``probes`` refused probes."""
    return (
        PROBE_MAX_MS if slow else min(PROBE_MAX_MS, PROBE_FIRST_MS << min(probes, _DOUBLINGS_MAX))
    )

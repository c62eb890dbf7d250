"""Named weathers: a twin for each trouble that SES is known to make (facts 2, 3, 6 and 7).

Each tells its story within a minute of the first connection. A scenario is a row of
``SCENARIOS``: a sentence, the settings, perhaps faults, perhaps steps in time.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relay.clock import SystemClock
from relay.twin import texts, weather
from relay.twin.faults import Cut, Fault, Say, Stage, Transaction
from relay.twin.parameters import Farewell, Foreign, Latency, Policy, TwinConfig
from relay.twin.server import Twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from relay.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One story: its ``words``, what the twin is at first, and what becomes of it.

    ``weather`` makes the faults, of chance and a clock in seconds. ``steps`` are taken at
    their seconds after the first connection, in order.
    """

    words: str
    config: TwinConfig
    weather: Callable[[random.Random, Callable[[], float]], Fault] | None = None
    steps: tuple[tuple[float, Callable[[Twin], None]], ...] = ()

    def twin(self, config: TwinConfig | None = None, *, clock: Clock | None = None) -> Twin:
        """A twin that is to play this, with ``config`` in the place of ours; not started.

        Its ``fault`` holds the story: who sets another ends it.
        """
        config, clock = config or self.config, clock or SystemClock()
        twin = Twin(config, clock=clock)
        parts: list[Fault] = []
        if self.steps:
            parts.append(_Timeline(twin, self.steps, clock.monotonic))
        if self.weather is not None:
            chance = random.Random(config.seed)  # noqa: S311  (weather, no secrets)
            parts.append(self.weather(chance, clock.monotonic))
        if parts:
            twin.fault = weather.either(*parts)
        return twin


async def play(scenario: Scenario, *, port: int = 0, clock: Clock | None = None) -> Twin:
    """The twin of ``scenario``, listening; the caller stops it."""
    twin = scenario.twin(replace(scenario.config, port=port), clock=clock)
    await twin.start()
    return twin


class _Timeline:
    """A fault that never strikes, but takes the steps that are due whenever it is asked.

    No task and no timer: what changes between two steps of a session nobody can see there.
    """

    def __init__(
        self,
        twin: Twin,
        steps: tuple[tuple[float, Callable[[Twin], None]], ...],
        now: Callable[[], float],
    ) -> None:
        self._twin, self._steps, self._now = twin, deque(steps), now
        self._began_at: float | None = None

    def __call__(self, _stage: Stage, _transaction: Transaction) -> None:
        if not self._steps:
            return
        now = self._now()
        if self._began_at is None:
            self._began_at = now
        while self._steps and now - self._began_at >= self._steps[0][0]:
            _, step = self._steps.popleft()
            step(self._twin)


def _policy(policy: Policy) -> Callable[[Twin], None]:
    """The step after which ``policy`` rules."""

    def step(twin: Twin) -> None:
        twin.policy = policy

    return step


def _credentials(*, valid: bool) -> Callable[[Twin], None]:
    """The step after which logins fare so."""

    def step(twin: Twin) -> None:
        twin.credentials_valid = valid

    return step


def _temporary(_chance: random.Random, now: Callable[[], float]) -> Fault:
    """Bursts at the dot in both wordings, and at AUTH."""
    ways = (
        (Stage.DOT, texts.TEMPORARY_454),
        (Stage.DOT, texts.TEMPORARY_451),
        (Stage.AUTH, texts.AUTH_TEMPORARY),
    )
    return weather.either(
        *(
            weather.bursts(
                now, weather.at(stage, Say(text)), every_s=20, lasting_s=3, after_s=5 + 5 * n
            )
            for n, (stage, text) in enumerate(ways)
        )
    )


def _links(chance: random.Random, _now: Callable[[], float]) -> Fault:
    """Every stage once in a while; two parts at the dot, for both outcomes."""
    cut = Cut(reset=True)
    rare: dict[Stage, float] = dict.fromkeys(Stage, 0.003) | {
        Stage.CONNECT: 0.05,
        Stage.EHLO: 0.02,
        Stage.STARTTLS: 0.02,
        Stage.TLS: 0.02,
        Stage.AUTH: 0.02,
    }
    return weather.either(
        weather.sometimes(chance, {Stage.TLS: (0.02, Say("HTTP/1.1 400 Bad Request"))}),
        weather.sometimes(chance, {Stage.DOT: (0.003, Cut(reset=True, done=True))}),
        weather.sometimes(chance, {stage: (share, cut) for stage, share in rare.items()}),
    )


def _outage(_chance: random.Random, now: Callable[[], float]) -> Fault:
    """Everything is cut for ten seconds, then again half a minute later."""
    cut = Cut(reset=True)
    return weather.bursts(now, lambda *_: cut, every_s=30, lasting_s=10, after_s=10)


_BASE = TwinConfig(rate_per_s=50)
_FREE = Policy()

SCENARIOS: dict[str, Scenario] = {
    "raise": Scenario(
        words="The limit of 14/s is doubled 15 s after the first message, and again after 30 s.",
        config=replace(_BASE, rate_per_s=14, rate_changes=((15, 28), (30, 56))),
    ),
    "cut": Scenario(
        words="The limit of 40/s falls to 20/s after 15 s, and to 10/s after 30 s.",
        config=replace(_BASE, rate_per_s=40, rate_changes=((15, 20), (30, 10))),
    ),
    "noise": Scenario(
        words="One message in 200 is refused for its rate although there is room.",
        config=replace(_BASE, noise=0.005),
    ),
    "foreign": Scenario(
        words="Somebody else sends 10/s of the account's 50/s, twenty at a time.",
        config=replace(_BASE, foreign=Foreign(rate_per_s=10, burst=20)),
    ),
    "window": Scenario(
        words="The limit of 50/s is counted in fixed seconds in place of a bucket.",
        config=replace(_BASE, window=True),
    ),
    "effective": Scenario(
        words="Of a nominal 50/s only 80 % are really accepted, in bursts, too.",
        config=replace(_BASE, effective=0.8),
    ),
    "charged": Scenario(
        words="What is refused for its rate costs as much as what is accepted.",
        config=replace(_BASE, rejected_cost=1),
    ),
    "sigv2": Scenario(
        words="14/s, refused in the words for credentials from before 2019.",
        config=replace(_BASE, rate_per_s=14, sigv2_text=True),
    ),
    "quota": Scenario(
        words="A quota of 400 is soon spent; its day lasts 30 s, so that room comes back in steps.",
        config=replace(_BASE, rate_per_s=25, quota=400, quota_speed=2880),
    ),
    "sandbox": Scenario(
        words="A new account: 1/s, 200 a day, and only example.com may send or be sent to.",
        config=replace(
            _BASE,
            rate_per_s=1,
            quota=200,
            policy=Policy(sandbox=True, verified=frozenset({"example.com"})),
        ),
    ),
    "paused": Scenario(
        words="The account is paused 10 s after the first connection and goes on 20 s later.",
        config=_BASE,
        steps=((10, _policy(Policy(paused=True))), (30, _policy(_FREE))),
    ),
    "denied": Scenario(
        words="Access is denied (IAM) from 10 s after the first connection until 30 s.",
        config=_BASE,
        steps=((10, _policy(Policy(denied=True))), (30, _policy(_FREE))),
    ),
    "unverified": Scenario(
        words="All identities lose their verification after 10 s and have it back after 30 s.",
        config=_BASE,
        steps=((10, _policy(Policy(verified=frozenset()))), (30, _policy(_FREE))),
    ),
    "headers": Scenario(
        words="A second Content-Type (or its kin) is refused, as is any configuration set.",
        config=replace(_BASE, policy=Policy(configuration_sets=frozenset())),
    ),
    "expired-credentials": Scenario(
        words="Logins are refused with 535 for 20 s after the first connection, then all is well.",
        config=replace(_BASE, credentials_valid=False),
        steps=((20, _credentials(valid=True)),),
    ),
    "caps": Scenario(
        words="Four connections of 10-30 messages and 5-20 s, which end in every way there is.",
        config=replace(
            _BASE,
            connections_max=4,
            session_messages=(10, 30),
            session_text="too-many",
            session_age_s=(5, 20),
            session_end=Farewell.ANY,
            idle_s=10,
        ),
    ),
    "slow": Scenario(
        words="Across the Pacific: 170 ms a reply, stalls of 1-10 s, every reply byte by byte.",
        config=replace(
            _BASE,
            latency=Latency(rtt_s=0.17, jitter=0.2, stall_share=0.005, stall_s=(1, 10)),
            bytewise=True,
        ),
    ),
    "odd": Scenario(
        words="STARTTLS is offered again inside TLS, and every reply comes byte by byte.",
        config=replace(_BASE, ehlo="odd", bytewise=True, session_text="too-many"),
    ),
    "temporary": Scenario(
        words="Temporary failures for 3 s at a time: 454 and 451 at the dot, 454 at AUTH.",
        config=_BASE,
        weather=_temporary,
    ),
    "links": Scenario(
        words="Links are reset at every stage now and then, after the dot with both outcomes.",
        config=_BASE,
        weather=_links,
    ),
    "outage": Scenario(
        words="Everything is cut off for 10 s, 10 s after the first connection and every 30 s.",
        config=_BASE,
        weather=_outage,
    ),
}
"""By the name that ``relay sandbox --scenario`` takes."""

"""Faults by plan and by probability, made of a few parts that fit into each other.

    either(
        at(Stage.DATA, Cut(reset=True), messages=range(3, 5)),
        first(20, at(Stage.DOT, Say(texts.TEMPORARY_454))),
        bursts(clock.monotonic, at(Stage.AUTH, Say(texts.AUTH_TEMPORARY)), every_s=60, lasting_s=5),
        sometimes(Random(1), {Stage.DOT: (0.01, Cut(done=True))}),
    )

Each part returns a ``Fault`` for ``Twin(fault=…)``. Time and chance are handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Container, Mapping

    from relay.twin.faults import Action, Fault, Stage, Transaction


def at(
    stage: Stage,
    action: Action,
    *,
    messages: Container[int] | None = None,
    sessions: Container[int] | None = None,
) -> Fault:
    """Strikes at ``stage``, if given only in those messages of a session, those sessions."""

    def fault(now: Stage, transaction: Transaction) -> Action | None:
        is_due = (
            now is stage
            and (messages is None or transaction.number in messages)
            and (sessions is None or transaction.session in sessions)
        )
        return action if is_due else None

    return fault


def sometimes(chance: random.Random, odds: Mapping[Stage, tuple[float, Action]]) -> Fault:
    """Strikes each time with the probability that its stage has.

    Raises ``ValueError`` for what is no probability.
    """
    for stage, (probability, _) in odds.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{stage}: found {probability}, wanted 0 to 1")

    def fault(now: Stage, _transaction: Transaction) -> Action | None:
        if now not in odds:
            return None
        probability, action = odds[now]
        return action if chance.random() < probability else None

    return fault


def while_(is_on: Callable[[], bool], fault: Fault) -> Fault:
    """``fault`` as long as the flag says so."""
    return lambda stage, transaction: fault(stage, transaction) if is_on() else None


def bursts(
    now: Callable[[], float],
    fault: Fault,
    *,
    every_s: float,
    lasting_s: float,
    after_s: float = 0.0,
) -> Fault:
    """``fault`` for ``lasting_s`` out of every ``every_s`` seconds.

    The first burst comes ``after_s`` seconds after this is first asked.
    """
    began: list[float] = []

    def is_on() -> bool:
        if not began:
            began.append(now())
        since = now() - began[0] - after_s
        return since >= 0 and since % every_s < lasting_s

    return while_(is_on, fault)


def first(n: int, fault: Fault) -> Fault:
    """``fault`` until it has struck ``n`` times."""
    return by_turns(n, None, fault)


def by_turns(strikes: int, rests: int | None, fault: Fault) -> Fault:
    """``fault`` strikes that often in a row, then lets that many pass; for ever if None."""
    count = 0

    def counted(stage: Stage, transaction: Transaction) -> Action | None:
        nonlocal count
        action = fault(stage, transaction)
        if action is None:
            return None
        turn = count if rests is None else count % (strikes + rests)
        count += 1
        return action if turn < strikes else None

    return counted


def either(*faults: Fault) -> Fault:
    """The first of ``faults`` that strikes; those behind it are not asked."""

    def fault(stage: Stage, transaction: Transaction) -> Action | None:
        for one in faults:
            action = one(stage, transaction)
            if action is not None:
                return action
        return None

    return fault

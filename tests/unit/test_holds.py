"""Holds as sets of sources: who may lift what."""

from __future__ import annotations

import pytest

from relay.breaker import (
    PROBE_LOST_MS,
    Hold,
    Holds,
    Source,
    account_key,
    campaign_key,
    configuration_set_key,
    in_doubt_key,
    sandbox_key,
    sender_key,
)

KEY = campaign_key("c1")


def hold(key: str = KEY, source: Source = Source.BREAKER, since_at: int = 1) -> Hold:
    return Hold(key, source, "because", since_at)


def test_keys_are_the_words_that_are_stored() -> None:
    """Keys stand in spools of earlier versions: they never change."""
    assert account_key("ses") == "account:ses"
    assert sender_key("ses", "a@x") == "sender:ses:a@x"
    assert configuration_set_key("ses", "main") == "configuration-set:ses:main"
    assert sandbox_key("ses") == "sandbox:ses"
    assert campaign_key("c1") == "campaign:c1"
    assert in_doubt_key("ses") == "in-doubt:ses"


def test_each_source_lifts_only_its_own() -> None:
    """What the operator holds stays held when the breaker lets go, and the other way round."""
    holds = Holds([hold(source=Source.OPERATOR), hold(source=Source.BREAKER)])

    lifted = holds.lift(KEY, Source.BREAKER)

    assert lifted
    assert holds.held(KEY)
    assert holds.sources(KEY) == {Source.OPERATOR}
    assert holds.lift(KEY, Source.OPERATOR)
    assert not holds.held(KEY)
    assert holds.sources(KEY) == frozenset()
    assert not holds


def test_lifting_what_is_not_held_says_so() -> None:
    """The answer tells a command whether it changed anything."""
    holds = Holds([hold(source=Source.LISTMONK)])

    assert not holds.lift(KEY, Source.BREAKER)
    assert not holds.lift("campaign:other", Source.LISTMONK)
    assert not holds.lift_all(KEY, [Source.OPERATOR, Source.BREAKER])
    assert holds.held(KEY)


@pytest.mark.parametrize("sources", [tuple(Source), (Source.OPERATOR, Source.BREAKER)])
def test_lift_all_ends_each_of_the_sources(sources: tuple[Source, ...]) -> None:
    """An operator's release ends the breaker's hold with his own, all in one go."""
    holds = Holds([hold(source=Source.OPERATOR), hold(source=Source.BREAKER)])

    assert holds.lift_all(KEY, sources)
    assert not holds.held(KEY)


def test_lift_all_means_everybody_by_default() -> None:
    """Listmonk's hold goes, too, if nobody is named."""
    holds = Holds([hold(source=source) for source in Source])

    assert holds.lift_all(KEY)
    assert not holds.held(KEY)


def test_newer_hold_of_a_source_replaces_its_older() -> None:
    """One source has one hold on one key."""
    holds = Holds([hold(since_at=1)])

    holds.add(hold(since_at=2))

    assert holds.all() == [hold(since_at=2)]
    assert holds.get(KEY, Source.BREAKER) == hold(since_at=2)
    assert holds.get(KEY, Source.OPERATOR) is None


def test_list_is_the_oldest_first() -> None:
    """Status shows what has waited longest at the top."""
    late = hold("campaign:a", Source.OPERATOR, since_at=9)
    early = hold("campaign:b", Source.BREAKER, since_at=3)
    holds = Holds([late, early])

    assert holds.all() == [early, late]
    assert holds.of(Source.OPERATOR) == [late]


def test_campaign_and_account_are_asked_by_name() -> None:
    """Lanes ask by campaign, the dispatcher by upstream; mail without a campaign is never held."""
    holds = Holds([hold(campaign_key("c1")), hold(account_key("ses")), hold(campaign_key(""))])

    assert holds.campaign_held("c1")
    assert not holds.campaign_held("c2")
    assert not holds.campaign_held("")
    assert holds.account_held("ses")
    assert not holds.account_held("other")


def test_probe_is_one_at_a_time() -> None:
    """A probe is under way from its start to its end, and ends once."""
    holds = Holds([hold()])

    assert not holds.probing(KEY, now_ms=10)
    holds.probe_started(KEY, now_ms=10)
    assert holds.probing(KEY, now_ms=10)
    assert holds.probe_ended(KEY)
    assert not holds.probe_ended(KEY)
    assert not holds.probing(KEY, now_ms=10)


def test_probe_that_was_never_heard_of_is_given_up() -> None:
    """No envelope that vanished keeps its key held for ever, nor does a clock set back."""
    holds = Holds([hold()])

    holds.probe_started(KEY, now_ms=PROBE_LOST_MS)

    assert holds.probing(KEY, now_ms=2 * PROBE_LOST_MS - 1)
    assert not holds.probing(KEY, now_ms=2 * PROBE_LOST_MS)
    assert not holds.probing(KEY, now_ms=0)


def test_lifting_the_breaker_forgets_its_probe() -> None:
    """A key that is held anew may be probed anew; another source's lift changes nothing."""
    holds = Holds([hold(), hold(source=Source.OPERATOR)])
    holds.probe_started(KEY, now_ms=1)

    holds.lift(KEY, Source.OPERATOR)
    assert holds.probing(KEY, now_ms=1)
    holds.lift(KEY, Source.BREAKER)

    assert not holds.probing(KEY, now_ms=1)

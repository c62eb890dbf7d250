"""Every figure has a name that says its room and unit, and a line of help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.figures import PHASES, KnownBy
from relay.metrics import UNKNOWN_MAX, Metrics
from relay.reply import Stage
from relay.verdict import Kind
from tests.fakes.figures import figures, hold, room, stream, upstream
from tests.fakes.mail import envelope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.figures import Figures

ROOMS = "listener|dispatcher|verdict|upstream|service|spool|breaker|shaper|quota"
NAME = re.compile(rf"relay_(?:{ROOMS})(?:_[a-z]+)+|relay_build_info")


def samples(
    metrics: Metrics, shown: Figures
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scrape finds, by name and labels."""
    text = metrics.exposition(shown).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(
    found: Mapping[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str
) -> float | None:
    return found.get((name, tuple(sorted(labels.items()))))


def busy() -> Metrics:
    """Metrics in which everything happened once."""
    metrics = Metrics()
    metrics.received(envelope(1, campaign="c", cost=3))
    metrics.refused(452)
    metrics.stalled(begins=True)
    metrics.connection(+1)
    metrics.accept_seconds(0.02)
    metrics.committed(0.004, 17)
    metrics.attempted(0.3)
    for kind in Kind:
        metrics.judged(kind.value, Stage.DOT, "text", known=kind is not Kind.DEFERRED)
        metrics.settled("ses", kind.value, 2)
    metrics.expired("ses", 4)
    metrics.failed("dispatcher")
    metrics.limit_changed("ses", "found")
    return metrics


def test_every_name_says_room_and_unit_and_every_metric_has_help() -> None:
    """``relay_<room>_<noun>_<unit>``, ``_total`` on what only grows, and a sentence each."""
    text = busy().exposition(figures()).decode()

    families = list(text_string_to_metric_families(text))
    assert len(families) > 25
    for family in families:
        assert NAME.fullmatch(family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert len(family.documentation) > 8, family.name
        if family.name.endswith("_created"):
            continue
        names = {sample.name for sample in family.samples}
        grows = family.type == "counter"
        assert any(name.endswith("_total") for name in names) is grows, family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_labels_are_few_and_never_come_from_mail() -> None:
    """No address, campaign or text of a reply becomes a label: those are without bound."""
    known = {"upstream", "lane", "state", "verdict", "stage", "source", "room", "code", "le"}
    known |= {"phase", "cause"}

    found = samples(busy(), figures(streams=(stream("secret-campaign", 1),)))

    labels = {label for _, pairs in found for label in pairs}
    assert {name for name, _ in labels} <= known | {"version", "python"}
    assert not [value for _, value in labels if "secret-campaign" in value or "@" in value]
    assert {value for name, value in labels if name == "verdict"} == {kind.value for kind in Kind}


def test_events_are_counted_where_they_belong() -> None:
    """Messages by one, recipients by cost, and the same again in ``totals``."""
    metrics = busy()

    found = samples(metrics, figures())

    assert value(found, "relay_listener_messages_total", lane="bulk") == 1
    assert value(found, "relay_listener_recipients_total", lane="bulk") == 3
    assert value(found, "relay_listener_refusals_total", code="452") == 1
    assert value(found, "relay_listener_stalls_total") == 1
    assert value(found, "relay_listener_stalled_clients") == 1
    assert value(found, "relay_listener_connections") == 1
    assert value(found, "relay_listener_accept_seconds_sum") == pytest.approx(0.02)
    assert value(found, "relay_spool_commit_seconds_count") == 1
    assert value(found, "relay_spool_commit_seconds_sum") == pytest.approx(0.004)
    assert value(found, "relay_upstream_attempt_seconds_sum") == pytest.approx(0.3)
    assert value(found, "relay_dispatcher_messages_total", upstream="ses", verdict="sent") == 1
    assert value(found, "relay_dispatcher_recipients_total", upstream="ses", verdict="sent") == 2
    assert value(found, "relay_verdict_replies_total", verdict="sent", stage="dot") == 1
    assert value(found, "relay_verdict_unknown_replies_total", stage="dot") == 1
    assert value(found, "relay_dispatcher_expired_recipients_total", upstream="ses") == 4
    assert value(found, "relay_service_failures_total", room="dispatcher") == 1
    assert value(found, "relay_shaper_limit_changes_total", upstream="ses", cause="found") == 1
    assert metrics.totals == {
        "received": 3,
        "refused": 1,
        "attempts": 1,
        "expired": 4,
        "failures": 1,
        **{kind.value: 2 for kind in Kind},
    }


def test_stall_ends_and_client_leaves() -> None:
    """What counts those present goes down again; the number of stalls does not."""
    metrics = busy()

    metrics.stalled(begins=False)
    metrics.connection(-1)

    found = samples(metrics, figures())
    assert value(found, "relay_listener_stalled_clients") == 0
    assert value(found, "relay_listener_connections") == 0
    assert value(found, "relay_listener_stalls_total") == 1


def test_states_are_those_of_the_figures() -> None:
    """Read off the same value that ``status`` shows: they cannot disagree."""
    shown = figures(
        paused=True,
        streams=(stream("a", 5, 2), stream("b", 7, 0, 1)),
        holds=(hold("campaign:a"), hold("campaign:b"), hold("account:ses", "operator")),
        room=room(used_bytes=11, free_bytes=44, stalled_s=3.5),
    )

    found = samples(Metrics(), shown)

    depth = {
        state: value(
            found, "relay_spool_depth_recipients", upstream="ses", lane="bulk", state=state
        )
        for state in ("waiting", "parked", "quarantined")
    }
    assert depth == {"waiting": 12, "parked": 2, "quarantined": 1}
    assert value(found, "relay_spool_used_bytes") == 11
    assert value(found, "relay_spool_free_bytes") == 44
    assert value(found, "relay_spool_stalled_seconds") == 3.5
    assert value(found, "relay_dispatcher_paused") == 1
    by_source = {
        source: value(found, "relay_breaker_holds", source=source)
        for source in ("operator", "listmonk", "breaker")
    }
    assert by_source == {"operator": 1, "listmonk": 0, "breaker": 2}
    wanted = {
        "relay_shaper_rate_per_second": 12.5,
        "relay_shaper_limit_per_second": 14,
        "relay_shaper_limit_error_ratio": 0.005,
        "relay_shaper_limit_confirmed_seconds": 40,
        "relay_shaper_burst_recipients": 28,
        "relay_shaper_noise_ratio": 0.001,
        "relay_shaper_refused_ratio": 0.25,
        "relay_upstream_session_bound": 0,
        "relay_upstream_sessions": 7,
        "relay_upstream_busy_sessions": 5,
        "relay_upstream_sessions_ceiling": 200,
        "relay_quota_used_recipients": 900,
        "relay_quota_left_recipients": 100,
    }
    assert {name: value(found, name, upstream="ses") for name in wanted} == wanted


def test_oldest_age_is_the_greatest_of_the_lanes_streams() -> None:
    """By lane, not by campaign; a lane in which nothing waits has no age, and none is negative."""
    shown = figures(
        now=100_000,
        streams=(
            stream("a", 1, oldest_at=90_000),
            stream("b", 1, oldest_at=40_000),
            stream("c", 1, oldest_at=70_000),
            stream("d", 0, 3),
            stream("", 0, 1, lane="priority"),
            stream("e", 1, lane="other", oldest_at=100_001),
        ),
    )

    found = samples(Metrics(), shown)

    name = "relay_spool_oldest_seconds"
    assert value(found, name, upstream="ses", lane="bulk") == 60
    assert value(found, name, upstream="ses", lane="priority") is None
    assert value(found, name, upstream="ses", lane="other") == 0


def test_next_scrape_forgets_the_last_one() -> None:
    """A stream that is empty, a hold that is lifted, an upstream that is gone: no old numbers."""
    metrics = Metrics()
    before = figures(streams=(stream("a", 5, oldest_at=1),), holds=(hold("campaign:a"),))
    samples(metrics, before)

    found = samples(metrics, figures(upstreams=(upstream(name="other"),)))

    labels = {"upstream": "ses", "lane": "bulk", "state": "waiting"}
    assert value(found, "relay_spool_depth_recipients", **labels) is None
    assert value(found, "relay_spool_oldest_seconds", upstream="ses", lane="bulk") is None
    assert value(found, "relay_breaker_holds", source="breaker") == 0
    assert value(found, "relay_shaper_rate_per_second", upstream="ses") is None
    assert value(found, "relay_shaper_rate_per_second", upstream="other") == 12.5


def test_what_is_not_known_is_absent() -> None:
    """0 left of the quota is an alarm, not to know it is none; a true 0 is shown."""
    shown = figures(upstreams=(upstream(limit_per_s=None, quota_left=None, quota_used=0),))

    found = samples(Metrics(), shown)

    assert value(found, "relay_quota_left_recipients", upstream="ses") is None
    assert value(found, "relay_shaper_limit_per_second", upstream="ses") is None
    assert value(found, "relay_quota_used_recipients", upstream="ses") == 0


def test_unknown_replies_are_counted_by_text_and_bounded() -> None:
    """A server that invents a text for each message does not fill the memory."""
    metrics = Metrics()

    for n in range(3 * UNKNOWN_MAX):
        metrics.judged("deferred", Stage.DOT, f"451 trouble {n}", known=False)
    for _ in range(4):
        metrics.judged("deferred", Stage.DOT, "451 trouble 0", known=False)

    assert len(metrics.unknown) == UNKNOWN_MAX
    assert metrics.unknown["451 trouble 0"] == 5
    found = samples(metrics, figures())
    counted = value(found, "relay_verdict_unknown_replies_total", stage="dot")
    assert counted == 3 * UNKNOWN_MAX + 4


def test_known_replies_are_not_listed() -> None:
    """``unknown`` is for texts that somebody must look at."""
    metrics = Metrics()

    metrics.judged("sent", Stage.DOT, "250 Ok", known=True)

    assert not metrics.unknown


@pytest.mark.parametrize("phase", PHASES)
def test_phase_is_a_series_each_of_which_one_is_1(phase: str) -> None:
    """So that a graph can stack them and an alarm name one."""
    found = samples(Metrics(), figures(upstreams=(upstream(phase=phase),)))

    shown = {one: value(found, "relay_shaper_phase", upstream="ses", phase=one) for one in PHASES}
    assert shown == {**dict.fromkeys(PHASES, 0), phase: 1}


@pytest.mark.parametrize(
    ("known_by", "known_at", "seconds"),
    [
        (KnownBy.CONFIRMED, 60_000, 40),
        (KnownBy.REMEMBERED, 60_000, 40),
        (KnownBy.CONFIRMED, 100_500, 0),
        (KnownBy.CONFIRMED, None, None),
        (KnownBy.OPERATOR, 60_000, None),
        (KnownBy.AWS, 60_000, None),
        (KnownBy.ESTIMATED, 60_000, None),
        (KnownBy.NOBODY, None, None),
    ],
)
def test_only_what_replies_confirmed_has_an_age(
    known_by: KnownBy, known_at: int | None, seconds: float | None
) -> None:
    """What somebody said is no confirmation, and a clock set back makes no negative age."""
    one = upstream(known_by=known_by.value, known_at=known_at)

    found = samples(Metrics(), figures(now=100_000, upstreams=(one,)))

    assert value(found, "relay_shaper_limit_confirmed_seconds", upstream="ses") == seconds


def test_changes_of_a_limit_are_counted_from_0() -> None:
    """A series that appears with its first change would hide it from ``increase``."""
    metrics = Metrics()
    metrics.watch_limit("ses", ["found", "raised"])
    metrics.limit_changed("ses", "raised")

    found = samples(metrics, figures())

    name = "relay_shaper_limit_changes_total"
    assert value(found, name, upstream="ses", cause="found") == 0
    assert value(found, name, upstream="ses", cause="raised") == 1

"""What the page says of the figures."""

from __future__ import annotations

import json
import shlex

import pytest

from relay.dashboard.view import (
    EVENTS_MAX,
    HOLDS_MAX,
    REPLIES_MAX,
    STREAMS_MAX,
    TEXT_MAX,
    Glance,
    glance,
    release_command,
    view,
)
from tests.fakes.figures import event, figures, hold, room, stream, upstream

ONE = {"streams": (stream("a", 1),)}
MANY = {"streams": (stream("a", 1200, parked=34),)}
SENDING = "sending 11.0 a second; limit 14"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({}, Glance("good", SENDING)),
        (
            {"upstreams": (upstream(limit_per_s=None),)},
            Glance("good", "sending 11.0 a second; limit not known yet"),
        ),
        (
            {"upstreams": (upstream(sent_per_s=47.84, limit_per_s=50.26),)},
            Glance("good", "sending 47.8 a second; limit 50.3"),
        ),
        (
            {"upstreams": (upstream(), upstream(name="b"))},
            Glance("good", "sending 22.0 a second; limit 28"),
        ),
        (
            {"upstreams": (upstream(), upstream(name="b", limit_per_s=None))},
            Glance("good", "sending 22.0 a second; limit not known yet"),
        ),
        (
            {"upstreams": (upstream(), upstream(name="b", session_bound=True))},
            Glance("good", "sending 22.0 a second, session-bound; limit 28"),
        ),
        (
            {"holds": (hold("campaign:a"),)},
            Glance("good", f"{SENDING}; 1 hold, see below"),
        ),
        ({"paused": True, **MANY}, Glance("note", "paused: 1,234 recipients wait")),
        ({"paused": True, **ONE}, Glance("note", "paused: 1 recipient waits")),
        ({"draining": True}, Glance("note", "stopping: finishing what is under way")),
        (
            {"room": room(stalled_s=3.0)},
            Glance("bad", "stalled: no room in the spool, clients wait; make room on the disk"),
        ),
        (
            {"upstreams": (upstream(doing="unreachable: connection refused"),)},
            Glance("bad", "ses not reachable: connection refused"),
        ),
        (
            {"upstreams": (upstream(doing="unreachable: no route"), upstream(name="b"))},
            Glance("bad", "ses not reachable: no route; sending 22.0 a second; limit 28"),
        ),
        (
            {"upstreams": (upstream(doing="stopped: see the log"),)},
            Glance("bad", "ses stopped: see the log"),
        ),
        (
            {
                "upstreams": (upstream(doing="held", sent_per_s=0.0),),
                "holds": (hold("account:ses", reason="535 bad login"),),
            },
            Glance("bad", "held: account:ses: 535 bad login"),
        ),
        (
            {
                "upstreams": (upstream(doing="held", sent_per_s=0.0), upstream(name="b")),
                "holds": (hold("account:ses", reason="535 bad login"),),
            },
            Glance("bad", "held: account:ses: 535 bad login; sending 11.0 a second; limit 28"),
        ),
        (
            {"upstreams": (upstream(doing="quota", sent_per_s=0.0),), **ONE},
            Glance("note", "daily quota of ses spent: 1 recipient waits"),
        ),
        (
            {
                "upstreams": (upstream(doing="waiting: all is held", sent_per_s=0.0),),
                "holds": (hold("campaign:a", reason="by an operator"), hold("campaign:b")),
                **ONE,
            },
            Glance("bad", "held: campaign:a and 1 more: by an operator"),
        ),
        (
            {"upstreams": (upstream(doing="connecting", sent_per_s=0.0),), **ONE},
            Glance("note", "connecting (1 recipient waits)"),
        ),
        (
            {"upstreams": (upstream(doing="idle", sent_per_s=0.0),)},
            Glance("good", "nothing waits"),
        ),
        (
            {"upstreams": (upstream(doing="idle", sent_per_s=5.0),)},
            Glance("good", "nothing waits"),
        ),
        (
            {"upstreams": (upstream(doing="session-bound"),), **ONE},
            Glance("good", SENDING),
        ),
        ({"upstreams": (), **ONE}, Glance("note", "no upstream (1 recipient waits)")),
    ],
)
def test_one_sentence_says_how_it_is(facts: dict[str, object], wanted: Glance) -> None:
    """In words that need no other figure beside them."""
    assert glance(figures(**facts)) == wanted


def test_worst_is_said_first() -> None:
    """A full disk matters more than an account that is held, and that more than a campaign."""
    facts: dict[str, object] = {
        "upstreams": (upstream(doing="unreachable: no route", sent_per_s=0.0),),
        "holds": (hold("account:ses"),),
    }

    assert glance(figures(room=room(stalled_s=1.0), paused=True, **facts)).text[:7] == "stalled"
    assert glance(figures(paused=True, **facts)).text[:6] == "paused"
    assert glance(figures(**facts)).text[:17] == "ses not reachable"


@pytest.mark.parametrize(
    ("source", "more"), [("operator", []), ("breaker", []), ("listmonk", ["--source", "listmonk"])]
)
@pytest.mark.parametrize(
    "key",
    ["account:ses", "sender:ses:news@example.com", "campaign:$(reboot)'; \"`x`\n<b>", "campaign:é"],
)
def test_release_command_is_safe_to_paste(key: str, source: str, more: list[str]) -> None:
    """A campaign's name comes from outside; the shell must take it as one word."""
    command = release_command(hold(key, source))

    assert shlex.split(command) == ["relay", "queue", "release", key, *more]


def test_view_holds_all_the_figures() -> None:
    """Beside what is said of them."""
    given = figures(streams=(stream("a", 3, oldest_at=1),), totals={"sent": 5})

    shown = view(given)

    assert shown["glance"] == {"level": "good", "text": SENDING}
    assert shown["streams_more"] == shown["holds_more"] == 0
    assert _as_json({key: shown[key] for key in given.as_json()}) == _as_json(given.as_json())


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_lanes_are_summed_over_streams() -> None:
    """With the age of the oldest, where one is known."""
    given = figures(
        streams=(
            stream("a", 1, 2, 3, oldest_at=70),
            stream("b", 10, 20, 30, oldest_at=50),
            stream("c", 100, oldest_at=None),
            stream("", 5, lane="a first"),
        )
    )

    assert view(given)["lanes"] == [
        {"lane": "a first", "waiting": 5, "parked": 0, "quarantined": 0, "oldest_at": None},
        {"lane": "bulk", "waiting": 111, "parked": 22, "quarantined": 33, "oldest_at": 50},
    ]


def test_event_stays_small_however_much_there_is() -> None:
    """The largest streams and the first holds are shown, the others counted; lanes count all."""
    many = STREAMS_MAX + 7
    given = figures(
        streams=tuple(stream(f"{n}", n) for n in range(many)),
        holds=tuple(hold(f"campaign:{n}", reason="x" * 10_000) for n in range(HOLDS_MAX + 3)),
        unknown_replies={f"{n}" + "x" * 10_000: n for n in range(REPLIES_MAX + 5)},
        events=tuple(event(f"{n:03}" + "x" * 10_000) for n in range(EVENTS_MAX + 5)),
    )

    shown = view(given)

    assert [one["waiting"] for one in shown["streams"]] == list(range(many - 1, 6, -1))
    assert (shown["streams_more"], shown["holds_more"]) == (7, 3)
    assert shown["lanes"][0]["waiting"] == sum(range(many))
    shown_events = [int(one["text"][:3]) for one in shown["events"]]
    assert shown_events == list(range(5, EVENTS_MAX + 5))
    assert {len(one["text"]) for one in shown["events"]} == {TEXT_MAX}
    assert {len(one["reason"]) for one in shown["holds"]} == {TEXT_MAX}
    assert list(shown["unknown_replies"].values()) == list(range(REPLIES_MAX + 4, 4, -1))
    assert len(json.dumps(shown)) < 100_000

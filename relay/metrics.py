"""What the relay counts, for Prometheus.

The one door to prometheus_client. Two kinds of figures: *events*, which the rooms report
as they happen through the methods below, and *states*, which are read off a ``Figures``
value at the moment of a scrape, so that they can never disagree with ``relay status``.
Names are ``relay_<room>_<noun>_<unit>[_total]``; label values come from enums, lane names
and upstream names, never from mail.

Invariant: each event method costs microseconds and cannot fail.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from relay import __version__
from relay.figures import PHASES, KnownBy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relay.envelope import Envelope
    from relay.figures import Figures
    from relay.reply import Stage

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
"""Bounds of the histograms: from a commit on a fast disk to SES's longest wait after the dot
(RFC 5321 §4.5.3.2.6: ten minutes), dense where a healthy relay is (5 ms to 1 s)."""

_BY_UPSTREAM = {
    "rate_per_s": ("relay_shaper_rate_per_second", "Recipients a second aimed at."),
    "limit_per_s": ("relay_shaper_limit_per_second", "Learned limit; absent until known."),
    "error_share": (
        "relay_shaper_limit_error_ratio",
        "Likely error of the learned limit as a share of it; 1 is a guess.",
    ),
    "refused_share": (
        "relay_shaper_refused_ratio",
        "Share throttled of the last 1,000 recipients tried.",
    ),
    "noise_share": (
        "relay_shaper_noise_ratio",
        "Share of recipients throttled that no limit explains.",
    ),
    "burst": (
        "relay_shaper_burst_recipients",
        "Recipients that pass above the limit in a burst; absent until seen.",
    ),
    "session_bound": (
        "relay_upstream_session_bound",
        "1 while sessions, not the rate, hold sending back.",
    ),
    "sessions_open": ("relay_upstream_sessions", "Open sessions."),
    "sessions_busy": ("relay_upstream_busy_sessions", "Sessions with a message under way."),
    "sessions_ceiling": ("relay_upstream_sessions_ceiling", "Sessions allowed now."),
    "quota_used": ("relay_quota_used_recipients", "Recipients sent in the last 24 hours."),
    "quota_left": (
        "relay_quota_left_recipients",
        "Left of the daily quota; absent if unknown.",
    ),
}
"""The gauges of each upstream: field of its figures, name of the metric, line of help."""

_CONFIRMED = frozenset({KnownBy.CONFIRMED, KnownBy.REMEMBERED})

UNKNOWN_MAX = 100
"""Texts of unknown replies that are kept: more than anybody reads, and a server that invents
one for each message does not fill the memory."""


class Metrics:
    """Every metric of one relay, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.totals: Tally[str] = Tally()
        """The same events as plain numbers, for ``status``."""
        self.unknown: Tally[str] = Tally()
        """Replies that no row of the verdict table knows, by text (at most ``UNKNOWN_MAX``)."""
        self._listener_events()
        self._dispatcher_events()
        self._states()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=_SECONDS)

    def _listener_events(self) -> None:
        self._received_messages = self._counter(
            "relay_listener_messages_total", "Messages accepted from clients.", "lane"
        )
        self._received_recipients = self._counter(
            "relay_listener_recipients_total", "Recipients accepted from clients.", "lane"
        )
        self._refusals = self._counter(
            "relay_listener_refusals_total", "Replies of 4xx or 5xx given to clients.", "code"
        )
        self._stalls = self._counter(
            "relay_listener_stalls_total", "Times a client had to wait for room in the spool."
        )
        self._stalled = self._gauge(
            "relay_listener_stalled_clients", "Clients that wait for room in the spool now."
        )
        self._connections = self._gauge("relay_listener_connections", "Open client connections.")
        self._accept = self._histogram(
            "relay_listener_accept_seconds", "From the end of a message to its durable 250."
        )

    def _dispatcher_events(self) -> None:
        self._recipients = self._counter(
            "relay_dispatcher_recipients_total",
            "Recipients by what an attempt came to.",
            "upstream",
            "verdict",
        )
        self._messages = self._counter(
            "relay_dispatcher_messages_total",
            "Messages by what an attempt came to.",
            "upstream",
            "verdict",
        )
        self._expired = self._counter(
            "relay_dispatcher_expired_recipients_total",
            "Recipients given up because their mail became too old.",
            "upstream",
        )
        self._replies = self._counter(
            "relay_verdict_replies_total", "Judged upstream replies.", "verdict", "stage"
        )
        self._unknown = self._counter(
            "relay_verdict_unknown_replies_total",
            "Upstream replies that no row of the verdict table knows.",
            "stage",
        )
        self._commit = self._histogram(
            "relay_spool_commit_seconds", "How long it took to write one batch to disk."
        )
        self._upstream = self._histogram(
            "relay_upstream_attempt_seconds", "From MAIL to the reply that decided."
        )
        self._limit_changes = self._counter(
            "relay_shaper_limit_changes_total",
            "Changes of the learned limit, by what caused them.",
            "upstream",
            "cause",
        )
        self._failures = self._counter(
            "relay_service_failures_total", "Surprises inside the relay that were logged.", "room"
        )

    def _states(self) -> None:
        build = self._gauge("relay_build_info", "Always 1.", "version", "python")
        build.labels(__version__, platform.python_version()).set(1)
        self._depth = self._gauge(
            "relay_spool_depth_recipients", "Recipients in the spool.", "upstream", "lane", "state"
        )
        self._oldest = self._gauge(
            "relay_spool_oldest_seconds",
            "Age of the mail next in turn; absent while none waits.",
            "upstream",
            "lane",
        )
        self._used = self._gauge("relay_spool_used_bytes", "Bytes of the spool that hold mail.")
        self._free = self._gauge("relay_spool_free_bytes", "Bytes free on the spool's disk.")
        self._stalled_for = self._gauge(
            "relay_spool_stalled_seconds", "How long intake has stalled for want of room; 0: flows."
        )
        self._paused = self._gauge("relay_dispatcher_paused", "1 while an operator has paused.")
        self._holds = self._gauge("relay_breaker_holds", "Holds in force.", "source")
        self._upstream_states()

    def _upstream_states(self) -> None:
        self._phase = self._gauge(
            "relay_shaper_phase", "1 for what the shaper does now, else 0.", "upstream", "phase"
        )
        self._confirmed = self._gauge(
            "relay_shaper_limit_confirmed_seconds",
            "Since replies last confirmed the limit; absent while they have not.",
            "upstream",
        )
        self._by_upstream = {
            field: self._gauge(name, text, "upstream")
            for field, (name, text) in _BY_UPSTREAM.items()
        }

    # Events of the listener (its ``Observer``).

    def received(self, envelope: Envelope) -> None:
        """One envelope was committed and answered with 250."""
        self._received_messages.labels(envelope.lane).inc()
        self._received_recipients.labels(envelope.lane).inc(envelope.cost)
        self.totals["received"] += envelope.cost

    def refused(self, code: int) -> None:
        """A client was told 4xx or 5xx."""
        self._refusals.labels(str(code)).inc()
        self.totals["refused"] += 1

    def stalled(self, begins: bool) -> None:  # noqa: FBT001  # the observer's face: begins or ends
        """A client begins, or ends, to wait for room."""
        if begins:
            self._stalls.inc()
            self._stalled.inc()
        else:
            self._stalled.dec()

    def connection(self, change: int) -> None:
        """A client connected (+1) or left (-1)."""
        self._connections.inc(change)

    def accept_seconds(self, seconds: float) -> None:
        """How long a client waited for the answer to its final dot."""
        self._accept.observe(seconds)

    # Events of the spool.

    def committed(self, seconds: float, jobs: int) -> None:  # noqa: ARG002  # the spool's face
        """One batch of ``jobs`` was written and synced."""
        self._commit.observe(seconds)

    # Events of the dispatcher, and of any room.

    def attempted(self, seconds: float) -> None:
        """One attempt came to its end after ``seconds``."""
        self._upstream.observe(seconds)
        self.totals["attempts"] += 1

    def judged(self, verdict: str, stage: Stage, text: str, *, known: bool) -> None:
        """A reply was given its meaning; a text nobody knows is kept to be shown."""
        self._replies.labels(verdict, stage.value).inc()
        if known:
            return
        self._unknown.labels(stage.value).inc()
        if text in self.unknown or len(self.unknown) < UNKNOWN_MAX:
            self.unknown[text] += 1

    def settled(self, upstream: str, verdict: str, recipients: int) -> None:
        """So many recipients of one message came to this."""
        self._messages.labels(upstream, verdict).inc()
        self._recipients.labels(upstream, verdict).inc(recipients)
        self.totals[verdict] += recipients

    def expired(self, upstream: str, recipients: int) -> None:
        """So many recipients of one message were given up: it became too old for its lane."""
        self._expired.labels(upstream).inc(recipients)
        self.totals["expired"] += recipients

    def watch_limit(self, upstream: str, causes: Iterable[str]) -> None:
        """Count changes of this limit from 0, by cause: what begins at 1 shows no increase."""
        for cause in causes:
            self._limit_changes.labels(upstream, cause)

    def limit_changed(self, upstream: str, cause: str) -> None:
        """The learned limit of an upstream moved; ``cause`` is a name of ``shaper.Cause``."""
        self._limit_changes.labels(upstream, cause).inc()

    def failed(self, room: str) -> None:
        """A surprise was caught in a loop of ``room``, logged, and survived."""
        self._failures.labels(room).inc()
        self.totals["failures"] += 1

    # States.

    def exposition(self, figures: Figures) -> bytes:
        """The text of ``/metrics``, states taken from ``figures``."""
        self._expose_streams(figures)
        self._used.set(figures.room.used_bytes)
        self._free.set(figures.room.free_bytes)
        self._stalled_for.set(figures.room.stalled_s)
        self._paused.set(figures.paused)
        self._holds.clear()
        for source in ("operator", "listmonk", "breaker"):
            held = sum(hold.source == source for hold in figures.holds)
            self._holds.labels(source).set(held)
        for field, gauge in self._by_upstream.items():
            # What is not known is absent: 0 would read as "nothing left".
            gauge.clear()
            for upstream in figures.upstreams:
                value = getattr(upstream, field)
                if value is not None:
                    gauge.labels(upstream.name).set(value)
        self._expose_knowledge(figures)
        return generate_latest(self.registry)

    def _expose_knowledge(self, figures: Figures) -> None:
        """The phase as one series each, 0 or 1, and how old the confirmation of the limit is."""
        self._phase.clear()
        self._confirmed.clear()
        for one in figures.upstreams:
            for phase in PHASES:
                self._phase.labels(one.name, phase).set(phase == one.phase)
            if one.known_at is not None and one.known_by in _CONFIRMED:
                seconds = max(0, figures.now - one.known_at) / 1000
                self._confirmed.labels(one.name).set(seconds)

    def _expose_streams(self, figures: Figures) -> None:
        """The streams of each lane taken together: depths added up, the greatest age."""
        self._depth.clear()
        self._oldest.clear()
        oldest_at: dict[tuple[str, str], int] = {}
        for stream in figures.streams:
            lane = (stream.upstream, stream.lane)
            for state in ("waiting", "parked", "quarantined"):
                self._depth.labels(*lane, state).inc(getattr(stream, state))
            if stream.oldest_at is not None:
                oldest_at[lane] = min(stream.oldest_at, oldest_at.get(lane, stream.oldest_at))
        for lane, at in oldest_at.items():
            # Below 0 only if the clock was set back.
            self._oldest.labels(*lane).set(max(0, figures.now - at) / 1000)

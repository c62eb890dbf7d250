"""What the ceiling learns from refusals, tried against a peer with a cap."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.upstream.ceiling import PAUSE_S, RETRY_LONGEST_S, Ceiling
from relay.upstream.pacing import Pace, Width

TICK_S = 0.05


@dataclass
class Peer:
    """A pool that always wants ``wanted`` sessions, at a peer that bears ``cap``.

    An opening takes ``handshake_s``; the peer counts it from its beginning. A session lives for
    ``life_s``, on average: they are opened and end one after the other. Virtual time.
    """

    cap: int
    wanted: int
    handshake_s: float = 0.25
    life_s: float = 40.0
    now: float = 1000.0
    refused_at: list[float] = field(default_factory=list)
    open_counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ceiling, self.width, self.pace = Ceiling(self.wanted), Width(), Pace()
        self._ends: list[float] = []
        self._opening: list[tuple[float, float, bool]] = []
        self._count = 0

    def run(self, seconds: float) -> Peer:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            self._ends = [at for at in self._ends if at > self.now]
            self._finish()
            self._begin()
            self.open_counts.append(len(self._ends))
        return self

    def _finish(self) -> None:
        """Openings that came to their end: open, or refused."""
        done = [one for one in self._opening if one[0] <= self.now]
        self._opening = [one for one in self._opening if one[0] > self.now]
        for n, (_, begun_at, borne) in enumerate(done):
            if borne:
                self._count += 1
                # Lives spread over half of the mean either way.
                life_s = self.life_s * (0.5 + self._count * 0.618 % 1)
                self._ends.append(self.now + life_s)
                self.width.on_opened()
                self.ceiling.on_opened(self.now, len(self._ends))
            else:
                self.refused_at.append(self.now)
                self.width.on_narrowed()
                going = len(self._opening) + len(done) - n - 1
                self.ceiling.on_refused(self.now, begun_at, len(self._ends), going)

    def _begin(self) -> None:
        if self.now < self.ceiling.paused_until:
            return
        taken = len(self._ends) + len(self._opening)
        room = min(self.ceiling.at(self.now), self.wanted) - taken
        for _ in range(
            min(room, self.width.at_once - len(self._opening), self.pace.room(self.now))
        ):
            self.pace.on_begun()
            counted = len(self._ends) + sum(borne for *_, borne in self._opening)
            borne = counted < self.cap
            self._opening.append((self.now + self.handshake_s, self.now, borne))

    def mean_open(self, seconds: float) -> float:
        last = self.open_counts[-round(seconds / TICK_S) :]
        return sum(last) / len(last)

    def refused_since(self, at: float) -> int:
        return sum(one >= at for one in self.refused_at)

    def reached(self, count: int, since: float) -> float:
        """Seconds from ``since`` until ``count`` were open; TICK_S apart."""
        first = round((since - 1000) / TICK_S)
        return next(n for n, one in enumerate(self.open_counts[first:]) if one >= count) * TICK_S


@pytest.mark.parametrize("cap", [1, 5, 20, 100])
def test_cap_is_used_in_full_and_hardly_ever_met(cap: int) -> None:
    """95 % of it are open from the second minute on; 20 minutes later, five refusals an hour.

    Before that, some twenty, and those of the last wave of openings when there were none yet.
    """
    peer = Peer(cap=cap, wanted=3 * cap + 10).run(60)

    peer.run(1140)
    mean_early, refused_early = peer.mean_open(1140), len(peer.refused_at)
    peer.run(3600)

    assert mean_early >= 0.95 * cap
    assert peer.mean_open(3600) >= 0.95 * cap
    assert refused_early <= 30 + cap // 4
    assert len(peer.refused_at) - refused_early <= 5


@pytest.mark.parametrize("cap", [1, 5, 20, 100])
def test_raised_cap_is_found_within_sixteen_minutes(cap: int) -> None:
    """Four times as many are borne after an hour at the old cap."""
    peer = Peer(cap=cap, wanted=10 * cap).run(3600)
    raised_at = peer.now
    peer.cap = 4 * cap

    peer.run(RETRY_LONGEST_S + 60)

    assert peer.reached(4 * cap, raised_at) <= RETRY_LONGEST_S + 60


@pytest.mark.parametrize("cap", [5, 20, 100])
@pytest.mark.parametrize("settled_s", [10, 4000])
def test_lowered_cap_brings_no_storm(cap: int, settled_s: float) -> None:
    """A quarter is borne: twenty refusals in two minutes, five in any second, and all is used."""
    peer = Peer(cap=cap, wanted=2 * cap).run(settled_s)
    lowered_at = peer.now
    peer.cap = max(1, cap // 4)

    peer.run(120)

    refused = [at for at in peer.refused_at if at > lowered_at]
    assert len(refused) <= 20
    assert max(sum(at <= one < at + PAUSE_S for one in refused) for at in refused) <= 5
    assert peer.mean_open(60) >= 0.95 * peer.cap


def test_first_refusal_keeps_what_is_open() -> None:
    """With ten open the eleventh is turned away: ten are borne, one more is tried soon."""
    ceiling = Ceiling(200)

    ceiling.on_refused(100, begun_at=99, open_count=10, going=0)

    assert [ceiling.at(at) for at in (100, 100.9, 101)] == [10, 10, 11]
    assert ceiling.climbs_at(100) == ceiling.paused_until == 101


def test_edge_that_is_met_again_is_left_alone_ever_longer() -> None:
    """10 s, 20 s, 40 s … a quarter of an hour; ten are allowed all the while."""
    ceiling, now, waits = Ceiling(200), 100.0, []
    ceiling.on_refused(now, begun_at=now - 1, open_count=10, going=0)

    for _ in range(10):
        now = ceiling.climbs_at(now)
        ceiling.on_refused(now, begun_at=now, open_count=10, going=0)
        assert ceiling.at(now) == 10
        waits.append(ceiling.climbs_at(now) - now)

    assert waits == [10, 20, 40, 80, 160, 320, 640, 900, 900, 900]


def test_refusals_of_one_burst_are_one() -> None:
    """Openings that began before the refusal prove nothing about it, whatever is open by then."""
    ceiling = Ceiling(200)
    ceiling.on_refused(100, begun_at=99, open_count=50, going=0)

    ceiling.on_refused(101, begun_at=99.5, open_count=20, going=0)
    assert ceiling.at(100.9) == 50

    ceiling.on_refused(102, begun_at=101, open_count=20, going=0)
    assert ceiling.at(102) == 18


def test_what_opens_after_the_refusal_raises_the_edge() -> None:
    """Of ten under way one was refused and seven came through: the peer bears those, too."""
    ceiling = Ceiling(200)
    ceiling.on_refused(100, begun_at=99, open_count=10, going=9)

    for open_count in range(11, 18):
        ceiling.on_opened(100.1, open_count)

    assert ceiling.at(100.9) == 17


def test_trouble_of_a_moment_is_soon_forgotten() -> None:
    """Turned away with one session open: a hundred are allowed half a minute later."""
    ceiling, now = Ceiling(200), 100.0
    ceiling.on_refused(now, begun_at=now - 1, open_count=1, going=0)

    while ceiling.at(now) < 100:
        now = ceiling.climbs_at(now)
        ceiling.on_opened(now, ceiling.at(now))

    assert now - 100 <= 40


@given(
    st.integers(1, 300),
    st.lists(
        st.tuples(st.floats(0, 2000), st.floats(0, 5), st.integers(0, 300), st.integers(0, 70))
    ),
)
def test_ceiling_stays_within_one_and_the_maximum(
    sessions_max: int, events: list[tuple[float, float, int, int]]
) -> None:
    """Whatever is opened or refused, and when; a refusal never raises it beyond what was open."""
    ceiling, now = Ceiling(sessions_max), 0.0

    for number, (gap_s, took_s, open_count, going) in enumerate(events):
        now += gap_s
        before = ceiling.at(now)
        if number % 3:
            ceiling.on_opened(now, open_count)
        else:
            ceiling.on_refused(now, now - took_s, open_count, going)
            assert ceiling.at(now) <= max(before, open_count)
        assert 1 <= ceiling.at(now) <= sessions_max


@given(st.floats(0, 1e6), st.integers(2, 50), st.integers(1, 49))
def test_ceiling_climbs_at_the_moment_it_says(
    refused_at: float, sessions_max: int, open_count: int
) -> None:
    """A loop that sleeps until ``climbs_at`` finds it higher, to the top, and then no more."""
    ceiling, now = Ceiling(sessions_max), refused_at
    ceiling.on_refused(now, now - 1, min(open_count, sessions_max - 1), 0)

    while (at := ceiling.climbs_at(now)) < float("inf"):
        assert at > now
        assert ceiling.at(at) > ceiling.at(now)
        now = at
        ceiling.on_opened(now, ceiling.at(now))

    assert ceiling.at(now) == sessions_max

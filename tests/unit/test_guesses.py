"""How long a guesser waits, and that nobody gets round it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import guesses
from relay.guesses import FORGET_S, Guesses, Patience, origin_of

PATIENCE = Patience(first_s=2, longest_s=30)


def test_each_wrong_guess_doubles_the_wait_up_to_the_longest() -> None:
    """2, 4, 8, 16, then 30 for ever, as far as a float would go."""
    book, now, waits = Guesses(PATIENCE), 1000.0, []

    for _ in range(2_000):
        waits.append(book.wrong(now, "a"))
        assert book.wait_s(now, "a") == waits[-1]
        now += waits[-1]
        assert book.wait_s(now, "a") == 0

    assert waits[:5] == [2, 4, 8, 16, 30]
    assert set(waits[5:]) == {30}


def test_free_guesses_cost_nothing() -> None:
    """So many are a person's mistakes; the one after them costs the first wait."""
    book = Guesses(Patience(free=3, first_s=2, longest_s=30))

    assert [book.wrong(0, "a") for _ in range(5)] == [0, 0, 0, 2, 4]


def test_origins_do_not_wait_for_one_another() -> None:
    """Who has guessed nothing waits for nothing."""
    book = Guesses(PATIENCE)
    book.wrong(0, "a")

    assert book.wait_s(0, "b") == 0


def test_right_guess_clears_its_origin() -> None:
    """The password is mended: everybody from there is let in at once."""
    book = Guesses(PATIENCE)
    for _ in range(9):
        book.wrong(0, "a")

    book.right("a")

    assert book.wait_s(0, "a") == 0
    assert book.wrong(0, "a") == 2


@pytest.mark.parametrize(("later_s", "cost_s"), [(FORGET_S + 0.1, 2), (FORGET_S - 0.1, 4)])
def test_old_guesses_are_forgotten(later_s: float, cost_s: float) -> None:
    """A quarter of an hour after the wait has ended, and not before."""
    book = Guesses(PATIENCE)
    end = book.wrong(0, "a")

    assert book.wrong(end + later_s, "a") == cost_s


def test_all_beyond_so_many_origins_wait_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand machines more guess no faster than one; who was known before is no crowd."""
    monkeypatch.setattr(guesses, "ORIGINS_MAX", 3)
    book = Guesses(PATIENCE)
    book.right("friend")
    for origin in ("a", "b", "c"):
        book.wrong(0, origin)

    costs = [book.wrong(0, f"crowd {n}") for n in range(4)]

    assert costs == [2, 4, 8, 16]
    assert book.wait_s(0, "one more of them") == 30
    assert book.wait_s(0, "a") == 2
    assert book.wait_s(0, "friend") == 0
    assert book.wrong(0, "friend") == 2
    assert book.counted_as(0, "one more of them") == book.counted_as(0, "and one more")


def test_room_comes_back_when_guesses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crowd's account stays as long as it is used, the others go."""
    monkeypatch.setattr(guesses, "ORIGINS_MAX", 2)
    book = Guesses(PATIENCE)
    for origin in ("a", "b", "c"):
        book.wrong(0, origin)
    assert book.counted_as(0.5, "d") != "d"

    later = 2 + FORGET_S + 1

    assert book.counted_as(later, "d") == "d"
    assert not book._accounts


def test_origins_that_were_right_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was right longest ago is forgotten first."""
    monkeypatch.setattr(guesses, "ORIGINS_MAX", 2)
    book = Guesses(PATIENCE)

    for origin in ("a", "b", "a", "c"):
        book.right(origin)

    assert list(book._good) == ["a", "c"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.floats(0, 40)), min_size=1, max_size=60)
)
def test_guesses_are_never_more_than_the_waits_allow(
    tries: list[tuple[int, bool, float]],
) -> None:
    """Whoever waits as told has, from one origin, at most one look in each wait that it cost."""
    book, now = Guesses(PATIENCE), 0.0
    last: dict[str, tuple[float, float]] = {}

    for number, is_right, pause_s in tries:
        now += pause_s
        origin = str(number)
        if book.wait_s(now, origin):
            continue
        at, cost_s = last.pop(origin, (now, 0.0))
        assert now - at >= cost_s
        if is_right:
            book.right(origin)
        else:
            last[origin] = (now, book.wrong(now, origin))
            assert 2 <= last[origin][1] <= 30


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("", "unknown"),
    ],
)
def test_one_customer_is_one_origin(host: str, origin: str) -> None:
    """An IPv6 customer has at least 2**64 addresses to guess from."""
    assert origin_of(host) == origin

"""Ids, addresses for people, and the split of long recipient lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.envelope import (
    RECIPIENTS_MAX,
    IdSource,
    id_text,
    id_value,
    redact,
    redact_all,
    split,
)
from tests.fakes.mail import envelope

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@given(st.integers(0, 2**63 - 1))
def test_id_and_its_name_say_the_same(number: int) -> None:
    """Thirteen characters of base 32, highest digit first, and back in either case."""
    text = id_text(number)

    assert len(text) == 13
    assert int("".join(f"{ALPHABET.index(char):05b}" for char in text), 2) == number
    assert id_value(text) == id_value(text.upper()) == number


@pytest.mark.parametrize("text", ["", "abc", "0" * 14, "u" * 13, "z" * 13, "<1@example.org>"])
def test_what_is_no_id_has_no_value(text: str) -> None:
    """Wrong length, letters that look like digits, more than 63 bits."""
    assert id_value(text) is None


@given(st.lists(st.integers(0, 2**43 - 1), min_size=2, max_size=50))
def test_ids_grow_whatever_the_clock_does(moments: list[int]) -> None:
    """Id order is order of arrival."""
    source = IdSource(last=7)

    ids = [source.next(moment) for moment in moments]

    assert ids == sorted(set(ids))
    assert ids[0] > 7


def test_name_and_cost_of_an_envelope() -> None:
    """What people see, and what SES counts."""
    made = envelope(5, cost=3)

    assert made.name == id_text(5)
    assert made.cost == 3


@pytest.mark.parametrize(
    ("address", "shown"),
    [("alice@example.com", "a***@example.com"), ("@x", "***@x"), ("nobody", "***"), ("", "***")],
)
def test_redacted_address_keeps_its_domain(address: str, shown: str) -> None:
    """Enough to search by, not to mail to."""
    assert redact(address) == shown


@pytest.mark.parametrize("count", [1, 49, 50, 51, 100, 101])
def test_split_keeps_order_and_the_limit(count: int) -> None:
    """No part has more than SES takes, and nobody is lost."""
    addresses = tuple(f"r{n}@example.org" for n in range(count))

    parts = split(addresses)

    assert [address for part in parts for address in part] == list(addresses)
    assert max(map(len, parts)) <= RECIPIENTS_MAX
    assert len(parts) == -(-count // RECIPIENTS_MAX)


def test_addresses_in_a_reply_are_redacted() -> None:
    """SES quotes addresses in its refusals; the log must not."""
    text = "553 <bob@example.org> unknown: news@corp.example, alice@example.com. 4@x"

    shown = redact_all(text)

    assert shown == "553 <b***@example.org> unknown: n***@corp.example, a***@example.com. 4***@x"

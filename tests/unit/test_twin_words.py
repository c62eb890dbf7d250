"""What the twin says, which addresses it takes, and which settings it can play."""

from __future__ import annotations

import random
import re
import statistics
from dataclasses import replace

import pytest

from relay.twin import NO_LATENCY, Foreign, Latency, TwinConfig, addresses, message_id_time, texts


def test_message_id_has_the_shape_of_a_real_one_and_tells_the_time() -> None:
    """60 characters, as 01000170d10e6a6c-71c65177-… of February 2020 that the facts quote."""
    wall_ms = 1_583_961_106_028

    ses_id = texts.message_id(wall_ms, random.Random(1))

    assert re.fullmatch(r"0100[0-9a-f]{12}-[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}-0{6}", ses_id)
    assert len(ses_id) == 60
    assert message_id_time(ses_id) == wall_ms
    real = "01000170d10e6a6c-71c65177-ce88-4135-9258-48c0e8bf916d-000000"
    assert len(real) == 60
    assert message_id_time(real) == 0x0170D10E6A6C


def test_greeting_has_the_two_random_marks() -> None:
    """Nine characters after ``-d-``, a space, twenty more."""
    pattern = r"220 email-smtp\.amazonaws\.com ESMTP SimpleEmailService-d-[A-Z0-9]{9} \w{20}"

    assert re.fullmatch(pattern, texts.greeting(random.Random(1)))


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("<a@x.org>", "a@x.org"),
        (" <a@x.org> BODY=8BITMIME", "a@x.org"),
        ("a@x.org SIZE=10", "a@x.org"),
        ("< a@x.org >", "a@x.org"),
        ("<.a..b <c@x.org>", ".a..b <c@x.org"),
        ("<>", ""),
        ("<a@x.org", None),
        ("<re>ceiver@x.org>", None),
    ],
)
def test_address_is_found_in_its_path(path: str, address: str | None) -> None:
    """Brackets, parameters and spaces go; brackets that do not pair are no path."""
    assert addresses.extract(path) == address


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("<a@x.org>", None),
        ("<.a..b @x.org>", None),
        ("<nobody>", None),
        ("<>", "501 Invalid RCPT TO address provided"),
        ("<re>ceiver@x.org>", "501 Invalid RCPT TO address provided"),
        ("<é@x.org>", "553 <é@x.org> Invalid email address"),
        ("<a@bücher.example>", "553 <a@bücher.example> Invalid email address"),
        ("<@x.org>", "553 <@x.org> Invalid email address"),
        ("<a@>", "553 <a@> Invalid email address"),
        ("<a@x org>", "553 <a@x org> Invalid email address"),
    ],
)
def test_rcpt_refuses_by_syntax_alone(path: str, refusal: str | None) -> None:
    """501 for nothing and for stray brackets, 553 for what is no address; odd ones pass."""
    assert addresses.refusal(path, texts.RCPT_INVALID)[1] == refusal


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("a@x.org", None),
        ("a@[127.0.0.1]", None),
        ("nobody", "554 Transaction failed: Missing final '@domain'"),
        ("a@x!y", "554 Transaction failed: Domain contains illegal character"),
    ],
)
def test_domain_is_judged_after_the_dot(address: str, text: str | None) -> None:
    """What RCPT let pass meets JavaMail's parser later."""
    assert addresses.objection(address) == text


def test_accepts_take_as_long_as_was_seen() -> None:
    """A median of 0.15 s, one in a hundred above 1 s, and nothing at all if switched off."""
    latency, chance = Latency(), random.Random(1)

    waits = sorted(latency.accept_s(chance.gauss()) for _ in range(20_000))

    assert statistics.median(waits) == pytest.approx(0.15, rel=0.05)
    assert waits[int(len(waits) * 0.99)] == pytest.approx(1.0, rel=0.1)
    assert NO_LATENCY.accept_s(3.0) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_where_a_twin_may_listen(host: str) -> None:
    """Its password and its key are public."""
    assert replace(TwinConfig(), host=host).host == host


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("host", host) for host in ("0.0.0.0", "::", "192.0.2.1", "example.com", "")),
        ("rate_per_s", 0),
        ("rate_per_s", -1),
        ("session_messages", (0, 10)),
        ("session_messages", (10, 9)),
        ("effective", 0),
        ("effective", 1.1),
        ("noise", 1),
        ("rate_changes", ((5, 10), (4, 20))),
        ("quota_speed", 0),
        ("foreign", Foreign(burst=0)),
        ("api_lag_s", -1),
    ],
)
def test_settings_that_cannot_be_played_are_refused(key: str, value: object) -> None:
    """The error names the key and what was found."""
    with pytest.raises(ValueError, match=f"^{key}: found .*, wanted "):
        replace(TwinConfig(), **{key: value})  # type: ignore[arg-type]


def test_password_is_not_shown() -> None:
    """It is public unless somebody sets another."""
    assert "s3cret" not in repr(TwinConfig(password="s3cret"))

"""What AWS says: which region a host is in, whose a key is, what is read, what it is worth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.aws import (
    Account,
    Endpoint,
    Enforcement,
    account_of_key,
    endpoint_of,
    prior,
    troubles,
)
from relay.aws.words import read_account, read_quota
from relay.service.accounts import EVERY_S, SILENT_MAX_S, wait_s
from tests.fakes.aws import ACCOUNT_ID, KEY_ID, OTHER_ACCOUNT_ID, OTHER_KEY_ID

QUOTA = {"Max24HourSend": 50_000.0, "MaxSendRate": 14.0, "SentLast24Hours": 12.0}
ANSWER = {
    "SendQuota": QUOTA,
    "SendingEnabled": True,
    "ProductionAccessEnabled": True,
    "EnforcementStatus": "HEALTHY",
    "DedicatedIpAutoWarmupEnabled": False,
}
ACCOUNT = Account(
    rate_max_per_s=14.0,
    max_24_h=50_000,
    sent_24_h=12,
    sending_enabled=True,
    production_access=True,
    enforcement=Enforcement.HEALTHY,
    id=ACCOUNT_ID,
)


# -- Place ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "region", "fips"),
    [
        ("email-smtp.us-east-1.amazonaws.com", "us-east-1", False),
        ("EMAIL-SMTP.EU-Central-1.AmazonAWS.com.", "eu-central-1", False),
        ("email-smtp-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", True),
        ("email-smtp.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1", False),
        ("email-smtp.ap-southeast-12.api.aws", "ap-southeast-12", False),
        ("vpce-0a1b-c2d3.email-smtp.us-west-2.vpce.amazonaws.com", "us-west-2", False),
        ("vpce-0a1b-c2d3-us-west-2a.email-smtp.us-west-2.vpce.amazonaws.com", "us-west-2", False),
    ],
)
def test_host_of_ses_says_its_region(host: str, region: str, *, fips: bool) -> None:
    """However SES's host is written, the account behind it is asked about in its own region."""
    endpoint = endpoint_of(host)

    assert endpoint == Endpoint(region=region, fips=fips)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "smtp.example.com",
        "email-smtp.us-east-1.amazonaws.com.example.com",
        "not-email-smtp.us-east-1.amazonaws.com",
        "email-smtp.us-east-1.example.com",
        "email-smtp.amazonaws.com",
        "a.mail-manager-smtp.us-east-1.amazonaws.com",
        "email-smtp.us-east-1.x.amazonaws.com",
        "",
    ],
)
def test_other_hosts_are_never_asked_about(host: str) -> None:
    """The credentials on this machine say nothing of somebody else's server."""
    assert endpoint_of(host) is None


@pytest.mark.parametrize(
    ("key_id", "account"),
    [
        (KEY_ID, ACCOUNT_ID),
        (OTHER_KEY_ID, OTHER_ACCOUNT_ID),
        ("AKIA" + KEY_ID[4:], ACCOUNT_ID),
        ("AKIAIOSFODNN7EXAMPLE", None),
        ("AROA" + KEY_ID[4:], None),
        (KEY_ID[:-1], None),
        (KEY_ID.lower(), None),
        ("AKIA7777777777777777", None),
        ("sandbox", None),
        ("", None),
    ],
)
def test_key_id_says_its_account_or_nothing(key_id: str, account: str | None) -> None:
    """Published examples decode; old keys and what is no key do not."""
    assert account_of_key(key_id) == account


# -- Words ---------------------------------------------------------------------------------


def test_whole_answer_is_read() -> None:
    """Each field of GetAccount comes to its place; what we do not know is passed over."""
    assert read_account(ANSWER, ACCOUNT_ID) == ACCOUNT


def test_get_send_quota_says_three_numbers_and_no_more() -> None:
    """v1 knows neither sandbox nor pause; that is unknown, not false."""
    account = read_quota(QUOTA, None)

    assert account == Account(rate_max_per_s=14.0, max_24_h=50_000, sent_24_h=12)
    assert troubles(account) == ()


@pytest.mark.parametrize(
    ("rate", "read"),
    [
        (1.0, 1.0),
        (14, 14.0),
        (0.99, None),
        (1e-9, None),
        (100_000.0, 100_000.0),
        (100_001.0, None),
        (-1.0, None),
        (0.0, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        (True, None),
        ("14", None),
        (None, None),
    ],
)
def test_rate_that_is_none_is_not_believed(rate: object, read: float | None) -> None:
    """-1 means no limit (documented); absurd numbers are no rate to start from."""
    assert read_quota({**QUOTA, "MaxSendRate": rate}, None).rate_max_per_s == read


@pytest.mark.parametrize(
    ("day", "read"), [(-1.0, None), (0.0, 0), (200.0, 200), (1e12, 10**12), (1e13, None)]
)
def test_day_without_a_limit_is_no_number(day: float, read: int | None) -> None:
    """-1 means no limit; 0 is one."""
    account = read_quota({**QUOTA, "Max24HourSend": day, "SentLast24Hours": day}, None)

    assert (account.max_24_h, account.sent_24_h) == (read, read)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys([*ANSWER], _JSON),
        "SendQuota": _JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(QUOTA, _JSON)),
    },
)


# The machine may be busy.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_ANSWERS)
def test_any_answer_can_be_read(answer: dict[str, Any]) -> None:
    """Whatever stands in it, nothing is raised and the rate is one that a shaper can use."""
    account = read_account(answer, None)

    assert account.rate_max_per_s is None or 0 < account.rate_max_per_s <= 100_000
    assert isinstance(troubles(account), tuple)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, []),
        ({"ProductionAccessEnabled": False}, ["sandbox"]),
        ({"SendingEnabled": False}, ["paused"]),
        ({"EnforcementStatus": "SHUTDOWN"}, ["paused"]),
        ({"EnforcementStatus": "SHUTDOWN", "SendingEnabled": False}, ["paused"]),
        ({"EnforcementStatus": "PROBATION"}, ["review"]),
        ({"EnforcementStatus": "SOMETHING NEW"}, []),
        ({"SendingEnabled": False, "ProductionAccessEnabled": False}, ["paused", "sandbox"]),
    ],
)
def test_trouble_is_said_in_words(fields: dict[str, object], words: list[str]) -> None:
    """Sandbox, pause and probation are each one text; a healthy account has none."""
    said = troubles(read_account({**ANSWER, **fields}, None))

    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))


# -- Prior ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "before", "limit", "is_used"),
    [
        pytest.param(None, None, None, False, id="no number"),
        pytest.param(None, 14.0, None, False, id="no number any more"),
        pytest.param(14.0, None, None, True, id="nothing learned"),
        pytest.param(14.0, 14.0, None, True, id="learned and forgotten"),
        pytest.param(14.0, None, 13.2, False, id="first sight, already learned"),
        pytest.param(14.0, None, 50.0, False, id="first sight, more learned"),
        pytest.param(14.0, 14.0, 9.0, False, id="less can be had than AWS says"),
        pytest.param(14.0, 14.0, 15.0, False, id="more can be had than AWS says"),
        pytest.param(14.1, 14.0, 9.0, False, id="moved by less than a hundredth"),
        pytest.param(50.0, 14.0, 14.0, True, id="raised in mid-campaign"),
        pytest.param(50.0, 14.0, 7.0, True, id="raised, half of it was ours"),
        pytest.param(50.0, 14.0, 49.0, True, id="raised, nearly found already"),
        pytest.param(50.0, 14.0, 51.0, False, id="raised, found already"),
        pytest.param(5.0, 14.0, 14.0, True, id="lowered"),
        pytest.param(10.0, 14.0, 4.0, False, id="lowered, still above our share"),
    ],
)
def test_number_counts_at_first_and_when_it_changes(
    told: float | None, before: float | None, limit: float | None, *, is_used: bool
) -> None:
    """AWS's number starts an ignorant shaper and follows a change; else measurements stand."""
    assert prior(told, before, limit) is is_used


@settings(deadline=None)
@given(*[st.none() | st.floats(0.001, 1e5)] * 2, st.floats(0.001, 1e5))
def test_number_is_used_once(before: float | None, limit: float | None, told: float) -> None:
    """Once it was used and remembered, the same number never moves the shaper again."""
    if prior(told, before, limit):
        limit = told

    assert limit is None or not prior(told, told, limit)


# -- Back-off ------------------------------------------------------------------------------


def test_silence_is_asked_ever_less_often() -> None:
    """Five minutes, doubled with each silence up to an hour, also at the ten thousandth."""
    waits = [wait_s(silences) for silences in (0, 1, 2, 3, 4, 10_000)]

    assert waits == [EVERY_S, 600, 1200, 2400, SILENT_MAX_S, SILENT_MAX_S]

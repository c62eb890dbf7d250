"""What ``parse`` accepts, what it refuses, and in which words."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath
from typing import Any

import pytest

from relay import config
from relay.config.rules import RULES
from relay.config.tables import LANE, TABLES, UPSTREAM
from relay.errors import ConfigError, ConfigErrors


def refused(mapping: dict[str, Any]) -> dict[str, ConfigError]:
    """The errors that ``mapping`` meets, by key."""
    with pytest.raises(ConfigErrors) as caught:
        config.parse(mapping)
    return {error.key: error for error in caught.value.errors}


def upstream(**keys: object) -> dict[str, Any]:
    return {"upstream": [keys]}


def test_nothing_said_gives_the_defaults() -> None:
    """An empty file is a whole configuration: one upstream, two lanes, all at their defaults."""
    assert config.parse({}) == config.Config()


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    """A key that the dataclass knows and the table does not would be refused as unknown."""
    for table in [*TABLES.values(), UPSTREAM, *UPSTREAM.tables.values(), LANE]:
        known = {*table.keys, *table.tables}
        assert known == {field.name for field in dataclasses.fields(table.becomes)}


def test_rules_name_fields_that_exist() -> None:
    """A rule that looks at a misspelt key would be asked although that key is wrong."""
    for kind, rules in RULES.items():
        names = {field.name for field in dataclasses.fields(kind)}
        for rule in rules:
            assert {rule.blamed, *rule.keys} <= names


def test_what_is_said_replaces_the_default_and_nothing_else() -> None:
    """Keys of all kinds of table arrive; whole numbers may stand for fractions."""
    parsed = config.parse(
        {
            "listen": {"host": "localhost", "port": 0},
            "upstream": [
                {"name": "a", "from_domains": ["A.Example"], "rate": {"start_per_s": 20}},
                {"name": "b", "quota": {"daily_max": 50_000}, "breaker": {"same_text": 3}},
            ],
            "lane": {"bulk": {"floor": 0.2}, "news": {"weight": 2}},
            "alert": {"command": ["/bin/page", "relay"]},
        }
    )

    default = config.Config()
    assert parsed.listen == dataclasses.replace(default.listen, host=("localhost",), port=0)
    first, second = parsed.upstreams
    assert first.from_domains == ("a.example",)
    assert first.rate == config.Rate(start_per_s=20.0)
    assert isinstance(first.rate.start_per_s, float)
    assert (second.quota.daily_max, second.breaker.same_text) == (50_000, 3)
    assert parsed.lanes["bulk"] == config.Lane(floor=0.2)
    assert parsed.lanes["priority"] == default.lanes["priority"]
    assert parsed.lanes["news"] == config.Lane(weight=2)
    assert parsed.alert.command == ("/bin/page", "relay")


def test_priority_lane_keeps_its_own_age_when_another_key_is_set() -> None:
    """Naming ``[lane.priority]`` does not turn its 24 hours into bulk's fortnight."""
    parsed = config.parse({"lane": {"priority": {"floor": 0.3}}})

    assert parsed.lanes["priority"] == config.Lane(floor=0.3, age_max_h=24)


@pytest.mark.parametrize(
    ("mapping", "key"),
    [
        ({"listen": {"port": True}}, "listen.port"),
        ({"listen": {"port": 25.0}}, "listen.port"),
        ({"listen": {"port": "25"}}, "listen.port"),
        ({"listen": {"port": -1}}, "listen.port"),
        ({"listen": {"port": 65_536}}, "listen.port"),
        ({"listen": {"host": []}}, "listen.host"),
        ({"listen": {"host": 4}}, "listen.host"),
        ({"listen": {"host": "two words"}}, "listen.host[0]"),
        ({"listen": {"host": ["127.0.0.1", "256.1.1.1"]}}, "listen.host[1]"),
        ({"listen": {"hostname": "-a"}}, "listen.hostname"),
        ({"listen": {"auth": "yes"}}, "listen.auth"),
        ({"listen": {"tls_required": 1}}, "listen.tls_required"),
        ({"listen": {"allow_networks": ["10.0.0.1/8"]}}, "listen.allow_networks[0]"),
        ({"listen": {"allow_networks": [8]}}, "listen.allow_networks[0]"),
        ({"listen": {"allow_networks": "10.0.0.0/8"}}, "listen.allow_networks"),
        ({"listen": {"users_file": "a\0b"}}, "listen.users_file"),
        ({"listen": {"connections_max": 0}}, "listen.connections_max"),
        ({"listen": {"stall_max_s": float("nan")}}, "listen.stall_max_s"),
        ({"listen": 5}, "listen"),
        ({"spool": {"path": ""}}, "spool.path"),
        ({"spool": {"size_max_bytes": 1 << 70}}, "spool.size_max_bytes"),
        ({"upstream": {}}, "upstream"),
        ({"upstream": []}, "upstream"),
        ({"upstream": [5]}, "upstream[0]"),
        (upstream(name="Big"), "upstream[0].name"),
        (upstream(name=""), "upstream[0].name"),
        (upstream(host=""), "upstream[0].host"),
        (upstream(port=0), "upstream[0].port"),
        (upstream(tls="ssl"), "upstream[0].tls"),
        (upstream(username="a\nb"), "upstream[0].username"),
        (upstream(from_domains=["@example.com"]), "upstream[0].from_domains[0]"),
        (upstream(from_domains=["com"]), "upstream[0].from_domains[0]"),
        (upstream(from_domains=[["example.com"]]), "upstream[0].from_domains[0]"),
        (upstream(session_messages_max=1001), "upstream[0].session_messages_max"),
        (upstream(idle_close_s=10), "upstream[0].idle_close_s"),
        (upstream(dot_timeout_s=59.9), "upstream[0].dot_timeout_s"),
        (upstream(rate=3), "upstream[0].rate"),
        (upstream(rate={"start_per_s": float("inf")}), "upstream[0].rate.start_per_s"),
        (upstream(rate={"floor_per_s": 0}), "upstream[0].rate.floor_per_s"),
        (upstream(rate={"floor_per_s": 0.0009}), "upstream[0].rate.floor_per_s"),
        (upstream(rate={"use_max": 0}), "upstream[0].rate.use_max"),
        (upstream(rate={"use_max": 1.01}), "upstream[0].rate.use_max"),
        (upstream(quota={"priority_reserve": -0.1}), "upstream[0].quota.priority_reserve"),
        (upstream(breaker={"rcpt_share": 0}), "upstream[0].breaker.rcpt_share"),
        ({"retry": {"factor": 0.9}}, "retry.factor"),
        ({"retry": {"jitter": 1.1}}, "retry.jitter"),
        ({"lane": []}, "lane"),
        ({"lane": {"Bulk": {}}}, "lane"),
        ({"lane": {"bulk": []}}, "lane.bulk"),
        ({"lane": {"bulk": {"floor": 2}}}, "lane.bulk.floor"),
        ({"lane": {"bulk": {"age_max_h": 0}}}, "lane.bulk.age_max_h"),
        ({"listmonk": {"url": "ftp://a.example"}}, "listmonk.url"),
        ({"dashboard": {"port": 70_000}}, "dashboard.port"),
        ({"alert": {"url": "http://[::1"}}, "alert.url"),
        ({"alert": {"url": "http://a.example:0"}}, "alert.url"),
        ({"alert": {"url": "http://a b.example"}}, "alert.url"),
        ({"alert": {"url": 7}}, "alert.url"),
        ({"alert": {"command": "page"}}, "alert.command"),
        ({"log": {"level": "loud"}}, "log.level"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(mapping: dict[str, Any], key: str) -> None:
    """Wrong type, out of range, not a word of the list: one error, at that key."""
    errors = refused(mapping)

    assert list(errors) == [key]


@pytest.mark.parametrize(
    ("mapping", "key"),
    [
        ({"listen": {"auth": "required"}}, "listen.users_file"),
        ({"listen": {"tls_key_file": "k.pem"}}, "listen.tls_key_file"),
        ({"listen": {"tls_required": True}}, "listen.tls_required"),
        ({"listen": {"size_max_bytes": 300_000_000}}, "listen.body_bytes_max"),
        ({"listen": {"host": "0.0.0.0"}}, "listen.allow_networks"),
        ({"listen": {"host": ["127.0.0.1", "relay.lan"]}}, "listen.allow_networks"),
        ({"listen": {"allow_networks": []}}, "listen.allow_networks"),
        ({"listen": {"allow_networks": ["0.0.0.0/7"]}}, "listen.allow_networks"),
        ({"listen": {"allow_networks": ["2000::/3"]}}, "listen.allow_networks"),
        ({"spool": {"outcomes_keep_days": 6}}, "spool.dead_keep_days"),
        (upstream(tls="none"), "upstream[0].tls"),
        (upstream(tls="none", host="10.0.0.1"), "upstream[0].tls"),
        (upstream(port=465), "upstream[0].port"),
        (upstream(port=587, tls="implicit"), "upstream[0].port"),
        (upstream(password_file="pw"), "upstream[0].password_file"),
        (upstream(host="::1", tls="none", ca_file="ca.pem"), "upstream[0].ca_file"),
        (upstream(rate={"start_per_s": 0.1}), "upstream[0].rate.floor_per_s"),
        (upstream(rate={"ceiling_per_s": 9}), "upstream[0].rate.start_per_s"),
        (upstream(from_domains=["a.example", "A.example"]), "upstream[0].from_domains"),
        (
            {
                "upstream": [
                    {"name": "a", "from_domains": ["a.example"]},
                    {"name": "b", "from_domains": ["b.example", "a.example"]},
                ]
            },
            "upstream[1].from_domains",
        ),
        ({"upstream": [{}, {}]}, "upstream[1].name"),
        (upstream(host="127.0.0.1", port=2525), "upstream[0].host"),
        (upstream(host="localhost", port=2525), "upstream[0].host"),
        (
            {"listen": {"port": 2587, "hostname": "mx.a.example"}}
            | upstream(host="MX.a.example", port=2587),
            "upstream[0].host",
        ),
        (
            {"listen": {"host": "::", "allow_networks": ["10.0.0.0/8"]}}
            | upstream(host="127.0.0.9", port=2525),
            "upstream[0].host",
        ),
        ({"retry": {"first_s": 3601}}, "retry.max_s"),
        ({"listmonk": {"url": "http://127.0.0.1:9000"}}, "listmonk.api_user"),
        ({"listmonk": {"api_user": "relay"}}, "listmonk.url"),
        ({"listmonk": {"token_file": "t"}}, "listmonk.token_file"),
        ({"dashboard": {"host": "0.0.0.0"}}, "dashboard.token_file"),
        ({"dashboard": {"port": 2525}}, "dashboard.port"),
        (
            {"dashboard": {"port": 2525, "host": "::", "token_file": "t"}},
            "dashboard.port",
        ),
        ({"lane": {"bulk": {"floor": 0.95}, "news": {}}}, "lane.bulk.floor"),
    ],
)
def test_a_contradiction_is_named(mapping: dict[str, Any], key: str) -> None:
    """Keys that are fine alone and not together: one error, at the key that is to change."""
    errors = refused(mapping)

    assert list(errors) == [key]


@pytest.mark.parametrize(
    "mapping",
    [
        {"listen": {"host": "0.0.0.0", "allow_networks": ["10.0.0.0/8"]}},
        {"listen": {"host": "0.0.0.0", "auth": "required", "users_file": "u"}},
        {"listen": {"allow_networks": ["0.0.0.0/0"], "auth": "required", "users_file": "u"}},
        {"listen": {"tls_cert_file": "both.pem", "tls_required": True}},
        {"listen": {"allow_networks": ["fc00::/7", "10.1.2.3"]}},
        {"listen": {"port": 0}, "dashboard": {"port": 0}},
        {"dashboard": {"host": "::1", "port": 2525}},
        {"dashboard": {"host": "0.0.0.0", "token_file": "t"}},
        {"listmonk": {"url": "https://a.example:9000/x", "api_user": "u", "token_file": "t"}},
        upstream(host="127.0.0.1", port=2526, tls="none"),
        upstream(host="127.0.0.2", port=2525, tls="none"),
        upstream(host="localhost", port=2626, tls="none"),
        upstream(port=2465, tls="implicit"),
        upstream(rate={"start_per_s": 5, "ceiling_per_s": 5, "floor_per_s": 5}),
        upstream(idle_close_s=9.99, session_messages_max=1000, dot_timeout_s=60),
        {"lane": {"bulk": {"floor": 1}}},
        {"lane": {"bulk": {"floor": 0.6}, "news": {"floor": 0.4}}},
    ],
)
def test_the_edge_of_what_is_allowed_is_allowed(mapping: dict[str, Any]) -> None:
    """No rule reaches further than its reason."""
    assert isinstance(config.parse(mapping), config.Config)


def test_all_errors_come_at_once() -> None:
    """One run is enough to mend a file; a wrong key does not draw a contradiction after it."""
    errors = refused(
        {
            "listen": {"port": "x", "tls_required": True},
            "upstream": [{"rate": {"start_per_s": "fast", "floor_per_s": 20}}, {"tls": "none"}],
            "spol": {},
        }
    )

    assert set(errors) == {
        "spol",
        "listen.port",
        "listen.tls_required",
        "upstream[0].rate.start_per_s",
        "upstream[1].tls",
        "upstream[1].name",
    }


def test_a_wrong_key_draws_no_clash_with_another_table() -> None:
    """The default port that stands in for a wrong one is not told to be a loop."""
    errors = refused({"listen": {"port": "x"}} | upstream(host="127.0.0.1", port=2525))

    assert list(errors) == ["listen.port"]


def test_an_error_says_found_wanted_and_nearest() -> None:
    """The four facts that a person needs, in words of the file."""
    error = refused({"listen": {"prt": 25}})["listen.prt"]
    assert (error.found, error.wanted) == ("an unknown key", "a key of [listen]")
    assert error.nearest == "listen.port"

    error = refused({"log": {"level": "loud"}})["log.level"]
    assert error.found == '"loud"'
    assert error.wanted == '"debug", "info", "warning" or "error"'
    assert error.nearest is None


@pytest.mark.parametrize(
    ("mapping", "key", "nearest"),
    [
        ({"upstreams": []}, "upstreams", "upstream"),
        ({"rate": {}}, "rate", "upstream.rate"),
        ({"start_per_s": 4}, "start_per_s", "upstream.rate.start_per_s"),
        (upstream(rates={}), "upstream[0].rates", "upstream[0].rate"),
        (upstream(rate={"start_per_second": 4}), None, "upstream[0].rate.start_per_s"),
        ({"lane": {"bulk": {"flor": 0.1}}}, "lane.bulk.flor", "lane.bulk.floor"),
        ({"listen": {"password_file": "x"}}, "listen.password_file", "upstream.password_file"),
        ({"listen": {"xyzzy": 1}}, "listen.xyzzy", None),
        ({"a\x1b[31m": 1}, '"a\\u001b[31m"', None),
    ],
)
def test_the_nearest_known_key_is_offered(
    mapping: dict[str, Any], key: str | None, nearest: str | None
) -> None:
    """A slip of the pen is found in its own table, a wrong table anywhere in the file."""
    (error,) = refused(mapping).values()

    assert key in {error.key, None}
    assert error.nearest == nearest


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        (upstream(password=SECRET), "RELAY_SES_PASSWORD"),
        (upstream(smtp_password=SECRET), "ses-password"),
        (upstream(secret_access_key=SECRET), "password_file"),
        (upstream(Pass=SECRET), "password_file"),
        ({"listmonk": {"token": SECRET}}, "token_file"),
        ({"listmonk": {"api_key": SECRET}}, "token_file"),
        ({"dashboard": {"token": SECRET}}, "token_file"),
        ({"listen": {"password": SECRET}}, "relay user add"),
        ({"password": SECRET}, "password_file or token_file"),
        ({"listmonk": {"url": f"https://user:{SECRET}@a.example", "api_user": "u"}}, "without"),
        ({"alert": {"url": f"https:/a.example/{SECRET}"}}, "URL"),
        ({"listen": {"port": {"password": SECRET}}}, "whole number"),
        ({"listen": {"host": [{"password": SECRET}]}}, "IP address"),
        ({"log": [SECRET, [SECRET]]}, "headed [log]"),
        ({"listen": {"unheard_of": SECRET}}, "a key of [listen]"),
    ],
)
def test_a_secret_is_refused_and_never_shown(mapping: dict[str, Any], told: str) -> None:
    """The text says where the secret goes; the value is in no text, whatever key it stood at."""
    with pytest.raises(ConfigErrors) as caught:
        config.parse(mapping)

    assert SECRET not in str(caught.value)
    assert told in str(caught.value)


def test_long_and_odd_values_are_shown_short() -> None:
    """A mistake of a megabyte, or of a thousand digits, makes a line, not a flood."""
    errors = refused(
        {
            "listen": {"port": 10**5000, "hostname": "x" * 100_000, "host": ["a b"] * 17},
            "spool": {"path": ["p"] * 1000, "compress": b"\0"},
            "log": {"level": 3.5, "format": False},
        }
    )

    assert errors["listen.port"].found == "a huge number"
    assert len(errors["listen.hostname"].found) < 100
    assert errors["listen.host"].found == "a list of 17"
    assert errors["spool.path"].found == "a list of 1000"
    assert errors["spool.compress"].found == "a bytes"
    assert errors["log.level"].found == "3.5"
    assert errors["log.format"].found == "false"


def test_relative_paths_count_from_the_folder_of_the_file() -> None:
    """Each key that names a file is resolved; empty and absolute ones stay as they are."""
    parsed = config.parse(
        {
            "listen": {"users_file": "users", "tls_cert_file": "/c.pem", "tls_key_file": "k.pem"},
            "upstream": [{"username": "u", "password_file": "pw", "ca_file": ""}],
            "listmonk": {"url": "http://a.example", "api_user": "u", "token_file": "t1"},
            "dashboard": {"token_file": "../t2"},
        }
    )

    resolved = config.resolve(parsed, PurePosixPath("/etc/relay"))

    assert resolved.listen.users_file == "/etc/relay/users"
    assert resolved.listen.tls_cert_file == "/c.pem"
    assert resolved.listen.tls_key_file == "/etc/relay/k.pem"
    assert resolved.spool.path == "/etc/relay/relay.db"
    assert resolved.upstreams[0].password_file == "/etc/relay/pw"
    assert resolved.upstreams[0].ca_file == ""
    assert resolved.listmonk.token_file == "/etc/relay/t1"
    assert resolved.dashboard.token_file == "/etc/relay/../t2"


def test_every_key_that_names_a_file_is_resolved() -> None:
    """A new ``*_file`` key that ``resolve`` forgets would depend on the working directory."""

    def files(kind: type) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(kind)]
        return {name: "f" for name in names if name.endswith(("_file", "path"))}

    original = config.Config(
        listen=config.Listen(**files(config.Listen)),
        spool=config.Spool(**files(config.Spool)),
        upstreams=(config.Upstream(**files(config.Upstream)), config.Upstream()),
        listmonk=config.Listmonk(**files(config.Listmonk)),
        dashboard=config.Dashboard(**files(config.Dashboard)),
    )

    resolved = config.resolve(original, PurePosixPath("/x"))

    assert repr(resolved) == repr(original).replace("='f'", "='/x/f'")


def test_keys_without_effect_are_named_only_if_changed() -> None:
    """The defaults are silent, the untouched neighbours of a changed key as well."""
    assert config.without_effect(config.parse({})) == []

    parsed = config.parse(
        {
            "spool": {"compress": False},
            "lane": {"bulk": {"weight": 3, "floor": 0.2}, "news": {}, "priority": {"floor": 0.2}},
            "listmonk": {"url": "http://a.example", "api_user": "u"},
        }
    )

    named = dict(config.without_effect(parsed))
    assert list(named) == [
        "lane.bulk.weight",
        "lane.news",
        "lane.priority.floor",
        "listmonk.api_user",
        "listmonk.url",
        "spool.compress",
    ]
    assert set(named.values()) <= set(config.NOT_YET.values())

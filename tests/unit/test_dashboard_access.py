"""Who may see what of the dashboard."""

from __future__ import annotations

import base64

import pytest

from relay.dashboard.access import TOKENS, Access, Asked, Refusal

TOKEN = "s3cret-tökén: with a colon"
PAGES = [
    *("/", "/page.js", "/api/v1/status", "/api/v1/events", "/nothing", "/readyz", "/metrics"),
    *("/healthz/", "//healthz", "/healthz/../metrics", "/HEALTHZ"),
]


def asked(
    access: Access, path: str = "/", host: str = "localhost", given: str = "", site: str = ""
) -> int | None:
    """The status of the refusal, if there is one."""
    refusal = refused(access, path, [host] if host else [], given, site)
    return None if refusal is None else refusal.status


def refused(
    access: Access,
    path: str,
    hosts: list[str],
    given: str = "",
    site: str = "",
    *,
    now: float = 0,
    peer: str = "192.0.2.1",
) -> Refusal | None:
    question = Asked(path=path, peer=peer, hosts=hosts, authorization=given, fetch_site=site)
    return access.refusal(now, question)


def basic(user: str, password: str, scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost:8025", "127.0.0.1", "127.0.0.1:8025"),
        *("[::1]", "[::1]:8025", "192.0.2.1:80", ""),
    ],
)
def test_host_that_needs_no_name_server_is_answered(host: str) -> None:
    """Nobody can make it point here but who is here; programs may send none."""
    assert asked(Access("127.0.0.1", ""), host=host) is None


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8025", "localhost.evil.example", "localhost."),
        *("127.0.0.1.evil.example", "evil.example:localhost", "[evil.example]", ":", "a:b:c", "é"),
    ],
)
def test_foreign_name_is_refused_on_loopback(path: str, host: str) -> None:
    """A page of that name reached us by DNS rebinding, or a proxy shows us to the world."""
    assert asked(Access("127.0.0.1", ""), path, host) == 421


def test_one_foreign_name_among_several_is_refused() -> None:
    """Whichever of two Host headers is meant."""
    refusal = refused(Access("::1", ""), "/", ["localhost", "evil.example"])

    assert refusal is not None
    assert refusal.status == 421
    assert "dashboard.token_file" in refusal.text


def test_healthz_is_answered_under_any_name() -> None:
    """A probe through a reverse proxy that passes its own Host on goes on working."""
    assert asked(Access("127.0.0.1", ""), "/healthz", "relay.example.com") is None
    assert asked(Access("0.0.0.0", TOKEN), "/healthz", "relay.example.com") is None


def test_token_opens_the_page_behind_a_proxy() -> None:
    """What comes under a foreign name is from outside and must know the token, if one is set."""
    access = Access("127.0.0.1", TOKEN)

    assert asked(access, host="relay.example.com") == 401
    assert asked(access, host="relay.example.com", given=basic("me", TOKEN)) is None
    assert asked(access, host="localhost") is None


@pytest.mark.parametrize("user", ["", "me", "mé"])
@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_browser_gives_the_token_as_password(user: str, scheme: str) -> None:
    """Under any user name; a colon may be in the password (RFC 7617 §2)."""
    assert asked(Access("0.0.0.0", TOKEN), given=basic(user, TOKEN, scheme)) is None


@pytest.mark.parametrize(
    "given",
    [
        "Basic",
        "Basic ",
        "Basic ====",
        "Basic é",
        "Basic \udcff",
        f"Basic {TOKEN}",
        basic(TOKEN, ""),
        basic(TOKEN, "wrong"),
        basic("me", TOKEN[:-1]),
        basic("me", f"{TOKEN}x"),
        basic("me", TOKEN, "Bearer"),
        "Basic " + base64.b64encode(TOKEN.partition(":")[0].encode()).decode(),
    ],
)
@pytest.mark.parametrize("path", PAGES)
def test_wrong_password_is_401(path: str, given: str) -> None:
    """Also one that is no Base64; the answer offers both ways in."""
    refusal = refused(Access("0.0.0.0", TOKEN), path, ["localhost"], given)

    assert refusal is not None
    assert refusal.status == 401
    assert refusal.challenges == ("Bearer", 'Basic realm="relay", charset="UTF-8"')


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything new"])
def test_other_sites_get_nothing_from_the_api(site: str) -> None:
    """They could not read it, but streams left open would take the viewers' places."""
    access = Access("127.0.0.1", "")

    assert asked(access, "/api/v1/events", site=site) == 403
    assert asked(access, "/api/v1/events", site="same-origin") is None
    assert asked(access, "/api/v1/status", site="none") is None
    assert asked(access, "/", site=site) is None


WRONG, RIGHT = basic("me", "wrong"), basic("me", TOKEN)


def test_guesses_of_the_token_are_bounded() -> None:
    """After ten wrong ones a wait, in which nothing is looked at, not even the right one."""
    access = Access("0.0.0.0", TOKEN)
    for _ in range(TOKENS.free + 1):
        wrong = refused(access, "/", [], WRONG, now=5)
        assert wrong is not None
        assert (wrong.status, wrong.is_wrong_guess) == (401, True)

    for given in (WRONG, RIGHT):
        too_soon = refused(access, "/", [], given, now=5.5)
        assert too_soon is not None
        assert (too_soon.status, too_soon.retry_after_s) == (429, 1)
        assert not too_soon.is_wrong_guess
    assert refused(access, "/", [], RIGHT, now=5.5, peer="192.0.2.2") is None
    assert refused(access, "/", [], RIGHT, now=6) is None
    wrong = refused(access, "/", [], WRONG, now=6)
    assert wrong is not None
    assert wrong.status == 401


def test_token_that_is_not_given_is_no_guess() -> None:
    """A browser asks without it first, and so does whoever only looks."""
    access = Access("0.0.0.0", TOKEN)

    for _ in range(100):
        refusal = refused(access, "/", [], now=5)

        assert refusal is not None
        assert (refusal.status, refusal.is_wrong_guess) == (401, False)
    assert refused(access, "/", [], RIGHT, now=5) is None


def test_guesses_from_one_customers_network_count_together() -> None:
    """He has 2**64 IPv6 addresses."""
    access = Access("0.0.0.0", TOKEN)

    answers = [refused(access, "/", [], WRONG, peer=f"2001:db8::{n:x}") for n in range(12)]

    assert answers[-1] is not None
    assert answers[-1].status == 429


def test_token_shows_in_no_repr() -> None:
    """Nor what somebody gave for it."""
    assert TOKEN not in repr(Access("0.0.0.0", TOKEN))
    assert "canary" not in repr(Asked(path="/", peer="x", hosts=[], authorization="canary"))

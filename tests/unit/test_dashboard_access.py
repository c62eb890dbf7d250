"""Who may see what of the dashboard."""

from __future__ import annotations

import base64

import pytest

from relay.dashboard.access import Access

TOKEN = "s3cret-tökén: with a colon"
PAGES = ["/", "/page.js", "/api/v1/status", "/api/v1/events", "/nothing"]


def asked(
    access: Access, path: str = "/", host: str = "localhost", given: str = "", site: str = ""
) -> int | None:
    """The status of the refusal, if there is one."""
    refusal = access.refusal(path, [host] if host else [], given, site)
    return None if refusal is None else refusal.status


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
    refusal = Access("::1", "").refusal("/", ["localhost", "evil.example"], "", "")

    assert refusal is not None
    assert refusal.status == 421
    assert "dashboard.token_file" in refusal.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_machines_are_answered_under_any_name_on_loopback(path: str) -> None:
    """A probe through a reverse proxy that passes its own Host on goes on working."""
    assert asked(Access("127.0.0.1", ""), path, "relay.example.com") is None


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
    refusal = Access("0.0.0.0", TOKEN).refusal(path, ["localhost"], given, "")

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

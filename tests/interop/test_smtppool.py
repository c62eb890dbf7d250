"""Listmonk's own client against a running relay: what is sent has arrived, by each version.

"Sent" is what the library told Listmonk: ``Send`` returned nil. All versions run beside each
other, so that each trouble is had only once.
"""

from __future__ import annotations

import email
import email.policy
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.listener import users
from relay.twin import certificate_files
from tests.fakes.smtppool import CAMPAIGN, HTML, SHIPPED, VERSIONS, Settings
from tests.fakes.smtppool_programs import vet
from tests.interop.audit import (
    audits,
    each,
    fast_relay,
    html_of,
    of_each_version,
    open_pools,
    until_all_sent,
)

if TYPE_CHECKING:
    from pathlib import Path

    from relay.twin.ledger import Accepted

USER, PASSWORD = "listmonk", "secret one"


def with_login(folder: Path) -> str:
    """Lines of [listen] that ask everyone for a login, and offer TLS."""
    users.put(folder / "users", USER, users.Plain(PASSWORD))
    return f'auth = "required"\nusers_file = "{folder / "users"}"\n' + tls_lines()


def tls_lines() -> str:
    cert, key = certificate_files()
    return f'tls_cert_file = "{cert}"\ntls_key_file = "{key}"\n'


@pytest.mark.parametrize("version", VERSIONS)
def test_programs_are_in_order(version: str) -> None:
    """Formatted as gofmt does it, and nothing that go vet would doubt."""
    assert vet(version) == ""


async def test_each_version_hands_over_mail_as_it_is_with_and_without_tls(tmp_path: Path) -> None:
    """Everything is sent and arrives once, unchanged, with the headers of a campaign."""
    pools = of_each_version(plain=SHIPPED, tls=replace(SHIPPED, tls="STARTTLS"))

    async with (
        fast_relay(tmp_path, tls_lines()) as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await each(opened.values(), lambda pool: pool.send(40))
        await until_all_sent(tmp_path)

        for name, one in audits("untroubled", opened, twin).items():
            assert (name, len(one.told.sent), one.told.failed) == (name, 40, {})
            assert one.lost == []
        assert twin.ledger.twice() == {}
        assert twin.ledger.total.accepted == 40 * len(pools)
        for record in twin.ledger.records:
            assert_is_as_it_was(record)


def assert_is_as_it_was(record: Accepted) -> None:
    """The mail that arrived is the one that the client made, by the number in its Message-Id."""
    assert record.content is not None
    mail = email.message_from_bytes(record.content, policy=email.policy.default)
    assert mail["Content-Type"] == 'text/html; charset="UTF-8"'
    number = record.message_id.rpartition("@")[0].rpartition(".")[2]
    assert record.recipients == (f"reader{number}@example.net",)
    assert mail["Subject"] == f"Weekly notes — № {number}"
    assert mail["X-Listmonk-Campaign"] == CAMPAIGN
    assert mail["X-Listmonk-Subscriber"] == f"00000000-0000-4000-8000-{int(number):012}"
    assert html_of(record).split() == HTML.replace("{n}", number).split()


def login(auth: str, tls: str) -> Settings:
    few = replace(SHIPPED, conns=2, workers=2)
    return replace(few, auth=auth, tls=tls, username=USER, password=PASSWORD)


LOGINS = {
    f"{auth}.{tls}": login(auth, tls)
    for auth in ("plain", "login", "cram")
    for tls in ("none", "STARTTLS")
}


async def test_each_version_logs_in_each_way(tmp_path: Path) -> None:
    """PLAIN, LOGIN and CRAM-MD5, in plain text on loopback and under TLS."""
    async with (
        fast_relay(tmp_path, with_login(tmp_path)) as (relay, twin),
        open_pools(relay.smtp_port, of_each_version(**LOGINS)) as opened,
    ):
        await each(opened.values(), lambda pool: pool.send(6))
        await until_all_sent(tmp_path)

        for name, one in audits("logs in", opened, twin).items():
            assert (name, len(one.told.sent), one.told.failed) == (name, 6, {})
            assert one.lost == []
        assert twin.ledger.twice() == {}


@pytest.mark.parametrize(
    "logins",
    [["plain.none"], pytest.param(list(LOGINS), marks=pytest.mark.slow)],
    ids=["one", "all"],
)
async def test_each_version_is_told_why_it_may_not_send(tmp_path: Path, logins: list[str]) -> None:
    """A wrong password and no login at all are errors whose text says what to set in Listmonk.

    PLAIN without TLS is refused by Go itself, unless the host is one of three names.
    """
    wrong = {name: replace(LOGINS[name], password="another") for name in logins}
    # Go sends no password in plain text, but to these three: localhost, 127.0.0.1 and ::1.
    elsewhere = replace(LOGINS["plain.none"], host="127.0.0.2")
    nobody = replace(SHIPPED, workers=1)
    pools = of_each_version(**wrong, elsewhere=elsewhere, nobody=nobody)
    listen = 'host = ["127.0.0.1", "127.0.0.2"]\n' + with_login(tmp_path)

    async with (
        fast_relay(tmp_path, listen) as (relay, twin),
        open_pools(relay.smtp_port, pools) as opened,
    ):
        await each(opened.values(), lambda pool: pool.send(1))

        for name, one in audits("may not", opened, twin).items():
            [error] = one.kinds
            code, *words = REASONS.get(name.split()[1], REASONS["wrong"])
            assert error.startswith(code), name
            assert all(word in error for word in words), name
        assert twin.ledger.total.attempts == 0


REASONS = {
    "wrong": ("535 ", "Listmonk's SMTP settings", "relay user add"),
    "nobody": ("530 ", "Listmonk's SMTP settings", "choose LOGIN", "relay user add"),
    "elsewhere": ("unencrypted connection",),
}
"""How each error begins, and what it says besides."""

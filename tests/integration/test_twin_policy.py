"""The twin's policy and its side of the account, over real sockets."""

from __future__ import annotations

from dataclasses import replace

from relay.twin import Policy
from tests.fakes.clock import ManualClock
from tests.fakes.rawsmtp import MESSAGE, OPEN, dialled, playing


async def test_policy_changes_while_a_session_is_open() -> None:
    """Paused in mid-session, every message is refused; resumed, they pass again."""
    async with playing() as twin, dialled(twin.port) as client:
        before = await client.message()
        twin.policy = replace(twin.policy, paused=True)
        paused = await client.message()
        await client.ask("RSET")
        twin.policy = replace(twin.policy, paused=False)
        after = await client.message()

    assert [before[:3], after[:3]] == ["250", "250"]
    assert paused.startswith("554 Message rejected: Sending paused for this account.")
    assert twin.ledger.total.accepted == 2
    assert twin.ledger.total.refused == {paused: 1}


async def test_unverified_sender_is_refused_after_the_dot_only() -> None:
    """MAIL and RCPT say 250; the dot names the identities, header before recipients."""
    policy = Policy(verified=frozenset({"example.com"}), sandbox=True)

    async with playing(replace(OPEN, policy=policy)) as twin, dialled(twin.port) as client:
        refused = await client.message("b@example.org")
        await client.ask("RSET")
        accepted = await client.message("b@example.com")

    assert refused == (
        "554 Message rejected: Email address is not verified. The following identities failed the"
        " check in region US-EAST-1: b@example.org"
    )
    assert accepted[:3] == "250"


async def test_check_of_headers_is_a_part_of_the_policy() -> None:
    """Switched off it lets a second From pass and leaves the rest of the policy alone."""
    twice = b"From: a@example.com\r\n" + MESSAGE
    policy = Policy(configuration_sets=frozenset())

    async with playing(replace(OPEN, policy=policy)) as twin, dialled(twin.port) as client:
        strict = await client.message(content=twice)
        twin.check_headers(once_only=False)
        await client.ask("RSET")
        lax = await client.message(content=twice)
        with_set = await client.message(content=b"X-SES-Configuration-Set: a\r\n" + MESSAGE)

    assert strict == "554 Transaction failed: Duplicate header 'From'."
    assert lax[:3] == "250"
    assert with_set == "554 Configuration set <a> does not exist."


async def test_policy_costs_nothing() -> None:
    """A refusal by the policy leaves rate and quota as they were."""
    config = replace(OPEN, rate_per_s=1, quota=1, policy=Policy(paused=True))

    async with playing(config, clock=ManualClock()) as twin, dialled(twin.port) as client:
        for _ in range(3):
            assert (await client.message())[:3] == "554"
            await client.ask("RSET")
        twin.policy = Policy()

        assert (await client.message())[:3] == "250"


async def test_quotas_day_can_be_skipped() -> None:
    """Spent, then a day later by the quota's clock alone, it is there again."""
    async with (
        playing(replace(OPEN, quota=1, rate_per_s=100), clock=ManualClock()) as twin,
        dialled(twin.port) as client,
    ):
        assert (await client.message())[:3] == "250"
        assert (await client.message()) == "454 Throttling failure: Daily message quota exceeded."
        await client.ask("RSET")
        twin.skip(86_400)
        assert (await client.message())[:3] == "250"

        audit = twin.audit()

    assert audit.accepted(0, 1e9) == 2


async def test_credentials_can_be_switched_off_at_any_moment() -> None:
    """The property is what logins are judged by."""
    async with playing(replace(OPEN, credentials_valid=False)) as twin:
        assert not twin.credentials_valid
        twin.credentials_valid = True
        assert twin._shared.account.credentials_valid

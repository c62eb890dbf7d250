"""What goes when, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.breaker import Hold, Source, campaign_key, sender_key
from relay.errors import SpoolFull, Unreachable
from relay.reply import Stage
from relay.spool import State
from relay.upstream import Refused
from tests.fakes.house import House, open_house
from tests.fakes.upstream import Plan, said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from relay.spool import Settlement, Spool

RATE_454 = said(Stage.DOT, "454 Throttling failure: Maximum sending rate exceeded.")
QUOTA_454 = said(Stage.DOT, "454 Throttling failure: Daily message quota exceeded.")
DUPLICATE_HEADER = said(Stage.DOT, "554 Transaction failed: Duplicate header 'Content-Type'.")
NOT_VERIFIED = said(
    Stage.DOT,
    "554 Message rejected: Email address is not verified. The following identities failed the "
    "check in region US-EAST-1: news@lists.example.com",
)


def waiting(house: House, state: State = State.WAITING) -> int:
    return sum(count for key, count in house.spool.depth().items() if key.state is state)


def empty(house: House) -> bool:
    return not waiting(house)


async def test_mail_is_sent_and_its_end_is_written_down(tmp_path: Path) -> None:
    """P2: one outcome, with the upstream's id, and nothing left in the queue."""
    async with open_house(tmp_path) as house:
        await house.keep(content=b"Subject: hello\r\n\r\nhello\r\n")

        await house.until(lambda: empty(house))

        [fate] = (await house.fates()).values()
        assert (fate.status, fate.ses_id, fate.attempts) == (
            "sent",
            "01000170d10e6a6c-71c65177-ce88-4135-9258-48c0e8bf916d-000000",
            1,
        )
        assert [mail.content for mail in house.upstream.mails] == [
            b"Subject: hello\r\n\r\nhello\r\n"
        ]


async def test_throttled_mail_is_sent_again_and_costs_no_attempt(tmp_path: Path) -> None:
    """P4: a 454 at the dot is backpressure, never a failure."""
    async with open_house(tmp_path) as house:
        house.upstream.plans.extend([Plan(dot=RATE_454)] * 3)
        await house.keep(5, campaign="a")

        await house.until(lambda: empty(house))

        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 5
        assert len(house.upstream.mails) == 8


async def test_reset_that_arrives_before_the_booked_moment_goes_first(tmp_path: Path) -> None:
    """First the moment, then the envelope: nothing is chosen ahead of its time."""
    slow = config.Rate(start_per_s=1, floor_per_s=0.5, ceiling_per_s=1)
    async with open_house(tmp_path, rate=slow) as house:
        await house.keep(20, campaign="a")
        await house.until(lambda: len(house.upstream.mails) == 5)

        await house.keep(1)
        await house.until(lambda: len(house.upstream.mails) == 6)

        assert house.upstream.mails[5].recipients == (house.kept[-1].recipients[0].address,)


async def test_one_bad_recipient_bounces_alone(tmp_path: Path) -> None:
    """The others of the same message are sent, once."""
    async with open_house(tmp_path) as house:
        refusal = said(Stage.RCPT, "501 Invalid RCPT TO address provided")
        house.upstream.plans.append(Plan(rcpt={1: refusal}))
        await house.keep(1, cost=3)

        await house.until(lambda: empty(house))

        assert await house.statuses() == ["sent", "bounced", "sent"]
        assert len(house.upstream.mails) == 1


async def test_deferred_mail_waits_its_time(tmp_path: Path) -> None:
    """A 451 about the mail costs an attempt and the first wait of the schedule."""
    async with open_house(tmp_path) as house:
        house.upstream.plans.append(Plan(dot=said(Stage.DOT, "451 Temporary service failure")))
        await house.keep()
        await house.until(lambda: len(house.upstream.mails) == 1)

        await house.until(lambda: empty(house), step_s=0.5)

        first, second = house.upstream.mails
        assert 59 <= second.at - first.at <= 63
        [fate] = (await house.fates()).values()
        assert (fate.status, fate.attempts) == ("sent", 2)


async def test_mail_in_doubt_is_sent_again_after_ten_minutes_and_flagged(tmp_path: Path) -> None:
    """The link was lost after the dot: it may arrive twice, and the outcome says so."""
    async with open_house(tmp_path) as house:
        house.upstream.plans.append(Plan(lost=Stage.DOT))
        await house.keep()
        await house.until(lambda: len(house.upstream.mails) == 1)

        await house.until(lambda: empty(house), step_s=5)

        first, second = house.upstream.mails
        assert 599 <= second.at - first.at <= 660
        [fate] = (await house.fates()).values()
        assert (fate.status, fate.in_doubt) == ("sent", True)


async def test_mail_in_doubt_is_held_if_the_operator_wants_that(tmp_path: Path) -> None:
    """Never twice, at the price of a person's decision."""
    settings = config.Upstream(in_doubt="hold")
    async with open_house(tmp_path, upstream=settings) as house:
        house.upstream.plans.append(Plan(lost=Stage.DOT))
        await house.keep(2, campaign="a")

        await house.until(lambda: waiting(house, State.PARKED) == 1)
        await house.until(lambda: empty(house))

        assert sorted(await house.statuses()) == ["parked", "sent"]
        assert house.holds.held("in-doubt:ses")
        assert [hold.key for hold in await house.spool.holds()] == ["in-doubt:ses"]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(lost=Stage.MAIL),
        Plan(lost=Stage.DATA),
        Plan(
            mail=said(
                Stage.MAIL, "421 Connection closed by server. Too many messages in one session"
            )
        ),
        Plan(mail=said(Stage.MAIL, "451 4.4.2 Timeout waiting for data from client.")),
        Plan(mail=said(Stage.MAIL, "503 Sender already specified.")),
    ],
)
async def test_end_of_a_session_is_not_the_mails_fault(tmp_path: Path, plan: Plan) -> None:
    """P4: the same envelope goes on the next session at once, uncharged."""
    async with open_house(tmp_path) as house:
        house.upstream.plans.append(plan)
        await house.keep()

        took_s = await house.until(lambda: empty(house))

        assert took_s < 5
        [fate] = (await house.fates()).values()
        assert (fate.status, fate.attempts, fate.in_doubt) == ("sent", 1, False)


async def test_refused_password_holds_the_account_and_loses_nothing(tmp_path: Path) -> None:
    """535: everything waits, one probe finds out when it is mended, and all goes on."""
    async with open_house(tmp_path) as house:
        refused = Refused(said(Stage.AUTH, "535 Authentication Credentials Invalid"))
        house.upstream.failures.extend([refused] * 40)
        await house.keep(5, campaign="a")
        await house.until(lambda: house.holds.account_held("ses"))
        house.upstream.failures.clear()
        await house.pass_time(30)
        assert house.upstream.mails == []

        await house.until(lambda: empty(house))

        assert await house.statuses() == ["sent"] * 5
        assert not house.holds.account_held("ses")
        assert await house.spool.holds() == []


async def test_unverified_sender_is_parked_while_others_go_on(tmp_path: Path) -> None:
    """A hold on one sender stops no one else; when the probe passes, all of it goes."""
    verified = False

    def answer(sender: str, _: Sequence[str], __: bytes) -> Plan:
        return Plan() if verified or not sender.startswith("news@") else Plan(dot=NOT_VERIFIED)

    async with open_house(tmp_path) as house:
        house.upstream.answer = answer
        await house.keep(5, campaign="a", sender="news@lists.example.com")
        await house.keep(5, campaign="a", sender="other@lists.example.com")

        await house.until(lambda: empty(house))
        assert await house.statuses() == ["parked"] * 5 + ["sent"] * 5
        assert house.holds.held(sender_key("ses", "news@lists.example.com"))

        verified = True
        await house.until(lambda: not waiting(house, State.PARKED) and empty(house))

        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 10


async def test_broken_campaign_bounces_ten_and_holds_the_rest(tmp_path: Path) -> None:
    """A header that SES refuses does not bounce the whole list; other campaigns go on."""
    broken = True

    def answer(_: str, __: Sequence[str], content: bytes) -> Plan:
        return Plan(dot=DUPLICATE_HEADER) if broken and b"broken" in content else Plan()

    rate = config.Rate(start_per_s=100, ceiling_per_s=100)
    async with open_house(tmp_path, rate=rate, latency_s=0.5) as house:
        house.upstream.answer = answer
        await house.keep(100, campaign="a", content=b"broken\r\n\r\n\r\n")
        await house.keep(50, campaign="b")

        await house.until(lambda: waiting(house) == 90)
        statuses = await house.statuses()
        assert statuses.count("bounced") == 10
        assert statuses[100:] == ["sent"] * 50
        [hold] = house.holds.all()
        assert hold.key == campaign_key("a")
        assert "Duplicate header" in hold.reason
        assert await house.spool.holds() == [hold]

        await house.pass_time(300)
        assert (await house.statuses()).count("bounced") == 10

        broken = False
        house.holds.lift_all(hold.key)
        house.dispatcher.reread()
        await house.until(lambda: empty(house))

        assert (await house.statuses()).count("sent") == 140


async def test_spent_quota_stops_campaigns_and_tries_again_now_and_then(tmp_path: Path) -> None:
    """Nothing is bounced by it, and a sparse probe finds the room that comes back."""
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: Plan(dot=QUOTA_454)
        await house.keep(20, campaign="a")
        await house.until(lambda: house.dispatcher.doing == "quota")
        tried = len(house.upstream.mails)

        await house.pass_time(3600)
        assert len(house.upstream.mails) - tried <= 7

        house.upstream.answer = lambda *_: Plan()
        await house.until(lambda: empty(house))

        assert [fate.attempts for fate in (await house.fates()).values()] == [1] * 20


async def test_old_mail_expires_unless_it_could_not_be_sent(tmp_path: Path) -> None:
    """A reset older than a day is of no use to anyone; held time does not count."""
    async with open_house(tmp_path) as house:
        house.holds.add(Hold("account:ses", Source.OPERATOR, "test", house.clock.wall_ms()))
        await house.keep(1)
        house.clock._wall_ms += 25 * 3_600_000
        house.holds.lift("account:ses", Source.OPERATOR)
        house.dispatcher.reread()

        await house.until(lambda: empty(house))

        assert await house.statuses() == ["expired"]
        assert house.upstream.mails == []


async def test_held_time_does_not_age_mail(tmp_path: Path) -> None:
    """The age clock stops while the account is held."""
    async with open_house(tmp_path) as house:
        now_ms = house.clock.wall_ms()
        house.holds.add(Hold("account:ses", Source.OPERATOR, "test", now_ms))
        house.rooms.ageing.stop("account:ses", now_ms)
        await house.keep(1)
        house.clock._wall_ms += 25 * 3_600_000
        house.rooms.ageing.go("account:ses", house.clock.wall_ms())
        house.holds.lift("account:ses", Source.OPERATOR)
        house.dispatcher.reread()

        await house.until(lambda: empty(house))

        assert await house.statuses() == ["sent"]


async def test_unreachable_upstream_costs_nothing_but_time(tmp_path: Path) -> None:
    """DNS gone, port closed: mail waits, uncharged."""
    async with open_house(tmp_path) as house:
        house.upstream.failures.extend([Unreachable("no route to host")] * 20)
        await house.keep(3, campaign="a")

        await house.until(lambda: empty(house))

        fates = (await house.fates()).values()
        assert [(fate.status, fate.attempts) for fate in fates] == [("sent", 1)] * 3
        assert house.dispatcher.doing == "idle"


async def test_peer_that_cannot_be_trusted_holds_the_account(tmp_path: Path) -> None:
    """No STARTTLS, wrong certificate: held, and never plain text."""
    async with open_house(tmp_path) as house:
        house.upstream.failures.extend([Unreachable("no STARTTLS", trusted=False)] * 20)
        await house.keep(1)

        await house.until(lambda: house.holds.account_held("ses"))

        assert house.upstream.mails == []


async def test_damaged_content_is_put_away_and_the_rest_goes_on(tmp_path: Path) -> None:
    """An unreadable row never stops the others."""
    async with open_house(tmp_path) as house:
        house.holds.add(Hold("account:ses", Source.OPERATOR, "test", 0))
        await house.keep(3, campaign="a")
        await _damage(house, house.kept[1].content_id)
        house.holds.lift("account:ses", Source.OPERATOR)
        house.dispatcher.wake()

        await house.until(lambda: empty(house))

        assert await house.statuses() == ["sent", "quarantined", "sent"]


async def _damage(house: House, content_id: int) -> None:
    def work(transaction: object) -> None:
        transaction.db.execute(  # type: ignore[attr-defined]
            "UPDATE content SET body = x'00' WHERE id = ?", (content_id,)
        )

    await house.spool._writer.call(work)


class FailingSettle:
    """A spool that cannot write settlements for a while."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.failures = 3

    async def settle(self, settlement: Settlement) -> int | None:
        if self.failures:
            self.failures -= 1
            raise SpoolFull("no room")
        return await self._spool.settle(settlement)

    def __getattr__(self, name: str) -> object:
        return getattr(self._spool, name)


async def test_unwritten_settlement_stops_dispatch(tmp_path: Path) -> None:
    """What was sent and not noted down would be sent again: so nothing more goes until it is."""
    async with open_house(tmp_path, wrap=FailingSettle, latency_s=0.0) as house:  # type: ignore[arg-type]
        await house.keep(50, campaign="a")
        await house.until(lambda: "noted down" in house.dispatcher.doing)
        sent = len(house.upstream.mails)
        await house.pass_time(0.5)
        assert len(house.upstream.mails) <= sent + 1

        await house.until(lambda: empty(house))

        assert len(house.upstream.mails) == 50


async def test_drain_waits_for_what_is_under_way_and_leases_nothing_more(tmp_path: Path) -> None:
    """An attempt under way is settled; the rest is still there for the next start."""
    release = asyncio.Event()
    async with open_house(tmp_path) as house:
        house.upstream.answer = lambda *_: Plan(until=release)
        await house.keep(10, campaign="a")
        await house.until(lambda: house.upstream.snapshot().busy >= 3)

        house.dispatcher.drain()
        await house.pass_time(5)
        under_way = len(house.upstream.mails)
        release.set()

    assert under_way == 0
    assert 2 <= len(house.upstream.mails) < 10


async def test_last_session_is_kept_for_priority(tmp_path: Path) -> None:
    """Slow newsletters take all sessions but one; a reset goes at once."""
    stuck = asyncio.Event()

    def answer(_: str, __: Sequence[str], content: bytes) -> Plan:
        return Plan(until=stuck) if b"slow" in content else Plan()

    async with open_house(tmp_path, sessions_max=3) as house:
        house.upstream.answer = answer
        await house.keep(10, campaign="a", content=b"slow\r\n\r\n\r\n")
        await house.until(lambda: house.dispatcher.session_bound)
        assert house.upstream.snapshot().busy == 2

        await house.keep(1)
        await house.until(lambda: len(house.upstream.sent) == 1, within_s=2)

        stuck.set()
        await house.until(lambda: empty(house))


async def test_large_message_is_paid_for_in_recipients(tmp_path: Path) -> None:
    """Fifty recipients cost fifty moments: the next message waits."""
    rate = config.Rate(start_per_s=10, ceiling_per_s=10)
    async with open_house(tmp_path, rate=rate) as house:
        await house.keep(2, campaign="a", cost=50)

        await house.until(lambda: len(house.upstream.sent) == 2)

        first, second = house.upstream.mails
        assert second.at - first.at >= 4.8


async def test_sandbox_account_parks_unverified_recipients_one_by_one(tmp_path: Path) -> None:
    """In the SES sandbox mail to verified readers still goes; the rest waits for a person."""

    def answer(_: str, recipients: Sequence[str], __: bytes) -> Plan:
        text = (
            "554 Message rejected: Email address is not verified. The following identities failed "
            f"the check in region US-EAST-1: {recipients[0]}"
        )
        return Plan(dot=said(Stage.DOT, text)) if recipients[0] != verified else Plan()

    async with open_house(tmp_path) as house:
        verified = ""
        house.upstream.answer = answer
        await house.keep(3)
        verified = house.kept[1].recipients[0].address

        await house.until(lambda: empty(house))

        assert await house.statuses() == ["parked", "sent", "parked"]
        assert house.holds.held("sandbox:ses")


async def test_mail_spooled_before_the_start_is_found(tmp_path: Path) -> None:
    """P3: leases are in memory, so that whatever was waiting waits again after a crash."""
    async with open_house(tmp_path) as house:
        house.holds.add(Hold("account:ses", Source.OPERATOR, "test", 0))
        kept = await house.keep(600, campaign="a")

    rate = config.Rate(start_per_s=1000, ceiling_per_s=1000)
    async with open_house(tmp_path, rate=rate, latency_s=0) as house:
        house.kept = kept
        await house.until(lambda: empty(house))

        assert [mail.recipients[0] for mail in house.upstream.sent] == [
            one.recipients[0].address for one in kept
        ]

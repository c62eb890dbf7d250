"""The way of mail through a real spool: in, due, settled, found again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from relay.breaker import Hold, Source
from relay.envelope import Outcome, Recipient, id_text
from relay.errors import SpoolError
from relay.spool import DepthKey, Due, Finished, Parked, Rescheduled, Settlement, State
from tests.fakes.clock import ManualClock
from tests.fakes.mail import envelope
from tests.fakes.spool_file import (
    PATIENCE_S,
    busy_writer,
    finished,
    keep,
    new_envelope,
    open_spool,
    park,
    query,
    read,
    settle,
    turns,
)

if TYPE_CHECKING:
    from pathlib import Path

BULK = ("ses", "bulk", "c")


async def test_p1_append_returns_once_another_connection_sees_the_mail(tmp_path: Path) -> None:
    """What was appended is committed: whoever opens the file sees it."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, body=b"hello")

        rows = query(tmp_path, "SELECT e.id, body FROM envelope e JOIN content c ON c.id = e.id")

    assert rows == [(kept.id, b"hello")]


async def test_kept_envelope_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every field survives, also over a restart, and so do the bytes."""
    clock, body = ManualClock(), bytes(range(256)) * 300
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool, cost=3, body=body)

    async with open_spool(tmp_path, clock, create=False) as spool:
        (due,) = await read(spool, clock.wall_ms())

        assert due == Due(kept, clock.wall_ms())
        assert await spool.read_content(kept.content_id) == body


async def test_arrivals_are_told_after_the_commit_in_order(tmp_path: Path) -> None:
    """The listener of arrivals hears of exactly what is on disk."""
    heard: list[Due] = []
    async with open_spool(tmp_path) as spool:
        spool.on_arrival = heard.extend

        kept = [await keep(spool) for _ in range(3)]

    assert [due.envelope for due in heard] == kept


async def test_failing_listener_of_arrivals_stops_nothing(tmp_path: Path) -> None:
    """The mail is on disk; whoever did not hear of it reads it from there."""
    failures: list[str] = []

    def fail(_: object) -> None:
        raise RuntimeError

    async with open_spool(tmp_path) as spool:
        spool.on_arrival, spool.on_failure = fail, failures.append

        await keep(spool)
        await keep(spool)

        assert spool.depth() == {DepthKey(*BULK, State.WAITING): 2}
    assert failures == ["spool", "spool"]


async def test_reading_begins_with_the_first_of_the_stream(tmp_path: Path) -> None:
    """However much is asked for, in order of arrival, each stream by itself."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool) for _ in range(5)]
        await keep(spool, campaign="other")

        for limit in (2, 2, 5, 6):
            found = await spool.read_due(*BULK, now_ms=clock.wall_ms(), limit=limit)
            assert [due.envelope for due in found] == kept[:limit]


async def test_clock_set_back_does_not_reorder_arrivals(tmp_path: Path) -> None:
    """Mail that arrives after the clock stepped back is due after what came before it."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        first = await keep(spool)
        clock.step_wall(-5000)
        second = await keep(spool)

        found = await read(spool, clock.wall_ms() + 10_000)

    assert [due.envelope for due in found] == [first, second]


async def test_mail_never_arrives_behind_a_reader(tmp_path: Path) -> None:
    """An id that was given early but kept late is still found from the reader's place on."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        late = new_envelope(spool)
        await keep(spool)
        (due,) = await read(spool, clock.wall_ms())

        await spool.append([late], b"late")

        found = await read(spool, clock.wall_ms() + 1, after=(due.due_at, due.envelope.id))
    assert [due.envelope for due in found] == [late]


async def test_mail_put_off_to_the_past_is_not_put_behind_a_reader(tmp_path: Path) -> None:
    """Due at once (a retry of 0 s, a slow disk), it still lies beyond what was read."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        first = await keep(spool)
        last = [await keep(spool) for _ in range(2)][-1]
        reached = (await read(spool, clock.wall_ms()))[-1]

        await settle(spool, first, Rescheduled(n=0, due_at=clock.wall_ms() - 9, attempts=1))

        assert reached.envelope == last
        (due,) = await read(spool, clock.wall_ms() + 1, after=(reached.due_at, last.id))
        assert due.envelope.id == first.id


async def test_looking_into_the_future_puts_no_arrival_off(tmp_path: Path) -> None:
    """Who lists all there is must not delay what arrives at the same time."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        later = await keep(spool)
        await settle(spool, later, Rescheduled(n=0, due_at=1 << 50, attempts=1))
        await asyncio.gather(read(spool, 1 << 60), keep(spool), read(spool, 1 << 60))
        await keep(spool)

        assert len(await read(spool, clock.wall_ms() + 2)) == 2


async def test_reading_waits_for_mail_that_is_being_written(tmp_path: Path) -> None:
    """A read is complete up to its moment, so that a short page means the end."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        async with busy_writer(spool):
            reading = asyncio.ensure_future(read(spool, clock.wall_ms()))
            await turns()
            assert not reading.done()

        assert await reading == []


async def test_p2_sent_mail_leaves_one_outcome_and_nothing_else(tmp_path: Path) -> None:
    """Once all recipients are sent, envelope and content are gone, the outcomes stay."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, cost=2)

        await settle(spool, kept, finished(Outcome.SENT, 0), finished(Outcome.SENT, 1), at=77)

        assert spool.depth() == {}
    for table in ("envelope", "recipient", "content"):
        assert query(tmp_path, f"SELECT count(*) FROM {table}") == [(0,)]
    assert query(tmp_path, "SELECT n, outcome, ses_id, ended_at FROM outcome ORDER BY n") == [
        (0, "sent", "ses-0", 77),
        (1, "sent", "ses-1", 77),
    ]


async def test_partly_settled_envelope_offers_only_the_rest(tmp_path: Path) -> None:
    """A recipient that ended, or waits for later, is not read again now."""
    clock = ManualClock()
    now_ms = clock.wall_ms()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool, cost=3)

        later = Rescheduled(n=1, due_at=now_ms + 60_000, attempts=1, reply="busy", in_doubt=True)
        await settle(spool, kept, finished(Outcome.SENT, 0), later)

        (now,) = await read(spool, now_ms)
        assert now.envelope.recipients == (kept.recipients[2],)
        (both,) = await read(spool, now_ms + 60_000)
        assert both.envelope.recipients == (
            Recipient(1, kept.recipients[1].address, attempts=1, in_doubt=True),
            kept.recipients[2],
        )


async def test_envelope_is_due_with_the_first_of_its_recipients(tmp_path: Path) -> None:
    """Rescheduled as a whole, it is found at the earliest of the new moments."""
    clock = ManualClock()
    now_ms = clock.wall_ms()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool, cost=2)

        await settle(
            spool,
            kept,
            Rescheduled(n=0, due_at=now_ms + 500, attempts=1),
            Rescheduled(n=1, due_at=now_ms + 300, attempts=1),
        )

        assert await spool.next_due_at("ses", now_ms) == now_ms + 300
        assert await spool.next_due_at("ses", now_ms + 300) is None
        assert await read(spool, now_ms + 299) == []
        assert await spool.next_due_at("other", now_ms) is None


@pytest.mark.parametrize("outcome", [Outcome.BOUNCED, Outcome.EXPIRED, Outcome.DROPPED])
async def test_mail_that_may_have_died_by_mistake_is_kept(tmp_path: Path, outcome: Outcome) -> None:
    """Its content and its dead recipients stay, off the queue, so that it can be revived."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, cost=2, body=b"precious")

        await settle(spool, kept, finished(outcome, 0), finished(Outcome.SENT, 1), at=5)

        assert spool.depth() == {DepthKey(*BULK, State.DEAD): 1}
        assert await read(spool, 1 << 60) == []
        assert await spool.read_content(kept.content_id) == b"precious"
    assert query(tmp_path, "SELECT state, died_at FROM envelope") == [(State.DEAD, 5)]
    assert query(tmp_path, "SELECT n, state FROM recipient") == [(0, State.DEAD)]


async def test_split_message_keeps_its_content_for_the_last_part(tmp_path: Path) -> None:
    """Content that several envelopes share goes with the last of them."""
    async with open_spool(tmp_path) as spool:
        ids = [spool.new_id(), spool.new_id()]
        parts = [replace(envelope(one, campaign="c"), content_id=ids[0]) for one in ids]
        await spool.append(parts, b"shared")

        await settle(spool, parts[0], finished(Outcome.SENT))
        assert await spool.read_content(ids[0]) == b"shared"
        await settle(spool, parts[1], finished(Outcome.SENT))

    assert query(tmp_path, "SELECT count(*) FROM content") == [(0,)]


async def test_p2_the_same_settlement_twice_is_one_outcome(tmp_path: Path) -> None:
    """A caller that does not know whether it was written may say it again."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, cost=2)
        for _ in range(2):
            await settle(
                spool,
                kept,
                finished(Outcome.SENT, 0),
                Rescheduled(n=1, due_at=1 << 45, attempts=1),
            )
        for _ in range(2):
            await settle(spool, kept, finished(Outcome.BOUNCED, 1))

        assert spool.depth() == {DepthKey(*BULK, State.DEAD): 1}
    assert query(tmp_path, "SELECT count(*) FROM outcome") == [(2,)]


@pytest.mark.parametrize("again", [Outcome.BOUNCED, None])
async def test_p2_a_second_outcome_is_an_error_that_changes_nothing(
    tmp_path: Path, again: Outcome | None
) -> None:
    """What ended cannot end otherwise or be put off, nor does the rest of that news count."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool, cost=2)
        await settle(spool, kept, finished(Outcome.SENT, 0))
        before = dict(spool.depth())
        contradiction = finished(again, 0) if again else Rescheduled(n=0, due_at=9, attempts=1)

        with pytest.raises(SpoolError, match="ended as sent"):
            await settle(spool, kept, finished(Outcome.SENT, 1), contradiction)

        assert spool.depth() == before
    assert query(tmp_path, "SELECT n, outcome FROM outcome") == [(0, "sent")]


@pytest.mark.parametrize("n", [0, 7])
async def test_settling_what_is_not_there_is_an_error(tmp_path: Path, n: int) -> None:
    """Neither an unknown recipient nor an unknown envelope can be settled."""
    async with open_spool(tmp_path) as spool:
        kept = await keep(spool) if n else new_envelope(spool)

        with pytest.raises(SpoolError, match="unknown"):
            await settle(spool, kept, finished(Outcome.SENT, n))
        with pytest.raises(SpoolError, match="not in the spool"):
            await settle(spool, envelope(1), parked=Parked(hold_key="k"))


async def test_parked_mail_waits_for_its_key(tmp_path: Path) -> None:
    """It leaves its lane with its reply, is found by its key, and returns to the lane's end."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool, cost=2)
        await settle(
            spool, kept, finished(Outcome.SENT, 0), parked=Parked(hold_key="k", reply="no")
        )
        waiting = await keep(spool)

        assert [due.envelope for due in await read(spool, clock.wall_ms())] == [waiting]
        (parked,) = await spool.read_parked("ses", "k", limit=9)
        assert parked.recipients == (kept.recipients[1],)
        assert await spool.read_parked("ses", "other", limit=9) == []
        assert await spool.read_parked("other", "k", limit=9) == []
        assert await spool.release("other") == 0
        clock.step_wall(1000)
        assert await spool.release("k") == 1

        found = [due.envelope for due in await read(spool, clock.wall_ms() + 1)]
        assert found == [waiting, parked]
        assert spool.depth() == {DepthKey(*BULK, State.WAITING): 2}
    assert query(tmp_path, "SELECT reply FROM recipient ORDER BY envelope_id") == [("no",), ("",)]


async def test_keys_of_parked_mail_are_known(tmp_path: Path) -> None:
    """Each once, in order, however much waits for it; none that is released."""
    async with open_spool(tmp_path) as spool:
        assert await spool.parked_keys() == []
        for key in ("b", "a", "c", "b"):
            await park(spool, [(await keep(spool)).id], key)
        await spool.release("c")

        assert await spool.parked_keys() == ["a", "b"]


async def test_released_mail_is_found_from_any_place_that_was_read(tmp_path: Path) -> None:
    """A reader that has passed where the mail once stood still comes across it."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool) for _ in range(2)]
        await park(spool, [kept[0].id], "k")
        last = (await read(spool, clock.wall_ms()))[-1]
        await spool.release("k")

        found = await read(spool, clock.wall_ms() + 1, after=(last.due_at, last.envelope.id))

    assert [due.envelope for due in found] == [kept[0]]


async def test_release_moves_everything_however_much_it_is(tmp_path: Path) -> None:
    """More than one step's worth is released in several."""
    async with open_spool(tmp_path) as spool:
        kept = await asyncio.gather(*(keep(spool) for _ in range(1100)))
        await park(spool, [one.id for one in kept], "k")

        assert await spool.release("k") == 1100

        assert spool.depth() == {DepthKey(*BULK, State.WAITING): 1100}


async def test_release_ends_though_its_mail_is_parked_again_at_once(tmp_path: Path) -> None:
    """Held anew while it is being released: what returns is left where it is."""
    async with open_spool(tmp_path) as spool:
        kept = [one.id for one in await asyncio.gather(*(keep(spool) for _ in range(600)))]
        await park(spool, kept, "k")
        release = asyncio.ensure_future(spool.release("k"))
        for _ in range(20):
            if release.done():
                break
            await park(spool, kept, "k")

        assert await asyncio.wait_for(release, PATIENCE_S) == 600


async def test_parked_mail_that_was_tried_goes_behind_the_rest(tmp_path: Path) -> None:
    """A probe takes the first; one that was refused again makes way for the next."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = [await keep(spool) for _ in range(3)]
        await park(spool, [one.id for one in kept], "k")
        clock.step_wall(1000)
        tried = Rescheduled(n=0, due_at=clock.wall_ms(), attempts=0)
        await settle(spool, kept[0], tried, parked=Parked(hold_key="k"))

        assert await spool.read_parked("ses", "k", limit=2) == kept[1:]
        assert await spool.read_parked("ses", "k", limit=3) == [*kept[1:], kept[0]]


async def test_settling_tells_when_the_envelope_is_due_next(tmp_path: Path) -> None:
    """By the first of all that wait, tried now or not; never, once it is parked or gone."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept, now_ms = await keep(spool, cost=3), clock.wall_ms()

        async def told(*changes: Finished | Rescheduled, parked: Parked | None = None) -> object:
            return await spool.settle(
                Settlement(envelope=kept, changes=changes, parked=parked, at=now_ms)
            )

        assert await told(Rescheduled(n=0, due_at=now_ms + 9000, attempts=1)) == now_ms
        assert await told(finished(Outcome.SENT, 1)) == now_ms
        assert await told(Rescheduled(n=2, due_at=now_ms + 20_000, attempts=1)) == now_ms + 9000
        assert await told(parked=Parked(hold_key="k")) is None
        assert await told(finished(Outcome.BOUNCED, 0), finished(Outcome.SENT, 2)) is None

        gone = await keep(spool)
        settlement = Settlement(envelope=gone, changes=(finished(Outcome.SENT),), at=now_ms)
        assert [await spool.settle(settlement) for _ in range(2)] == [None, None]


async def test_clamping_brings_back_what_the_clock_put_out_of_reach(tmp_path: Path) -> None:
    """After a step back nothing is due later than asked, and arrivals follow the new time."""
    clock = ManualClock()
    before_ms = clock.wall_ms()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool, cost=2)
        await settle(spool, kept, Rescheduled(n=0, due_at=before_ms + 60_000, attempts=1))
        await read(spool, before_ms)
        clock.step_wall(-3_600_000)

        await spool.clamp_due(clock.wall_ms() + 1000)
        arrival = await keep(spool)

        assert [due.envelope for due in await read(spool, clock.wall_ms())] == [arrival]
        (old,) = (await read(spool, clock.wall_ms() + 1000))[1:]
        assert old.due_at == clock.wall_ms() + 1000
        assert old.envelope.cost == 2


async def test_quarantined_mail_is_off_the_queue_but_there(tmp_path: Path) -> None:
    """A person finds it with the reason; lanes do not see it."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool)

        await spool.quarantine(kept.id, "odd")
        await spool.quarantine(kept.id, "again")

        assert await read(spool, clock.wall_ms()) == []
        assert spool.depth() == {DepthKey(*BULK, State.QUARANTINED): 1}
    assert query(tmp_path, "SELECT state, reason FROM envelope") == [(State.QUARANTINED, "odd")]


async def test_recipients_are_found_by_all_their_names(tmp_path: Path) -> None:
    """By address in any case, Message-ID with or without brackets, SES id, envelope id."""
    async with open_spool(tmp_path) as spool:
        ended, waiting = await keep(spool), await keep(spool)
        await settle(spool, ended, finished(Outcome.BOUNCED, attempts=3), at=9)

        by_address = await spool.find(ended.recipients[0].address.upper())
        assert [(one.envelope_id, one.status, one.at) for one in by_address] == [
            (ended.id, "bounced", 9)
        ]
        for name in (ended.message_id, ended.message_id.strip("<>"), "ses-0", id_text(ended.id)):
            assert await spool.find(name) == by_address
        for name in (waiting.message_id, waiting.recipients[0].address, id_text(waiting.id)):
            (one,) = await spool.find(name)
            assert (one.envelope_id, one.status) == (waiting.id, "waiting")
        assert await spool.find("") == []


async def test_sent_recipients_are_counted_by_time(tmp_path: Path) -> None:
    """The quota ledger sees what was sent, by whom, when; bounces are not in it."""
    async with open_spool(tmp_path) as spool:
        for at in (100, 1009, 1010, 1019, 1025):
            await settle(spool, await keep(spool), finished(Outcome.SENT), at=at)
        await settle(spool, await keep(spool), finished(Outcome.BOUNCED), at=1010)

        assert await spool.sent_by_time("ses", 1000, 10) == [(1000, 1), (1010, 2), (1020, 1)]
        assert await spool.sent_by_time("other", 1000, 10) == []


async def test_ids_go_on_after_a_restart_even_if_the_clock_went_back(tmp_path: Path) -> None:
    """An id is never given twice, although its mail may be gone."""
    clock = ManualClock()
    async with open_spool(tmp_path, clock) as spool:
        kept = await keep(spool)
        await settle(spool, kept, finished(Outcome.SENT))
    clock.step_wall(-1_000_000)

    async with open_spool(tmp_path, clock) as spool:
        assert spool.new_id() > kept.id


async def test_holds_and_states_survive_a_restart(tmp_path: Path) -> None:
    """Each key and source by itself; the latest word counts."""
    first = Hold("campaign:1", Source.OPERATOR, "asked to", 5)
    second = Hold("campaign:1", Source.BREAKER, "554", 6, next_probe_at=7, probes=1)
    later = Hold("campaign:1", Source.BREAKER, "554", 6, next_probe_at=9, probes=2)
    async with open_spool(tmp_path) as spool:
        for hold in (first, second, later):
            await spool.put_hold(hold)
        await spool.put_state("rate", {"limit_per_s": 1.5})
        await spool.put_state("rate", {"limit_per_s": 2.5})

    async with open_spool(tmp_path) as spool:
        assert await spool.holds() == [first, later]
        assert await spool.drop_hold("campaign:1", Source.OPERATOR)
        assert not await spool.drop_hold("campaign:1", Source.OPERATOR)
        assert await spool.holds() == [later]
        assert await spool.state("rate") == {"limit_per_s": 2.5}
        assert await spool.state("other") is None


async def test_streams_without_mail_or_outcomes_are_forgotten(tmp_path: Path) -> None:
    """A year of campaigns leaves nothing behind once their outcomes are gone."""
    async with open_spool(tmp_path) as spool:
        for campaign in ("waits", "ended", "gone"):
            await keep(spool, campaign=campaign)
        for campaign in ("ended", "gone"):
            (due,) = await read(spool, 1 << 60, campaign=campaign)
            await settle(spool, due.envelope, finished(Outcome.SENT))
    query(
        tmp_path, "DELETE FROM outcome WHERE envelope_id = (SELECT max(envelope_id) FROM outcome)"
    )

    async with open_spool(tmp_path):
        names = query(tmp_path, "SELECT campaign FROM stream ORDER BY id")
    assert names == [("waits",), ("ended",)]


@pytest.mark.parametrize("cost", [0, 1])
async def test_mail_that_cannot_be_kept_is_refused_at_once(tmp_path: Path, cost: int) -> None:
    """No recipients, or envelopes of different contents in one append: our bug, no wait."""
    async with open_spool(tmp_path) as spool:
        envelopes = [new_envelope(spool, cost=cost)] * (1 + cost)
        envelopes[-1] = new_envelope(spool, cost=cost)

        with pytest.raises(SpoolError):
            await spool.append(envelopes, b"x")

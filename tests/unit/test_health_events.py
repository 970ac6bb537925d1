"""Events: told at once, written once, in order, and never too many."""

import asyncio

import pytest

from holdfast.base.errors import Damaged, Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.health.event_log import BATCH_MAX, REPEAT_S, WAITING_MAX, EventLog
from holdfast.health.events import (
    EVENTS,
    HEAD,
    TEXT_CHARACTERS_MAX,
    Event,
    Head,
    Kind,
    decode_event,
    decode_head,
    encode_event,
    encode_head,
    event_row,
    make_event,
)
from holdfast.index.memory import Fault, MemoryIndex, MemoryRows, Mishap
from holdfast.index.port import Row, Transaction, prefix_end
from tests.kit.virtual import VirtualClock, run_virtual


class Told:
    """A log over an index in memory."""

    def __init__(self, *, rows: MemoryRows | None = None, kept_max: int = 1000) -> None:
        self.clock = VirtualClock()
        self.index = MemoryIndex(self.clock, rows)
        self.log = EventLog(self.clock, "here", kept_max=kept_max)

    def begin(self) -> None:
        self.log.begin(self.index)

    async def written(self) -> list[Event]:
        """What is in the index, after a while."""
        await self.clock.sleep(60.0)
        return self.rows()

    def rows(self) -> list[Event]:
        found = self.index.rows.scan(EVENTS, prefix_end(EVENTS), 1 << 20, b"", 0)
        return [decode_event(row) for row in found if isinstance(row, Row)]


@pytest.mark.virtual
async def test_an_event_is_kept_with_all_that_was_told() -> None:
    told = Told()
    told.begin()
    told.log.tell(
        "3 in a row: EIO",
        kind=Kind.STORE,
        subject="disk3",
        before="healthy",
        after="suspect",
        evidence={"failures": "3"},
    )
    told.log.tell("all of it")
    first, second = await told.written()
    assert first.text == "store disk3 is suspect: 3 in a row: EIO"
    assert (first.number, first.kind, first.subject) == (1, "store", "disk3")
    assert (first.before, first.after, first.observer) == ("healthy", "suspect", "here")
    assert first.evidence == {"failures": "3"}
    assert first.wall == pytest.approx(told.clock.wall() - 60.0, abs=1.0)
    assert (second.number, second.text, second.kind) == (2, "all of it", "note")
    assert [event.text for event in told.log.last(5)] == [first.text, "all of it"]
    await told.log.close()


@pytest.mark.virtual
async def test_what_is_told_before_the_index_is_there_or_while_it_is_away_is_written_when_it_is() -> None:
    told = Told()
    told.log.tell("before")
    await told.clock.sleep(5.0)
    told.begin()
    await told.clock.sleep(1.0)
    told.index.away = True
    for number in range(3 * BATCH_MAX):
        told.log.tell(f"away {number}")
    await told.clock.sleep(600.0)
    assert [event.text for event in told.log.last(1)] == [f"away {3 * BATCH_MAX - 1}"]
    with pytest.raises(Unavailable):
        await told.log.page(0, 10)
    page = await told.log.newest(2)
    assert not page.complete
    assert len(page.events) == 2
    told.index.away = False
    texts = [event.text for event in await told.written()]
    assert texts == ["before", *(f"away {number}" for number in range(3 * BATCH_MAX))]
    await told.log.close()


@pytest.mark.virtual
async def test_what_waits_is_bounded_and_what_was_lost_is_told() -> None:
    told = Told(kept_max=10_000)
    told.index.away = True
    told.begin()
    for number in range(WAITING_MAX + 30):
        told.log.tell(f"number {number}")
    told.index.away = False
    texts = [event.text for event in await told.written()]
    assert texts[-1] == f"number {WAITING_MAX + 29}"
    assert "30 events were not kept: the index was away for too long" in texts
    assert len(texts) == WAITING_MAX + 1
    await told.log.close()


@pytest.mark.virtual
async def test_no_more_than_so_many_are_kept_and_the_oldest_go() -> None:
    told = Told(kept_max=100)
    told.begin()
    for number in range(1, 451):
        told.log.tell(f"number {number}")
        await told.clock.sleep(0.01)
        assert len(told.rows()) <= 100 + BATCH_MAX
    events = await told.written()
    assert [event.number for event in events] == list(range(351, 451))
    assert [event.text for event in events] == [f"number {number}" for number in range(351, 451)]
    assert await told.log.head() == Head(first=351, next=451)
    assert (await told.log.newest(3)).events == tuple(events[-3:])
    page = await told.log.page(0, 30)
    assert (page.events[0].number, page.after, page.more) == (351, 380, True)
    page = await told.log.page(449, 30)
    assert ([event.number for event in page.events], page.more) == ([450], False)
    assert (await told.log.page(450, 30)).after == 450
    await told.log.close()


@pytest.mark.virtual
async def test_numbers_that_others_may_have_seen_are_not_given_again() -> None:
    """After a recovery the log goes on far ahead: the events before it stay, and go in their turn."""
    told = Told(kept_max=100)
    told.begin()
    for number in range(1, 91):
        told.log.tell(f"number {number}")
        await told.clock.sleep(0.01)
    await told.written()
    await told.log.close()
    base = 1 << 40
    for lineage in (1, 2):
        head = (await told.log.head()).skipping_to(lineage * base)
        await told.index.commit([Transaction((), ((HEAD, encode_head(head)),))])
        told.log = EventLog(told.clock, "here", kept_max=100)
        told.begin()
        told.log.tell(f"after recovery {lineage}")
        assert (await told.written())[-1].number == lineage * base
        newest = (await told.log.newest(10)).events
        assert [event.text for event in newest[:-lineage]] == [
            f"number {number}" for number in range(81 + lineage, 91)
        ]
        assert newest[-1].text == f"after recovery {lineage}"
        if lineage == 1:
            await told.log.close()
    for number in range(91, 400):
        told.log.tell(f"number {number}")
        await told.clock.sleep(0.01)
        assert len(told.rows()) <= 100 + BATCH_MAX
    assert [event.text for event in await told.written()] == [f"number {n}" for n in range(300, 400)]
    head = await told.log.head()
    assert (head.next - head.first, head.skipped) == (100, 0)
    assert Head(first=5, next=5).skipping_to(9) == Head(first=9, next=9)
    assert Head(first=5, next=8).skipping_to(8) == Head(first=5, next=8)
    await told.log.close()


@pytest.mark.parametrize("seed", range(20))
def test_each_event_is_written_once_and_in_order_whatever_becomes_of_a_commit(seed: int) -> None:
    async def run() -> None:
        chance = SeededRandomness(seed)
        told = Told()
        told.begin()
        mishaps = tuple(Mishap)
        for number in range(60):
            if chance.below(3) == 0:
                told.index.faults.append(Fault(mishaps[chance.below(4)], 3.0 * chance.fraction()))
            told.log.tell(f"number {number}")
            await told.clock.sleep(2.0 * chance.fraction() ** 3)
        await told.clock.sleep(900.0)
        events = await told.written()
        assert [event.text for event in events] == [f"number {number}" for number in range(60)]
        assert [event.number for event in events] == list(range(1, 61))
        await told.log.close()

    run_virtual(run())


@pytest.mark.virtual
async def test_two_nodes_write_to_one_log() -> None:
    told = Told()
    other = EventLog(told.clock, "there")
    told.begin()
    other.begin(told.index)
    for number in range(30):
        told.log.tell(f"here {number}")
        other.tell(f"there {number}")
        await told.clock.sleep(0.1)
    events = await told.written()
    assert [event.number for event in events] == list(range(1, 61))
    for name in ("here", "there"):
        texts = [event.text for event in events if event.observer == name]
        assert texts == [f"{name} {number}" for number in range(30)]
    await told.log.close()
    await other.close()


@pytest.mark.virtual
async def test_the_same_again_is_one_event_with_a_new_time_for_a_while() -> None:
    told = Told()
    told.begin()
    for _ in range(100):
        told.log.tell("again")
        told.log.tell("and again")
        await told.clock.sleep(REPEAT_S / 200)
    (again, _) = told.log.last(5)
    assert again.wall == pytest.approx(told.clock.wall(), abs=1.0)
    await told.clock.sleep(REPEAT_S)
    told.log.tell("again")
    assert [event.text for event in await told.written()] == ["again", "and again", "again"]
    await told.log.close()


@pytest.mark.virtual
async def test_what_waits_is_written_when_the_node_stops_and_remembered_by_the_next() -> None:
    told = Told()
    told.begin()
    await told.clock.sleep(1.0)
    told.log.tell("last words")
    await told.log.close()
    after = Told(rows=told.index.rows)
    after.log.tell("first words")
    after.begin()
    await after.clock.sleep(1.0)
    assert [event.text for event in after.log.last(5)] == ["last words", "first words"]
    assert [event.number for event in after.rows()] == [1, 2]
    await after.log.close()


@pytest.mark.virtual
async def test_a_node_stops_although_the_index_is_away() -> None:
    told = Told()
    told.begin()
    told.index.away = True
    told.log.tell("nobody will know")
    await asyncio.wait_for(told.log.close(), 1.0)


def test_texts_are_cut_and_hold_no_control_characters() -> None:
    event = make_event(
        1.5,
        "here",
        kind="store",
        subject="d\x1b[31misk",
        before="",
        after="down",
        reason="a\nb\tc " + "x" * 10_000,
        evidence={f"fact {number}\r": "y" * 10_000 for number in range(100)},
    )
    assert event.subject == "d [31misk"
    assert event.reason.startswith("a b c xxx")
    assert len(event.reason) == TEXT_CHARACTERS_MAX
    assert len(encode_event(event)) < 20_000
    assert all(character.isprintable() for name in event.evidence for character in name)


def test_a_row_of_another_format_is_refused_not_half_understood() -> None:
    event = Event(wall=1.5, reason="so", observer="here", evidence={"a": "b"}, number=7)
    assert decode_event(Row(event_row(7), encode_event(event), 1)) == event
    with pytest.raises(Damaged, match="format 2"):
        decode_event(Row(event_row(7), b"\x99\x02" + encode_event(event)[2:], 1))
    with pytest.raises(Damaged):
        decode_event(Row(event_row(7), b"\x01", 1))
    with pytest.raises(Damaged):
        decode_head(Row(HEAD, b"\x93\x02\x01\x01", 1))
    assert decode_head(None) == Head()

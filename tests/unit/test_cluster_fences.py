"""Fences: what was begun under one ends with it, and nothing that is open is cut off by its own process."""

import gc

import pytest

from holdfast.base.errors import Busy
from holdfast.base.randomness import SeededRandomness
from holdfast.cluster.fences import ROTATE_AT_LAST_S, ROTATE_S, TICKET_S, OwnFences
from holdfast.cluster.others import FENCED_S, SILENT_S, ClusterOthers
from holdfast.cluster.rows import FENCES, FORMAT, BeatRow, all_of, beat_row, encode, fences_of
from holdfast.index.memory import Fault, MemoryIndex, Mishap
from holdfast.index.port import Committed, Conflict, Row, Transaction
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual


class World:
    """An index, and fences of nodes over it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.index = MemoryIndex(self.clock)
        self.waiting = False
        self._boots = 0

    async def fences(self, name: str) -> OwnFences:
        self._boots += 1

        async def is_waited_for() -> bool:
            return self.waiting

        chance = SeededRandomness(f"{name} {self._boots}")
        fences = OwnFences(self.index, self.clock, chance, name, f"boot {self._boots}", is_waited_for)
        await fences.open()
        return fences

    async def rows(self) -> list[Row]:
        return [row for row in await self.index.scan(*all_of(FENCES), limit=100) if isinstance(row, Row)]

    async def beat(self, name: str, count: int, reading: int = 0) -> int:
        row = encode(BeatRow(FORMAT, name, count, reading, True))
        (outcome,) = await self.index.commit([Transaction((), ((beat_row(name), row),))])
        assert isinstance(outcome, Committed)
        return outcome.revision

    async def makes(self, fences: OwnFences, pack: bytes) -> Transaction:
        return Transaction(fences.ticket().expects, ((b"pack/" + pack, b""),))


async def test_what_a_process_left_under_way_ends_when_the_next_one_starts() -> None:
    world = World()
    old = await world.makes(await world.fences("n1"), b"1")
    again = await world.fences("n1")
    assert isinstance((await world.index.commit([old]))[0], Conflict)
    assert isinstance((await world.index.commit([await world.makes(again, b"2")]))[0], Committed)
    assert len(await world.rows()) == 1


async def test_a_fence_is_replaced_while_something_waits_and_stays_as_long_as_a_pack_is_open() -> None:
    world = World()
    fences = await world.fences("n1")
    ticket = fences.ticket()
    await world.clock.sleep(ROTATE_S + 1)
    await fences.tend()
    assert fences.count == 1  # nobody waits
    world.waiting = True
    await fences.tend()
    assert fences.count == 2
    assert fences.ticket().expects != ticket.expects
    await world.clock.sleep(TICKET_S / 2)
    await fences.tend()
    await fences.tend()
    (outcome,) = await world.index.commit([Transaction(ticket.expects, ((b"pack/1", b""),))])
    assert isinstance(outcome, Committed)
    expects = ticket.expects
    del ticket
    gc.collect()
    await fences.tend()
    assert fences.count == 1
    assert isinstance((await world.index.commit([Transaction(expects)]))[0], Conflict)


async def test_a_pack_that_stays_open_for_a_day_is_given_up() -> None:
    world = World()
    fences = await world.fences("n1")
    ticket = fences.ticket()
    await world.clock.sleep(ROTATE_AT_LAST_S + 1)
    await fences.tend()
    await world.clock.sleep(TICKET_S)
    await fences.tend()
    assert isinstance((await world.index.commit([Transaction(ticket.expects)]))[0], Conflict)


async def test_a_node_that_was_fenced_gives_up_what_is_open_and_goes_on() -> None:
    world = World()
    fences = await world.fences("n1")
    ticket = fences.ticket()
    (row,) = await world.rows()
    await world.index.commit([Transaction((), (), (row.key,))])
    assert isinstance((await world.index.commit([Transaction(ticket.expects)]))[0], Conflict)
    await fences.tend()
    assert isinstance((await world.index.commit([Transaction(ticket.expects)]))[0], Conflict)
    (outcome,) = await world.index.commit([Transaction(fences.ticket().expects)])
    assert isinstance(outcome, Committed)


async def test_a_node_without_a_fence_makes_no_packs() -> None:
    world = World()
    chance = SeededRandomness("x")
    fences = OwnFences(world.index, world.clock, chance, "n1", "boot")
    with pytest.raises(Busy):
        fences.ticket()


@pytest.mark.parametrize("mishap", [Mishap.APPLIED, Mishap.NOT_APPLIED, Mishap.APPLIED_LATER])
async def test_a_fence_whose_outcome_was_lost_does_not_stay(mishap: Mishap) -> None:
    world = World()
    world.index.faults.append(Fault(mishap, 1.0 if mishap is Mishap.APPLIED_LATER else 0.0))
    fences = await world.fences("n1")
    await world.clock.sleep(2)
    await fences.tend()
    assert fences.count == len(await world.rows()) == 1
    assert isinstance((await world.index.commit([await world.makes(fences, b"1")]))[0], Committed)


async def test_no_pack_to_come_was_begun_before_the_oldest_fence_of_all() -> None:
    world = World()
    one, other = await world.fences("n1"), await world.fences("n2")
    world.waiting = True
    tickets = other.ticket()
    for _ in range(3):
        await world.clock.sleep(ROTATE_S + 1)
        for fences in (one, other):
            await fences.tend()
            await fences.tend()
    assert one.began <= tickets.expects[0].revision
    before = one.began
    del tickets
    gc.collect()
    await other.tend()
    await one.tend()
    assert one.began > before


async def test_a_grave_waits_for_fences_that_are_older_and_for_no_others() -> None:
    world = World()
    one, other = await world.fences("n1"), await world.fences("n2")
    others = ClusterOthers(world.index, world.clock)
    world.waiting = True
    (buried,) = await world.index.commit([Transaction((), ((b"buried/1", b""),))])
    assert isinstance(buried, Committed)
    assert (await others.look()).may_come_back(buried.revision)
    await world.clock.sleep(ROTATE_S + 1)
    await one.tend()
    await one.tend()
    assert (await others.look()).may_come_back(buried.revision)
    await other.tend()
    await other.tend()
    assert not (await others.look()).may_come_back(buried.revision)


async def test_who_is_silent_for_long_is_fenced_and_who_beats_is_not() -> None:
    world = World()
    await world.fences("n1")
    await world.fences("n2")
    others = ClusterOthers(world.index, world.clock)
    await world.beat("n2", 0)
    for count in range(int(FENCED_S / 2) + 3):
        await world.beat("n1", count)
        await others.look()
        await world.clock.sleep(2.0)
    names = {row.key for row in await world.rows()}
    assert all(key.startswith(fences_of("n1")) for key in names)
    assert len(names) == 1


async def test_who_did_not_look_holds_that_against_nobody() -> None:
    world = World()
    await world.fences("n1")
    await world.beat("n1", 1)
    others = ClusterOthers(world.index, world.clock)
    await others.look()
    await world.clock.sleep(10 * FENCED_S)
    await others.look()
    assert len(await world.rows()) == 1


async def test_a_grave_waits_for_reads_of_nodes_that_beat() -> None:
    world = World()
    others = ClusterOthers(world.index, world.clock)
    looked_up = await world.beat("n1", 1, 0)
    await world.beat("n2", 1, 10_000)
    buried = await world.beat("n1", 2, looked_up)
    assert (await others.look()).is_read(buried)
    for count in range(int(SILENT_S / 2) + 2):
        await world.beat("n2", 2 + count, 10_000)
        await world.clock.sleep(2.0)
        said = await others.look()
    assert not said.is_read(buried)
    await world.beat("n1", 3, looked_up)
    assert (await others.look()).is_read(buried)

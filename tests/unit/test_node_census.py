"""The count of packs: what is there, what lacks shards, what the weakest may still lose."""

import pytest

from holdfast.base.ids import PackId, StoreId
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Expect, Transaction
from holdfast.node.census import PAGE, Census
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow, Place, debt_row, pack_row
from holdfast.packs.rows import encode_row
from holdfast.scheme import Scheme
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import Store
from holdfast.topology import Level, Location, Topology
from tests.kit.virtual import VirtualClock

SLOTS = tuple(StoreId(f"s{number}") for number in range(6))
RS42 = Scheme(4, 2)


class World:
    """Six stores, an index in memory, and a census over both."""

    def __init__(self, *, device: str = "") -> None:
        self.clock = VirtualClock()
        self.index = MemoryIndex(self.clock)
        # Only who is there matters to a census; it never asks a store anything.
        self.stores: dict[StoreId, Store] = {slot: _store(slot, self.clock) for slot in SLOTS}
        self.down: set[StoreId] = set()
        topology = Topology(Location(slot, device=device) for slot in SLOTS)
        self.census = Census(
            self.index, self.stores, lambda store: store not in self.down, lambda: topology, self.clock
        )

    async def add(self, number: int, row: PackRow, *, debt: bool = False) -> None:
        pack = PackId(number.to_bytes(16, "big"))
        puts = [(pack_row(pack), encode_row(row))] + ([(debt_row(pack), b"owed")] if debt else [])
        await self.index.commit([Transaction((Expect(pack_row(pack), 0),), tuple(puts))])


def _store(slot: StoreId, clock: VirtualClock) -> Store:
    from holdfast.base.randomness import SeededRandomness

    return MemoryStore(slot, clock=clock, randomness=SeededRandomness(1))


def row(scheme: Scheme = RS42, size: int = 1 << 20, stores: tuple[StoreId, ...] = SLOTS) -> PackRow:
    return PackRow(scheme, size, 100, size, tuple(Place(n, store, 1) for n, store in enumerate(stores)))


@pytest.mark.virtual
async def test_without_packs_nothing_is_at_risk() -> None:
    world = World()
    await world.census.whole()
    assert world.census.status().packs == 0
    assert world.census.status().losses_survivable is None
    assert world.census.survives == {}


@pytest.mark.virtual
async def test_whole_packs_can_lose_what_their_scheme_says() -> None:
    world = World()
    await world.add(1, row())
    await world.add(2, row())
    await world.census.whole()
    status = world.census.status()
    assert (status.packs, status.degraded, status.shards_missing, status.unreadable) == (2, 0, 0, 0)
    assert status.losses_survivable == 2
    assert status.bytes_stored == 2 * 6 * Layout(4, (1 << 20) + 100).shard_bytes
    assert world.census.survives[Level.STORE] == 2
    assert world.census.survives[Level.HOST] == 0


@pytest.mark.virtual
async def test_stores_on_one_device_are_lost_together() -> None:
    world = World(device="sda")
    await world.add(1, row())
    await world.census.whole()
    assert world.census.survives[Level.STORE] == 2
    assert world.census.survives[Level.DEVICE] == 0


@pytest.mark.virtual
async def test_the_weakest_pack_decides() -> None:
    world = World()
    await world.add(1, row())
    await world.add(2, row(Scheme(1, 1), stores=SLOTS[:2]))
    await world.census.whole()
    assert world.census.status().losses_survivable == 1
    assert world.census.survives[Level.STORE] == 1


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("lost", "degraded", "unreadable", "left"), [(1, 1, 0, 1), (2, 1, 0, 0), (3, 1, 1, 0)]
)
async def test_stores_that_are_away_count_against_every_pack(
    lost: int, degraded: int, unreadable: int, left: int
) -> None:
    world = World()
    await world.add(1, row())
    for slot in SLOTS[: lost - 1]:
        del world.stores[slot]
    world.down.add(SLOTS[lost - 1])
    await world.census.whole()
    status = world.census.status()
    assert (status.degraded, status.unreadable, status.shards_missing) == (degraded, unreadable, lost)
    assert status.losses_survivable == left


@pytest.mark.virtual
async def test_shards_that_hold_nothing_are_not_missed() -> None:
    world = World()
    small = PackRow(RS42, 100, 100, 100, tuple(Place(n, SLOTS[n], 1) for n in (0, 4, 5)))
    await world.add(1, small)
    await world.census.whole()
    assert world.census.status().degraded == 0
    assert world.census.status().losses_survivable == 2


@pytest.mark.virtual
async def test_debts_are_counted_and_many_pages_too() -> None:
    world = World()
    for number in range(PAGE + 7):
        await world.add(number, row(), debt=number < 3)
    assert await world.census.step()
    assert not await world.census.step()
    assert world.census.status().packs == PAGE + 7
    assert world.census.status().debts == 3


@pytest.mark.virtual
async def test_a_count_says_how_old_it_is() -> None:
    world = World()
    await world.census.whole()
    await world.clock.sleep(30)
    assert world.census.status().counted_s_ago == pytest.approx(30)


@pytest.mark.virtual
async def test_the_least_redundancy_of_all_packs_is_known_and_packs_without_any_do_not_count() -> None:
    world = World()
    found: list[int | None] = []
    world.census.on_counted = lambda count: found.append(count.redundancy_least)
    await world.census.whole()
    await world.add(1, row())
    await world.census.whole()
    await world.add(2, row(Scheme(1, 1), stores=SLOTS[:2]))
    await world.add(3, row(Scheme(6, 0)))
    await world.census.whole()
    assert found == [None, 2, 1]

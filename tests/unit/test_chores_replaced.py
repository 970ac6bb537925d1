"""Shards at stores that are gone for good are reported for repair; those of stores that are away are not."""

import pytest

from holdfast.base.ids import PackId, StoreId
from holdfast.chores.away import Away
from holdfast.chores.repair import Repair
from holdfast.chores.replaced import FindReplaced
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Expect, Transaction
from holdfast.packs.disposal import Disposal
from holdfast.packs.model import PackRow, Place, pack_row, trash_row
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.rows import decode_row, encode_row
from holdfast.packs.verifying import PackHealth
from holdfast.scheme import Scheme
from holdfast.topology import Location, Topology
from tests.kit.rig import build_rig
from tests.kit.virtual import VirtualClock
from tests.unit.test_packs_storage import write

A, B, C, NEW = (StoreId(name) for name in ("a", "b", "c", "new"))


def pack(number: int) -> PackId:
    return PackId(number.to_bytes(16, "big"))


class World:
    """An index with packs as mirrors, and the chore."""

    def __init__(self) -> None:
        self.index = MemoryIndex(VirtualClock())
        self.topology = Topology([Location(A), Location(B), Location(C)])
        self.reports: set[tuple[PackId, int]] = set()
        self.away_s: dict[StoreId, float] = {}
        away = Away(lambda: self.away_s, lambda: frozenset(self.topology.stores), patience_s=600)
        self.chore = FindReplaced(self.index, away, self._report, VirtualClock())

    def _report(self, pack: PackId, shards: frozenset[int], why: str, left: int, size: int) -> None:
        self.reports |= {(pack, shard) for shard in shards}

    async def put(self, number: int, *stores: StoreId) -> None:
        places = tuple(Place(n, store, 1) for n, store in enumerate(stores))
        key = pack(number)
        (found,) = await self.index.get([pack_row(key)])
        expected = Expect(pack_row(key), found.revision if found else 0)
        row = encode_row(PackRow(Scheme(1, 1), 10, 10, 10, places))
        await self.index.commit([Transaction((expected,), ((pack_row(key), row),))])

    async def walk(self) -> None:
        while await self.chore.step():
            pass


@pytest.mark.virtual
async def test_what_lies_where_it_should_is_left_alone() -> None:
    world = World()
    await world.put(1, A, B)
    await world.walk()
    assert world.reports == set()


@pytest.mark.virtual
async def test_a_store_with_a_new_identity_has_lost_what_the_old_one_held() -> None:
    world = World()
    await world.put(1, A, B)
    await world.put(2, B, C)
    await world.walk()
    world.topology = Topology([Location(A), Location(NEW), Location(C)])
    await world.walk()
    assert world.reports == {(pack(1), 1), (pack(2), 0)}


@pytest.mark.virtual
async def test_what_was_placed_at_a_store_that_had_gone_is_found_when_packs_are_counted() -> None:
    world = World()
    await world.put(1, A, B)
    await world.walk()
    world.topology = Topology([Location(A), Location(B)])
    await world.walk()
    await world.put(2, A, C)  # by a write that began before
    world.chore.counted({A, B})
    await world.walk()
    assert not world.reports
    world.chore.counted({A, B, C})
    await world.walk()
    assert world.reports == {(pack(2), 1)}


@pytest.mark.virtual
async def test_it_asks_again_until_nothing_is_left_there() -> None:
    world = World()
    await world.put(1, A, B)
    world.topology = Topology([Location(A), Location(NEW), Location(C)])
    await world.walk()
    world.reports.clear()
    await world.walk()
    assert world.reports == {(pack(1), 1)}
    await world.put(1, A, NEW)
    world.reports.clear()
    await world.walk()
    assert world.reports == set()


@pytest.mark.virtual
async def test_what_a_replaced_store_held_gets_a_new_home() -> None:
    rig = build_rig(7)
    written = await write(rig, Scheme(4, 2), bytes(200_000))
    (row,) = await rig.index.get([pack_row(written.extent.pack)])
    assert row is not None
    lost = decode_row(row.value).places[0].store
    del rig.attached[lost]
    away = Topology(Location(store) for store in rig.stores)
    gone = Topology(Location(store) for store in rig.stores if store != lost)
    for topology, repaired in ((away, 0), (gone, 1)):
        rewriter = Rewriter(
            rig.attached,
            lambda topology=topology: topology,  # type: ignore[misc]
            rig.index,
            rig.packs.rows,
            rig.packs.reader,
            rig.packs.writer,
            rig.clock,
            rig.randomness,
        )
        repair = Repair(rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda pack, why: None)
        repair.report(written.extent.pack, 0, "as somebody believes")
        while await repair.step():
            pass
        assert repair.repaired == repaired
    (report,) = [report async for report in rig.verifier.verify_all()]
    assert report.state is PackHealth.WHOLE


@pytest.mark.virtual
async def test_what_was_to_be_removed_from_a_store_that_is_gone_is_forgotten() -> None:
    rig = build_rig()
    lost, away = rig.stores[:2]
    rows = [trash_row(store, "00" * 16 + ".0.1") for store in (lost, away)]
    await rig.index.commit([Transaction((), tuple((row, b"") for row in rows))])
    del rig.attached[lost]
    del rig.attached[away]
    disposal = Disposal(rig.attached, rig.index, lambda store: store == lost)
    await disposal.sweep_trash()
    assert [row is not None for row in await rig.index.get(rows)] == [False, True]

"""A write that ends early leaves nothing behind, however it ends."""

import asyncio
from collections import Counter

import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.collect import Sweep
from holdfast.index.memory import Fault, Mishap
from holdfast.packs.disposal import Disposal
from holdfast.packs.model import debt_row
from holdfast.packs.quorum import PATIENCE_S
from holdfast.packs.storage import Packs
from holdfast.packs.writing import LATE_BYTES_MAX, PUT_TIMEOUT_S, most_room_first
from holdfast.topology import Location, Topology
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS, piece, write

pytestmark = pytest.mark.virtual

BODY = bytes(range(256)) * 400


async def blobs(rig: Rig) -> int:
    return sum([len(await memory.list("", limit=10_000, timeout_s=1)) for memory in rig.memories.values()])


async def sweep(rig: Rig) -> None:
    chore = Sweep(Disposal(rig.attached, rig.index))
    for _ in range(5):
        await chore.step()


async def test_a_write_that_is_cancelled_leaves_nothing() -> None:
    rig = build_rig(latency_s=(0.5, 1.0))
    writing = asyncio.create_task(write(rig, RS, BODY))
    await rig.clock.sleep(0.3)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await rig.clock.sleep(5)
    assert await blobs(rig) == 6
    await sweep(rig)
    assert await blobs(rig) == 0


async def test_a_shard_that_landed_twice_is_kept_once() -> None:
    rig = build_rig(7)
    for store in rig.stores[:2]:
        # One of them is overtaken by the only spare, and lands while the other is still waited for.
        rig.scripts[store].delay_s = (0.050, 0.075)
    for number in range(12):
        appended = await rig.packs.append(RS, piece(f"k{number}", BODY))
        assert len((await rig.packs.rows.fresh(appended.extent.pack)).row.places) == 6
    await rig.clock.sleep(60)
    await sweep(rig)
    assert await blobs(rig) == 12 * 6


async def test_when_the_index_is_away_the_shards_go_when_it_is_back() -> None:
    rig = build_rig()
    rig.index.faults.append(Fault(Mishap.UNAVAILABLE))
    with pytest.raises(Unavailable):
        await rig.packs.append(RS, piece("k", BODY))
    assert await blobs(rig) == 6
    await rig.clock.sleep(5)
    await sweep(rig)
    assert await blobs(rig) == 0


async def test_when_nobody_is_quick_the_floor_is_enough_in_the_end() -> None:
    rig = build_rig()
    for store in rig.stores[1:]:
        rig.scripts[store].delay_s = (6.0, 6.0)
    rig.scripts[rig.stores[0]].delay_s = (25.0, 25.0)
    began = rig.clock.monotonic()
    appended = await rig.packs.append(RS, piece("k", BODY))
    assert rig.clock.monotonic() - began < PATIENCE_S + 0.1
    assert appended.receipt.shards_durable == 5


async def test_what_a_store_that_hangs_holds_in_memory_is_bounded() -> None:
    rig = build_rig()
    rig.scripts[rig.stores[0]].hang = True
    packs = []
    for _ in range(30):
        packs.append((await write(rig, RS, bytes(8 << 20))).extent.pack)
        assert rig.packs.writer.late_bytes <= LATE_BYTES_MAX
    assert rig.packs.writer.late_bytes > LATE_BYTES_MAX // 2
    await rig.clock.sleep(PUT_TIMEOUT_S + 1)
    assert rig.packs.writer.late_bytes == 0
    assert None not in await rig.index.get([debt_row(pack) for pack in packs])
    rig.scripts[rig.stores[0]].hang = False
    await rig.clock.sleep(60)
    await sweep(rig)
    assert await blobs(rig) == 30 * 5


async def test_an_outcome_that_is_unknown_is_settled_though_the_index_is_away_meanwhile() -> None:
    rig = build_rig()
    rig.index.faults += [Fault(Mishap.APPLIED), Fault(Mishap.UNAVAILABLE)]
    appended = await rig.packs.append(RS, piece("k", BODY))
    assert bytes(await rig.packs.read_small(appended.extent)) == BODY


def test_who_has_more_room_is_written_to_more_often() -> None:
    stores = [StoreId(name) for name in "abc"]
    rooms = {stores[0]: 100, stores[1]: 100, stores[2]: 400}
    randomness = SeededRandomness(3)
    first = Counter(most_room_first(stores, rooms, randomness)[0] for _ in range(3000))
    assert 0.62 < first[stores[2]] / 3000 < 0.71  # 400 of 600
    assert sorted(most_room_first(stores, rooms, randomness)) == stores


async def test_a_store_that_takes_nothing_new_is_not_written_to() -> None:
    rig = build_rig(7)
    packs = Packs(
        rig.attached,
        lambda: Topology(Location(store, device=store) for store in rig.stores),
        rig.index,
        rig.health,
        rig.clock,
        rig.randomness,
        lambda pack, shard, what: None,
        room=lambda store: 0 if store == rig.stores[2] else 1,
    )
    for _ in range(20):
        landed = await packs.writer.write(RS, [b"x" * 100_000], b"m", 100_000)
        assert rig.stores[2] not in [place.store for place in landed.row.places]
        assert landed.debt is None
    await packs.close()

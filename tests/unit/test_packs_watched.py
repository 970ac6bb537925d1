"""A commit that lands when nobody counts on it any more brings no dead pack back."""

import pytest

from holdfast.base.ids import PackId
from holdfast.index.memory import Fault, Mishap
from holdfast.index.port import PRESENT, Committed, Expect, Transaction, prefix_end
from holdfast.packs.disposal import Disposal, encode_burial, shards_buried, shards_of
from holdfast.packs.model import buried_row, pack_row
from holdfast.packs.rows import decode_row
from holdfast.packs.watched import WatchedIndex
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS

pytestmark = pytest.mark.virtual


async def written_in_doubt(rig: Rig, index: WatchedIndex) -> PackId:
    """A pack whose row was committed by asking again; the first commit lands five seconds later."""
    written = await rig.packs.write(RS, [bytes(50_000)], lambda _: [])
    rig.index.faults.append(Fault(Mishap.APPLIED_LATER, 5.0))
    await index.commit(written.transactions)
    (outcome,) = await index.commit(written.transactions)
    assert isinstance(outcome, Committed)
    return written.extent.pack


async def bury(rig: Rig, pack: PackId) -> None:
    (row,) = await rig.index.get([pack_row(pack)])
    assert row is not None
    grave = encode_burial(shards_of(pack, decode_row(row.value)))
    change = Transaction((Expect(pack_row(pack), PRESENT),), ((buried_row(pack), grave),), (pack_row(pack),))
    await rig.index.commit([change])


async def test_a_dead_pack_whose_commit_lands_late_stays_dead() -> None:
    rig = build_rig()
    index = WatchedIndex(rig.index)
    pack = await written_in_doubt(rig, index)
    assert index.in_doubt(pack)
    await bury(rig, pack)
    disposal = Disposal(rig.attached, index, is_awaited=index.in_doubt)
    assert await disposal.sweep_buried() == (6, b"")
    await rig.clock.sleep(10)
    assert await rig.index.get([pack_row(pack)]) == [None]
    (grave,) = await rig.index.get([buried_row(pack)])
    assert grave is not None
    assert shards_buried(grave) == ()


async def test_without_the_watch_it_would_come_back() -> None:
    rig = build_rig()
    pack = await written_in_doubt(rig, WatchedIndex(rig.index))
    await bury(rig, pack)
    await Disposal(rig.attached, rig.index).sweep_buried()
    await rig.clock.sleep(10)
    assert await rig.index.get([pack_row(pack)]) != [None]


async def test_the_grave_goes_when_nobody_can_come_any_more() -> None:
    rig = build_rig()
    index = WatchedIndex(rig.index)
    await bury(rig, await written_in_doubt(rig, index))
    await Disposal(rig.attached, index, is_awaited=index.in_doubt).sweep_buried()
    # The next process begins with nobody in doubt.
    await Disposal(rig.attached, index, is_awaited=WatchedIndex(rig.index).in_doubt).sweep_buried()
    assert not await rig.index.scan(b"buried/", prefix_end(b"buried/"), limit=1)


async def test_what_is_certain_is_not_watched() -> None:
    rig = build_rig()
    index = WatchedIndex(rig.index)
    written = await rig.packs.write(RS, [bytes(50_000)], lambda _: [])
    await index.commit(written.transactions)
    assert not index.in_doubt(written.extent.pack)

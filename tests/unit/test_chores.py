"""Background work: debt is paid, damage mended, dead packs give their space back, nothing else goes."""

import random

import pytest

from holdfast.base.errors import Bug
from holdfast.base.ids import PackId, VersionId
from holdfast.chores.absent import FindAbsent
from holdfast.chores.cleanup import Cleanup
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.repair import DEBTS_PRESS_S, PayDebts, Repair
from holdfast.chores.runner import ChoreRunner
from holdfast.index.port import ABSENT, Expect, Transaction
from holdfast.objects.keys import dead_row, share_row
from holdfast.objects.rows import FORMAT, DeadRow, ShareRow, encode
from holdfast.packs.disposal import Disposal
from holdfast.packs.model import debt_row, pack_row
from holdfast.packs.verifying import PackHealth
from tests.kit.rig import Rig, build_rig
from tests.unit.test_packs_storage import RS, read_all, write

pytestmark = pytest.mark.virtual


async def let_die(rig: Rig, pack: PackId, owner: str, size: int) -> None:
    key = dead_row(pack, owner)
    await rig.index.commit(
        [Transaction((Expect(key, ABSENT),), ((key, encode(DeadRow(FORMAT, size, "x"))),))]
    )


async def share(rig: Rig, pack: PackId, owner: str) -> None:
    key = share_row(pack, VersionId(owner))
    await rig.index.commit([Transaction((), ((key, encode(ShareRow(FORMAT, "b", "k"))),))])


async def blobs(rig: Rig) -> int:
    return sum([len(await memory.list("", limit=10_000, timeout_s=1)) for memory in rig.memories.values()])


def collector(rig: Rig) -> Collect:
    return Collect(rig.index, rig.packs.rows, rig.packs.reader.in_use)


async def exhaust(*chores: Collect | Sweep) -> None:
    for chore in chores:
        while await chore.step():
            pass


async def test_a_pack_dies_when_all_of_it_is_dead_and_its_shards_go() -> None:
    rig = build_rig()
    written = await write(rig, RS, bytes(100_000))
    kept = await write(rig, RS, bytes(100_000))
    collect, sweep = collector(rig), Sweep(Disposal(rig.attached, rig.index))
    pack = written.extent.pack
    await let_die(rig, pack, "a", 60_000)
    await exhaust(collect, sweep)
    assert await rig.index.get([pack_row(pack)]) != [None]
    await let_die(rig, pack, "b", 40_000)
    await exhaust(collect, sweep)
    assert await rig.index.get([pack_row(pack), dead_row(pack, "a"), dead_row(pack, "b")]) == [None] * 3
    assert await blobs(rig) == 6
    assert await read_all(rig, [kept.extent]) == bytes(100_000)


async def test_a_share_keeps_a_dead_pack_alive() -> None:
    rig = build_rig()
    written = await write(rig, RS, bytes(100_000))
    pack = written.extent.pack
    collect, sweep = collector(rig), Sweep(Disposal(rig.attached, rig.index))
    await share(rig, pack, "copy")
    await let_die(rig, pack, "a", 100_000)
    await exhaust(collect, sweep)
    assert await read_all(rig, [written.extent]) == bytes(100_000)
    await rig.index.commit([Transaction((), (), (share_row(pack, VersionId("copy")),))])
    await exhaust(collect, sweep)
    assert await blobs(rig) == 0


async def test_shards_on_a_store_that_is_away_go_when_it_is_back() -> None:
    rig = build_rig()
    written = await write(rig, RS, bytes(100_000))
    away = rig.attached.pop(rig.stores[0])
    collect, sweep = collector(rig), Sweep(Disposal(rig.attached, rig.index))
    await let_die(rig, written.extent.pack, "a", 100_000)
    await exhaust(collect, sweep)
    assert await blobs(rig) == 1
    rig.attached[rig.stores[0]] = away
    await exhaust(sweep)
    assert await blobs(rig) == 0
    assert await rig.index.scan(b"buried/", b"buried0", limit=10) == []


async def test_what_reads_find_wrong_is_written_back() -> None:
    rig = build_rig()
    data = random.Random(1).randbytes(3_000_000)
    written = await write(rig, RS, data)
    known = await rig.packs.rows.fresh(written.extent.pack)
    name = f"{known.pack.hex()}.0.0"
    rig.memories[known.places[0].store].damage(name, 9000, 1)
    repaired: list[str] = []
    repair = Repair(
        rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda _, why: repaired.append(why)
    )
    assert await read_all(rig, [written.extent]) == data
    for pack, shard, what in rig.damage:
        repair.report(pack, shard, what)
    assert await repair.step()
    assert repaired == [], "written again, and not proven yet"
    assert await repair.step()
    assert repaired == ["shard 0: 1 wrong blocks, first 1"]
    assert (await rig.verifier.verify(await rig.packs.rows.fresh(known.pack))).state is PackHealth.WHOLE
    assert not await repair.step()


async def test_an_empty_disk_in_an_old_slot_is_filled_again() -> None:
    rig = build_rig()
    extents = [(await write(rig, RS, random.Random(n).randbytes(50_000))).extent for n in range(12)]
    rig.memories[rig.stores[3]].wipe()
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None)
    absent = FindAbsent(rig.attached, rig.index, repair.report, lambda: repair.has_room)
    absent.look_at(rig.stores[3])
    runner = ChoreRunner([repair, absent], rig.clock, lambda *_: None)
    runner.start()
    await rig.clock.sleep(60)
    await runner.close()
    for extent in extents:
        assert (await rig.verifier.verify(await rig.packs.rows.fresh(extent.pack))).state is PackHealth.WHOLE


async def test_debts_are_paid_when_stores_are_back_and_not_walked_in_vain() -> None:
    rig = build_rig()
    away = {store: rig.attached.pop(store) for store in rig.stores[:2]}
    packs = [(await write(rig, RS, bytes(200_000))).extent.pack for _ in range(5)]
    debts = PayDebts(rig.rewriter, rig.index, lambda: frozenset(rig.attached), rig.clock, lambda *_: None)
    runner = ChoreRunner([debts], rig.clock, lambda *_: None)
    runner.start()
    await rig.clock.sleep(20)
    assert debts.paid == 0
    assert not await debts.step()
    assert debts.pressure == pytest.approx(20 / DEBTS_PRESS_S, rel=0.01)
    rig.attached.update(away)
    await rig.clock.sleep(20)
    assert debts.paid == 5
    assert debts.pressure == 0.0
    assert await rig.index.get([debt_row(pack) for pack in packs]) == [None] * 5
    await runner.close()


async def test_a_debt_that_met_a_store_that_hung_is_paid_soon_after() -> None:
    rig = build_rig()
    away = {store: rig.attached.pop(store) for store in rig.stores[:2]}
    pack = (await write(rig, RS, bytes(200_000))).extent.pack
    rig.attached.update(away)
    rig.scripts[rig.stores[0]].hang = True
    debts = PayDebts(rig.rewriter, rig.index, lambda: frozenset(rig.attached), rig.clock, lambda *_: None)
    runner = ChoreRunner([debts], rig.clock, lambda *_: None)
    runner.start()
    await rig.clock.sleep(20)
    rig.scripts[rig.stores[0]].hang = False
    await rig.clock.sleep(40)
    assert await rig.index.get([debt_row(pack)]) == [None]
    await runner.close()


async def test_abandoned_packs_leave_nothing_behind() -> None:
    rig = build_rig()
    for store in rig.stores[:2]:
        rig.scripts[store].write_errors = 1.0
    written = await write(rig, RS, bytes(100_000))
    await rig.clock.sleep(5)
    await exhaust(Sweep(Disposal(rig.attached, rig.index)))
    for store in rig.stores[:2]:
        rig.scripts[store].write_errors = 0.0
    await exhaust(Sweep(Disposal(rig.attached, rig.index)))
    row = (await rig.packs.rows.fresh(written.extent.pack)).row
    assert await blobs(rig) == len(row.places)
    assert await rig.index.scan(b"buried/", b"buried0", limit=10) == []


async def test_cleanup_goes_on_until_nothing_is_left() -> None:
    asked: list[int] = []

    async def finish(steps: int) -> bool:
        asked.append(steps)
        return len(asked) == 3

    cleanup = Cleanup(finish)
    assert [await cleanup.step() for _ in range(3)] == [True, True, False]


async def test_what_is_being_read_is_not_taken_away() -> None:
    rig = build_rig()
    data = random.Random(1).randbytes(20_000_000)
    extents = [
        (await write(rig, RS, data[:10_000_000])).extent,
        (await write(rig, RS, data[10_000_000:])).extent,
    ]
    collect, sweep = collector(rig), Sweep(Disposal(rig.attached, rig.index))
    reading = aiter(rig.packs.read(extents, 0, len(data)))
    parts = [bytes(await anext(reading))]
    for extent in extents:
        await let_die(rig, extent.pack, "a", 10_000_000)
    await exhaust(collect, sweep)
    parts += [bytes(part) async for part in reading]
    assert b"".join(parts) == data
    await exhaust(collect, sweep)
    assert await blobs(rig) == 0


async def test_more_dead_bytes_than_there_are_kill_nothing() -> None:
    rig = build_rig()
    written = await write(rig, RS, bytes(100_000))
    await let_die(rig, written.extent.pack, "a", 100_001)
    with pytest.raises(Bug):
        await collector(rig).step()
    assert await read_all(rig, [written.extent]) == bytes(100_000)


async def test_a_store_that_hangs_does_not_keep_others_from_giving_room_back() -> None:
    rig = build_rig()
    packs = [(await write(rig, RS, bytes(100_000))).extent.pack for _ in range(20)]
    for pack in packs:
        await let_die(rig, pack, "a", 100_000)
    await exhaust(collector(rig))
    rig.scripts[rig.stores[0]].hang = True
    began = rig.clock.monotonic()
    await Sweep(Disposal(rig.attached, rig.index)).step()
    assert rig.clock.monotonic() - began < 25
    assert await blobs(rig) == 20

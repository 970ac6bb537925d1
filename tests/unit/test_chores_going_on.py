"""Chores go on: whatever goes wrong in one unit of work, the next one comes, and nothing is forgotten."""

import asyncio

import pytest

from holdfast.base.errors import Bug, HoldfastError
from holdfast.base.ids import PackId
from holdfast.chores.absent import FindAbsent
from holdfast.chores.repair import Repair
from holdfast.chores.runner import ChoreRunner
from holdfast.packs.verifying import PackHealth
from tests.kit.rig import build_rig
from tests.unit.test_packs_storage import RS, write

pytestmark = pytest.mark.virtual


class Clumsy:
    """Fails with a mistake of ours the first times."""

    name = "clumsy"
    interval_s = 1.0

    def __init__(self) -> None:
        self.steps = 0

    async def step(self) -> bool:
        self.steps += 1
        if self.steps < 3:
            raise KeyError("our mistake") if self.steps == 1 else Bug("our mistake")
        return False


async def test_a_chore_survives_our_own_mistakes_and_they_are_told() -> None:
    rig = build_rig()
    told: list[tuple[str, HoldfastError]] = []
    handled: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: handled.append(context["exception"]))
    chore = Clumsy()
    runner = ChoreRunner([chore], rig.clock, lambda name, error: told.append((name, error)))
    runner.start()
    await rig.clock.sleep(10)
    await runner.close()
    assert chore.steps > 5
    assert [(name, type(error)) for name, error in told] == [("clumsy", Bug)] * 2
    assert "our mistake" in str(told[0][1])
    assert [type(error) for error in handled] == [KeyError, Bug]


async def test_what_cannot_be_mended_now_is_mended_later() -> None:
    rig = build_rig()
    written = await write(rig, RS, bytes(100_000))
    known = await rig.packs.rows.fresh(written.extent.pack)
    sick = known.places[2].store
    rig.memories[sick].wipe()
    rig.scripts[sick].write_errors = 1.0
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None)
    runner = ChoreRunner([repair], rig.clock, lambda *_: None)
    runner.start()
    repair.report(known.pack, 2, "absent")
    await rig.clock.sleep(30)
    assert repair.waiting == 1
    rig.scripts[sick].write_errors = 0.0
    rig.health.probed(sick, None, rig.clock.monotonic())
    await rig.clock.sleep(120)
    await runner.close()
    assert (repair.waiting, repair.repaired) == (0, 1)
    assert (await rig.verifier.verify(await rig.packs.rows.fresh(known.pack))).state is PackHealth.WHOLE


async def test_looking_for_absent_shards_waits_for_repair() -> None:
    rig = build_rig()
    packs = [(await write(rig, RS, bytes(9000))).extent.pack for _ in range(12)]
    for store in rig.stores[:2]:
        rig.memories[store].wipe()
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None, reports_max=4)
    absent = FindAbsent(rig.attached, rig.index, repair.report, lambda: repair.has_room, page=2)
    for store in rig.stores[:2]:
        absent.look_at(store)
    runner = ChoreRunner([repair, absent], rig.clock, lambda *_: None)
    runner.start()
    await rig.clock.sleep(300)
    await runner.close()
    for pack in packs:
        assert (await rig.verifier.verify(await rig.packs.rows.fresh(pack))).state is PackHealth.WHOLE


async def test_looking_for_absent_shards_waits_for_the_proofs_of_what_was_written_again_too() -> None:
    rig = build_rig()
    packs = [(await write(rig, RS, bytes(9000))).extent.pack for _ in range(40)]
    rig.memories[rig.stores[0]].wipe()
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None, reports_max=16)
    absent = FindAbsent(rig.attached, rig.index, repair.report, lambda: repair.has_room, page=4)
    absent.look_at(rig.stores[0])
    for _ in range(100):
        await absent.step()
        await repair.step()
    for pack in packs:
        assert (await rig.verifier.verify(await rig.packs.rows.fresh(pack))).state is PackHealth.WHOLE


async def test_more_reports_than_there_is_room_for_are_let_go() -> None:
    rig = build_rig()
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None, reports_max=4)
    for number in range(6):
        repair.report(PackId(bytes([number]) * 16), 0, "wrong")
    assert repair.waiting == 4
    assert not repair.has_room


async def test_many_that_cannot_be_mended_now_do_not_wait_for_each_other() -> None:
    rig = build_rig(7)
    packs = [(await write(rig, RS, bytes(9000))).extent.pack for _ in range(40)]
    repair = Repair(rig.rewriter, rig.verifier, rig.packs.rows, rig.clock, lambda *_: None)
    runner = ChoreRunner([repair], rig.clock, lambda *_: None)
    sick = (await rig.packs.rows.fresh(packs[0])).places[0].store
    rig.scripts[sick].read_errors = 1.0
    for pack in packs:
        for shard, place in (await rig.packs.rows.fresh(pack)).places.items():
            if place.store == sick:
                repair.report(pack, shard, "not read")
    runner.start()
    await rig.clock.sleep(3000)
    assert repair.waiting > 20
    rig.memories[sick].wipe()
    rig.scripts[sick].read_errors = 0.0
    rig.health.probed(sick, None, rig.clock.monotonic())
    await rig.clock.sleep(120)
    await runner.close()
    assert repair.waiting == 0
    for pack in packs:
        assert (await rig.verifier.verify(await rig.packs.rows.fresh(pack))).state is PackHealth.WHOLE

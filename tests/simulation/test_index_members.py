"""Members of the log that come, go, fill up and are replaced: nothing acknowledged depends on luck."""

import asyncio

import pytest

from holdfast.base.errors import Unavailable
from holdfast.index.sqlite.log import Log
from tests.kit.index_disks import SimDisk, SimMember, World
from tests.kit.virtual import VirtualClock, run_virtual
from tests.simulation.test_index_log import (
    OPTIONS,
    Ledger,
    all_current,
    make_disks,
    opened,
    write,
    write_checkpoint,
)


@pytest.mark.virtual
async def test_a_change_of_membership_waits_for_the_one_before() -> None:
    disks, ledger, spare = make_disks(3), Ledger(), SimDisk("spare")
    log = await opened(disks, World("members"), ledger)
    await write(log, b"all of them")
    disks[0].gone = disks[1].gone = True
    new = SimMember(spare, World("members, spare"))
    # Two of four hold that the spare is a member. Two of three would be a majority, once disk1 is none;
    # but disk0 and disk1 know nothing of all this, and are one, too.
    for _ in range(2):
        with pytest.raises(Unavailable):
            await log.replace("disk1", new)
    assert log.acked == max(ledger.hashes)
    assert "disk1" in log.replication.members
    disks[0].gone = False
    await log.replace("disk1", new)
    await write(log, b"replaced")
    await ledger.check(log)
    await log.close()


def nobody_is_out(log: Log) -> bool:
    return all(status.state in ("current", "behind") for status in log.statuses())


@pytest.mark.virtual
async def test_a_checkpoint_for_which_there_is_no_room_costs_nobody_their_place() -> None:
    disks, ledger = make_disks(3), Ledger()
    log = await opened(disks, World("full"), ledger)
    for number in range(6):
        await write(log, b"before %d" % number, 900)
    for disk in disks:
        disk.full = True
    before = [set(disk.files) for disk in disks]
    await write_checkpoint(log)
    await write(log, b"a delete, say")
    assert nobody_is_out(log)
    assert len(log.replication.current()) == 3
    assert [set(disk.files) for disk in disks] == before
    for disk in disks:
        disk.full = False
    await write_checkpoint(log)
    assert all(any(name.startswith("checkpoint") for name in disk.files) for disk in disks)
    await write(log, b"after")
    await ledger.check(log)
    await log.close()


@pytest.mark.virtual
async def test_on_full_disks_segments_are_small_and_commits_go_on() -> None:
    disks, ledger = make_disks(3), Ledger()
    log = await opened(disks, World("small"), ledger)
    for disk in disks:
        disk.full, disk.room = True, OPTIONS.segment_bytes - 1
    for number in range(40):
        await write(log, b"a delete, say %d" % number, 700)
    assert nobody_is_out(log)
    assert not any(name.startswith("spare") or name.endswith(".new") for disk in disks for name in disk.files)
    for disk in disks:
        disk.full = False
    await write(log, b"after", 2000)
    await log.close()
    log = await opened(disks, World("small, again"), ledger)
    await ledger.check(log)
    await log.close()


@pytest.mark.virtual
async def test_the_segments_of_many_starts_are_given_back_by_a_checkpoint() -> None:
    disks, ledger = make_disks(3), Ledger()
    for number in range(12):
        log = await opened(disks, World(f"start {number}"), ledger)
        await write(log, b"a little", 10)
        if number < 11:
            await log.close()
    # Who watches these bytes makes a checkpoint in time, although hardly anything was written.
    assert log.log_bytes()[0] > 11 * OPTIONS.segment_bytes
    await write_checkpoint(log)
    assert log.log_bytes()[0] < OPTIONS.segment_bytes
    assert all(sum(name.startswith("log-") for name in disk.files) == 1 for disk in disks)
    await ledger.check(log)
    await log.close()


@pytest.mark.virtual
async def test_a_sync_that_fails_while_a_member_is_brought_up_is_not_believed_at_the_next_try() -> None:
    disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
    world = World("failed sync while catching up")
    log = await opened(disks, world, ledger)
    await write(log, b"all of them")
    disks[0].gone = True
    for number in range(12):
        await write(log, b"two of them %d" % number, 900)
    await log.close()
    disks[0].gone = False
    opening = asyncio.ensure_future(opened(disks, world, ledger))
    # Not the header of its new segment: the records.
    while not any(name.startswith(f"log-{log.epoch + 1:016x}-") for name in disks[0].files):
        await clock.sleep(0.0001)
    disks[0].next_sync_fails = True
    while disks[0].next_sync_fails:
        await clock.sleep(0.0001)
    log = await opening
    while len(log.replication.current()) < 3:
        await clock.sleep(0.1)
    disks[1].gone = True
    await write(log, b"the one that failed and another")
    await log.close()
    world.end()
    for disk in disks:
        disk.power_cut(world.chance)
    disks[1].gone, disks[2].gone = False, True
    log = await opened(disks, World("after the power cut"), ledger)
    await ledger.check(log)
    await log.close()


@pytest.mark.virtual
async def test_a_lost_member_is_replaced_by_another_place_and_is_needed_no_more() -> None:
    disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
    log = await opened(disks, World("replace"), ledger)
    for number in range(30):
        await write(log, b"before %d" % number, 800)
    await write_checkpoint(log)
    disks[0].gone = True
    await write(log, b"one is gone")
    spare = SimDisk("spare")
    await log.replace("disk0", SimMember(spare, World("replace, spare")))
    await write(log, b"replaced")
    await all_current(log, clock)
    assert set(log.replication.members) == {"disk1", "disk2", "spare"}
    await log.close()
    disks[0].gone = False
    # The old member is no vote any more: it and one of the others are no majority.
    with pytest.raises(Unavailable):
        await opened([disks[0], disks[1]], World("old and one"), ledger)
    disks[1].gone = True
    log = await opened([*disks, spare], World("two of the new three"), ledger)
    await ledger.check(log)
    await log.close()


def test_replacing_a_member_is_cut_short_anywhere_and_asked_for_again() -> None:
    async def run(point: int) -> bool:
        disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
        world, spare = World(f"replace {point}"), SimDisk("spare")
        everywhere = [*disks, spare]
        log = await opened(disks, world, ledger)
        for number in range(5):
            await write(log, b"before %d" % number)
        world.ends_at = world.operations + point
        replacing = asyncio.ensure_future(log.replace("disk0", SimMember(spare, world)))
        ending = asyncio.ensure_future(world.end_event.wait())
        await asyncio.wait([replacing, ending], return_when=asyncio.FIRST_COMPLETED)
        ended = world.ended
        for task in (replacing, ending):
            task.cancel()
        await asyncio.gather(replacing, ending, return_exceptions=True)
        await log.close()
        world.end()
        for disk in everywhere:
            disk.power_cut(world.chance)
        log = await opened(everywhere, World(f"again {point}"), ledger)
        await ledger.check(log)
        await log.replace("disk0", SimMember(spare, World(f"spare again {point}")))
        await write(log, b"replaced")
        await all_current(log, clock)
        assert set(log.replication.members) == {"disk1", "disk2", "spare"}
        await log.close()
        return ended

    point = 1
    while run_virtual(run(point)):
        point += 1
    assert point > 8

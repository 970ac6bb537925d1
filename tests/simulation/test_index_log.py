"""The log of the embedded index: every crash point, every subset of members, and worse.

A `Ledger` outside the log knows every record that was ever acknowledged. Whatever happens, a log that
serves again holds all of them, in the same places; and when fewer than a majority is there, it refuses.
"""

import asyncio
import itertools
from collections.abc import Iterable, Sequence

import pytest

from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.index.port import Row
from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.checkpoint import Base
from holdfast.index.sqlite.log import Log
from holdfast.index.sqlite.opening import open_log
from holdfast.index.sqlite.records import Kind, Record, changes_body
from holdfast.index.sqlite.seat import LogOptions
from tests.kit.index_disks import Cut, SimDisk, SimMember, World
from tests.kit.virtual import VirtualClock, run_virtual

OPTIONS = LogOptions(
    patience_s=2.0,
    grace_s=0.5,
    overdue_s=0.5,
    bulk_s=2.0,
    reattach_s=0.3,
    tail_bytes=6_000,
    piece_bytes=4_000,
    segment_bytes=8 << 10,
)


class Ledger:
    """What was acknowledged, by sequence. Once there, a record never changes."""

    def __init__(self) -> None:
        self.hashes: dict[int, bytes] = {}

    def note(self, records: Iterable[Record]) -> None:
        for record in records:
            assert self.hashes.setdefault(record.sequence, record.hash) == record.hash, record.sequence

    async def check(self, log: Log) -> None:
        """All of it is there: chained by hashes, and readable from where the log begins."""
        last = max(self.hashes, default=0)
        assert log.acked >= last, f"acknowledged {last}, and the log ends at {log.acked}"
        known = {seq: log.hash_at(seq) for seq in self.hashes if log.hash_at(seq) is not None}
        assert known == {seq: self.hashes[seq] for seq in known}
        assert last in known or not last
        lowest = min(known, default=1)
        read: list[Record] = []
        after = max(lowest - 1, 0) if log.hash_at(max(lowest - 1, 0)) is not None else lowest
        while after < log.acked:
            try:
                found = await log.read(after)
            except InvalidInput:
                # A checkpoint is in its place on every member that takes part.
                assert not read
                after += 1
                continue
            assert found, f"nothing behind {after} of {log.acked}"
            read += found
            after = found[-1].sequence
        assert [record.sequence for record in read] == list(range(after - len(read) + 1, after + 1))
        self.note(read)


def make_disks(count: int) -> list[SimDisk]:
    return [SimDisk(f"disk{number}") for number in range(count)]


async def opened(disks: Sequence[SimDisk], world: World, ledger: Ledger) -> Log:
    log = await open_log([SimMember(disk, world) for disk in disks], VirtualClock(), world.chance, OPTIONS)
    log.on_acked = ledger.note
    return log


async def write(log: Log, text: bytes, size: int = 400) -> None:
    body = changes_body([(((text, bytes(size)),), ())])
    record = log.append(Kind.TRANSACTIONS, body, 1)
    log.send(record)
    await log.acknowledged(record.sequence, 5.0)


async def write_checkpoint(log: Log) -> None:
    """A checkpoint with rows of no matter, at the last acknowledged record."""
    hash_ = log.hash_at(log.acked)
    assert hash_ is not None
    base = Base(log.incarnation, log.acked, log.epoch, hash_, log.revision, log.replication.members)
    blocks = [
        ckpt.pack_block(base, 0, [Row(b"a", b"1", 1)]),
        ckpt.pack_block(base, 1, [Row(b"b", bytes(3000), 2)]),
        ckpt.pack_end(base, 2, 2),
    ]

    async def take() -> bytes | None:
        return blocks.pop(0) if blocks else None

    await log.checkpoint(base, take)


async def story(disks: Sequence[SimDisk], world: World, ledger: Ledger) -> None:
    """A bit of everything: founding, commits at once and one by one, full segments, a checkpoint."""
    log = await opened(disks, world, ledger)
    try:
        for number in range(3):
            await write(log, b"first %d" % number, 900)
        await asyncio.gather(*(write(log, b"together %d" % number) for number in range(4)))
        await write_checkpoint(log)
        for number in range(8):
            await write(log, b"last %d" % number, 1200)
    finally:
        await log.close()


async def until_it_ends(disks: Sequence[SimDisk], world: World, ledger: Ledger) -> bool:
    """Run the story; whether it was cut short."""
    running = asyncio.ensure_future(story(disks, world, ledger))
    ending = asyncio.ensure_future(world.end_event.wait())
    await asyncio.wait([running, ending], return_when=asyncio.FIRST_COMPLETED)
    for task in (running, ending):
        task.cancel()
    await asyncio.gather(running, ending, return_exceptions=True)
    if not world.ended and not running.cancelled() and (error := running.exception()) is not None:
        raise error
    for disk in disks:
        disk.power_cut(world.chance)
    return world.ended


def copied(disks: Sequence[SimDisk]) -> list[SimDisk]:
    twins = make_disks(len(disks))
    for twin, disk in zip(twins, disks, strict=True):
        twin.put_back(disk.image())
    return twins


async def come_back(
    disks: Sequence[SimDisk], there: Sequence[int], ledger: Ledger, seed: str, founded: bool
) -> None:
    """Open with some of the disks, check, write, crash; then open with all, check again."""
    majority = len(disks) // 2 + 1
    twins, known = copied(disks), Ledger()
    known.hashes.update(ledger.hashes)
    for number, disk in enumerate(twins):
        disk.gone = number not in there
    world = World(seed)
    refused = ""
    try:
        log = await opened(twins, world, known)
    except Unavailable as error:
        refused = str(error)
    if refused:
        # A founding that was cut short is only taken up again with all members there.
        assert len(there) < majority or (not founded and len(there) < len(disks)), refused
        assert all(twins[number].name in refused for number in range(len(disks)) if number not in there)
        return
    assert len(there) >= majority
    await known.check(log)
    await write(log, b"after the crash")
    await log.close()
    world.end()
    for disk in twins:
        disk.power_cut(world.chance)
        disk.gone = False
    log = await opened(twins, World(seed + "again"), known)
    await known.check(log)
    await write(log, b"and again")
    await known.check(log)
    await log.close()


def subsets(count: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(count + 1) for chosen in itertools.combinations(range(count), size)]


def crash_at(count: int, point: int, cut: Cut, chosen: Sequence[tuple[int, ...]]) -> bool:
    """End the story at one operation and come back with each subset; False when the story was over before."""
    seed = f"{count} members, operation {point}, {cut.value}"

    async def run() -> bool:
        disks, world, ledger = make_disks(count), World(seed), Ledger()
        world.ends_at, world.cut = point, cut
        ended = await until_it_ends(disks, world, ledger)
        for there in chosen:
            try:
                await come_back(disks, there, ledger, f"{seed}, then {there}", bool(ledger.hashes))
            except BaseException as error:
                error.add_note(f"seed: {seed}, then members {there}")
                raise
        return ended

    return run_virtual(run())


# A crash after one operation leaves what one before the next leaves, but for what others do meanwhile.
@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.TORN, pytest.param(Cut.AFTER, marks=pytest.mark.slow)])
def test_three_members_a_crash_at_every_operation_and_every_subset_after_it(cut: Cut) -> None:
    point = 1
    while crash_at(3, point, cut, subsets(3)):
        point += 1
    assert point > 60, "the story has that many operations that change a disk"


@pytest.mark.parametrize("cut", list(Cut))
def test_five_members_crashes_all_along_and_every_subset_after_them(cut: Cut) -> None:
    point = 1 + list(Cut).index(cut)
    while crash_at(5, point, cut, subsets(5)):
        point += 23
    assert point > 100


class Trouble:
    """Up to `f` disks with something wrong, chosen anew each life from one seed."""

    def __init__(self, disks: Sequence[SimDisk], chance: SeededRandomness) -> None:
        self.disks = disks
        self.chance = chance
        self.faulty: list[SimDisk] = []
        self.told: list[str] = []
        self.old = {disk.name: disk.image() for disk in disks}

    def choose(self) -> None:
        """Who is faulty in the next life, and what happened to them while the process was away."""
        losses = (len(self.disks) - 1) // 2
        left = list(self.disks)
        self.faulty = [left.pop(self.chance.below(len(left))) for _ in range(self.chance.below(losses + 1))]
        for disk in self.faulty:
            self.away(disk)

    def away(self, disk: SimDisk) -> None:
        what = self.chance.below(8)
        names = sorted(name for name, data in disk.files.items() if data)
        name = names[self.chance.below(len(names))] if names else ""
        match what:
            case 0:
                disk.gone = True
            case 1:
                disk.put_back({})
            case 2:
                disk.put_back(self.old[disk.name])
            case 3 if name:
                disk.flip(name, self.chance.below(len(disk.files[name])))
            case 4 if name:
                disk.files[name][:] = bytes(len(disk.files[name]))
            case 5 if name:
                del disk.files[name][self.chance.below(len(disk.files[name])) :]
            case 6 if name:
                del disk.files[name]
            case _:
                pass
        self.told.append(f"{disk.name}: {what} {name}")

    def during(self) -> None:
        """Something goes wrong with a faulty disk while the process runs, or it comes back."""
        if not self.faulty:
            return
        disk = self.faulty[self.chance.below(len(self.faulty))]
        what = self.chance.below(8)
        disk.gone, disk.failing, disk.hanging, disk.full = what == 0, what == 1, what == 2, what == 3
        if what == 4:
            disk.put_back({})
        if what == 5:
            disk.lie()
        disk.next_sync_fails = what == 6
        self.told.append(f"{disk.name}: during {what}")

    def heal(self) -> None:
        """All disks answer again; what they hold is another matter."""
        for disk in self.disks:
            disk.gone = disk.failing = disk.hanging = disk.full = disk.next_sync_fails = False


async def all_current(log: Log, clock: VirtualClock) -> None:
    """Wait until every member is back and holds everything."""
    for _ in range(200):
        if all(status.state == "current" for status in log.statuses()):
            return
        await clock.sleep(0.1)
    raise AssertionError(f"members do not come back: {log.statuses()}")


async def one_life(log: Log, trouble: Trouble, chance: SeededRandomness, name: bytes) -> None:
    """Write, one by one and at once, with trouble in between, and now and then a checkpoint."""
    for step in range(4 + chance.below(12)):
        if chance.below(3) == 0:
            trouble.during()
        count = 1 + chance.below(4)
        await asyncio.gather(
            *(write(log, b"%s %d %d" % (name, step, n), chance.below(2500)) for n in range(count))
        )
        if chance.below(8) == 0:
            await write_checkpoint(log)


async def lives(seed: int, count: int, number_of_lives: int) -> None:
    chance = SeededRandomness(f"lives {seed}")
    disks, ledger, clock = make_disks(count), Ledger(), VirtualClock()
    log = await opened(disks, World(f"founding {seed}"), ledger)
    await log.close()
    trouble = Trouble(disks, chance)
    try:
        for life in range(number_of_lives):
            trouble.told.append(f"life {life}")
            trouble.choose()
            world = World(f"life {seed} {life}")
            log = await opened(disks, world, ledger)
            await ledger.check(log)
            if chance.below(2):
                world.ends_at = world.operations + 1 + chance.below(60)
                world.cut = list(Cut)[chance.below(3)]
            living = asyncio.ensure_future(one_life(log, trouble, chance, b"life %d" % life))
            ending = asyncio.ensure_future(world.end_event.wait())
            await asyncio.wait([living, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in (living, ending):
                task.cancel()
            await asyncio.gather(living, ending, return_exceptions=True)
            if not world.ended and (error := living.exception()) is not None:
                raise error
            await log.close()
            world.end()
            for disk in disks:
                disk.power_cut(chance)
            trouble.heal()
            # All that was lost is copied anew before other disks fail; more at once is not promised.
            log = await opened(disks, World(f"healing {seed} {life}"), ledger)
            await ledger.check(log)
            await all_current(log, clock)
            await log.close()
            if chance.below(3) == 0:
                trouble.old = {disk.name: disk.image() for disk in disks}
    except BaseException as error:
        error.add_note(f"seed: {seed}, {count} members, {trouble.told}")
        raise


@pytest.mark.parametrize("count", [3, 5])
def test_lives_with_lost_stale_lying_damaged_hung_and_full_members(count: int) -> None:
    for seed in range(15):
        run_virtual(lives(seed, count, 4))


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 5])
def test_many_more_lives(count: int) -> None:
    for seed in range(1000, 1150):
        run_virtual(lives(seed, count, 5))


def test_a_paused_process_is_fenced_and_acknowledges_nothing_more() -> None:
    async def run(seed: int) -> None:
        disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
        old_world, chance = World(f"old {seed}"), SeededRandomness(seed)
        old = await opened(disks, old_world, ledger)
        await write(old, b"before")
        acknowledged = old.acked
        # Stopped in the middle of commits: some of its writes are under way on some members.
        commits = [asyncio.ensure_future(write(old, b"under way %d" % n)) for n in range(3)]
        await clock.sleep(0.0005 * chance.below(12))
        old_world.paused = True
        reached = old.acked
        new = await opened(disks, World(f"new {seed}"), ledger)
        await ledger.check(new)
        await write(new, b"new")
        old_world.paused = False
        late = asyncio.ensure_future(write(old, b"late"))
        answers = await asyncio.gather(*commits, late, return_exceptions=True)
        assert isinstance(answers[-1], Fenced)
        assert old.acked == reached >= acknowledged, "what it wrote after the pause is not acknowledged by it"
        with pytest.raises(Fenced):
            await write(old, b"later still")
        await write(new, b"newer")
        await ledger.check(new)
        await old.close()
        await new.close()
        again = await opened(disks, World(f"again {seed}"), ledger)
        await ledger.check(again)
        await again.close()

    for seed in range(25):
        run_virtual(run(seed))


def test_of_two_that_start_at_once_one_serves_in_the_end() -> None:
    async def run(seed: int) -> None:
        disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
        first = await opened(disks, World(f"first {seed}"), ledger)
        await write(first, b"first")
        await first.close()
        answers = await asyncio.gather(
            *(opened(disks, World(f"{name} {seed}"), ledger) for name in ("left", "right")),
            return_exceptions=True,
        )
        served = [answer for answer in answers if isinstance(answer, Log)]
        assert all(isinstance(answer, Log | Fenced | Unavailable) for answer in answers), answers
        wrote = await asyncio.gather(*(write(log, b"mine") for log in served), return_exceptions=True)
        assert all(result is None or isinstance(result, Fenced) for result in wrote), wrote
        await clock.sleep(1)
        epochs = [log.epoch for log in served]
        assert len(set(epochs)) == len(epochs), "an epoch belongs to one process"
        for log in served:
            if log.epoch < max(epochs):
                with pytest.raises(Fenced):
                    log.check()
            await log.close()
        again = await opened(disks, World(f"again {seed}"), ledger)
        await ledger.check(again)
        await again.close()

    for seed in range(25):
        run_virtual(run(seed))


@pytest.mark.virtual
async def test_below_a_majority_nothing_is_acknowledged_and_it_goes_on_when_members_return() -> None:
    disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
    log = await opened(disks, World("majority"), ledger)
    await write(log, b"before")
    disks[0].gone = disks[1].failing = True
    record = log.append(Kind.TRANSACTIONS, changes_body([]), 0)
    log.send(record)
    with pytest.raises(Unavailable, match=r"disk0.*disk1"):
        await log.acknowledged(record.sequence, 1.0)
    assert not log.replication.reachable()
    disks[0].gone = False
    await log.acknowledged(record.sequence, 5.0)
    disks[1].failing = False
    await all_current(log, clock)
    await ledger.check(log)
    await log.close()


@pytest.mark.virtual
async def test_a_hung_member_delays_nobody_and_costs_one_runner() -> None:
    disks, ledger, clock = make_disks(5), Ledger(), VirtualClock()
    world = World("hung")
    log = await opened(disks, world, ledger)
    disks[0].hanging = disks[3].hanging = True
    for number in range(20):
        begun = clock.monotonic()
        await write(log, b"%d" % number)
        assert clock.monotonic() - begun < 0.05
    await clock.sleep(10)
    runners = len(world.runners)
    assert [status.state for status in log.statuses()].count("out") == 2
    await clock.sleep(20)
    assert len(world.runners) == runners, "a disk that hangs is not tried again before it answers"
    disks[0].hanging = disks[3].hanging = False
    await all_current(log, clock)
    await log.close()


@pytest.mark.virtual
async def test_a_new_log_is_begun_only_when_all_members_are_there_and_empty() -> None:
    disks = make_disks(3)
    disks[2].gone = True
    with pytest.raises(Unavailable, match="disk2"):
        await opened(disks, World("new"), Ledger())
    assert not any(disk.files for disk in disks)
    disks[2].gone = False
    log = await opened(disks, World("new"), Ledger())
    incarnation = log.incarnation
    await log.close()
    for disk in disks[:2]:
        disk.put_back({})
    with pytest.raises(Unavailable, match=r"disk0.*is empty.*disk1.*is empty"):
        await opened(disks, World("two lost"), Ledger())
    assert incarnation


@pytest.mark.virtual
async def test_a_member_of_another_index_is_left_alone() -> None:
    disks, others, ledger = make_disks(3), make_disks(3), Ledger()
    for group, name in ((disks, "ours"), (others, "theirs")):
        log = await opened(group, World(name), ledger if group is disks else Ledger())
        await write(log, name.encode())
        await log.close()
    theirs = others[0].image()
    disks[0].put_back(theirs)
    log = await opened(disks, World("swapped"), ledger)
    await ledger.check(log)
    await VirtualClock().sleep(3)
    assert disks[0].image() == theirs
    assert "belongs to another index" in next(s.detail for s in log.statuses() if s.name == "disk0")
    await log.close()


@pytest.mark.virtual
async def test_what_a_failed_sync_left_in_the_page_cache_is_written_again_before_it_counts() -> None:
    disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
    world = World("failed sync")
    log = await opened(disks, world, ledger)
    await write(log, b"all of them")
    disks[2].gone = True
    await write(log, b"two of them")
    disks[0].next_sync_fails = True
    await write(log, b"only when the one that failed is back")
    assert not disks[0].next_sync_fails
    await log.close()
    world.end()
    for disk in disks:
        disk.power_cut(world.chance)
    disks[1].gone, disks[2].gone = True, False
    log = await opened(disks, World("after the power cut"), ledger)
    await ledger.check(log)
    await all_but_the_absent(log, clock, 2)
    await log.close()


async def all_but_the_absent(log: Log, clock: VirtualClock, count: int) -> None:
    for _ in range(100):
        if [status.state for status in log.statuses()].count("current") == count:
            return
        await clock.sleep(0.1)
    raise AssertionError(log.statuses())


def test_a_member_that_is_being_copied_is_no_vote_until_it_is_whole() -> None:
    """More is lost here than is promised to be survived: it must be refused, not forgotten."""

    async def run(point: int) -> bool:
        disks, ledger, clock = make_disks(3), Ledger(), VirtualClock()
        log = await opened(disks, World(f"before {point}"), ledger)
        await write(log, b"all of them")
        disks[2].gone = True
        for number in range(12):
            await write(log, b"two of them %d" % number, 1500)
        await log.close()
        disks[2].gone, disks[2].hanging = False, True
        world = World(f"copying {point}")
        log = await opened(disks[:2], world, ledger)
        disks[0].put_back({})
        world.ends_at = world.operations + point
        ending = asyncio.ensure_future(world.end_event.wait())
        await asyncio.wait([ending], timeout=5)
        ended = world.ended
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        await log.close()
        world.end()
        for disk in disks:
            disk.power_cut(world.chance)
        disks[1].gone, disks[2].hanging = True, False
        try:
            log = await opened(disks, World(f"after {point}"), ledger)
        except Unavailable:
            assert ended, "once it is whole it is a vote"
            return True
        await ledger.check(log)
        await log.close()
        await clock.sleep(0)
        return ended

    point = 1
    while run_virtual(run(point)):
        point += 1
    assert point > 8

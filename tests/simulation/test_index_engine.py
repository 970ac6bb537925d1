"""The embedded index under clients, on virtual time: crashes, lost members, lost and spoiled copies.

Each client owns a pair of rows that always change together and counts up in them, and knows what was
acknowledged to it and what may have happened. It reads all the time. What must hold for it at every
moment: both rows agree, nothing acknowledged is gone, nothing that was read is undone.
"""

import asyncio
import shutil
from pathlib import Path

import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.index.port import (
    ABSENT,
    Committed,
    Conflict,
    Expect,
    Index,
    Row,
    Transaction,
    Unknown,
)
from holdfast.index.sqlite import (
    CopyOptions,
    DirectoryCopy,
    IndexOptions,
    LogOptions,
    SqliteIndex,
    open_index,
)
from holdfast.index.sqlite.copy_place import CopyState
from holdfast.index.sqlite.runner import Runner
from tests.kit.index_disks import SimDisk, SimMember, SimRunner, World
from tests.kit.virtual import VirtualClock, run_virtual

OPTIONS = IndexOptions(
    patience_s=1.0,
    open_s=30.0,
    checkpoint_bytes_min=20_000,
    log=LogOptions(
        patience_s=2.0,
        grace_s=0.3,
        overdue_s=0.4,
        bulk_s=2.0,
        reattach_s=0.3,
        tail_bytes=8_000,
        piece_bytes=4_000,
        segment_bytes=8 << 10,
    ),
    copies=CopyOptions(
        kept=2, linger_s=0.02, linger_others_s=0.1, apply_bytes=4_000, apply_others_bytes=8_000, retry_s=0.3
    ),
)


class SimCopy(DirectoryCopy):
    """A copy in a real directory, worked on at virtual times."""

    def __init__(self, name: str, path: Path, disk: SimDisk, world: World) -> None:
        super().__init__(name, path)
        self._disk = disk
        self._world = world

    def new_runner(self, purpose: str) -> Runner:
        return SimRunner(self._world, self._disk, [])


class Client:
    """One writer of one pair of rows. The value of both is a count."""

    def __init__(self, number: int) -> None:
        self.keys = [b"left/%d" % number, b"right/%d" % number]
        self.least = 0
        self.most = 0

    def saw(self, rows: list[Row | None]) -> int:
        """Judge what was read."""
        left, right = rows
        if left is None or right is None:
            assert left is right is None
            assert self.least == 0, f"{self.keys} were {self.least} and are gone"
            return 0
        assert (left.value, left.revision) == (right.value, right.revision)
        count = int(left.value)
        assert self.least <= count <= self.most, f"{self.least} <= {count} <= {self.most}"
        # Read once, it stays.
        self.least = count
        return count

    async def step(self, index: Index) -> None:
        rows = await index.get(self.keys)
        count = self.saw(rows)
        revision = rows[0].revision if rows[0] else ABSENT
        text = b"%d" % (count + 1)
        transaction = Transaction(
            tuple(Expect(key, revision) for key in self.keys), tuple((key, text) for key in self.keys)
        )
        self.most = max(self.most, count + 1)
        match (await index.commit([transaction]))[0]:
            case Committed():
                self.least = count + 1
            case Conflict():
                # Only an own commit of which the outcome was unknown can have been in between.
                assert self.most > count
            case Unknown():
                pass

    async def live(self, index: Index, clock: VirtualClock, chance: SeededRandomness) -> None:
        while True:
            try:
                await self.step(index)
                if chance.below(4) == 0:
                    found = await index.scan(self.keys[0], self.keys[0] + b"\0", limit=5)
                    other = (await index.get(self.keys[1:]))[0]
                    # The pair may have moved on between the two, never back.
                    if found and other:
                        assert isinstance(found[0], Row)
                        assert self.least <= int(found[0].value) <= int(other.value)
            except Unavailable:
                await clock.sleep(0.1)
            await clock.sleep(0.05 * chance.fraction())


async def check_everything(index: SqliteIndex, clients: list[Client]) -> None:
    for client in clients:
        client.saw(await index.get(client.keys))
    listed = await index.scan(b"left/", b"left0", limit=1000)
    counts = {row.key: int(row.value) for row in listed if isinstance(row, Row)}
    for client in clients:
        # What was under way when its client was stopped may come in between.
        assert client.least <= counts.get(client.keys[0], 0) <= client.most


def spoil_copies(folders: list[Path], chance: SeededRandomness) -> None:
    """While the process is away: any of the copies may be lost or wrong, all of them at once, too."""
    for folder in folders:
        path = folder / "copy.sqlite"
        match chance.below(5) if path.exists() else 9:
            case 0:
                shutil.rmtree(folder)
                folder.mkdir()
            case 1:
                path.write_bytes(b"not a database, by no means" * 100)
            case 2:
                raw = bytearray(path.read_bytes())
                raw[chance.below(len(raw))] ^= 16
                path.write_bytes(raw)
            case 3:
                path.with_name("copy.sqlite-wal").unlink(missing_ok=True)


async def years(seed: int, folder: Path, spoil: bool) -> None:
    chance, clock = SeededRandomness(f"engine {seed}"), VirtualClock()
    count = 3 if seed % 2 else 5
    disks = [SimDisk(f"disk{number}") for number in range(count)]
    places = [folder / f"place{number}" for number in range(3)]
    for place in places:
        place.mkdir(parents=True)
    clients = [Client(number) for number in range(6)]
    for life in range(4):
        world = World(f"engine {seed} {life}")
        copy_disks = [SimDisk(f"place{number}") for number in range(3)]
        index = await open_index(
            members=[SimMember(disk, world) for disk in disks],
            copies=[
                SimCopy(place.name, place, disk, world)
                for place, disk in zip(places, copy_disks, strict=True)
            ],
            clock=clock,
            randomness=world.chance,
            options=OPTIONS,
        )
        await check_everything(index, clients)
        if chance.below(2):
            world.ends_at = world.operations + 20 + chance.below(300)
        living = [asyncio.ensure_future(client.live(index, clock, chance)) for client in clients]
        ending = asyncio.ensure_future(world.end_event.wait())
        for _ in range(6):
            faulty = [disks[chance.below(count)] for _ in range(chance.below((count - 1) // 2 + 1))]
            for disk in faulty:
                disk.gone, disk.failing, disk.hanging = (chance.below(2) == 0 for _ in range(3))
            hung = copy_disks[chance.below(3)]
            hung.hanging = chance.below(4) == 0
            await asyncio.wait([*living, ending], timeout=0.3, return_when=asyncio.FIRST_COMPLETED)
            for disk in (*faulty, hung):
                disk.gone = disk.failing = disk.hanging = False
            if not world.ended:
                await asyncio.wait([*living, ending], timeout=0.7, return_when=asyncio.FIRST_COMPLETED)
            for task in living:
                if task.done():
                    task.result()
        for task in (*living, ending):
            task.cancel()
        await asyncio.gather(*living, ending, return_exceptions=True)
        if not world.ended:
            await check_everything(index, clients)
        await index.close()
        world.end()
        for disk in disks:
            disk.power_cut(chance)
            disk.gone = disk.failing = disk.hanging = False
        if spoil:
            spoil_copies(places, chance)
    assert all(client.least > 3 for client in clients), "they got something done"


@pytest.mark.parametrize("seed", range(3))
def test_clients_never_lose_what_was_acknowledged_or_read(seed: int, tmp_path: Path) -> None:
    run_virtual(years(seed, tmp_path, spoil=False))


@pytest.mark.parametrize("seed", range(100, 103))
def test_nor_when_the_copies_are_lost_or_spoiled_in_between(seed: int, tmp_path: Path) -> None:
    run_virtual(years(seed, tmp_path, spoil=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1016))
def test_many_more_clients(seed: int, tmp_path: Path) -> None:
    run_virtual(years(seed, tmp_path, spoil=seed % 2 == 0))


@pytest.mark.virtual
async def test_a_conflict_with_what_is_not_acknowledged_is_not_told_before_it_is(tmp_path: Path) -> None:
    world, clock = World("conflict"), VirtualClock()
    disks = [SimDisk(f"disk{number}") for number in range(3)]
    index = await open_index(
        members=[SimMember(disk, world) for disk in disks],
        copies=[SimCopy("place", tmp_path / "place", SimDisk("place"), World("copy"))],
        clock=clock,
        randomness=world.chance,
        options=OPTIONS,
    )

    def put(value: bytes) -> Transaction:
        return Transaction((Expect(b"key", ABSENT),), ((b"key", value),))

    world.paused = True
    first = asyncio.ensure_future(index.commit([put(b"first")]))
    await clock.sleep(0.1)
    second = asyncio.ensure_future(index.commit([put(b"second"), Transaction((), ((b"other", b""),))]))
    third = asyncio.ensure_future(index.commit([put(b"third")]))
    await clock.sleep(0.1)
    assert await index.get([b"key"]) == [None]
    assert not any(task.done() for task in (first, second, third))
    world.paused = False
    answers = [*await first, *await second, *await third]
    assert [type(answer) for answer in answers] == [Committed, Conflict, Committed, Conflict]
    assert await index.get([b"key"]) == [Row(b"key", b"first", answers[0].revision)]  # type: ignore[union-attr]
    world.paused = True
    lost = asyncio.ensure_future(index.commit([Transaction((), ((b"late", b""),))]))
    await clock.sleep(0.1)
    refused = asyncio.ensure_future(index.commit([Transaction((Expect(b"late", ABSENT),), ())]))
    answers = [*await lost, *await refused]
    assert [type(answer) for answer in answers] == [Unknown, Unknown]
    await index.close()


@pytest.mark.virtual
async def test_a_copy_that_catches_up_is_not_asked_before_it_is_where_the_newest_rows_begin(
    tmp_path: Path,
) -> None:
    world, clock = World("floor"), VirtualClock()
    behind = SimDisk("place1")
    index = await open_index(
        members=[SimMember(SimDisk(f"disk{number}"), world) for number in range(3)],
        copies=[
            SimCopy("place0", tmp_path / "place0", SimDisk("place0"), world),
            SimCopy("place1", tmp_path / "place1", behind, world),
        ],
        clock=clock,
        randomness=world.chance,
        options=OPTIONS,
    )
    await index.commit([Transaction((), ((b"key", b"old"),))])
    await clock.sleep(1.0)
    copies, live = index._copies, index._live
    copy = next(copy for copy in copies._copies if copy.access.name == "place1")
    copies.serving = next(other for other in copies._copies if other is not copy)
    copy.state = CopyState.BUILDING
    # It catches up with what there was, while a read holds what is newer and the serving copy moves on.
    behind.hanging = True
    await index.commit([Transaction((), ((b"other", b""),))])
    await clock.sleep(0.5)
    live.hold()
    await index.commit([Transaction((), (), (b"key",))])
    await clock.sleep(0.5)
    behind.hanging = False
    while copy.state is not CopyState.READY:
        await clock.sleep(0.0001)
    live.release()
    assert copy.applied >= live.floor
    assert await index.get([b"key"]) == [None]
    await index.close()


@pytest.mark.virtual
async def test_reads_of_copies_that_hang_end_in_time_and_do_not_hold_up_those_after_them(
    tmp_path: Path,
) -> None:
    world, clock = World("hang"), VirtualClock()
    place = SimDisk("place")
    index = await open_index(
        members=[SimMember(SimDisk(f"disk{number}"), world) for number in range(3)],
        copies=[SimCopy("place", tmp_path / "place", place, world)],
        clock=clock,
        randomness=world.chance,
        options=OPTIONS,
    )
    await index.commit([Transaction((), ((b"key", b"value"),))])
    await clock.sleep(1.0)
    place.hanging = True
    for _ in range(2):
        begun = clock.monotonic()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(index.get([b"key"]), 10 * OPTIONS.patience_s)
        assert clock.monotonic() - begun < 2 * OPTIONS.patience_s + 0.5
    place.hanging = False
    await clock.sleep(1.0)
    found = (await index.get([b"key"]))[0]
    assert found is not None
    assert found.value == b"value"
    place.hanging = True
    last = asyncio.ensure_future(index.get([b"key"]))
    await clock.sleep(0.05)
    await index.close()
    with pytest.raises(Unavailable):
        await last

"""Packs that are small or mostly dead are emptied into full ones, and their space comes back.

HOLDFAST_TINY_OBJECTS=n writes n tiny objects, where 5,000 do otherwise.
"""

import asyncio
import os
import random
from collections.abc import Container, Mapping

import msgspec
import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, RequestId
from holdfast.base.randomness import SeededRandomness
from holdfast.chores.chore import Chore
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import (
    GROWTH,
    MANIFEST_FULL,
    Candidate,
    Compact,
    candidate,
    worth_moving,
)
from holdfast.chores.runner import ChoreRunner
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Transaction, prefix_end
from holdfast.objects.keys import dead_row
from holdfast.objects.model import DeleteKey, PutObject, ReadObject
from holdfast.objects.moving import MoveReport
from holdfast.objects.rows import FORMAT, DeadRow, encode
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.disposal import Disposal
from holdfast.packs.model import PACK_BYTES_MAX, DebtReason, DebtRow, PackRow, debt_row, pack_row
from holdfast.packs.rows import encode_row
from holdfast.packs.watched import WatchedIndex
from holdfast.scheme import Scheme
from tests.kit.objects import BUCKET, BytesBody, content
from tests.kit.rig import Rig, build_rig
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

MIB = 1 << 20
PACK = PackId(bytes(16))


def row(object_bytes: int, manifest_bytes: int = 300) -> PackRow:
    return PackRow(Scheme(4, 2), object_bytes, manifest_bytes, object_bytes, ())


class Bench:
    """Objects over a rig, with the chores that give space back."""

    def __init__(self, stores: int = 6, scheme: str = "rs-4-2", *, considerate: bool = True) -> None:
        self.rig: Rig = build_rig(stores, latency_s=(0.0001, 0.0002))
        rig = self.rig
        self.index = WatchedIndex(rig.index)
        self.objects = Objects(
            self.index,
            rig.packs,
            rig.clock,
            SeededRandomness(5),
            ObjectsSettings(
                default_scheme=scheme,
                stores=lambda: stores,
                limits=ObjectsLimits(hashing_threads=0, part_bytes_min=1),
            ),
        )
        self.compact = Compact(self.index, self.objects.moving(rig.clock).move)
        self.collect = Collect(
            self.index,
            rig.packs.rows,
            rig.packs.reader.in_use if considerate else lambda pack: False,
            self.compact.partly_dead,
            self.index.let_go,
        )
        chores: list[Chore] = [self.compact, self.collect, Sweep(Disposal(rig.attached, self.index))]
        self.errors: list[object] = []
        self.runner = ChoreRunner(chores, rig.clock, lambda name, error: self.errors.append((name, error)))

    async def put(self, key: str, data: bytes) -> None:
        await self.objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(data)))

    async def get(self, key: str) -> bytes:
        return await content(await self.objects.read_object(ReadObject(bucket=BUCKET, key=key)))

    async def delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), 500):
            wanted = [DeleteKey(key=key) for key in keys[start : start + 500]]
            results = await self.objects.delete_objects(BUCKET, wanted, RequestId(""))
            assert not any(result.error for result in results)

    async def packs(self) -> set[bytes]:
        found = await self.index.scan(b"pack/", prefix_end(b"pack/"), limit=100_000)
        return {item.key for item in found}

    def bytes_stored(self) -> int:
        return sum(len(blob) for memory in self.rig.memories.values() for blob in memory._blobs.values())

    async def settle(self) -> None:
        """Until the chores have nothing to do."""
        for _ in range(300):
            await self.rig.clock.sleep(10)
            if self.compact.idle:
                await self.rig.clock.sleep(10)
                return
        raise AssertionError("the chores go on for ever")


def test_small_packs_and_those_that_are_mostly_dead_are_candidates() -> None:
    assert candidate(PACK, row(4 * MIB - 1), 0) is not None
    assert candidate(PACK, row(4 * MIB), 0) is None
    assert candidate(PACK, row(1000, MANIFEST_FULL // 4), 0) is None
    half = candidate(PACK, row(16 * MIB), 8 * MIB)
    assert half is not None
    assert (half.mostly_dead, half.worth, half.filled) == (True, 8 * MIB, 0.5)
    assert candidate(PACK, row(16 * MIB), 8 * MIB - 1) is None
    small = candidate(PACK, row(1000), 900)
    assert small is not None
    assert not small.mostly_dead
    assert candidate(PACK, row(0), 0) is not None


def test_left_overs_are_moved_only_into_much_larger_packs() -> None:
    def some(*sizes: float, dead: bool = False) -> list[Candidate]:
        return [Candidate(PACK, size, 0.0, dead, PACK_BYTES_MAX) for size in sizes]

    assert worth_moving(some(0.1)) == []
    assert worth_moving(some(0.1, 0.1, 0.1)) == []
    assert worth_moving(some(0.1, 0.1, 0.1, 0.1)) == some(0.1, 0.1, 0.1, 0.1)
    assert worth_moving(some(0.2, 0.01, 0.01, 0.01, 0.01)) == some(0.01, 0.01, 0.01, 0.01)
    assert worth_moving(some(0.0, 0.0)) == some(0.0, 0.0)
    assert worth_moving(some(0.4, dead=True)) == some(0.4, dead=True)


def test_a_byte_is_moved_few_times_however_slowly_packs_arrive() -> None:
    packs: list[float] = []
    moved = 0.0
    for _ in range(2000):
        packs.append(0.0005)
        found = worth_moving([Candidate(PACK, size, 0.0, False, PACK_BYTES_MAX) for size in packs])
        if found:
            assert sum(one.size for one in found) >= GROWTH * max(one.size for one in found)
            moved += sum(one.size for one in found)
            packs = [*sorted(packs)[len(found) :], sum(one.size for one in found)]
        assert len(packs) < 25
    assert moved < 6 * 2000 * 0.0005


async def test_objects_written_one_by_one_share_few_packs_soon_and_are_the_same() -> None:
    bench = Bench()
    await bench.objects.create_bucket(BUCKET, None)
    bodies = {f"key-{number}": random.Random(number).randbytes(number * 40) for number in range(300)}
    for key, data in bodies.items():
        await bench.put(key, data)
    assert len(await bench.packs()) == 300
    bench.runner.start()
    await bench.settle()
    assert len(await bench.packs()) <= 4
    assert bench.compact.moved_packs >= 300
    for key, data in bodies.items():
        assert await bench.get(key) == data
    assert not bench.errors
    await bench.runner.close()


async def test_packs_that_live_on_are_looked_at_seldom_and_one_that_has_just_died_at_once() -> None:
    rig = build_rig()
    index = WatchedIndex(rig.index)
    seen: list[PackId] = []
    collect = Collect(
        index, rig.packs.rows, lambda _: False, lambda pack, *_: seen.append(pack), index.let_go
    )
    packs = [PackId(number.to_bytes(16, "big")) for number in range(900)]
    for pack in packs:
        dead = encode(DeadRow(FORMAT, 10, "x"))
        value = encode_row(row(100))
        rows = ((pack_row(pack), value), (dead_row(pack, "a"), dead))
        await rig.index.commit([Transaction((), rows)])

    async def walk() -> int:
        """One interval's work: packs that were looked at and live on."""
        seen.clear()
        while await collect.step():
            pass
        return len(seen)

    assert await walk() == 900
    assert collect.dead_bytes == 9000
    assert [await walk() for _ in range(4)] == [0, 0, 0, 0]
    rest = encode(DeadRow(FORMAT, 90, "x"))
    await index.commit([Transaction((), ((dead_row(packs[7], "b"), rest),))])
    assert await walk() == 899
    assert collect.collected == 1
    rest_again = ((dead_row(packs[8], "b"), rest),)
    await index.commit([Transaction((), rest_again)])
    assert await walk() == 0
    assert collect.collected == 2


async def test_what_has_just_been_written_is_left_for_the_next_walk() -> None:
    bench = Bench()
    await bench.objects.create_bucket(BUCKET, None)
    for number in range(10):
        await bench.put(f"key-{number}", b"x")
    for moved in (0, 10, 10):
        while await bench.compact.step():
            pass
        assert bench.compact.moved_packs == moved


async def test_a_pack_that_is_half_dead_gives_its_space_back() -> None:
    bench = Bench()
    await bench.objects.create_bucket(BUCKET, None)
    keys = [f"key-{number}" for number in range(200)]
    await asyncio.gather(*(bench.put(key, key.encode() * 10_000) for key in keys))
    bench.runner.start()
    await bench.settle()
    full = bench.bytes_stored()
    await bench.delete(keys[:120])
    await bench.settle()
    assert bench.bytes_stored() < full * 0.45
    for key in keys[120:]:
        assert await bench.get(key) == key.encode() * 10_000
    await bench.delete(keys[120:])
    await bench.settle()
    assert bench.bytes_stored() == 0
    assert not bench.errors
    await bench.runner.close()


async def test_a_pack_that_cannot_be_read_is_left_alone_and_the_others_move() -> None:
    bench = Bench()
    await bench.objects.create_bucket(BUCKET, None)
    for number in range(20):
        await bench.put(f"key-{number}", bytes([number]) * 1000)
    names = sorted(name for memory in bench.rig.memories.values() for name in memory._blobs)
    broken = names[0].partition(".")[0]
    for memory in bench.rig.memories.values():
        for name in list(memory._blobs):
            if name.startswith(broken):
                memory.damage(name, 5000, 1)
                memory.damage(name, 10, 1)
    bench.runner.start()
    await bench.settle()
    assert len(await bench.packs()) == 2
    await bench.runner.close()


@pytest.mark.parametrize("considerate", [True, False])
async def test_a_slow_reader_gets_all_of_it_while_its_packs_are_emptied_and_swept_away(
    considerate: bool,
) -> None:
    """Also if the collector did not know of readers, as on another node: then packs vanish under it."""
    bench = Bench(considerate=considerate)
    await bench.objects.create_bucket(BUCKET, None)
    bodies = {
        "one pack": random.Random(1).randbytes(3_000_000),
        "many": random.Random(2).randbytes(40_000_000),
    }
    for key, data in bodies.items():
        await bench.put(key, data)
    for number in range(130):
        await bench.put(f"small-{number}", bytes(100_000))
    before = await bench.packs()
    bench.runner.start()
    there_in_the_end: list[int] = []

    async def trickle(key: str) -> None:
        view = await bench.objects.read_object(ReadObject(bucket=BUCKET, key=key))
        assert view.body is not None
        got = []
        async for piece in view.body():
            got.append(bytes(piece))
            await bench.rig.clock.sleep(30)
        there_in_the_end.append(len(before & await bench.packs()))
        assert b"".join(got) == bodies[key]

    await asyncio.gather(*(trickle(key) for key in bodies))
    assert bench.compact.moved_packs == 132
    # Three packs of the larger one are full, and stay; its tail and the other one are held for their readers.
    assert there_in_the_end == ([5, 4] if considerate else [3, 3])
    await bench.settle()
    assert len(before & await bench.packs()) == 3
    for key, data in bodies.items():
        assert await bench.get(key) == data
    assert not bench.errors
    await bench.runner.close()


@pytest.mark.slow
async def test_thousands_of_tiny_objects_end_in_few_packs_and_give_their_space_back() -> None:
    bench = Bench(3, "mirror-2")
    await bench.objects.create_bucket(BUCKET, None)
    count = int(os.environ.get("HOLDFAST_TINY_OBJECTS", "5000"))
    for number in range(count):
        await bench.put(f"key-{number}", b"tiny %d" % number)
    assert len(await bench.packs()) == count
    one_by_one = bench.bytes_stored()
    bench.runner.start()
    await bench.settle()
    assert len(await bench.packs()) <= count // 500
    merged = bench.bytes_stored()
    assert merged < one_by_one / 10
    await bench.delete([f"key-{number}" for number in range(count) if number % 10])
    await bench.settle()
    assert bench.bytes_stored() < merged / 5
    for number in range(0, count, 500):
        assert await bench.get(f"key-{number}") == b"tiny %d" % number
    assert not bench.errors
    await bench.runner.close()


async def test_what_found_no_room_on_full_stores_is_tried_again_soon_and_what_gave_nothing_back_is_not() -> (
    None
):
    clock = VirtualClock()
    index = MemoryIndex(clock)
    await index.commit([Transaction((), ((pack_row(PACK), encode_row(row(8 * MIB))),))])
    tried: list[bool] = []
    has_room = False

    async def move(
        worth: Mapping[PackId, int], scheme: Scheme, alone: Container[PackId], /, *, thrifty: bool = False
    ) -> MoveReport:
        tried.append(thrifty)
        if not has_room:
            raise Unavailable("Too few stores can be written.")
        return MoveReport(untouched=tuple(worth))

    compact = Compact(index, move, is_full=lambda: True)
    compact.partly_dead(PACK, row(8 * MIB), 3 * MIB)

    async def walks(count: int) -> int:
        before = len(tried)
        for _ in range(count):
            try:
                while await compact.step():
                    pass
            except Unavailable:
                continue
        return len(tried) - before

    await walks(2)
    assert await walks(12) >= 3, "known to be partly dead all the while"
    has_room = True
    await walks(4)
    assert await walks(30) <= 3
    assert all(tried), "nothing but what gives back more than it takes"


@pytest.mark.parametrize("how", ["row", "debt", "gone"])
async def test_a_pack_given_another_scheme_after_it_was_found_is_not_moved_under_the_old_one(
    how: str,
) -> None:
    index = MemoryIndex(VirtualClock())
    packs = [PackId(bytes([number]) * 16) for number in range(8)]
    small = row(1 * MIB)
    await index.commit([Transaction((), tuple((pack_row(pack), encode_row(small)) for pack in packs))])
    moved: list[tuple[Scheme, set[PackId]]] = []

    async def move(
        worth: Mapping[PackId, int], scheme: Scheme, alone: Container[PackId], /, *, thrifty: bool = False
    ) -> MoveReport:
        moved.append((scheme, set(worth)))
        return MoveReport()

    compact = Compact(index, move)
    while not moved:
        # The step after the one that found them empties them: between both, one of them changes.
        if not await compact.step():
            continue
        mirrored = PackRow(Scheme(1, 2), 1 * MIB, 300, 1 * MIB, ())
        if how == "row":
            change = Transaction((), ((pack_row(packs[0]), encode_row(mirrored)),))
        elif how == "debt":
            debt = msgspec.msgpack.encode(DebtRow(Scheme(1, 2), DebtReason.SCHEME))
            change = Transaction((), ((debt_row(packs[0]), debt),))
        else:
            change = Transaction((), (), (pack_row(packs[0]),))
        await index.commit([change])
        await compact.step()
    assert moved == [(Scheme(4, 2), set(packs[1:]))]

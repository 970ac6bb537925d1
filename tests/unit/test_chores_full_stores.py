"""Stores that are full of small objects come back to free space by themselves when some of them go."""

import asyncio
import random

import pytest

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId
from holdfast.chores.compact import Compact
from holdfast.chores.rescheme import Waiting
from holdfast.objects.model import DeleteKey, PutObject
from holdfast.packs.writing import BelowFloor
from tests.kit.objects import BUCKET, BytesBody
from tests.kit.recovery_world import World, held, make_world, recover, serve_again

pytestmark = pytest.mark.virtual
KIB = 1 << 10
CAPACITY = 12_000 * KIB
RESERVE = 4_000 * KIB
SIZE = 36_000


async def full_world(seed: int) -> tuple[World, dict[str, bytes]]:
    """Every store is full to the reserve, of small objects that share packs."""
    world = await make_world(seed)
    for memory in world.rig.memories.values():
        memory._bytes_capacity, memory._bytes_reserve = CAPACITY, RESERVE
    compact = Compact(
        world.rig.index,
        world.objects.moving(world.rig.clock).move,
        walk_every_s=2.0,
        is_full=lambda: not all(has_room(world)),
    )
    # The world's own one does not know that stores are full.
    journal = world.keeping.journal
    chores = [one for one in world.chores if not isinstance(getattr(one[0], "__self__", None), Waiting)]
    collect = next(one[0].__self__ for one in chores if type(one[0].__self__).__name__ == "Collect")
    collect._partly_dead = compact.partly_dead
    chores.append((Waiting(compact, lambda: not journal.is_sound).step, 0.3))

    async def look() -> bool:
        now = world.rig.clock.monotonic()
        for store in world.rig.health.tick(now):
            world.rig.health.probed(store, None, now)
        return False

    world.chores[:] = [(patient(world.rig.clock, step), pause) for step, pause in chores]
    world.chores.append((look, 0.25))
    there: dict[str, bytes] = {}
    chance = random.Random(seed)
    number = 0
    while True:
        some = {f"{number + n:05}": chance.randbytes(SIZE) for n in range(60)}
        number += 60
        results = await asyncio.gather(
            *(put(world, key, body) for key, body in some.items()), return_exceptions=True
        )
        there |= {key: body for (key, body), result in zip(some.items(), results, strict=True) if not result}
        if any(isinstance(result, BelowFloor) for result in results):
            return world, there


def patient(clock: Clock, step):  # type: ignore[no-untyped-def]
    """As the runner has it: a chore that fails is tried again."""

    async def again() -> bool:
        try:
            return bool(await step())
        except HoldfastError:
            return False

    again.__self__ = step.__self__  # type: ignore[attr-defined]
    return again


def has_room(world: World) -> list[bool]:
    return [memory._bytes_free() > 500 * KIB for memory in world.rig.memories.values()]


async def put(world: World, key: str, body: bytes) -> None:
    await world.objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(body)))


async def delete(world: World, keys: list[str]) -> None:
    results = await world.objects.delete_objects(BUCKET, [DeleteKey(key=key) for key in keys], RequestId(""))
    assert not any(result.error for result in results)


@pytest.mark.parametrize(("seed", "share"), [(1, 0.5), (2, 0.5), (3, 0.35)])
async def test_deleting_small_objects_gives_room_to_write_again(seed: int, share: float) -> None:
    world, there = await full_world(seed)
    assert not any(has_room(world))
    chance = random.Random(seed)
    gone = [key for key in there if chance.random() < share]
    world.start()
    await delete(world, gone)
    for key in gone:
        del there[key]
    fullest = 0
    for _ in range(240):
        await asyncio.sleep(0.5)
        fullest = max(fullest, *(memory._bytes_used for memory in world.rig.memories.values()))
    assert all(has_room(world))
    await world.rig.clock.sleep(5.0)
    again = chance.randbytes(200_000)
    await put(world, "again", again)
    assert await held(world.objects, "again") == again
    for key, body in there.items():
        assert await held(world.objects, key) == body
    # Never more than the shares of the reserve allow, and recovery knows of it all.
    assert fullest <= CAPACITY - RESERVE / 2
    await asyncio.sleep(3.0)
    await world.stop()
    objects, *_ = serve_again(world.rig, (await recover(world.rig)).rows)
    for key, body in there.items():
        assert await held(objects, key) == body
    for key in gone[:20]:
        assert await held(objects, key) is None


async def test_nothing_is_moved_into_the_reserve_that_gives_nothing_back() -> None:
    world, there = await full_world(4)
    before = sum(memory._bytes_used for memory in world.rig.memories.values())
    world.start()
    for key in list(there)[::12]:
        await delete(world, [key])
    await asyncio.sleep(60.0)
    await world.stop()
    journal = sum(
        len(blob)
        for memory in world.rig.memories.values()
        for name, blob in memory._blobs.items()
        if name.startswith("index-")
    )
    after = sum(memory._bytes_used for memory in world.rig.memories.values()) - journal
    assert after <= before
    with pytest.raises(BelowFloor):
        await put(world, "more", bytes(500_000))

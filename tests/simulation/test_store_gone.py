"""Stores that leave for good, at the worst of moments: while a large object is on its way, whose first packs
lie on them already though no row says so until all of it is there, so that nobody knows that these shards
have to be written again; and while more stores are away than may be lost.

What must hold: what is acknowledged can be read, and has in the end all the shards that it was promised.
"""

import asyncio

import pytest

from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.base.ids import StoreId, parse_shard_name
from holdfast.objects import model as m
from holdfast.objects.errors import NoSuchKey
from holdfast.packs.model import PACK_BYTES_MAX
from tests.kit.virtual import run_virtual
from tests.simulation.contents import SimulatedBody, make_bytes
from tests.simulation.node import SimulationSettings
from tests.simulation.proofs import scan, until_tidy, until_whole
from tests.simulation.world import World

SIZE = PACK_BYTES_MAX + (4 << 20)
PIECE = 1 << 20
PAUSE_S = 3.0
REMOVED_AFTER_S = 50.0
"""The first pack is durable, and walks over all packs have time to find nothing before the upload is over."""

HOUSE = SimulationSettings(stores=9, scheme="rs-4-2")


async def _begin() -> tuple[World, asyncio.Task[object], list[StoreId]]:
    """A slow PUT in its second half; the stores that have a shard of its first pack."""
    world = World("store gone", HOUSE)
    await world.start()
    await world.call(lambda node: node.objects.create_bucket("bucket", None))
    body = SimulatedBody(make_bytes("large", SIZE), world.clock, piece=PIECE, pause_s=PAUSE_S)
    put = m.PutObject(bucket="bucket", key="large", body=body)
    under_way = asyncio.ensure_future(world.call(lambda node: node.objects.put_object(put)))
    await world.clock.sleep(REMOVED_AFTER_S)
    assert not under_way.done()
    assert not scan(world, b"pack/")
    homes = [slot.memory.id for slot in world.slots if any(map(parse_shard_name, slot.memory.medium))]
    assert len(homes) == 6
    return world, under_way, homes


async def _command(world: World, action: str, **asked: str) -> None:
    await world.call(lambda node: node.managing.commands.do(action, asked))


async def _remove(world: World, store: StoreId) -> None:
    await _command(world, "remove", slot=str(store), force="yes")


async def _read(world: World) -> bytes:
    async def request() -> bytes:
        view = await world.node.objects.read_object(m.ReadObject(bucket="bucket", key="large"))
        assert view.body is not None
        return b"".join([bytes(piece) async for piece in view.body()])

    return await world.call(lambda _: request())


@pytest.mark.parametrize("removed", [1, 2])
def test_what_went_with_a_store_during_an_upload_is_written_again(removed: int) -> None:
    async def run() -> None:
        world, under_way, homes = await _begin()
        for store in homes[:removed]:
            await _remove(world, store)
        await under_way
        assert await _read(world) == make_bytes("large", SIZE)
        await until_whole(world)
        await world.stop()

    run_virtual(run())


def test_an_upload_of_which_too_much_went_with_its_stores_is_refused_and_leaves_nothing() -> None:
    async def run() -> None:
        world, under_way, homes = await _begin()
        for store in homes[:3]:
            await _remove(world, store)
        with pytest.raises(Unavailable, match="while it was being sent"):
            await under_way
        with pytest.raises(NoSuchKey):
            await _read(world)
        await until_tidy(world)
        assert not scan(world, b"pack/")
        assert not any(parse_shard_name(name) for slot in world.slots_in_use() for name in slot.memory.medium)
        await world.stop()

    run_virtual(run())


def test_a_store_is_not_replaced_while_what_it_held_could_not_be_made_again() -> None:
    async def run() -> None:
        world = World("store gone", HOUSE)
        await world.start()
        await world.call(lambda node: node.objects.create_bucket("bucket", None))
        data = make_bytes("large", 3 * PIECE)
        put = m.PutObject(bucket="bucket", key="large", body=SimulatedBody(data, world.clock))
        await world.call(lambda node: node.objects.put_object(put))
        homes = [slot for slot in world.slots if any(map(parse_shard_name, slot.memory.medium))]
        for slot in homes[:3]:
            slot.script.vanished = True
        await world.clock.sleep(5.0)
        path = str(world.add_slot().path)
        with pytest.raises(InvalidInput, match="1 pack would be lost for good"):
            await _command(world, "replace", slot=homes[0].name, path=path)
        homes[1].script.vanished = homes[2].script.vanished = False
        await world.clock.sleep(5.0)
        await _command(world, "replace", slot=homes[0].name, path=path)
        assert await _read(world) == data
        await until_whole(world)
        await world.stop()

    run_virtual(run())

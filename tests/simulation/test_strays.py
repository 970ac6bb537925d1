"""What explains a shard that no row names, and what does not."""

from contextlib import suppress

import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.packs.model import pack_row
from tests.kit.virtual import run_virtual
from tests.simulation.book import Violation
from tests.simulation.node import SimulationSettings
from tests.simulation.proofs import check_strays, until_swept
from tests.simulation.world import World

PACK = PackId(bytes(range(16)))
NAME = shard_name(PACK, 2, 4_100_633_675)


async def _stray(*, index_away: bool) -> World:
    """Somebody puts a shard; much later, he asks the index for the pack's row."""
    world = World("strays", SimulationSettings())
    await world.start()
    store = world.node.attached[StoreId("store-0")]
    await world.call(lambda _: store.put(NAME, [b"a shard"], timeout_s=5.0))
    await world.clock.sleep(10.0)
    world.index.away = index_away
    with suppress(Unavailable):
        await world.call(lambda node: node.watched_index.get([pack_row(PACK)]))
    world.index.away = False
    return world


def test_what_the_index_kept_from_being_thrown_away_is_explained_however_long_it_took() -> None:
    async def run() -> None:
        world = await _stray(index_away=True)
        assert check_strays(world, []) == {"turned away": 1}
        await world.stop()

    run_virtual(run())


def test_nothing_explains_what_was_just_left_lying() -> None:
    async def run() -> None:
        world = await _stray(index_away=False)
        with pytest.raises(Violation, match="nothing explains it"):
            check_strays(world, [])
        await world.stop()

    run_virtual(run())


def test_every_stray_is_found_in_the_end() -> None:
    async def run() -> None:
        world = await _stray(index_away=False)
        await until_swept(world)
        assert NAME not in world.slots[0].memory.medium
        await world.stop()

    run_virtual(run())

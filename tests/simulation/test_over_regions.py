"""What a client waits for over regions: exact round trips, in health, while a region hangs, and after it.

On a virtual clock, where stores and index take no time themselves. docs/geography.md has the table.
"""

from collections.abc import Awaitable, Callable

import pytest

from holdfast.packs.quorum import LAST_RESORT_S
from tests.kit.continents import BUCKET, Continents
from tests.kit.virtual import run_virtual

SMALL, LARGE = bytes(20_000), bytes(range(256)) * 800
"""Both of all data shards; one goes into a pack with others, one has its own."""

TRIPS_S = ((0.0, 0.030, 0.080), (0.0, 0.030, 0.150), (0.0, 0.080, 0.150))
PUT_TRIPS_MAX = 2.3


def over(
    trips_s: tuple[float, ...], stores: int, scheme: str, work: Callable[[Continents], Awaitable[None]]
) -> None:
    async def run() -> None:
        world = Continents(trips_s, stores)
        try:
            survive = scheme if ":" in scheme else None
            await world.objects.create_bucket(BUCKET, None if survive else scheme, survive=survive)
            await world.rig.clock.sleep(2.0)
            await work(world)
        finally:
            await world.close()

    run_virtual(run())


@pytest.mark.parametrize("trips_s", TRIPS_S)
@pytest.mark.parametrize(
    ("scheme", "stores"), [("rs-2-1", 1), ("rs-4-2", 2), ("mirror-3", 1), ("mirror-3", 2), ("region:1", 2)]
)
def test_a_put_and_a_get_in_round_trips(trips_s: tuple[float, ...], scheme: str, stores: int) -> None:
    _, near, far = trips_s

    async def work(world: Continents) -> None:
        for number, data in enumerate((SMALL, LARGE)):
            took, survives = await world.put(f"k{number}", data)
            # Rows of bucket and head, then all shards at once, then the commit.
            assert took == pytest.approx(near + far + near, abs=1e-6), (number, took)
            assert took <= PUT_TRIPS_MAX * far
            assert survives["region"] >= 1
        here = scheme.startswith("mirror")
        for key, data, first in (("k0", SMALL, 0.0), ("k1", LARGE, near), ("k1", LARGE, 0.0)):
            # The index; where the pack's row is not in memory yet, once more; and the nearest k.
            took, body = await world.get(key)
            assert body == data
            assert took == pytest.approx(near + first + (0.0 if here else near), abs=1e-6), key

    over(trips_s, stores, scheme, work)


@pytest.mark.parametrize("trips_s", TRIPS_S)
@pytest.mark.parametrize(("scheme", "stores"), [("rs-2-1", 1), ("rs-4-2", 2), ("mirror-3", 2)])
def test_a_far_region_that_hangs_is_missed_once_and_then_by_nobody(
    trips_s: tuple[float, ...], scheme: str, stores: int
) -> None:
    _, near, far = trips_s

    async def work(world: Continents) -> None:
        await world.put("before", LARGE)
        world.cut(2)
        took, survives = await world.put("during", LARGE)
        assert took < 2 * near + 12 * far + 0.3, "the way may explain that much of a large put, once"
        assert took < LAST_RESORT_S + near + 12 * far
        assert survives["region"] >= 1
        await world.rig.clock.sleep(5.0)
        took, survives = await world.put("after", SMALL)
        assert took == pytest.approx(3 * near, abs=1e-6)
        assert survives["region"] >= 1
        for key, data in (("before", LARGE), ("during", LARGE), ("after", SMALL)):
            await world.get(key)
            took, body = await world.get(key)
            assert body == data
            assert took <= 2 * near + 1e-6
        world.cut(2, off=False)
        await world.rig.clock.sleep(30.0)
        took, _ = await world.put("again", SMALL)
        assert took == pytest.approx(2 * near + far, abs=1e-6)

    over(trips_s, stores, scheme, work)


@pytest.mark.parametrize("near", [0.001, 0.030, 0.150])
@pytest.mark.parametrize(("scheme", "stores"), [("mirror-2", 2), ("rs-2-2", 3), ("mirror-3", 3)])
def test_of_two_regions_one_that_hangs_is_waited_for_a_moment(near: float, scheme: str, stores: int) -> None:
    async def work(world: Continents) -> None:
        _, survives = await world.put("before", SMALL)
        assert survives["region"] == 1
        world.cut(1)
        world.rig.index.way.cut = False  # type: ignore[attr-defined]
        took, survives = await world.put("during", SMALL)
        assert took < LAST_RESORT_S + 6 * near + 0.5
        assert survives["region"] == 0, "and the receipt says so"

    over((0.0, near), stores, scheme, work)


def test_reads_are_balanced_among_copies_that_are_equally_near() -> None:
    async def work(world: Continents) -> None:
        await world.put("k", SMALL)
        for _ in range(30):
            await world.get("k")
        reads = [world.rig.health.counts(store).reads for store in world.rig.stores]
        near = [
            count for store, count in zip(world.rig.stores, reads, strict=True) if world.region[store] < 2
        ]
        assert sum(near) == sum(reads) == 30
        assert all(count in (0, 15) for count in near), "one copy in each region, in turn"

    over((0.0, 0.001, 0.080), 1, "mirror-3", work)

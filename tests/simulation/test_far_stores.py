"""Stores that are far away are not taken for slow ones; and when one of them does become slow, it is found.

Real health, real decorators, memory stores at the end of emulated ways, a virtual clock. Each seed is a
layout, a load and a weather of its own. HOLDFAST_SIM_SEEDS=n tries n seeds, of more than twelve only that
nobody is taken for slow.
"""

import os

import pytest

from holdfast.health import StoreState
from holdfast.health.comparing import LOOK_S
from holdfast.health.distance import KEPT_S
from tests.kit.virtual import run_virtual
from tests.kit.watched_stores import WatchedStores

SEEDS_FOUND = 12
SEEDS = min(int(os.environ.get("HOLDFAST_SIM_SEEDS", SEEDS_FOUND)), 100)
FOUND_WITHIN_S = 2.0

TRIPS_S = (
    (0.0, 0.030, 0.080),
    (0.0, 0.080, 0.150),
    (0.0, 0.030, 0.150),
    (0.0, 0.150, 0.150),
    (0.030, 0.080, 0.150),
    (0.0, 0.0, 0.150),
)
"""Round trips to three regions, the first of which is mostly one's own."""

LATENCIES_S = ((0.0005, 0.002), (0.004, 0.016), (0.010, 0.030))
"""Of the disks themselves, which are alike in a run."""

LOADS = (0.0, 0.5, 3.0, 15.0)


def _world(seed: int, jitter: float) -> WatchedStores:
    stores, cap = ((3, 1), (6, 2), (9, 2))[seed % 3]
    yard = WatchedStores(
        f"far {seed}",
        stores=stores,
        cap=cap,
        latency_s=LATENCIES_S[seed // 2 % len(LATENCIES_S)],
        trips_s=TRIPS_S[seed // 3 % len(TRIPS_S)],
        jitter=jitter,
    )
    if load := LOADS[seed // 7 % len(LOADS)]:
        yard.begin_load(load)
    return yard


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
def test_far_stores_with_jitter_stay_in_use(jitter: float) -> None:
    async def run(seed: int) -> None:
        yard = _world(seed, jitter)
        await yard.clock.sleep(30.0)
        assert yard.events == [], seed
        assert all(yard.health.preferred(store) for store in yard.ids), seed
        for store, way in yard.ways.items():
            assert 0.999 * way.trip_s <= yard.health.trip_s(store) <= 1.5 * way.trip_s
        await yard.close()

    for seed in range(SEEDS):
        run_virtual(run(seed))


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_store_that_becomes_slow_is_found_however_far_it_is(jitter: float) -> None:
    async def run(seed: int) -> None:
        yard = _world(seed, jitter)
        await yard.clock.sleep(10.0 + yard.chance.fraction())
        assert yard.events == [], seed
        slow = yard.ids[yard.chance.below(len(yard.ids))]
        yard.scripts[slow].delay_s = (0.45, 0.6)
        within_s = FOUND_WITHIN_S + LOOK_S + yard.ways[slow].trip_s
        await yard.until(slow, StoreState.SITTING_OUT, StoreState.DOWN, within_s=within_s)
        assert yard.out == [slow]
        yard.scripts[slow].delay_s = (0.0, 0.0)
        await yard.until(slow, StoreState.HEALTHY, within_s=30.0)
        await yard.close()

    for seed in range(SEEDS_FOUND):
        run_virtual(run(seed))


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_store_that_hangs_is_found_however_far_it_is(jitter: float) -> None:
    async def run(seed: int) -> None:
        yard = _world(seed, jitter)
        await yard.clock.sleep(10.0 + yard.chance.fraction())
        hung = yard.ids[yard.chance.below(len(yard.ids))]
        yard.scripts[hung].hang = True
        await yard.until(hung, StoreState.DOWN, within_s=FOUND_WITHIN_S + 0.5)
        assert yard.out == [hung]
        await yard.close()

    for seed in range(SEEDS_FOUND):
        run_virtual(run(seed))


def test_a_longer_way_is_slowness_at_first_and_distance_in_the_end() -> None:
    async def run() -> None:
        yard = WatchedStores("detour", stores=6, trips_s=(0.0, 0.03, 0.03), jitter=0.1)
        yard.begin_load(1.0)
        await yard.clock.sleep(10.0)
        moved = yard.ids[1]
        yard.ways[moved].trip_s = 0.3
        await yard.until(moved, StoreState.SITTING_OUT, StoreState.DOWN, within_s=FOUND_WITHIN_S)
        await yard.clock.sleep(2 * KEPT_S + 700.0)
        assert yard.health.state(moved) is StoreState.HEALTHY
        assert yard.health.trip_s(moved) >= 0.3
        yard.ways[moved].trip_s = 0.03
        await yard.clock.sleep(2.0)
        assert yard.health.trip_s(moved) <= 0.04
        await yard.close()

    run_virtual(run())

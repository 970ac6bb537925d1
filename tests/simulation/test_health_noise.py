"""Noise on all disks at once takes no more stores out of use than every scheme in use can lose.

Each seed is a weather of its own: bursts that make every disk up to a hundred times slower, jitter that
differs from disk to disk, stalls of everything, sprinkled errors, at any load and none. Nothing is wrong with
any disk more than with another, so each store that is taken out of use is a false alarm; a few are bearable,
more than the cap never are. HOLDFAST_SIM_SEEDS=n runs n seeds: `make sim SEEDS=10000 PYTEST_ARGS="-k noise"`.
"""

import os
from math import exp

import pytest
from msgspec import Struct

from holdfast.health import StoreState
from tests.kit.virtual import run_virtual
from tests.kit.watched_stores import WatchedStores

SEEDS_BY_DEFAULT = 24
SEEDS = int(os.environ.get("HOLDFAST_SIM_SEEDS", SEEDS_BY_DEFAULT))
PER_TEST = 100
NOISE_S = 8.0

LAYOUTS = ((6, 2), (3, 2), (4, 1), (5, 2), (11, 3), (2, 1))
"""How many stores, and how many of them every scheme in use can lose."""


class Run(Struct):
    """What became of one seed."""

    out_most: int
    cap: int
    ejections: int
    looks: int


async def _noise(seed: int) -> Run:
    stores, cap = LAYOUTS[seed % len(LAYOUTS)]
    base = ((0.0005, 0.002), (0.004, 0.016))[seed // 6 % 2]
    yard = WatchedStores(f"noise {seed}", stores=stores, cap=cap, latency_s=base)
    chance = yard.chance
    run = Run(0, cap, 0, 0)

    def look() -> None:
        run.looks += 1
        run.out_most = max(run.out_most, len(yard.out))

    yard.on_look = look
    if (load := (0.0, 0.5, 3.0, 15.0)[chance.below(4)]) > 0:
        yard.begin_load(load)
    scatter, errors = 1.5 * chance.fraction(), (0.0, 0.0, 0.02, 0.1)[chance.below(4)]
    while yard.clock.monotonic() < NOISE_S:
        burst = exp(4.6 * chance.fraction() ** 2)
        stall = chance.below(8) == 0
        for script in yard.scripts.values():
            slower = burst * exp(scatter * _normal(chance.fraction(), chance.fraction(), chance.fraction()))
            script.delay_s = (base[0] * slower, 2 * base[1] * slower)
            script.hang = stall
            script.read_errors = script.write_errors = errors
        await yard.clock.sleep(0.05 + (2.5 if stall else 1.0) * chance.fraction())
        look()
    run.ejections = sum(
        event.after in (StoreState.SITTING_OUT, StoreState.DOWN, StoreState.SUSPECT) for event in yard.events
    )
    await yard.close()
    return run


def _normal(*fractions: float) -> float:
    """About normal, as sums of chances are."""
    return 2.0 * sum(fraction - 0.5 for fraction in fractions)


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_noise_on_all_disks_takes_no_more_out_of_use_than_the_cap(first: int) -> None:
    runs = {seed: run_virtual(_noise(seed)) for seed in range(first, min(first + PER_TEST, SEEDS))}
    assert all(run.looks > NOISE_S for run in runs.values())
    beyond = {seed: run for seed, run in runs.items() if run.out_most > run.cap}
    out = sum(run.ejections for run in runs.values())
    print(f"{len(runs)} seeds: {out} false alarms within the cap, {len(beyond)} beyond it")  # noqa: T201
    assert beyond == {}


def test_weather_that_is_the_same_for_all_disks_takes_none_out_of_use() -> None:
    async def run(seed: int) -> None:
        yard = WatchedStores(f"weather {seed}", cap=2)
        if seed % 3:
            yard.begin_load(3.0 * (seed % 3))
        for _ in range(20):
            slower = exp(4.0 * yard.chance.fraction() ** 2)
            for script in yard.scripts.values():
                script.delay_s = (0.0005 * slower, 0.002 * slower)
            await yard.clock.sleep(yard.chance.fraction())
        assert yard.events == []
        await yard.close()

    for seed in range(20):
        run_virtual(run(seed))


def test_after_the_noise_everybody_is_in_use_again() -> None:
    async def run(seed: int) -> None:
        yard = WatchedStores(f"after {seed}", cap=2)
        yard.begin_load(3.0)
        for _ in range(10):
            for script in yard.scripts.values():
                script.delay_s = (0.0, 0.3 * yard.chance.fraction())
                script.hang = yard.chance.below(4) == 0
            await yard.clock.sleep(yard.chance.fraction())
        for script in yard.scripts.values():
            script.delay_s, script.hang = (0.0, 0.0), False
        await yard.clock.sleep(120.0)
        assert [store for store in yard.ids if yard.health.state(store) is not StoreState.HEALTHY] == []
        await yard.close()

    for seed in range(3):
        run_virtual(run(seed))

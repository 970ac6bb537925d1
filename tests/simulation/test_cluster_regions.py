"""Whole runs of a cluster over three regions of which one goes and comes back, one a seed.

HOLDFAST_SIM_SEEDS=n runs n seeds, HOLDFAST_SIM_SEED=s one.
"""

import os

import pytest

from tests.simulation.cluster_regions import run_region_seed

SEEDS_BY_DEFAULT = 3


def _seeds() -> list[int]:
    if one := os.environ.get("HOLDFAST_SIM_SEED"):
        return [int(one)]
    first = int(os.environ.get("HOLDFAST_SIM_FIRST", "1"))
    return list(range(first, first + int(os.environ.get("HOLDFAST_SIM_SEEDS", SEEDS_BY_DEFAULT))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", _seeds())
def test_a_region_goes_and_comes_back_and_nothing_is_lost(seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 (shown when it fails)
    finished = run_region_seed(seed)
    assert finished.acknowledged > 0

"""Whole runs of a cluster over three regions of which one goes and comes back, one a seed.

HOLDFAST_SIM_SEEDS=n runs n seeds, HOLDFAST_SIM_SEED=s one.
"""

import pytest

from tests.simulation.asked import seeds_asked
from tests.simulation.cluster_regions import run_region_seed

SEEDS_BY_DEFAULT = 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds_asked(SEEDS_BY_DEFAULT))
def test_a_region_goes_and_comes_back_and_nothing_is_lost(seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 (shown when it fails)
    finished = run_region_seed(seed)
    assert finished.acknowledged > 0

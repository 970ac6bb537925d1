"""Whole runs of several nodes on one index under faults, one a seed.

HOLDFAST_SIM_SEEDS=n runs n seeds, HOLDFAST_SIM_FIRST=s begins with another than the first. A run that fails
says how to run its seed alone (HOLDFAST_SIM_SEED=s); HOLDFAST_SIM_TRACE=file writes down all that happens.
"""

import pytest

from tests.simulation.asked import seeds_asked
from tests.simulation.cluster_run import run_cluster_seed

SEEDS_BY_DEFAULT = 14


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds_asked(SEEDS_BY_DEFAULT))
def test_several_nodes_lose_nothing_and_show_nothing_wrong(seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 (shown when it fails)
    finished = run_cluster_seed(seed)
    assert finished.acknowledged > 0


@pytest.mark.slow
def test_a_seed_replays_a_run_exactly() -> None:
    assert run_cluster_seed(3).digest == run_cluster_seed(3).digest

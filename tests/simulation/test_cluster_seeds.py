"""Whole runs of several nodes on one index under faults, one a seed.

HOLDFAST_SIM_SEEDS=n runs n seeds, HOLDFAST_SIM_FIRST=s begins with another than the first. A run that fails
says how to run its seed alone (HOLDFAST_SIM_SEED=s); HOLDFAST_SIM_TRACE=file writes down all that happens.
"""

import os

import pytest

from tests.simulation.cluster_run import run_cluster_seed

SEEDS_BY_DEFAULT = 14


def _seeds() -> list[int]:
    if one := os.environ.get("HOLDFAST_SIM_SEED"):
        return [int(one)]
    first = int(os.environ.get("HOLDFAST_SIM_FIRST", "1"))
    return list(range(first, first + int(os.environ.get("HOLDFAST_SIM_SEEDS", SEEDS_BY_DEFAULT))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", _seeds())
def test_several_nodes_lose_nothing_and_show_nothing_wrong(seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 (shown when it fails)
    finished = run_cluster_seed(seed)
    assert finished.acknowledged > 0


@pytest.mark.slow
def test_a_seed_replays_a_run_exactly() -> None:
    assert run_cluster_seed(3).digest == run_cluster_seed(3).digest

"""Whole runs of a node under faults, one a seed.

HOLDFAST_SIM_SEEDS=n runs n seeds, HOLDFAST_SIM_FIRST=s begins with another than the first. A run that fails
says how to run its seed alone (HOLDFAST_SIM_SEED=s); HOLDFAST_SIM_TRACE=file writes down all that happens.
"""

import os

import pytest

from tests.simulation.run import run_seed

SEEDS_BY_DEFAULT = 25


def _seeds() -> list[int]:
    if one := os.environ.get("HOLDFAST_SIM_SEED"):
        return [int(one)]
    first = int(os.environ.get("HOLDFAST_SIM_FIRST", "1"))
    return list(range(first, first + int(os.environ.get("HOLDFAST_SIM_SEEDS", SEEDS_BY_DEFAULT))))


@pytest.mark.parametrize("seed", _seeds())
def test_nothing_acknowledged_is_lost_and_nothing_wrong_is_shown(seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 (shown when it fails)
    finished = run_seed(seed)
    assert finished.acknowledged > 0

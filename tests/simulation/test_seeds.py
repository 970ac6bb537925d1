"""Whole runs of a node under faults, one a seed: a thousand of them, always the same.

HOLDFAST_SIM_SEEDS=n runs n seeds, HOLDFAST_SIM_FIRST=s begins with another than the first. A run that fails
says how to run its seed alone (HOLDFAST_SIM_SEED=s); HOLDFAST_SIM_TRACE=file writes down all that happens.
"""

from collections.abc import Sequence

import pytest

from tests.simulation.asked import seeds_asked
from tests.simulation.run import SeedFailed, run_seed

SEEDS_BY_DEFAULT = 1000
SEEDS_AT_ONCE = 25
"""One test runs so many, some seconds long, so that workers can share them out."""


def _chunks() -> list[object]:
    """The first is for those, too, who want to know soon."""
    asked = seeds_asked(SEEDS_BY_DEFAULT)
    chunks = [asked[at : at + SEEDS_AT_ONCE] for at in range(0, len(asked), SEEDS_AT_ONCE)]
    return [
        pytest.param(chunk, id=f"{chunk[0]}-{chunk[-1]}", marks=[pytest.mark.slow] if number else [])
        for number, chunk in enumerate(chunks)
    ]


@pytest.mark.parametrize("seeds", _chunks())
def test_nothing_acknowledged_is_lost_and_nothing_wrong_is_shown(seeds: Sequence[int]) -> None:
    red: list[SeedFailed] = []
    acknowledged = 0
    for seed in seeds:
        print(f"seed {seed}")  # noqa: T201 (shown when it fails)
        try:
            acknowledged += run_seed(seed).acknowledged
        except SeedFailed as failed:
            red.append(failed)
    assert not red, "\n\n".join(map(str, red))
    assert acknowledged > 0

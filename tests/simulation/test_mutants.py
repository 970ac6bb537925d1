"""The tool that plants mistakes works: one is found, by a seed that is green without it."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.simulation.mutants import MUTANTS, is_caught, try_out

NAMES = {mutant.name: mutant for mutant in MUTANTS}
SEEDS_MAX = 40
"""Four of five find it."""


def test_a_planted_mistake_is_found_and_is_gone_afterwards() -> None:
    mutant = NAMES["sweep"]
    found = try_out(mutant, range(1, 1 + SEEDS_MAX), enough=1)
    assert found.seeds
    assert "the journal on the stores ends" in found.said
    assert not try_out(replace(mutant, plant=lambda: ()), found.seeds).seeds


@pytest.mark.slow
def test_a_mistake_is_planted_for_the_test_that_is_named_beside_it() -> None:
    assert is_caught(NAMES["fence"])
    assert not is_caught(replace(NAMES["fence"], name="scheme"))


def test_what_is_named_beside_a_mistake_is_there() -> None:
    for mutant in MUTANTS:
        file, _, test = mutant.caught_by.partition("::")
        assert f"def {test}" in (Path(__file__).parent.parent / file).read_text() if file else not test

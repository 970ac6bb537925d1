"""The tool that plants mistakes works: one is found, by a seed that is green without it."""

from msgspec.structs import replace

from tests.simulation.mutants import MUTANTS, try_out

NAMES = {mutant.name: mutant for mutant in MUTANTS}
SEEDS_MAX = 40
"""Four of five find it."""


def test_a_planted_mistake_is_found_and_is_gone_afterwards() -> None:
    mutant = NAMES["sweep"]
    found = try_out(mutant, range(1, 1 + SEEDS_MAX), enough=1)
    assert found.seeds
    assert "the journal on the stores ends" in found.said
    assert not try_out(replace(mutant, plant=lambda: ()), found.seeds).seeds

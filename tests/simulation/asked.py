"""Which seeds a test is to run.

HOLDFAST_SIM_SEEDS=n runs n of them, HOLDFAST_SIM_FIRST=s begins with another than the first,
HOLDFAST_SIM_SEED=s runs that one alone.
"""

import os


def seeds_asked(by_default: int) -> range:
    """Those that the environment names; else the first so many."""
    if one := os.environ.get("HOLDFAST_SIM_SEED"):
        return range(int(one), int(one) + 1)
    first = int(os.environ.get("HOLDFAST_SIM_FIRST", "1"))
    return range(first, first + int(os.environ.get("HOLDFAST_SIM_SEEDS", by_default)))

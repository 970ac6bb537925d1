"""The same seed gives the same run, to the last call of a store; in another process, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.run import run_seed

ROOT = Path(__file__).resolve().parents[2]


def test_the_same_seed_gives_the_same_run() -> None:
    first, second, other = run_seed(3), run_seed(3), run_seed(4)
    assert first == second
    assert first.digest != other.digest


@pytest.mark.parametrize("seed", [12])
def test_the_same_seed_gives_the_same_run_in_another_process(seed: int) -> None:
    program = f"from tests.simulation.run import run_seed; print(run_seed({seed}).digest)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.strip() == run_seed(seed).digest

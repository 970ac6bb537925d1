"""Holdfast as it was at an earlier commit: its source, taken from the history of this repository.

It runs with the packages of today's environment, whose editable install comes after PYTHONPATH. A clone
without the commit fails the test that asks for it, and says how to get it.
"""

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-c", "import sys; from holdfast.cli.main import main; sys.exit(main())")
"""What `holdfast` runs, for a Holdfast that PYTHONPATH names."""


def unpack(commit: str, folder: Path) -> Path:
    """The source of a commit, below `folder`: what to set PYTHONPATH to."""
    done = subprocess.run(
        ["git", "archive", "--format=tar", commit, "src"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, (
        f"commit {commit} is needed here, and this clone has no such history: git fetch --unshallow "
        f"({done.stderr.decode().strip()})"
    )
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"

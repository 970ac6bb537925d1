"""Small real disks for a node: memory file systems in a mount namespace of its own.

They are full when they are full, and go when they are unmounted, without touching the machine's own disks.
The test sees nothing of them; it looks through the node, or runs a command `inside`.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def _namespaces() -> list[str]:
    """Options for a mount namespace; whoever is not root needs a user namespace round it."""
    return ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]


def on_small_disks(paths: Sequence[Path], size_bytes: int) -> list[str]:
    """What to put before a command so that each of `paths` is a disk of that size for it."""
    for path in paths:
        path.mkdir(parents=True)
    mounts = "; ".join(f"mount -t tmpfs -o size={size_bytes},mode=0700 disk '{path}'" for path in paths)
    return ["unshare", *_namespaces(), "sh", "-ec", f'{mounts}; exec "$@"', "sh"]


def with_read_only(path: Path) -> list[str]:
    """What to put before a command so that `path` cannot be written to, whoever it is."""
    script = f"mount --bind '{path}' '{path}'; mount -o remount,bind,ro '{path}'; exec \"$@\""
    return ["unshare", *_namespaces(), "sh", "-ec", script, "sh"]


def inside(pid: int, *command: str | Path) -> str:
    """Run a command where process `pid` has its disks; what it printed."""
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    done = subprocess.run(
        ["nsenter", f"--target={pid}", *user, "--mount", "--", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

"""Ends whatever a test run started, and takes away what it left outside its folders, however the run ends.

The kernel can end a process with the one that started it, but not a process that changed its user, nor one
that the dead one's child had started in a session of its own. So each process that runs tests has a keeper:
a process that holds the other end of a pipe. The run puts a mark into its environment, which all that it
starts inherit. When the pipe closes, which the kernel sees to, the keeper ends what bears the mark, and all
descendants of that, until nothing is left. Linux only: elsewhere it has nothing to go by, and does nothing.

    begin()         in the process that runs tests
    leave(path)     a file or folder that is to go at the end, if it is still there then
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "BEGUN_BY_TEST_RUN"
_PROC = Path("/proc")
_ROUNDS = 200
_ROUND_S = 0.05

_pipes: list[int] = []
"""Kept open for as long as this process lives."""


def begin() -> None:
    """From now on, what this process starts ends with it."""
    if _pipes:
        return
    mark = f"{os.getpid()}-{time.time_ns()}"
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as keeper:
        keeper.returncode = 0  # it outlives us, on purpose: nobody waits for it
    os.close(reading)
    _pipes.append(writing)
    os.environ[MARK] = mark


def leave(path: Path) -> None:
    """To be removed at the end, when it is still there."""
    if _pipes:
        os.write(_pipes[0], os.fsencode(path) + b"\n")


def kept(mark: str) -> set[int]:
    """The processes that bear a mark, and all of their descendants."""
    bearer = f"{MARK}={mark}".encode()
    found: set[int] = set()
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        # What ends meanwhile, or is another user's, is not looked at.
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            parent = int((entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(pid)
            if bearer in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    waiting = list(found)
    while waiting:
        new = set(children.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found - {os.getpid()}


def _keep(mark: str) -> None:
    left = sys.stdin.buffer.read().splitlines()
    for _ in range(_ROUNDS):
        pids = kept(mark)
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(_ROUND_S)
    for name in left:
        path = Path(os.fsdecode(name))
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    _keep(sys.argv[1])

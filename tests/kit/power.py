"""Power cuts: at one instant a node is no more, and of what it wrote only what was synced is there.

Two ways. `Ext4Disks` are real file systems, one for the node's folder and one for each store, which are shut
down without writing out what they hold back, as a disk that loses power; they need a machine on which one may
mount. `Recording` needs nothing, and takes more than a file system would (`tests/kit/unsynced.py`). Either
way the node is stopped where it is, so that nothing it does comes after the cut of one disk and before that
of another; everything is cut; the node is killed.
"""

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.kit.process import NodeProcess
from tests.kit.unsynced import RECORD, UNSYNCED, take_back

STORES = 6
DISK_BYTES = 256 << 20
CONFIG = '[limits]\nreserve = "16 MiB"\n'
PATIENCE_S = 60.0
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of linux/fs.h
_WITHOUT_A_WORD = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: nothing is written any more, the journal neither
_SHARED_MEMORY = Path("/dev/shm")


class Power(Protocol):
    """The power of one node, which has to be started with `environment` and behind `prefix`. `taken` is how
    much that was not synced the cuts took, in units of its own."""

    name: str
    environment: dict[str, str]
    prefix: list[str]
    taken: int

    def cut(self, node: NodeProcess) -> None:
        """Cut it, and have it back: what was synced is there when this returns, and the node is not."""
        ...


def stop_at_once(node: NodeProcess) -> None:
    """Stop a process wherever it is; a call to the kernel that is under way ends first."""
    node.signal(signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while _runs(node.pid):
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.001)


def _runs(pid: int) -> bool:
    """Whether a thread of it has not stopped."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in ("T", "t", "Z", "X"):
                return True
    return False


class Recording:
    """A node that is recorded, in `home`. With `unsynced`, syncs do nothing: such a node loses."""

    name = "recorded"

    def __init__(self, home: Path, chance: random.Random, *, unsynced: bool = False) -> None:
        self._root = home / "holdfast-data"
        self._folder = home / "recording"
        self._chance = chance
        self._folder.mkdir()
        self.environment = {RECORD: str(self._folder)} | ({UNSYNCED: "1"} if unsynced else {})
        self.prefix: list[str] = []
        self.taken = 0
        (home / "holdfast.toml").write_text(CONFIG)

    def cut(self, node: NodeProcess) -> None:
        """Cut it, and have it back."""
        stop_at_once(node)
        node.kill()
        self.taken += sum(take_back(self._root, self._folder, self._chance))


class Ext4Disks:
    """File systems on files of their own, which the node alone sees: they go when it goes, whatever becomes
    of the test."""

    name = "ext4"

    def __init__(self, home: Path, images: Path) -> None:
        data = home / "holdfast-data"
        self._disks = [(images / "data", data)]
        self._disks += [(images / f"disk{n}", data / f"disk{n}") for n in range(1, STORES + 1)]
        for image, _ in self._disks:
            with image.open("wb") as file:
                file.truncate(DISK_BYTES)
            _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", image)
        # Nothing is written out by itself for as long as a drill lasts.
        script = "".join(
            f"mkdir -p '{path}'; mount -o loop,commit=3600 '{image}' '{path}'; "
            for image, path in self._disks
        )
        self.environment: dict[str, str] = {}
        self.prefix = ["unshare", "--mount", "sh", "-ec", f'{script}exec "$@"', "sh"]
        self.taken = 0
        self._begun = 0
        (home / "holdfast.toml").write_text(CONFIG)

    def cut(self, node: NodeProcess) -> None:
        """Cut it, and have it back."""
        stop_at_once(node)
        seen = Path(f"/proc/{node.pid}/root")
        folders = [Path(f"{seen}{path}") for _, path in self._disks]
        for folder in folders:
            # What a cut must take: it is looked for at the next one.
            self.taken += not (folder / f"unsynced-{self._begun}").exists()
            (folder / f"unsynced-{self._begun + 1}").write_bytes(b"x")
        for folder in folders:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_A_WORD))
            os.close(descriptor)
        self._begun += 1
        node.kill()
        self.wait()

    def wait(self) -> None:
        """Until the kernel has let go of all of them."""
        deadline = time.monotonic() + PATIENCE_S
        for image, _ in self._disks:
            while _run("losetup", "--associated", image):
                assert time.monotonic() < deadline, f"{image} is still in use"
                time.sleep(0.01)


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def _ext4_disks(home: Path) -> Iterator[Ext4Disks]:
    # What is synced to such a disk need not wait for the machine's own.
    roomy = shutil.disk_usage(_SHARED_MEMORY).free > 2 * (STORES + 1) * DISK_BYTES
    images = _SHARED_MEMORY / f"holdfast-{os.getpid()}-{home.name}" if roomy else home / "images"
    images.mkdir()
    try:
        yield Ext4Disks(home, images)
    finally:
        shutil.rmtree(images)


@cache
def can_mount() -> bool:
    """Whether file systems on loop devices can be had here."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists():
        return False
    free = subprocess.run(["losetup", "--find"], check=False, capture_output=True)
    return free.returncode == 0


@contextmanager
def power_of(home: Path, way: str, chance: random.Random) -> Iterator[Power]:
    """The power of a node in `home`, one `way` or the other; where nothing can be mounted, the other."""
    if way == Ext4Disks.name and can_mount():
        with _ext4_disks(home) as disks:
            yield disks
    else:
        yield Recording(home, chance)

"""What a node holds while it runs: the lock on its data folder, and the note of where it listens.

What must hold: of two processes on one data folder at most one has the lock, whatever way the other
ended (the kernel lets go of it with the process); and `read_runtime` never names a node that is gone,
because it believes the note only while somebody holds the lock.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

import msgspec
from msgspec import Struct

from holdfast.base.errors import Busy
from holdfast.base.sealed import NOT_JSON, is_spoiled, seal

LOCK_NAME = "lock"
RUNTIME_NAME = "node.json"


class Runtime(Struct, frozen=True):
    """Where a running node is to be found."""

    endpoint: str
    region: str
    pid: int
    started_wall: float


class DataLock:
    """Holds the data folder for one process. Raises Busy when another one has it, OSError when the
    folder does not let us."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._descriptor = os.open(data / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(self._descriptor):
            os.close(self._descriptor)
            runtime = _read_note(data)
            where = f" (process {runtime.pid}, at {runtime.endpoint})" if runtime else ""
            raise Busy(
                f"Another node is running on {data}{where}.",
                hint="Stop it first, or give this one a --data of its own.",
            )

    def publish(self, runtime: Runtime) -> None:
        """Say where the node listens."""
        path = self._data / RUNTIME_NAME
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(seal(runtime))
        temporary.replace(path)

    def release(self) -> None:
        """Take the note away and let go."""
        with contextlib.suppress(OSError):
            (self._data / RUNTIME_NAME).unlink(missing_ok=True)
        os.close(self._descriptor)


def read_runtime(data: Path) -> Runtime | None:
    """Where the node on `data` listens; None when none is running."""
    try:
        descriptor = os.open(data / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read_note(data) if _is_locked(descriptor) else None
    finally:
        os.close(descriptor)


# Locks of the open file, not of the process: asking whether somebody has one neither takes it for a moment
# (which could turn away a node that is just starting) nor is fooled by asking from inside the node.
_WRITE_LOCK = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WRITE_LOCK)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(descriptor: int) -> bool:
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WRITE_LOCK)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _read_note(data: Path) -> Runtime | None:
    try:
        raw = (data / RUNTIME_NAME).read_bytes()
        return None if is_spoiled(raw) else msgspec.json.decode(raw, type=Runtime)
    except (OSError, *NOT_JSON):
        return None

"""File operations for tests of directory stores: other kernels, a recorder, a failing and a hanging disk."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdfast.base.checksums import Buffer
from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.directory import DirectoryOptions, DirectoryStore, attach
from holdfast.stores.directory.files import Files, SystemFiles
from holdfast.stores.identity import Expected


class NamedTemporaries(SystemFiles):
    """A file system that knows no unnamed files and cannot answer reads at once, as some network ones."""

    def open(self, path: str, flags: int, *, folder: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return super().open(path, flags, folder=folder)

    def read_at_once(self, descriptor: int, into: Sequence[Buffer], offset: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")


class NoDirectReads(SystemFiles):
    """A file system that does not know O_DIRECT."""

    def open(self, path: str, flags: int, *, folder: int | None = None) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().open(path, flags, folder=folder)


class DiskOf(SystemFiles):
    """Folders of the real disk that say what a disk of a stated size would. The real one's free space is no
    test's own: others write and delete meanwhile."""

    def __init__(self, *, bytes_total: int, bytes_free: int) -> None:
        self.bytes_total = bytes_total
        self.bytes_free = bytes_free

    def space(self, descriptor: int) -> os.statvfs_result:
        block = 4096
        free = self.bytes_free // block
        return os.statvfs_result((block, block, self.bytes_total // block, free, free, 0, 0, 0, 0, 255))


class WatchedFiles:
    """Real files behind a gate that every call passes: `before(call, arguments)` may record, fail or
    wait. Counts open descriptors."""

    def __init__(
        self, before: Callable[[str, tuple[Any, ...]], None], inner: SystemFiles | None = None
    ) -> None:
        self._inner = inner or SystemFiles()
        self.before = before
        self.open_now: set[int] = set()
        self._lock = threading.Lock()

    def __getattr__(self, call: str) -> Any:
        function = getattr(self._inner, call)

        def through(*arguments: Any, **named: Any) -> Any:
            try:
                self.before(call, (*arguments, *named.values()))
            except OSError:
                # The kernel frees the number even when closing answers with an error.
                if call == "close":
                    self._forget(arguments[0])
                    function(*arguments)
                raise
            if call == "close":
                self._forget(arguments[0])
            result = function(*arguments, **named)
            if call == "open":
                with self._lock:
                    self.open_now.add(result)
            return result

        return through

    def _forget(self, descriptor: int) -> None:
        with self._lock:
            self.open_now.discard(descriptor)


class MovableClock(SystemClock):
    """The system's clock, moved ahead at will."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


async def attached_store(
    path: Path,
    *,
    files: Files | None = None,
    options: DirectoryOptions | None = None,
    clock: SystemClock | None = None,
) -> DirectoryStore:
    """The store of slot `disk1` of cluster `cluster` at `path`, which is made when it is not there."""
    path.mkdir(exist_ok=True)  # noqa: ASYNC240 (a test may wait for its disk)
    attached = await attach(
        path,
        Expected("cluster", "disk1"),
        clock=clock or SystemClock(),
        randomness=SeededRandomness(1),
        initialise=True,
        options=options,
        files=files,
    )
    assert attached.store is not None, attached.judgement
    return attached.store

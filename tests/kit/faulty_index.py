"""The index's files on disks that misbehave: what is wrong with a store (its `FaultScript`) is wrong with the
member of the log and the copy of the rows that lie on the same disk.

`install` puts itself between a node of this process and its files: below the log's `Folder`, below the
connections of SQLite (by a progress handler, which can hold a statement up and can end it), and below the
look at the identity file before either is opened. All three are called in threads of the index, one a member
or copy, which is where a real disk would hold them.
"""

import errno
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.base.errors import HoldfastError
from holdfast.base.randomness import Randomness
from holdfast.index.sqlite.copy import CopyFailed
from holdfast.index.sqlite.folder import DirectoryFolder, MemberFailed, MemberFull
from holdfast.node import index as places
from holdfast.stores.faulty import FaultScript

HANGING_LOOK_S = 0.01
STEPS = 200
"""Steps of SQLite's machine between two looks at the script; a read of one row takes about so many."""


class FaultyDisk:
    """What one script does to whoever calls in a thread."""

    def __init__(self, place: Path, script: FaultScript, randomness: Randomness) -> None:
        self._place = str(place)
        self.script = script
        self._randomness = randomness

    def wait(self) -> None:
        """As long as the disk makes one wait."""
        while self.script.hang:
            time.sleep(HANGING_LOOK_S)
        least, most = self.script.delay_s
        if most > 0.0:
            time.sleep(least + (most - least) * self._randomness.fraction())

    def chance(self, fraction: float) -> bool:
        """Whether it comes to pass."""
        return fraction > 0.0 and self._randomness.fraction() < fraction

    def failed(self, what: str, code: int) -> MemberFailed:
        """The error that a real folder would raise."""
        kind = MemberFull if code == errno.ENOSPC else MemberFailed
        return kind(f"Cannot {what} {self._place}: injected.", place=self._place, errno=code)

    def before_read(self, what: str) -> None:
        """Raises what a read meets."""
        self.wait()
        if self.script.vanished:
            raise self.failed(what, errno.ENOENT)
        if self.chance(self.script.read_errors):
            raise self.failed(what, errno.EIO)

    def before_change(self, what: str, *, needs_room: bool = False) -> None:
        """Raises what a change meets before it has any effect."""
        self.wait()
        if self.script.vanished:
            raise self.failed(what, errno.ENOENT)
        if self.script.read_only:
            raise self.failed(what, errno.EROFS)
        if needs_room and self.script.full:
            raise self.failed(what, errno.ENOSPC)
        if self.chance(self.script.write_errors):
            raise self.failed(what, errno.EIO)

    def changed(self, what: str, change: Callable[[], None]) -> None:
        """Do a change and its sync, which may fail: then it has happened, or not."""
        if not self.chance(self.script.sync_errors):
            change()
            return
        if self.chance(0.5):
            change()
        raise self.failed(f"sync {what} of", errno.EIO)


class FaultyFolder:
    """A folder of the log on such a disk."""

    def __init__(self, inner: DirectoryFolder, disk: FaultyDisk) -> None:
        self._inner = inner
        self._disk = disk

    def names(self) -> list[str]:
        self._disk.before_read("list")
        return self._inner.names()

    def size(self, name: str) -> int:
        self._disk.before_read("stat")
        return self._inner.size(name)

    def read(self, name: str, offset: int, length: int) -> bytes:
        self._disk.before_read("read")
        return self._inner.read(name, offset, length)

    def witness(self, name: str) -> int:
        self._disk.before_read("find")
        return self._inner.witness(name)

    def create(self, name: str, length: int) -> None:
        self._disk.before_change("create", needs_room=True)
        self._disk.changed("create", lambda: self._inner.create(name, length))

    def write(self, name: str, offset: int, data: bytes) -> None:
        self._disk.before_change("write")
        self._disk.changed("write", lambda: self._inner.write(name, offset, data))

    def append(self, name: str, data: bytes) -> None:
        self._disk.before_change("append", needs_room=True)
        self._disk.changed("append", lambda: self._inner.append(name, data))

    def sync(self, name: str) -> None:
        self._disk.before_change("sync")
        self._disk.changed("sync", lambda: self._inner.sync(name))

    def sync_names(self) -> None:
        self._disk.before_change("sync")
        self._disk.changed("sync", self._inner.sync_names)

    def rename(self, old: str, new: str) -> None:
        self._disk.before_change("rename")
        self._disk.changed("rename", lambda: self._inner.rename(old, new))

    def remove(self, name: str) -> None:
        self._disk.before_change("remove")
        self._inner.remove(name)

    def close(self) -> None:
        self._inner.close()


def install(script_of: Callable[[str], FaultScript], randomness: Randomness) -> None:
    """Have all index files of this process on disks with the scripts of their slots."""

    def disk_of(folder: Path) -> FaultyDisk:
        return FaultyDisk(folder, script_of(folder.parent.name), randomness)

    def open_folder(path: Path) -> FaultyFolder:
        disk = disk_of(path)
        disk.before_read("open")
        return FaultyFolder(DirectoryFolder(path), disk)

    class Files(places._StoreCopyFiles):
        def connect(self) -> sqlite3.Connection:
            disk = disk_of(self._held.place.path / places.FOLDER_NAME)
            _as_copy(disk, "open")
            connection = super().connect()

            def look() -> int:
                disk.wait()
                script = disk.script
                return int(
                    script.vanished
                    or disk.chance(max(script.read_errors, script.write_errors, script.sync_errors))
                )

            connection.set_progress_handler(look, STEPS)
            return connection

    def _as_copy(disk: FaultyDisk, what: str) -> None:
        try:
            disk.before_read(what)
        except HoldfastError as error:
            raise CopyFailed(str(error)) from None

    real_check = places._check_there

    def check_there(held: Any) -> None:
        disk_of(held.place.path / places.FOLDER_NAME).before_read("look at")
        real_check(held)

    places.DirectoryFolder = open_folder  # type: ignore[assignment,misc]
    places._StoreCopyFiles = Files  # type: ignore[misc]
    places._check_there = check_there

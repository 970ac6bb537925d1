"""The folder of one log member: the few file operations that the log is made of.

`Folder` is the seam between the log and the disk: synchronous, used by one thread at a time. What must
hold for every implementation, and what the simulated one takes away on a crash: whatever `create`,
`write`, `append`, `rename` and `sync` did is durable when they return; everything else may be lost, in
part or whole. Any error is `MemberFailed`, and after one the member is given up: nothing is retried.

`DirectoryFolder` resolves every name from a descriptor of the directory that it opened, so that a
removed or unmounted directory fails instead of coming back to life on the disk below.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from holdfast.base.errors import Unavailable

T = TypeVar("T")

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class MemberFailed(Unavailable):
    """A member of the log cannot be used: its disk, folder or content failed. `place` says where."""


class MemberFull(MemberFailed):
    """There is no room for something new. What was there before is untouched."""


class Folder(Protocol):
    """Files by name. Offsets and lengths in bytes. Everything raises MemberFailed."""

    def names(self) -> list[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        ...

    def create(self, name: str, length: int) -> None:
        """A new file of `length` bytes of zeros whose space is allocated; durable, name included. Raises
        MemberFull, too, and then leaves nothing behind."""
        ...

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Durable when it returns. Raises MemberFull, too, beyond what was allocated."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """At the end, wherever that is by now, in one piece; durable when it returns."""
        ...

    def sync(self, name: str) -> None:
        """All that is in the file is durable when it returns, whoever wrote it."""
        ...

    def sync_names(self) -> None:
        """All names are durable when it returns, whoever made them."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Durable when it returns."""
        ...

    def remove(self, name: str) -> None:
        """Gone at once, for good some time later. A name that is not there is no error."""
        ...

    def witness(self, name: str) -> int:
        """The size of `name` found afresh by its full path; fails when the path leads to another file
        than this folder's (removed, replaced, another disk mounted over it)."""
        ...

    def close(self) -> None: ...


class DirectoryFolder:
    """A real directory. Its parent must exist; the directory itself is made if it does not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, int] = {}
        self._directory = -1
        self._directory = self._try("open", str(path), self._open_directory)

    def _open_directory(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Only this one level: a store that is not there must not be made up by its index.
            self._path.mkdir(mode=0o700)
            parent = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
            return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def names(self) -> list[str]:
        return self._try("list", "", lambda: os.listdir(self._directory))  # noqa: PTH208

    def size(self, name: str) -> int:
        return self._try("stat", name, lambda: os.fstat(self._file(name)).st_size)

    def read(self, name: str, offset: int, length: int) -> bytes:
        def read() -> bytes:
            file, parts, at, left = self._file(name), [], offset, length
            while left > 0 and (part := os.pread(file, left, at)):
                parts.append(part)
                at, left = at + len(part), left - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

        return self._try("read", name, read)

    def create(self, name: str, length: int) -> None:
        def create() -> None:
            file = os.open(name, _CREATE, 0o600, dir_fd=self._directory)
            self._files[name] = file
            if length:
                try:
                    os.posix_fallocate(file, 0, length)
                except OSError:
                    self.remove(name)
                    raise
            os.fsync(file)
            os.fsync(self._directory)

        self._try("create", name, create)

    def write(self, name: str, offset: int, data: bytes) -> None:
        def write() -> None:
            file, done = self._file(name), os.pwrite(self._file(name), data, offset)
            while done < len(data):
                done += os.pwrite(file, memoryview(data)[done:], offset + done)
            os.fdatasync(file)

        self._try("write", name, write)

    def append(self, name: str, data: bytes) -> None:
        def append() -> None:
            file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                if os.write(file, data) != len(data):
                    raise OSError("only a part was written")
                os.fsync(file)
            finally:
                os.close(file)

        self._try("append", name, append)

    def sync(self, name: str) -> None:
        self._try("sync", name, lambda: os.fsync(self._file(name)))

    def sync_names(self) -> None:
        self._try("sync", "", lambda: os.fsync(self._directory))

    def rename(self, old: str, new: str) -> None:
        def rename() -> None:
            os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            if (file := self._files.pop(new, None)) is not None:
                os.close(file)
            if (file := self._files.pop(old, None)) is not None:
                self._files[new] = file
            os.fsync(self._directory)

        self._try("rename", old, rename)

    def remove(self, name: str) -> None:
        def remove() -> None:
            if (file := self._files.pop(name, None)) is not None:
                os.close(file)
            try:
                os.unlink(name, dir_fd=self._directory)
            except FileNotFoundError:
                return

        self._try("remove", name, remove)

    def witness(self, name: str) -> int:
        def witness() -> int:
            found, mine = (self._path / name).stat(), os.fstat(self._file(name))
            if (found.st_ino, found.st_dev) != (mine.st_ino, mine.st_dev):
                raise OSError("the path leads to another file now")
            return found.st_size

        return self._try("find", name, witness)

    def close(self) -> None:
        files, self._files = [*self._files.values(), self._directory], {}
        self._directory = -1
        for file in files:
            if file >= 0:
                os.close(file)

    def _file(self, name: str) -> int:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = os.open(name, _OPEN, dir_fd=self._directory)
        return file

    def _try(self, what: str, name: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            place = str(self._path / name) if name and not name.startswith("/") else str(self._path)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (MemberFull if full else MemberFailed)(
                f"Cannot {what} {place}: {error.strerror or error}.", place=place, errno=error.errno or 0
            ) from error

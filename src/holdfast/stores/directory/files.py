"""The system calls of a directory store, one method each.

The seam between the store and the kernel: tests put a recorder or a failing disk in its place, and
nothing else of the store knows the difference. Thin on purpose: no logic lives here, each method is
one system call, and raises what that raises (OSError).
"""

import fcntl
import os
from collections.abc import Sequence
from typing import Protocol

from holdfast.base.checksums import Buffer

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags to open a folder with."""


class Files(Protocol):
    """What a directory store asks of the kernel. Paths are relative to an open folder, but for the
    root's own, which is opened once."""

    def open(self, path: str, flags: int, *, folder: int | None = None) -> int: ...
    def close(self, descriptor: int) -> None: ...
    def write_synced(self, descriptor: int, data: Sequence[Buffer], offset: int) -> int:
        """Write and return when what was written is on the medium; returns how much that was."""
        ...

    def read(self, descriptor: int, into: Sequence[Buffer], offset: int) -> int: ...
    def read_at_once(self, descriptor: int, into: Sequence[Buffer], offset: int) -> int:
        """As `read`, but raises BlockingIOError where it would have to wait for the medium."""
        ...

    def sync(self, descriptor: int) -> None:
        """Of a file or a folder: content and what is needed to find it."""
        ...

    def drop_cached(self, descriptor: int) -> None:
        """Ask that cached pages of a file be dropped; dirty ones stay."""
        ...

    def link_unnamed(self, descriptor: int, name: str, folder: int) -> None:
        """Give a name to a file opened with O_TMPFILE; fails where the name exists."""
        ...

    def link(self, source: str, name: str, *, source_folder: int, folder: int) -> None:
        """Fails where the name exists."""
        ...

    def rename(self, source: str, name: str, *, source_folder: int, folder: int) -> None:
        """Replaces what has the name."""
        ...

    def unlink(self, name: str, folder: int) -> None: ...
    def make_folder(self, name: str, folder: int) -> None: ...
    def names(self, folder: int) -> list[str]:
        """Moves the descriptor's offset: never for a descriptor that others list, too."""
        ...

    def status(self, path: str, *, folder: int | None = None) -> os.stat_result: ...
    def status_of(self, descriptor: int) -> os.stat_result: ...
    def space(self, descriptor: int) -> os.statvfs_result: ...
    def lock(self, descriptor: int) -> None:
        """Exclusive for this open file; raises BlockingIOError where another has it."""
        ...

    def unlock(self, descriptor: int) -> None: ...


class SystemFiles:
    """The kernel itself (Linux)."""

    def open(self, path: str, flags: int, *, folder: int | None = None) -> int:
        return os.open(path, flags, 0o600, dir_fd=folder)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def write_synced(self, descriptor: int, data: Sequence[Buffer], offset: int) -> int:
        # One call where write and fdatasync would be two: each call gives up the interpreter lock and
        # waits for it again, which costs more than the call.
        return os.pwritev(descriptor, data, offset, os.RWF_DSYNC)

    def read(self, descriptor: int, into: Sequence[Buffer], offset: int) -> int:
        return os.preadv(descriptor, into, offset)

    def read_at_once(self, descriptor: int, into: Sequence[Buffer], offset: int) -> int:
        return os.preadv(descriptor, into, offset, os.RWF_NOWAIT)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def drop_cached(self, descriptor: int) -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def link_unnamed(self, descriptor: int, name: str, folder: int) -> None:
        # open(2), O_TMPFILE: the way without CAP_DAC_READ_SEARCH. The source's folder is not used,
        # as the path is absolute; naming one makes Python pass AT_SYMLINK_FOLLOW on.
        os.link(
            f"/proc/self/fd/{descriptor}", name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True
        )

    def link(self, source: str, name: str, *, source_folder: int, folder: int) -> None:
        os.link(source, name, src_dir_fd=source_folder, dst_dir_fd=folder, follow_symlinks=False)

    def rename(self, source: str, name: str, *, source_folder: int, folder: int) -> None:
        os.rename(source, name, src_dir_fd=source_folder, dst_dir_fd=folder)

    def unlink(self, name: str, folder: int) -> None:
        os.unlink(name, dir_fd=folder)

    def make_folder(self, name: str, folder: int) -> None:
        os.mkdir(name, 0o700, dir_fd=folder)

    def names(self, folder: int) -> list[str]:
        return os.listdir(folder)

    def status(self, path: str, *, folder: int | None = None) -> os.stat_result:
        return os.stat(path, dir_fd=folder)

    def status_of(self, descriptor: int) -> os.stat_result:
        return os.fstat(descriptor)

    def space(self, descriptor: int) -> os.statvfs_result:
        return os.fstatvfs(descriptor)

    def lock(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

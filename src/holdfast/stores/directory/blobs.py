"""The blobs of a directory store: what a thread of the store does, call by call.

Below the root, opened once at attach, `shards/` holds a folder for each two first characters of a name,
and in it the blobs under their names. Every path is resolved from the root's descriptor, so that when
the disk is unmounted or the directory is removed, calls fail instead of writing to what lies below.

What must hold, whatever fails and wherever a crash comes:

- a name is absent, or its blob is complete and on the medium: data is synced before the name is linked.
- `put` and `delete` return only when the folder, too, and a folder that was made, are on the medium.
- a sync that failed is never repeated: the kernel forgets what it could not write, and a second sync
  would answer that all is well. The shard is given up instead.

Blocking, no asyncio, safe from several threads. Raises the port's errors only.
"""

import errno
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.stores.directory import lending
from holdfast.stores.directory.descriptors import Descriptor, Descriptors
from holdfast.stores.directory.failures import OURS_ARE_SHORT, failure_of
from holdfast.stores.directory.files import FOLDER, Files
from holdfast.stores.port import (
    NAME,
    Range,
    ShardExists,
    ShardMissing,
    ShardTruncated,
    StoreFailed,
    StoreFull,
    Usage,
)

T = TypeVar("T")

SHARDS = "shards"
TEMPORARY = "tmp"
LOCK = "lock"

SYNC_BYTES = 1 << 20
"""A large blob is synced this often on the way, so that it does not hold up the syncs of others."""

RESERVE_BYTES_MIN = 256 << 20
RESERVE_BYTES_MAX = 1 << 30

_PIECES_MAX = 1024  # IOV_MAX of Linux: buffers that one call takes
_FOLDER_LENGTH = 2
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_PROCESS_FILES = "/proc/self/fd"


class Root:
    """The open places of a store: its root, the folders in it, and the lock file, whose lock is held
    as long as it is open."""

    def __init__(
        self, path: str, root: Descriptor, shards: Descriptor, temporary: Descriptor, lock: Descriptor
    ) -> None:
        self.path = path
        self.root = root
        self.shards = shards
        self.temporary = temporary
        self.lock = lock


class Blobs:
    """Blobs in folders. `bytes_reserve` is kept free; None stands for `default_reserve`."""

    def __init__(
        self,
        store: StoreId,
        root: Root,
        files: Files,
        *,
        bytes_reserve: int | None,
        files_open_max: int,
        folders_open_max: int,
    ) -> None:
        self._store = store
        self._root = root
        self._files = files
        self._bytes_reserve = bytes_reserve
        self._folders = Descriptors(folders_open_max)
        self.open_files = Descriptors(files_open_max)
        self._making = threading.Lock()
        self._doubtful: set[str] = set()
        self._unnamed = True
        self._temporary_names = itertools.count(1)
        self.usage = Usage(0, 0, 0)
        self._bytes_above = 0

    @property
    def path(self) -> str:
        """The root's path, for messages."""
        return self._root.path

    def perform(self, doing: str, function: Callable[..., T], *arguments: object) -> T:
        """Call one of the methods below; the kernel's errors come out as the port's."""
        try:
            return function(*arguments)
        except OSError as error:
            raise failure_of(error, self._store, self.path, doing) from error

    def begin(self) -> None:
        """Measure, and see what the system can do; once, before the first put."""
        try:
            self._files.status(_PROCESS_FILES)
        except OSError:
            self._unnamed = False  # no /proc to name an unnamed file by
        self.measure()

    def let_go(self) -> None:
        """Close what is cached and free the lock. Calls under way keep what they hold until they end."""
        self.open_files.shrink(0)
        self._folders.shrink(0)
        with suppress(OSError):  # closing the lock file, when the last call has ended, frees it as well
            self._files.unlock(self._root.lock.number)

    # Writing

    def put(self, name: str, data: Sequence[Buffer], size: int, measure_with: float | None) -> None:
        """Create a blob. With a share of the reserve that it may take, look first how much room there is."""
        if measure_with is not None:
            self.measure()
        if measure_with is not None and size > self.room(measure_with):
            raise StoreFull(
                f"{self.path}: no room for {size} bytes above the reserve.", store=str(self._store)
            )
        folder = self._folder(name[:_FOLDER_LENGTH], make=True)
        assert folder is not None
        ticket = self.open_files.ticket(name)
        file: Descriptor | None = None
        try:
            temporary, file = self._open_temporary()
            try:
                self._write(file, data, size)
                self._link(temporary, file, name, folder)
            finally:
                if temporary:
                    self._remove_temporary(temporary)
            self._files.sync(folder.number)
        except BaseException:
            self.open_files.void(name, ticket)
            if file is not None:
                file.close()
            raise
        # It is open already: keep it, and the first read needs no thread.
        self.open_files.keep(name, ticket, file)

    def delete(self, name: str) -> None:
        """Remove a blob. The folder is synced even when the name was not there: an earlier call may
        have removed it and failed, or been overdue, before it synced."""
        folder = self._folder(name[:_FOLDER_LENGTH], make=False)
        if folder is None:
            return
        try:
            self._files.unlink(name, folder.number)
        except FileNotFoundError:
            self._check_whole()
        finally:
            self.open_files.forget(name)
        self._files.sync(folder.number)

    def probe(self, content: bytes) -> None:
        """Write, read back from the medium, remove."""
        self._check_whole()
        if self.measure().bytes_free <= 0:
            raise StoreFull(f"{self.path}: less than the reserve is free.", store=str(self._store))
        name = str(next(self._temporary_names))
        folder = self._root.temporary.number
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = Descriptor(self._files, self._open(name, flags, folder))
        try:
            self._write(file, [content], len(content))
            self._files.sync(folder)
            found = self._read_uncached(f"{TEMPORARY}/{name}", [Range(0, len(content))])
        except BaseException:
            self._remove_temporary(name)
            raise
        finally:
            file.close()
        self._files.unlink(name, folder)
        if found != [content]:
            raise Damaged(f"{self.path}: read back other bytes than were written.", store=str(self._store))

    def _open_temporary(self) -> tuple[str, Descriptor]:
        """A file for a blob that has no name yet, as its temporary name and descriptor.

        Where the file system can, the file has no name at all until it is linked (O_TMPFILE): nothing is
        left behind by a crash, it needs fewer calls, and a directory that is being removed does not keep
        filling. Elsewhere it has one in `tmp/`, which attach empties.
        """
        folder = self._root.temporary.number
        if self._unnamed:
            try:
                flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
                return "", Descriptor(self._files, self._open(".", flags, folder))
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self._unnamed = False
        name = str(next(self._temporary_names))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return name, Descriptor(self._files, self._open(name, flags, folder))

    def _link(self, temporary: str, file: Descriptor, name: str, folder: Descriptor) -> None:
        try:
            if temporary:
                self._files.link(
                    temporary, name, source_folder=self._root.temporary.number, folder=folder.number
                )
            else:
                self._files.link_unnamed(file.number, name, folder.number)
        except FileExistsError as error:
            raise ShardExists(
                f"{self.path}: there is a blob {name} already.", store=str(self._store), name=name
            ) from error

    def _write(self, file: Descriptor, data: Sequence[Buffer], size: int) -> None:
        """Write all of it, synced every SYNC_BYTES."""
        if size == 0:
            self._files.sync(file.number)
            return
        offset = 0
        for run in _runs(data, size):
            while run:
                written = self._files.write_synced(file.number, run, offset)
                if written == 0:
                    raise OSError(errno.EIO, "Nothing was written")
                offset += written
                run = _after(run, written)
        assert offset == size

    def _remove_temporary(self, name: str) -> None:
        # What stays behind is not seen by anyone, and the next attach removes it.
        with suppress(OSError):
            self._files.unlink(name, self._root.temporary.number)

    # Reading

    def read(self, name: str, ranges: Sequence[Range]) -> list[Buffer]:
        """The ranges of a blob, through the page cache."""
        return self._read_ranges(name, self._file(name), ranges)

    def read_uncached(self, name: str, ranges: Sequence[Range]) -> list[Buffer]:
        """The ranges of a blob from the medium itself."""
        try:
            return self._read_uncached(f"{SHARDS}/{name[:_FOLDER_LENGTH]}/{name}", ranges)
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def size(self, name: str) -> int:
        """Bytes of a blob."""
        return self._files.status_of(self._file(name).number).st_size

    def _file(self, name: str) -> Descriptor:
        found = self.open_files.find(name)
        if found is not None:
            return found
        ticket = self.open_files.ticket(name)
        try:
            path = f"{SHARDS}/{name[:_FOLDER_LENGTH]}/{name}"
            number = self._open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, self._root.root.number)
        except BaseException as error:
            self.open_files.void(name, ticket)
            if isinstance(error, FileNotFoundError):
                raise self._missing(name) from error
            raise
        file = Descriptor(self._files, number)
        self.open_files.keep(name, ticket, file)
        return file

    def _check_range(self, name: str, file: Descriptor, offset: int, length: int) -> None:
        """Before memory is set aside for a range that a damaged row may have made up."""
        if length > SYNC_BYTES and self._files.status_of(file.number).st_size < offset + length:
            raise self._truncated(name, offset + length)

    def _fill(self, name: str, file: Descriptor, view: memoryview, offset: int) -> None:
        end = offset + len(view)
        while view:
            count = self._files.read(file.number, [view], offset)
            if count == 0:
                raise self._truncated(name, end)
            view = view[count:]
            offset += count

    def _read_uncached(self, path: str, ranges: Sequence[Range]) -> list[Buffer]:
        """By direct reads (O_DIRECT): the kernel first writes back what it holds of the range, then the
        device itself answers into our memory. Dropping the page cache (POSIX_FADV_DONTNEED) would be
        advice only: pages in use, dirty or part of a larger folio stay, and the read would prove nothing.

        On file systems without a medium that can be read directly (tmpfs before Linux 6.6, some FUSE) that
        advice is the best there is, after a sync, as dirty pages are never dropped.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        root = self._root.root.number
        try:
            file = Descriptor(self._files, self._open(path, flags | os.O_DIRECT, root))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            file = Descriptor(self._files, self._open(path, flags, root))
            try:
                self._files.sync(file.number)
                self._files.drop_cached(file.number)
                return self._read_ranges(path, file, ranges)
            finally:
                file.close()
        try:
            return [self._read_direct(path, file, *range_) for range_ in ranges]
        finally:
            file.close()

    def _read_ranges(self, path: str, file: Descriptor, ranges: Sequence[Range]) -> list[Buffer]:
        found: list[Buffer] = []
        for offset, length in ranges:
            self._check_range(path, file, offset, length)
            buffer = bytearray(length)
            self._fill(path, file, memoryview(buffer), offset)
            found.append(buffer)
        return found

    def _read_direct(self, path: str, file: Descriptor, offset: int, length: int) -> Buffer:
        """Direct reads take aligned offsets, lengths and memory."""
        self._check_range(path, file, offset, length)
        end = offset + length
        start = offset - offset % lending.ALIGNMENT
        view = lending.lend(end - start)
        filled = 0
        while start + filled < end:
            part = view[filled : filled + lending.READ_BYTES_MAX]
            count = self._files.read(file.number, [part], start + filled)
            filled += count
            if count < len(part) and start + filled < end:
                raise self._truncated(path, end)  # direct reads fall short at the end of file only
        found = view[offset - start : end - start]
        # A little is not worth holding on to a large buffer.
        return bytes(found) if length <= lending.COPIED_BYTES_MAX else found

    def _missing(self, name: str) -> ShardMissing:
        """No such name. Raises StoreFailed instead when it is the whole store that is gone."""
        self._check_whole()
        return ShardMissing(f"{self.path}: there is no blob {name}.", store=str(self._store), name=name)

    def _truncated(self, name: str, end: int) -> ShardTruncated:
        return ShardTruncated(
            f"{self.path}: {name} ends before byte {end}.", store=str(self._store), name=name
        )

    # The store as a whole

    def names_after(self, after: str, limit: int) -> list[str]:
        """Names in order, a folder at a time: the folders' names, cut from the blobs' names, sort as
        those do, so that only the folders of this page are read."""
        first = after[:_FOLDER_LENGTH]
        found: list[str] = []
        for folder in sorted(name for name in self._names(SHARDS) if name >= first and NAME.match(name)):
            if len(found) >= limit:
                break
            found += sorted(
                name
                for name in self._names(f"{SHARDS}/{folder}")
                if name > after and name[:_FOLDER_LENGTH] == folder and NAME.match(name)
            )
        if not found:
            self._check_whole()
        return found[:limit]

    def measure(self) -> Usage:
        """Space, as the file system tells it now; kept as `usage`."""
        self._check_whole()
        space = self._files.space(self._root.root.number)
        total = space.f_blocks * space.f_frsize
        reserve = self._bytes_reserve
        if reserve is None:
            reserve = default_reserve(total)
        self._bytes_above = space.f_bavail * space.f_frsize - reserve
        self.usage = Usage(total, max(0, self._bytes_above), reserve)
        return self.usage

    def room(self, reserve_share: float) -> int:
        """What may still be written, as last measured, with so much of the reserve."""
        return self._bytes_above + int(reserve_share * self.usage.bytes_reserve)

    def _names(self, path: str) -> list[str]:
        try:
            number = self._open(path, FOLDER, self._root.root.number)
        except (FileNotFoundError, NotADirectoryError):
            return []  # removed meanwhile, or not ours
        folder = Descriptor(self._files, number)
        try:
            return self._files.names(folder.number)
        finally:
            folder.close()

    def _folder(self, name: str, *, make: bool) -> Descriptor | None:
        """The folder of two first characters, open; made and synced into its parent when it is not
        there. None when it is not there and not to be made."""
        found = self._folders.find(name)
        if found is not None:
            return found
        # One at a time: a folder that another thread has made and not synced yet is not there yet.
        with self._making:
            ticket = self._folders.ticket(name)
            try:
                if name in self._doubtful:
                    raise OSError(errno.EIO, "The folder could not be synced when it was made")
                try:
                    number = self._open(name, FOLDER, self._root.shards.number)
                except FileNotFoundError:
                    self._check_whole()
                    if not make:
                        self._folders.void(name, ticket)
                        return None
                    self._make_folder(name)
                    number = self._open(name, FOLDER, self._root.shards.number)
            except BaseException:
                self._folders.void(name, ticket)
                raise
            folder = Descriptor(self._files, number)
            self._folders.keep(name, ticket, folder)
            return folder

    def _make_folder(self, name: str) -> None:
        # Until the sync has worked, the folder may be there and yet not be on the medium.
        self._doubtful.add(name)
        self._files.make_folder(name, self._root.shards.number)
        self._files.sync(self._root.shards.number)
        self._doubtful.discard(name)

    def _check_whole(self) -> None:
        """Whether this is still the store that was attached. Raises StoreFailed when its directory was
        removed, replaced or unmounted. The lock file is there for life: without it, the directory is
        being removed, and no folder may be made in it again."""
        root = self._files.status_of(self._root.root.number)
        try:
            now = self._files.status(self.path)
        except (FileNotFoundError, NotADirectoryError):
            now = None
        same = now is not None and (now.st_dev, now.st_ino) == (root.st_dev, root.st_ino)
        removed = any(
            self._files.status_of(place.number).st_nlink == 0
            for place in (self._root.lock, self._root.shards)
        )
        if removed or not same:
            raise StoreFailed(
                f"{self.path}: the directory of this store was removed, replaced or unmounted.",
                hint="Bring it back, or put an empty directory in its place.",
                store=str(self._store),
            )

    def _open(self, path: str, flags: int, folder: int) -> int:
        """Open below `folder`. Where descriptors run out, ours that are only cached go first."""
        try:
            return self._files.open(path, flags, folder=folder)
        except OSError as error:
            if error.errno not in OURS_ARE_SHORT:
                raise
            self.open_files.shrink(len(self.open_files) // 2)
            self._folders.shrink(len(self._folders) // 2)
            return self._files.open(path, flags, folder=folder)


def default_reserve(bytes_total: int) -> int:
    """What a disk of that size keeps free: 1 % of it, at most 1 GiB, at least what the index writes between
    two checkpoints while objects are being deleted, which is the only way out of a full disk."""
    least = min(RESERVE_BYTES_MIN, bytes_total // 2)
    return max(least, min(bytes_total // 100, RESERVE_BYTES_MAX))


def _runs(data: Sequence[Buffer], size: int) -> list[list[Buffer]]:
    """The pieces, cut and grouped so that no group is over SYNC_BYTES or _PIECES_MAX buffers."""
    if size <= SYNC_BYTES and len(data) <= _PIECES_MAX:
        return [list(data)]
    runs: list[list[Buffer]] = []
    run: list[Buffer] = []
    room = SYNC_BYTES
    for piece in data:
        view = memoryview(piece).cast("B")
        while view:
            if room == 0 or len(run) == _PIECES_MAX:
                runs.append(run)
                run, room = [], SYNC_BYTES
            taken = view[:room]
            run.append(taken)
            room -= len(taken)
            view = view[len(taken) :]
    if run:
        runs.append(run)
    return runs


def _after(run: list[Buffer], written: int) -> list[Buffer]:
    """What is left of a group after `written` bytes of it."""
    for position, piece in enumerate(run):
        view = memoryview(piece).cast("B")
        if written < len(view):
            return [view[written:], *run[position + 1 :]]
        written -= len(view)
    return []

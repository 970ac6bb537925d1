"""A store in a directory of this machine: the port over `Blobs`, with threads and time-outs.

Three lanes of threads: writes (a batch of syncs must not hold up reads), reads, and the rest. A small
put takes one hop to a thread and back. A read of a file that is open and in the page cache takes none:
the loop itself reads with RWF_NOWAIT, which answers at once or not at all.

What must hold: the loop makes no call that can wait for the disk. Once a call has been given up, its
thread may still hold descriptors; closing the store never takes them away from it.
"""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId, new_store_id
from holdfast.base.randomness import Randomness
from holdfast.stores.directory.blobs import Blobs
from holdfast.stores.directory.descriptors import Descriptor
from holdfast.stores.directory.device import device_name
from holdfast.stores.directory.failures import READING, failure_of
from holdfast.stores.directory.files import Files, SystemFiles
from holdfast.stores.directory.place import IdentityFile, Opened, is_mount_point, look, open_place
from holdfast.stores.directory.pool import Lane
from holdfast.stores.identity import Expected, Found, Identity, Judgement, Noted
from holdfast.stores.port import Range, StoreFailed, StoreFull, Usage, bytes_of, check_name, is_peekable

T = TypeVar("T")

AT_ONCE_BYTES_MAX = 1 << 20
"""What the loop reads by itself: copying this much from the page cache takes well below a millisecond."""

_MEASURE_EVERY_S = 1.0
_PROBE_BYTES = 4096
_WOULD_WAIT = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL)


class DirectoryOptions(Struct, frozen=True):
    """Limits of one store. `bytes_reserve` None stands for 1 % of the disk, from 256 MiB (or half of a
    small disk) to 1 GiB. The limits on open files and folders are descriptors that the store may hold
    between calls."""

    bytes_reserve: int | None = None
    write_threads: int = 6
    read_threads: int = 4
    other_threads: int = 2
    waiting_max: int = 256
    files_open_max: int = 256
    folders_open_max: int = 256


class Attached(NamedTuple):
    """What attaching came to. `store` when it may be used; `identity` whenever one was found or made."""

    judgement: Judgement
    identity: Identity | None
    store: "DirectoryStore | None"


class Whereabouts(NamedTuple):
    """The device that a directory lies on, and whether it is a mount point."""

    device: str
    mounted: bool


async def attach(
    path: Path,
    expected: Expected,
    *,
    clock: Clock,
    randomness: Randomness,
    initialise: bool = False,
    options: DirectoryOptions | None = None,
    files: Files | None = None,
    timeout_s: float = 30.0,
) -> Attached:
    """Judge the directory at `path` and open it when it is the store that is expected. An empty one
    (NEW) becomes that store with `initialise`. The directory itself is never made: where it is missing,
    its disk may be.

    Raises Fenced (in use by another process), InvalidInput (no permission, not a directory), StoreFailed
    and its like, StoreOverdue.
    """
    options = options or DirectoryOptions()
    files = files or SystemFiles()
    lanes = _Lanes.of(str(path), options)
    new = new_store_id(randomness) if initialise else None
    try:
        opened, blobs, on = await lanes.other.run(
            _open, files, path, expected, new, options, timeout_s=timeout_s
        )
    except BaseException:
        lanes.close()
        raise
    if blobs is None:
        lanes.close()
        return Attached(opened.judgement, opened.identity, None)
    store = DirectoryStore(opened, blobs, on, lanes, files, clock=clock, randomness=randomness)
    return Attached(opened.judgement, opened.identity, store)


async def inspect(path: Path, *, files: Files | None = None, timeout_s: float = 30.0) -> Found:
    """Who lives at `path`, without a word about who should, and without touching anything.

    Raises InvalidInput (no permission, not a directory), StoreFailed and its like, StoreOverdue.
    """
    lane = Lane(f"looking at {path}", threads=1, waiting_max=0)
    try:
        return await lane.run(_look, files or SystemFiles(), path, timeout_s=timeout_s)
    finally:
        lane.close()


def _look(files: Files, path: Path) -> Found:
    return look(files, str(path.absolute()))


def _open(
    files: Files, path: Path, expected: Expected, new: StoreId | None, options: DirectoryOptions
) -> tuple[Opened, Blobs | None, Whereabouts]:
    opened = open_place(files, str(path.absolute()), expected, new)
    if opened.root is None or opened.identity is None:
        return opened, None, Whereabouts("", False)
    blobs = Blobs(
        opened.identity.store,
        opened.root,
        files,
        bytes_reserve=options.bytes_reserve,
        files_open_max=options.files_open_max,
        folders_open_max=options.folders_open_max,
    )
    try:
        blobs.perform("measuring", blobs.begin)
        root = opened.root.root
        on = blobs.perform("measuring", lambda: _whereabouts(files, root))
    except BaseException:
        blobs.let_go()
        raise
    return opened, blobs, on


def _whereabouts(files: Files, root: Descriptor) -> Whereabouts:
    device = device_name(files.status_of(root.number), files.space(root.number))
    return Whereabouts(device, is_mount_point(files, root))


class _Lanes(NamedTuple):
    write: Lane
    read: Lane
    other: Lane

    @classmethod
    def of(cls, path: str, options: DirectoryOptions) -> "_Lanes":
        waiting = options.waiting_max
        return cls(
            Lane(f"writes to {path}", threads=options.write_threads, waiting_max=waiting),
            Lane(f"reads from {path}", threads=options.read_threads, waiting_max=waiting),
            Lane(f"chores at {path}", threads=options.other_threads, waiting_max=waiting),
        )

    def close(self) -> None:
        for lane in self:
            lane.close()


class DirectoryStore:
    """One directory as a store. Made by `attach`. `device` names the disk it lies on: directories with
    the same one are one failure domain. `mounted` says whether the directory is a mount point."""

    def __init__(
        self,
        opened: Opened,
        blobs: Blobs,
        on: Whereabouts,
        lanes: _Lanes,
        files: Files,
        *,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        assert opened.identity is not None
        assert opened.root is not None
        self.device, self.mounted = on
        self._id = opened.identity.store
        self._path = blobs.path
        self._identity = IdentityFile(files, opened.root, opened.identity)
        self._blobs: Blobs | None = blobs
        self._lanes = lanes
        self._files = files
        self._clock = clock
        self._randomness = randomness
        self._at_once = True
        self._bytes_put = 0
        self._measured_at = clock.monotonic()

    @property
    def id(self) -> StoreId:
        return self._id

    @property
    def identity(self) -> Identity:
        """Who this is, with the highest index revision noted so far."""
        return self._identity.identity

    @property
    def path(self) -> str:
        """The directory's absolute path, as it was at attach."""
        return self._path

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        check_name(name)
        blobs = self._opened()
        size = bytes_of(data)
        measure = self._clock.monotonic() - self._measured_at >= _MEASURE_EVERY_S
        if measure:
            # Only one put a second pays for it; whoever comes meanwhile goes by the last measure.
            self._measured_at = self._clock.monotonic()
            self._bytes_put = 0
        elif self._bytes_put + size > blobs.room(reserve_share):
            raise StoreFull(f"{self._path}: no room for {size} bytes above the reserve.", store=self._id)
        self._bytes_put += size
        share = reserve_share if measure else None
        await self._run(self._lanes.write, timeout_s, "writing", blobs.put, name, data, size, share)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        check_name(name)
        blobs = self._opened()
        if uncached:
            return await self._run(self._lanes.read, timeout_s, READING, blobs.read_uncached, name, ranges)
        file = blobs.open_files.find(name)
        if file is not None and self._at_once:
            found = self._read_at_once(file, ranges)
            if found is not None:
                return found
        return await self._run(self._lanes.read, timeout_s, READING, blobs.read, name, ranges)

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        blobs = self._blobs
        file = blobs.open_files.find(name) if blobs is not None else None
        if file is None or not self._at_once or not is_peekable(ranges):
            return None
        try:
            return self._read_at_once(file, ranges)
        except HoldfastError:
            return None  # `get` meets the same error, and may raise it

    def _read_at_once(self, file: Descriptor, ranges: Sequence[Range]) -> list[Buffer] | None:
        """What the page cache holds, without waiting; None when a thread must fetch or judge it."""
        total = 0
        for range_ in ranges:
            total += range_.length
        if total > AT_ONCE_BYTES_MAX:
            return None
        found: list[Buffer] = []
        try:
            for offset, length in ranges:
                buffer = bytearray(length)
                if self._files.read_at_once(file.number, (buffer,), offset) != length:
                    return None
                found.append(buffer)
        except OSError as error:
            if error.errno not in _WOULD_WAIT:
                raise failure_of(error, self._id, self._path, READING) from error
            # Where the file system does not know how to answer at once, do not ask again.
            self._at_once = error.errno == errno.EAGAIN
            return None
        return found

    async def size(self, name: str, *, timeout_s: float) -> int:
        check_name(name)
        return await self._run(self._lanes.read, timeout_s, READING, self._opened().size, name)

    async def delete(self, name: str, *, timeout_s: float) -> None:
        check_name(name)
        await self._run(self._lanes.write, timeout_s, "deleting", self._opened().delete, name)
        # There may be room now: the next put looks.
        self._measured_at = float("-inf")

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        assert limit >= 1
        return await self._run(
            self._lanes.other, timeout_s, "listing", self._opened().names_after, after, limit
        )

    async def usage(self, *, timeout_s: float) -> Usage:
        return await self._run(self._lanes.other, timeout_s, "measuring", self._opened().measure)

    async def probe(self, *, timeout_s: float) -> None:
        content = self._randomness.token(_PROBE_BYTES)
        await self._run(self._lanes.other, timeout_s, "probing", self._opened().probe, content)

    async def note_revision(self, incarnation: str, revision: int, *, timeout_s: float) -> None:
        """Note in the identity file that the index was seen at `revision`; durable when it returns.
        A lower one of the same incarnation changes nothing. Call it now and then, not for every
        commit: it takes two syncs. Raises as `put`."""
        assert incarnation
        self._opened()
        noted = Noted(incarnation, revision)
        if self._identity.has_noted(noted):
            return
        await self._run(self._lanes.other, timeout_s, "noting a revision", self._identity.note, noted)

    async def close(self) -> None:
        blobs, self._blobs = self._blobs, None
        if blobs is not None:
            self._lanes.close()
            blobs.let_go()
            self._identity.let_go()

    def _opened(self) -> Blobs:
        if self._blobs is None:
            raise StoreFailed(f"{self._path}: the store is closed.", store=self._id)
        return self._blobs

    async def _run(
        self, lane: Lane, timeout_s: float, doing: str, function: Callable[..., T], *arguments: object
    ) -> T:
        return await lane.run(self._opened().perform, doing, function, *arguments, timeout_s=timeout_s)

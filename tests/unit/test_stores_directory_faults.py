"""What a failing disk can do to a directory store: cost it the shard in hand, and nothing else."""

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import HoldfastError
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.directory import DirectoryOptions, DirectoryStore, attach
from holdfast.stores.directory.files import Files, SystemFiles
from holdfast.stores.identity import Expected, Noted
from holdfast.stores.port import (
    Attachment,
    Range,
    ShardMissing,
    StoreBusy,
    StoreFailed,
    StoreFull,
    StoreOverdue,
    StoreReadOnly,
)
from tests.kit.stores import MovableClock, NamedTemporaries, WatchedFiles, attached_store

T = 60.0


# The order of system calls: what is on the medium when the power is cut


class Recorder:
    """Writes down the calls of a store, with the file or folder each is about."""

    def __init__(self, inner: SystemFiles | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.files = WatchedFiles(self._before, inner)

    def _before(self, call: str, arguments: tuple[Any, ...]) -> None:
        about = ""
        if arguments and isinstance(arguments[0], int):
            with suppress(OSError):
                about = Path(f"/proc/self/fd/{arguments[0]}").readlink().name
        self.calls.append((call, about))


async def recorded_put(path: Path, name: str, inner: SystemFiles | None) -> list[tuple[str, str]]:
    recorder = Recorder(inner)
    store = await attached_store(path, files=recorder.files)
    recorder.calls.clear()
    await store.put(name, [b"x" * 100, b"y" * 100], timeout_s=T)
    calls = list(recorder.calls)
    await store.close()
    return calls


@pytest.mark.parametrize("inner", [None, NamedTemporaries()], ids=["unnamed", "named"])
async def test_data_is_synced_before_it_has_a_name_and_the_folder_before_put_returns(
    tmp_path: Path, inner: SystemFiles | None
) -> None:
    calls = await recorded_put(tmp_path / "disk1", "00-blob", inner)
    kinds = [call for call, _ in calls]
    link = "link" if inner else "link_unnamed"
    assert kinds.count("write_synced") == 1
    assert kinds.index("write_synced") < kinds.index(link) < len(kinds) - 1
    assert calls[-1] == ("sync", "00")
    if inner:
        assert kinds.index(link) < kinds.index("unlink")


async def test_a_folder_that_is_made_is_synced_into_its_parent_before_the_blob_has_a_name(
    tmp_path: Path,
) -> None:
    calls = await recorded_put(tmp_path / "disk1", "zz-blob", None)
    kinds = [call for call, _ in calls]
    made = kinds.index("make_folder")
    assert ("sync", "shards") in calls[made:]
    assert made < calls.index(("sync", "shards")) < kinds.index("link_unnamed")
    assert calls[-1] == ("sync", "zz")


async def test_a_large_blob_is_synced_each_mebibyte(tmp_path: Path) -> None:
    recorder = Recorder()
    store = await attached_store(tmp_path / "disk1", files=recorder.files)
    recorder.calls.clear()
    await store.put("00-blob", [bytes(3 << 19)] * 3, timeout_s=T)
    assert [call for call, _ in recorder.calls].count("write_synced") == 5
    await store.close()


async def test_a_small_put_costs_four_calls_and_a_delete_two(tmp_path: Path) -> None:
    recorder = Recorder()
    store = await attached_store(tmp_path / "disk1", files=recorder.files)
    await store.put("00-first", [b"x"], timeout_s=T)
    recorder.calls.clear()
    await store.put("00-second", [b"x" * 12_288], timeout_s=T)
    assert [call for call, _ in recorder.calls] == ["open", "write_synced", "link_unnamed", "sync"]
    recorder.calls.clear()
    await store.delete("00-first", timeout_s=T)
    assert [call for call, _ in recorder.calls if call != "close"] == ["unlink", "sync"]
    await store.close()


async def test_a_delete_that_was_not_synced_is_synced_by_the_next(tmp_path: Path) -> None:
    recorder = Recorder()
    store = await attached_store(tmp_path / "disk1", files=recorder.files)
    await store.put("00-blob", [b"x"], timeout_s=T)
    await store.delete("00-blob", timeout_s=T)
    recorder.calls.clear()
    await store.delete("00-blob", timeout_s=T)
    assert recorder.calls[-1] == ("sync", "00")
    await store.close()


async def test_writes_that_fall_short_are_continued(tmp_path: Path) -> None:
    class Short(SystemFiles):
        def write_synced(self, descriptor: int, data: Any, offset: int) -> int:
            return super().write_synced(descriptor, [bytes(b"".join(data))[:700]], offset)

    store = await attached_store(tmp_path / "disk1", files=Short())
    pieces = [SeededRandomness(number).token(300) for number in range(20)]
    await store.put("blob", pieces, timeout_s=T)
    assert await store.get("blob", [Range(0, 6000)], timeout_s=T) == [b"".join(pieces)]
    await store.close()


async def test_a_sync_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    broken = False

    def before(call: str, arguments: tuple[Any, ...]) -> None:
        nonlocal broken
        if broken and call == "sync":
            broken = False
            raise OSError(errno.EIO, "Input/output error")

    store = await attached_store(tmp_path / "disk1", files=WatchedFiles(before))
    broken = True
    with pytest.raises(StoreFailed):
        await store.put("zz-blob", [b"x"], timeout_s=T)
    # The folder may be there and not be on the medium: nothing is put there and called durable.
    with pytest.raises(StoreFailed):
        await store.put("zz-next", [b"x"], timeout_s=T)
    await store.put("00-other", [b"x"], timeout_s=T)
    await store.close()
    store = await attached_store(tmp_path / "disk1")
    await store.put("zz-next", [b"x"], timeout_s=T)
    await store.close()


# The Nth system call fails


class FailingDisk:
    """Fails the `at`th call from when it was set; 0 never."""

    def __init__(self, code: int, inner: SystemFiles | None) -> None:
        self._code = code
        self._lock = threading.Lock()
        self.at = 0
        self.files = WatchedFiles(self._before, inner)

    def _before(self, call: str, arguments: tuple[Any, ...]) -> None:
        with self._lock:
            if not self.at:
                return
            self.at -= 1
            if self.at:
                return
        raise OSError(self._code, os.strerror(self._code))


BLOBS = {
    "00-small": b"s" * 100,
    "zz-first-in-its-folder": b"f" * 5000,
    "00-large": b"l" * ((2 << 20) + 5),
}
CODES = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ESTALE, errno.EOPNOTSUPP)


async def everything(store: DirectoryStore, revision: int) -> tuple[set[str], set[str], int]:
    """Every call of the port. Answers which puts, which deletes and which revision were acknowledged."""
    put, deleted = set[str](), set[str]()

    async def attempt(call: Awaitable[object]) -> bool:
        try:
            await call
        except HoldfastError:
            return False
        return True

    for name, blob in BLOBS.items():
        if await attempt(store.put(name, [blob[:50], blob[50:]], timeout_s=T)):
            put.add(name)
    await attempt(store.get("00-small", [Range(0, 100)], timeout_s=T))
    await attempt(store.get("00-old", [Range(0, 3)], timeout_s=T))
    await attempt(store.get("00-large", [Range(4000, 9000)], timeout_s=T, uncached=True))
    await attempt(store.size("00-old", timeout_s=T))
    await attempt(store.list("", limit=1, timeout_s=T))
    await attempt(store.usage(timeout_s=T))
    await attempt(store.probe(timeout_s=T))
    noted = revision if await attempt(store.note_revision("i1", revision, timeout_s=T)) else 0
    for name in ("00-old", "yy-never"):
        if await attempt(store.delete(name, timeout_s=T)):
            deleted.add(name)
    return put, deleted, noted


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
@pytest.mark.parametrize("inner", [None, NamedTemporaries()], ids=["unnamed", "named"])
async def test_whichever_call_fails_names_are_absent_or_complete(
    tmp_path: Path, inner: SystemFiles | None, code: int
) -> None:
    at, failed, path = 0, True, tmp_path / "disk1"
    await (await attached_store(path)).close()
    while failed:
        at += 1
        (path / "shards" / "00" / "00-old").write_bytes(b"old")
        disk = FailingDisk(code, inner)
        store = await attached_store(path, files=disk.files)
        disk.at = at
        put, deleted, noted = await everything(store, at)
        failed, disk.at = disk.at == 0, 0
        await store.close()
        del store
        async with asyncio.timeout(T):
            while disk.files.open_now:  # noqa: ASYNC110 (threads let go in their own time)
                await asyncio.sleep(0.0005)
        await look_again(path, put, deleted, noted)
        assert at < 200
    assert at > 30
    assert put == set(BLOBS)


async def look_again(path: Path, put: set[str], deleted: set[str], noted: int) -> None:
    store = await attached_store(path)
    names = set(await store.list("", limit=100, timeout_s=T))
    assert put <= names <= {*BLOBS, "00-old"}
    assert not deleted & names
    for name in names:
        blob = BLOBS.get(name, b"old")
        assert await store.get(name, [Range(0, len(blob))], timeout_s=T, uncached=True) == [blob]
        assert await store.size(name, timeout_s=T) == len(blob)
        await store.delete(name, timeout_s=T)
    assert store.identity.noted == Noted("i1", noted) or not noted
    assert list((path / "tmp").iterdir()) == []
    await store.close()
    for folder in ("zz", "yy"):
        with suppress(FileNotFoundError):
            (path / "shards" / folder).rmdir()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
async def test_whichever_call_of_the_first_attach_fails_the_next_attach_works(
    tmp_path: Path, code: int
) -> None:
    at, failed = 0, True
    while failed:
        # The calls that make the 256 folders are all alike: a few of them stand for all.
        at += 1 if at < 20 or at > 270 else 60
        path = tmp_path / f"disk{at}"
        path.mkdir()
        disk = FailingDisk(code, None)
        disk.at = at
        with suppress(HoldfastError):
            attached = await attach(
                path,
                Expected("cluster", "disk1"),
                clock=SystemClock(),
                randomness=SeededRandomness(at),
                initialise=True,
                files=disk.files,
            )
            if attached.store is not None:
                await attached.store.close()
            del attached
        failed, disk.at = disk.at == 0, 0
        async with asyncio.timeout(T):
            while disk.files.open_now:  # noqa: ASYNC110 (threads let go in their own time)
                await asyncio.sleep(0.0005)
        store = await attached_store(path)
        await store.put("blob", [b"x"], timeout_s=T)
        await store.close()
        assert at < 600


# A disk that hangs


class HangingDisk:
    """Calls of one kind do not come back until they are let go."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.hanging = False
        self.let_go = threading.Event()
        self.files = WatchedFiles(self._before)

    def _before(self, call: str, arguments: tuple[Any, ...]) -> None:
        if self.hanging and call == self._kind:
            assert self.let_go.wait(T)

    async def hang(self, store: DirectoryStore, name: str) -> None:
        """Have a put held by the disk, and given up. One that was given up before a thread came to it was
        never begun, and is asked for again."""
        lane, patience_s = store._lanes.write, 0.03
        held = lane.overdue
        while lane.overdue == held:
            with pytest.raises(StoreOverdue):
                await store.put(name, [b"late"], timeout_s=patience_s)
            patience_s *= 2


async def test_a_disk_that_hangs_in_a_sync_costs_its_writers_only(tmp_path: Path) -> None:
    disk = HangingDisk("write_synced")
    options = DirectoryOptions(write_threads=2)
    store = await attached_store(tmp_path / "disk1", files=disk.files, options=options)
    await store.put("00-there", [b"x"], timeout_s=T)
    disk.hanging = True
    for number in range(2):
        await disk.hang(store, f"00-{number}")
    with pytest.raises(StoreBusy):
        await store.put("00-next", [b"x"], timeout_s=T)
    for uncached in (False, True):
        assert await store.get("00-there", [Range(0, 1)], timeout_s=T, uncached=uncached) == [b"x"]
    assert await store.list("", limit=10, timeout_s=T) == ["00-there"]
    disk.hanging = False
    disk.let_go.set()
    # Late is not never: both land whole, and the store works on.
    async with asyncio.timeout(T):
        while len(await store.list("", limit=10, timeout_s=T)) < 3:
            continue
        for number in range(100):
            with suppress(StoreBusy):
                await store.put(f"01-after-{number}", [b"x"], timeout_s=T)
                break
            await asyncio.sleep(0.01)
    assert len(await store.list("", limit=10, timeout_s=T)) == 4
    await store.close()


async def test_closing_does_not_wait_for_a_hung_call_nor_take_its_descriptors(tmp_path: Path) -> None:
    disk = HangingDisk("write_synced")
    store = await attached_store(tmp_path / "disk1", files=disk.files)
    disk.hanging = True
    await disk.hang(store, "00-late")
    await store.close()
    del store
    assert disk.files.open_now
    # The directory is free for the next process, whatever becomes of the call.
    store = await attached_store(tmp_path / "disk1")
    disk.let_go.set()
    async with asyncio.timeout(T):
        while disk.files.open_now:  # noqa: ASYNC110 (threads let go in their own time)
            await asyncio.sleep(0.001)
    assert await store.get("00-late", [Range(0, 4)], timeout_s=T) == [b"late"]
    await store.close()


async def test_an_attach_to_a_hung_disk_is_overdue(tmp_path: Path) -> None:
    disk = HangingDisk("open")
    disk.hanging = True
    with pytest.raises(StoreOverdue):
        await attach(
            tmp_path,
            Expected("cluster", "disk1"),
            clock=SystemClock(),
            randomness=SeededRandomness(1),
            files=disk.files,
            timeout_s=0.02,
        )
    disk.let_go.set()


async def test_a_blob_deleted_while_it_is_being_opened_is_not_found_later(tmp_path: Path) -> None:
    at_open, go_on = threading.Event(), threading.Event()

    def before(call: str, arguments: tuple[Any, ...]) -> None:
        if call == "read" and at_open.is_set() is False and armed:
            at_open.set()
            assert go_on.wait(T)

    armed = False
    files: Files = WatchedFiles(before)  # type: ignore[assignment]
    store = await attached_store(tmp_path / "disk1", files=files, options=DirectoryOptions(files_open_max=1))
    await store.put("00-blob", [b"old"], timeout_s=T)
    await store.put("00-other", [b"other"], timeout_s=T)  # takes the cache's one place
    armed = True
    reading = asyncio.ensure_future(store.get("00-blob", [Range(0, 3)], timeout_s=T))
    await asyncio.to_thread(at_open.wait, T)
    await store.delete("00-blob", timeout_s=T)
    await store.put("00-blob", [b"new"], timeout_s=T)
    go_on.set()
    assert await reading == [b"old"]
    assert await store.get("00-blob", [Range(0, 3)], timeout_s=T) == [b"new"]
    await store.delete("00-blob", timeout_s=T)
    with pytest.raises(ShardMissing):
        await store.get("00-blob", [Range(0, 3)], timeout_s=T)
    await store.close()


# Real disks


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=8m", "holdfast-test", str(path))
    except (OSError, subprocess.CalledProcessError):
        pytest.fail("mounting is not allowed here")
    yield path
    unmount(path)


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[DirectoryStore]:
    store = await attached_store(path, options=DirectoryOptions(**options), clock=MovableClock())
    yield store
    await store.close()


async def test_a_disk_that_is_really_full_refuses_puts_and_takes_deletes(small_disk: Path) -> None:
    async with opened(small_disk, bytes_reserve=0) as store:
        await store.put("00-blob", [bytes(1 << 20)], timeout_s=T)
        # Filled by somebody else since the last measure: the kernel itself says no.
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                continue
        for number in range(3):
            with pytest.raises(StoreFull):
                await store.put(f"01-{number}", [bytes(1 << 20)], timeout_s=T)
        assert await store.get("00-blob", [Range(0, 3)], timeout_s=T) == [bytes(3)]
        await store.delete("00-blob", timeout_s=T)
        await store.put("02-blob", [bytes(1 << 19)], timeout_s=T)
        assert await store.list("", limit=10, timeout_s=T) == ["02-blob"]
        filler.unlink()


async def test_a_disk_that_is_really_read_only_still_reads(small_disk: Path) -> None:
    files = WatchedFiles(lambda call, arguments: None)
    store = await attached_store(small_disk, files=files)
    await store.put("00-blob", [b"kept"], timeout_s=T)
    await store.close()
    del store
    async with asyncio.timeout(T):
        while files.open_now:  # noqa: ASYNC110 (threads let go in their own time)
            await asyncio.sleep(0.001)
    mount("-o", "remount,ro", str(small_disk))
    async with opened(small_disk) as store:
        assert await store.get("00-blob", [Range(0, 4)], timeout_s=T) == [b"kept"]
        refused: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: store.put("01-blob", [b"x"], timeout_s=T),
            lambda: store.put("zz-blob", [b"x"], timeout_s=T),
            lambda: store.delete("00-blob", timeout_s=T),
            lambda: store.probe(timeout_s=T),
            lambda: store.note_revision("i1", 1, timeout_s=T),
        )
        for call in refused:
            with pytest.raises(StoreReadOnly):
                await call()


async def test_an_unmounted_disk_never_turns_into_writes_below(small_disk: Path) -> None:
    clock = MovableClock()
    store = await attached_store(small_disk, clock=clock)
    await store.put("00-blob", [b"x"], timeout_s=T)
    unmount(small_disk)
    clock.ahead_s += 1.0
    for call in (
        store.put("00-next", [b"x"], timeout_s=T),
        store.put("zz-next", [b"x"], timeout_s=T),
        store.probe(timeout_s=T),
    ):
        with pytest.raises(StoreFailed):
            await call
    assert os.listdir(small_disk) == []  # noqa: PTH208
    await store.close()
    attached = await attach(
        small_disk, Expected("cluster", "disk1"), clock=clock, randomness=SeededRandomness(1)
    )
    assert attached.judgement.attachment is Attachment.NEW

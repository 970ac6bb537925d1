"""A directory becomes a store, is recognised again, and is given up when it is not what it was."""

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Fenced, InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.directory import Attached, DirectoryOptions, attach, inspect
from holdfast.stores.directory.blobs import default_reserve
from holdfast.stores.identity import Expected, Noted
from holdfast.stores.port import (
    JOURNAL_SHARE,
    MOVING_SHARE,
    Attachment,
    Range,
    ShardMissing,
    StoreFailed,
    StoreFull,
    Usage,
)
from tests.kit.stores import DiskOf, MovableClock, NoDirectReads, WatchedFiles, attached_store

T = 60.0


async def attaching(path: Path, expected: Expected | None = None, *, initialise: bool = False) -> Attached:
    return await attach(
        path,
        expected or Expected("cluster", "disk1"),
        clock=SystemClock(),
        randomness=SeededRandomness(5),
        initialise=initialise,
    )


async def judged(path: Path, expected: Expected | None = None) -> Attachment:
    attached = await attaching(path, expected)
    if attached.store is not None:
        await attached.store.close()
    return attached.judgement.attachment


async def test_a_store_is_the_same_when_it_is_attached_again(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    first = store.identity
    await store.put("blob", [b"kept"], timeout_s=T)
    await store.close()
    store = await attached_store(tmp_path / "disk1")
    assert store.identity == first
    assert store.id == first.store
    assert await store.get("blob", [Range(0, 4)], timeout_s=T) == [b"kept"]
    await store.close()


async def test_judging_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk1"
    assert await judged(path) is Attachment.MISSING
    assert not path.exists()
    path.mkdir()
    assert await judged(path) is Attachment.NEW
    (path / "photo.jpg").write_bytes(b"x")
    assert await judged(path) is Attachment.FOREIGN
    attached = await attaching(path, initialise=True)
    assert attached.store is None
    assert "photo.jpg" in attached.judgement.reason
    assert [entry.name for entry in path.iterdir()] == ["photo.jpg"]


async def test_foreign_swapped_and_stale_disks_are_recognised(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    await store.note_revision("i1", 7, timeout_s=T)
    await store.close()
    path = tmp_path / "disk1"
    assert await judged(path, Expected("other", "disk1")) is Attachment.FOREIGN
    assert await judged(path, Expected("cluster", "disk2")) is Attachment.SWAPPED
    assert await judged(path, Expected("cluster", "disk1", store.id, Noted("i1", 8))) is Attachment.STALE
    assert await judged(path, Expected("cluster", "disk1", store.id, Noted("i1", 7))) is Attachment.READY
    found = await inspect(path)
    assert found.identity == store.identity
    assert found.identity.noted == Noted("i1", 7)


async def test_blobs_without_an_identity_are_not_adopted(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    await store.put("blob", [b"x"], timeout_s=T)
    await store.close()
    (tmp_path / "disk1" / "holdfast-store.json").unlink()
    attached = await attaching(tmp_path / "disk1", initialise=True)
    assert attached.judgement.attachment is Attachment.FOREIGN
    assert "blobs" in attached.judgement.reason


async def test_a_damaged_identity_is_refused_and_left_alone(tmp_path: Path) -> None:
    await (await attached_store(tmp_path / "disk1")).close()
    file = tmp_path / "disk1" / "holdfast-store.json"
    spoiled = file.read_bytes().replace(b"disk1", b"disk2")
    file.write_bytes(spoiled)
    attached = await attaching(tmp_path / "disk1", initialise=True)
    assert attached.judgement.attachment is Attachment.FOREIGN
    assert "checksum" in attached.judgement.reason
    assert file.read_bytes() == spoiled


async def test_a_revision_is_noted_for_good_and_only_ever_higher(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    await asyncio.gather(*(store.note_revision("i1", revision, timeout_s=T) for revision in (3, 9, 5)))
    assert store.identity.noted == Noted("i1", 9)
    await store.note_revision("i2", 1, timeout_s=T)
    await store.close()
    store = await attached_store(tmp_path / "disk1")
    assert store.identity.noted == Noted("i2", 1)
    await store.close()
    assert list((tmp_path / "disk1" / "tmp").iterdir()) == []


async def test_two_cannot_use_one_directory(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    with pytest.raises(Fenced, match=rf"already in use by another Holdfast process \(pid {os.getpid()}\)"):
        await attaching(tmp_path / "disk1")
    await store.close()
    assert await judged(tmp_path / "disk1") is Attachment.READY


async def test_a_path_that_is_no_directory_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match="is not a directory"):
        await attaching(tmp_path / "file")
    with pytest.raises(InvalidInput, match="is not a directory"):
        await inspect(tmp_path / "file")


async def test_leftovers_of_a_crash_are_removed_at_attach(tmp_path: Path) -> None:
    await (await attached_store(tmp_path / "disk1")).close()
    leftover = tmp_path / "disk1" / "tmp" / "17"
    leftover.write_bytes(b"half a shard")
    store = await attached_store(tmp_path / "disk1")
    assert not leftover.exists()
    await store.close()


async def test_an_interrupted_beginning_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "disk1"
    (path / "shards" / "00").mkdir(parents=True)
    (path / "lock").write_bytes(b"")
    (path / "lost+found").mkdir()
    assert await judged(path) is Attachment.NEW
    store = await attached_store(path)
    await store.put("blob", [b"x"], timeout_s=T)
    await store.close()


async def test_a_directory_that_was_removed_stays_removed(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk3")
    await store.put("00-open", [b"open"], timeout_s=T)
    shutil.rmtree(tmp_path / "disk3")
    for name in ("00-next", "zz-next"):
        with pytest.raises(StoreFailed):
            await store.put(name, [b"x"], timeout_s=T)
    # An open file outlives its name: what it answers is right.
    assert await store.get("00-open", [Range(0, 4)], timeout_s=T) == [b"open"]
    for call in (
        store.get("00-closed", [Range(0, 1)], timeout_s=T),
        store.get("00-open", [Range(0, 1)], timeout_s=T, uncached=True),
        store.size("00-closed", timeout_s=T),
        store.delete("00-open", timeout_s=T),
        store.list("", limit=10, timeout_s=T),
        store.usage(timeout_s=T),
        store.probe(timeout_s=T),
        store.note_revision("i1", 1, timeout_s=T),
    ):
        with pytest.raises((StoreFailed, ShardMissing)):
            await call
    assert not (tmp_path / "disk3").exists()
    await store.close()


async def test_a_directory_can_be_removed_while_it_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "disk3"
    store = await attached_store(path)
    failures: list[BaseException] = []

    async def write(writer: int) -> None:
        for number in range(10_000):
            try:
                await store.put(f"{number * 37 % 256:02x}-{writer}-{number}", [b"x" * 100], timeout_s=T)
            except StoreFailed as error:
                failures.append(error)
                return

    writers = [asyncio.ensure_future(write(writer)) for writer in range(4)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(T):
        # A blob may slip into a folder between its emptying and its removal; then once more.
        while path.exists():
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
    await asyncio.gather(*writers)
    assert len(failures) == 4
    assert not path.exists()
    await store.close()


async def test_a_directory_that_was_replaced_is_noticed_within_a_second(tmp_path: Path) -> None:
    clock = MovableClock()
    store = await attached_store(tmp_path / "disk3", clock=clock)
    (tmp_path / "disk3").rename(tmp_path / "elsewhere")
    (tmp_path / "disk3").mkdir()
    clock.ahead_s += 1.0
    with pytest.raises(StoreFailed, match="removed, replaced or unmounted"):
        await store.put("00-a", [b"x"], timeout_s=T)
    assert list((tmp_path / "disk3").iterdir()) == []
    await store.close()


async def test_the_reserve_is_kept_and_deletes_work_below_it(tmp_path: Path) -> None:
    clock = MovableClock()
    disk = DiskOf(bytes_total=10 << 30, bytes_free=(1 << 30) + (64 << 20))
    options = DirectoryOptions(bytes_reserve=1 << 30)
    store = await attached_store(tmp_path / "disk1", options=options, clock=clock, files=disk)
    await store.put("small", [b"x"], timeout_s=T)
    with pytest.raises(StoreFull):
        await store.put("large", [bytes(1 << 20)] * 65, timeout_s=T)
    assert await store.usage(timeout_s=T) == Usage(10 << 30, 64 << 20, 1 << 30)
    # Somebody else fills the disk; the store looks again within a second.
    disk.bytes_free = 1 << 30
    clock.ahead_s += 1.0
    for call in (store.put("other", [b"x"], timeout_s=T), store.probe(timeout_s=T)):
        with pytest.raises(StoreFull):
            await call
    assert (await store.usage(timeout_s=T)).bytes_free == 0
    await store.delete("small", timeout_s=T)
    # What was freed is seen at once.
    disk.bytes_free = (1 << 30) + 4096
    await store.put("small", [b"x"], timeout_s=T)
    await store.close()


async def test_a_put_may_take_a_share_of_the_reserve_and_no_more(tmp_path: Path) -> None:
    clock = MovableClock()
    disk = DiskOf(bytes_total=10 << 30, bytes_free=1 << 30)
    options = DirectoryOptions(bytes_reserve=1 << 30)
    store = await attached_store(tmp_path / "disk1", options=options, clock=clock, files=disk)
    with pytest.raises(StoreFull):
        await store.put("client", [b"x"], timeout_s=T)
    await store.put("moved", [b"x"], timeout_s=T, reserve_share=MOVING_SHARE)
    for looks_again in (False, True):
        clock.ahead_s += 1.0 * looks_again
        disk.bytes_free = int((1 << 30) * (1 - MOVING_SHARE))
        await store.usage(timeout_s=T)
        with pytest.raises(StoreFull):
            await store.put("more", [b"x"], timeout_s=T, reserve_share=MOVING_SHARE)
        await store.put(f"journal-{looks_again}", [b"x"], timeout_s=T, reserve_share=JOURNAL_SHARE)
        disk.bytes_free = int((1 << 30) * (1 - JOURNAL_SHARE))
        await store.usage(timeout_s=T)
        with pytest.raises(StoreFull):
            await store.put("more", [b"x"], timeout_s=T, reserve_share=JOURNAL_SHARE)
    await store.close()


async def test_space_is_what_the_file_system_says(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1", options=DirectoryOptions(bytes_reserve=1 << 60))
    usage = await store.usage(timeout_s=T)
    assert (usage.bytes_free, usage.bytes_reserve) == (0, 1 << 60)
    total = shutil.disk_usage(tmp_path).total  # some file systems grow and shrink
    assert total / 2 < usage.bytes_total < total * 2
    await store.close()


class StoppedClock(SystemClock):
    def monotonic(self) -> float:
        return 5.0


async def test_puts_between_two_measures_count_against_the_room(tmp_path: Path) -> None:
    room = 64 << 20
    disk = DiskOf(bytes_total=10 << 30, bytes_free=room)
    options = DirectoryOptions(bytes_reserve=0)
    store = await attached_store(tmp_path / "disk1", options=options, clock=StoppedClock(), files=disk)
    piece = bytes(4 << 20)
    answers = await asyncio.gather(
        *(store.put(f"{number:02x}", [piece], timeout_s=T) for number in range(20)), return_exceptions=True
    )
    assert [answer is None for answer in answers] == [True] * 16 + [False] * 4
    assert all(isinstance(answer, StoreFull) for answer in answers[16:])
    await store.close()


async def test_a_blob_that_was_just_put_is_read_without_a_thread(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    await store.put("blob", [bytes(range(256)) * 64], timeout_s=T)
    assert store.peek("blob", [Range(4096, 4)]) == [b"\x00\x01\x02\x03"]
    await store.close()


async def test_uncached_reads_work_where_direct_reads_do_not(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1", files=NoDirectReads())
    await store.put("blob", [b"0123456789"], timeout_s=T)
    assert await store.get("blob", [Range(3, 4)], timeout_s=T, uncached=True) == [b"3456"]
    await store.probe(timeout_s=T)
    await store.close()


async def test_uncached_reads_see_the_medium_and_not_the_page_cache(tmp_path: Path) -> None:
    """Of a blob that is all in the page cache, only uncached reads make the kernel fetch anything."""
    direct = 0

    def before(call: str, arguments: tuple[Any, ...]) -> None:
        nonlocal direct
        direct += call == "open" and bool(arguments[1] & os.O_DIRECT)

    def fetched() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])

    store = await attached_store(tmp_path / "disk1", files=WatchedFiles(before))
    await store.put("blob", [bytes(1 << 20)], timeout_s=T)
    start = fetched()
    await store.get("blob", [Range(0, 1 << 20)], timeout_s=T)
    cached = fetched() - start
    assert direct == 0
    await store.get("blob", [Range(0, 1 << 20)], timeout_s=T, uncached=True)
    uncached = fetched() - start - cached
    await store.close()
    assert direct == 1
    assert cached < 1 << 20
    # File systems in memory have no medium, and account for no reads.
    assert uncached >= 1 << 20 or (cached == uncached == 0)


async def test_running_out_of_descriptors_costs_the_cached_ones_only(tmp_path: Path) -> None:
    short = 0

    def before(call: str, arguments: tuple[Any, ...]) -> None:
        nonlocal short
        if call == "open" and short:
            short -= 1
            raise OSError(errno.EMFILE, "Too many open files")

    files = WatchedFiles(before)
    store = await attached_store(tmp_path / "disk1", files=files)
    for number in range(20):
        await store.put(f"{number:02x}", [b"x"], timeout_s=T)
    kept, short = len(files.open_now), 1
    await store.put("next", [b"x"], timeout_s=T)
    assert len(files.open_now) < kept
    await store.close()


async def test_directories_on_one_device_say_so(tmp_path: Path) -> None:
    stores = [await attached_store(tmp_path / f"disk{number}") for number in range(2)]
    assert stores[0].device
    assert stores[0].device == stores[1].device
    for store in stores:
        await store.close()


async def test_no_descriptor_outlives_the_store(tmp_path: Path) -> None:
    files = WatchedFiles(lambda call, arguments: None)
    store = await attached_store(tmp_path / "disk1", files=files)
    for number in range(20):
        await store.put(f"{number:02x}", [b"x"], timeout_s=T)
    await store.close()
    del store
    async with asyncio.timeout(T):
        while files.open_now:  # noqa: ASYNC110 (threads let go in their own time)
            await asyncio.sleep(0.001)


@pytest.mark.alone
async def test_a_hundred_thousand_blobs_are_listed_in_pages_and_the_loop_goes_on(tmp_path: Path) -> None:
    store = await attached_store(tmp_path / "disk1")
    shards = tmp_path / "disk1" / "shards"
    names = [f"{number * 2654435761 % (1 << 32):08x}-{number}" for number in range(100_000)]
    for name in names:
        (shards / name[:2] / name).touch()
    loop, rounds = asyncio.get_running_loop(), []

    async def tick(during: "asyncio.Task[None]") -> float:
        longest = 0.0
        while not during.done():
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before - 0.001)
        return longest

    async def walk() -> None:
        found: list[str] = []
        while page := await store.list(found[-1] if found else "", limit=1000, timeout_s=T):
            found += page
        assert found == sorted(names)

    while not rounds or (min(rounds) >= 0.1 and len(rounds) < 5):
        walking = asyncio.ensure_future(walk())
        rounds.append(await tick(walking))
        await walking
    assert min(rounds) < 0.1, rounds
    await store.close()


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.kit.stores import NamedTemporaries, attached_store

async def main(path, round_, named):
    store = await attached_store(Path(path), files=NamedTemporaries() if named == "named" else None)
    async def write(writer):
        for number in range(100_000):
            name = f"{number * 31 % 256:02x}-{round_}-{writer}-{number}"
            await store.put(name, [name.encode() * 2000], timeout_s=30.0)
            sys.stdout.write(name + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(writer) for writer in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("named", ["named", "unnamed"])
async def test_a_killed_process_leaves_whole_blobs_only(tmp_path: Path, named: str) -> None:
    path, acknowledged = tmp_path / "disk1", []
    for round_ in range(4):
        arguments = [sys.executable, "-c", KILLED, str(path), str(round_), named]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
        try:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(6)]
            await asyncio.sleep(0.05 + 0.03 * round_)
        finally:
            process.send_signal(signal.SIGKILL)
        lines = process.communicate(timeout=T)[0].split("\n")
        acknowledged += lines[:-1]
    store = await attached_store(path)
    names = await store.list("", limit=1_000_000, timeout_s=T)
    assert set(acknowledged) <= set(names)
    assert len(acknowledged) > 20
    for name in names:
        size = await store.size(name, timeout_s=T)
        assert size == 2000 * len(name)
        assert await store.get(name, [Range(0, size)], timeout_s=T) == [name.encode() * 2000]
    assert list((path / "tmp").iterdir()) == []
    await store.close()


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(0, 0), (100 << 20, 50 << 20), (10 << 30, 256 << 20), (50 << 30, 512 << 20), (16 << 40, 1 << 30)],
)
def test_what_is_kept_free_is_enough_to_delete_with(total: int, reserve: int) -> None:
    assert abs(default_reserve(total) - reserve) < (16 << 20)

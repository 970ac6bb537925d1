"""What every store promises, checked on every adapter, bare and under every decorator."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.bounded import BoundedStore
from holdfast.stores.directory import DirectoryOptions, attach
from holdfast.stores.faulty import FaultScript, FaultyStore
from holdfast.stores.identity import Expected
from holdfast.stores.measured import MeasuredStore, Operation, StoreTally
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import (
    PEEK_BYTES_MAX,
    Range,
    ShardExists,
    ShardMissing,
    ShardTruncated,
    Store,
    StoreBusy,
    StoreFailed,
    StoreFull,
    StoreOverdue,
)
from tests.kit.clouds import closing, cloud_store
from tests.kit.peers import exported
from tests.kit.s3 import serving
from tests.kit.sealing import sealed
from tests.kit.stores import NamedTemporaries

T = 60.0
ROOM = DirectoryOptions(bytes_reserve=1 << 20)
"""Little: how much is free on the real disk is no business of a test."""
Making = Callable[[Path], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def memory(path: Path) -> AsyncIterator[Store]:
    store = MemoryStore(StoreId("memory"), clock=SystemClock(), randomness=SeededRandomness(1))
    yield store
    await store.close()


@asynccontextmanager
async def slow_memory(path: Path) -> AsyncIterator[Store]:
    store = MemoryStore(
        StoreId("slow"), clock=SystemClock(), randomness=SeededRandomness(1), latency_s=(0.0001, 0.001)
    )
    yield store
    await store.close()


@asynccontextmanager
async def directory(path: Path) -> AsyncIterator[Store]:
    attached = await attach(
        path,
        Expected("cluster", "disk1"),
        clock=SystemClock(),
        randomness=SeededRandomness(1),
        initialise=True,
        options=ROOM,
    )
    assert attached.store is not None
    yield attached.store
    await attached.store.close()


@asynccontextmanager
async def directory_with_names(path: Path) -> AsyncIterator[Store]:
    """On a file system without unnamed temporary files, and with the smallest caches."""
    attached = await attach(
        path,
        Expected("cluster", "disk1"),
        clock=SystemClock(),
        randomness=SeededRandomness(1),
        initialise=True,
        options=DirectoryOptions(bytes_reserve=1 << 20, files_open_max=1, folders_open_max=1),
        files=NamedTemporaries(),
    )
    assert attached.store is not None
    yield attached.store
    await attached.store.close()


@asynccontextmanager
async def peer_of_memory(path: Path) -> AsyncIterator[Store]:
    async with memory(path) as store, exported(store) as peer:
        yield peer


@asynccontextmanager
async def peer_of_slow_memory(path: Path) -> AsyncIterator[Store]:
    async with slow_memory(path) as store, exported(store) as peer:
        yield peer


@asynccontextmanager
async def peer_of_directory(path: Path) -> AsyncIterator[Store]:
    async with directory(path) as store, exported(store) as peer:
        yield peer


@asynccontextmanager
async def bucket_of_holdfast(path: Path) -> AsyncIterator[Store]:
    """In a bucket that our own S3 serves."""
    async with serving() as s3:
        await s3.objects.create_bucket("bucket", None)
        async with closing(cloud_store(s3.port, "bucket")) as store:
            yield store


@asynccontextmanager
async def sealed_memory(path: Path) -> AsyncIterator[Store]:
    async with memory(path) as store:
        yield sealed(store)


@asynccontextmanager
async def sealed_slow_memory(path: Path) -> AsyncIterator[Store]:
    async with slow_memory(path) as store:
        yield sealed(store)


@asynccontextmanager
async def sealed_directory(path: Path) -> AsyncIterator[Store]:
    async with directory(path) as store:
        yield sealed(store)


def bare(store: Store) -> Store:
    return store


def measured(store: Store) -> Store:
    return MeasuredStore(store, StoreTally(), SystemClock())


def bounded(store: Store) -> Store:
    return BoundedStore(store, width=4, waiting_max=1000)


def faulty(store: Store) -> Store:
    return FaultyStore(store, FaultScript(), clock=SystemClock(), randomness=SeededRandomness(2))


def all_of_them(store: Store) -> Store:
    return measured(bounded(faulty(store)))


DECORATIONS = (bare, measured, bounded, faulty, all_of_them)
ADAPTERS = (
    memory,
    slow_memory,
    directory,
    directory_with_names,
    peer_of_memory,
    peer_of_slow_memory,
    peer_of_directory,
    bucket_of_holdfast,
    sealed_memory,
    sealed_slow_memory,
    sealed_directory,
)


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.__name__)
def adapter(request: pytest.FixtureRequest) -> Making:
    making: Making = request.param
    return making


@pytest.fixture(params=DECORATIONS, ids=lambda decoration: decoration.__name__)
def making(request: pytest.FixtureRequest, adapter: Making) -> Making:
    @asynccontextmanager
    async def decorated(path: Path) -> AsyncIterator[Store]:
        async with adapter(path) as store:
            yield request.param(store)

    return decorated


async def test_a_blob_comes_back_as_it_was_put(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        await store.put("0a.0.1", [b"hold", bytearray(b"fa"), memoryview(b"st")], timeout_s=T)
        assert await store.get("0a.0.1", [Range(0, 8)], timeout_s=T) == [b"holdfast"]
        assert await store.size("0a.0.1", timeout_s=T) == 8


async def test_ranges_are_exact_and_in_the_order_asked(making: Making, tmp_path: Path) -> None:
    blob = bytes(SeededRandomness(3).token(20_000))
    async with making(tmp_path) as store:
        await store.put("blob", [blob], timeout_s=T)
        ranges = [
            Range(19_999, 1),
            Range(0, 1),
            Range(4095, 4100),
            Range(0, 20_000),
            Range(5, 5),
            Range(5, 5),
        ]
        for uncached in (False, True, False):
            found = await store.get("blob", ranges, timeout_s=T, uncached=uncached)
            assert found == [blob[offset : offset + length] for offset, length in ranges]


async def test_what_is_peeked_is_what_get_would_answer(making: Making, tmp_path: Path) -> None:
    blob = bytes(SeededRandomness(3).token(200_000))
    async with making(tmp_path) as store:
        await store.put("blob", [blob], timeout_s=T)
        await store.get("blob", [Range(0, 200_000)], timeout_s=T)
        ranges = [Range(7, 4100), Range(100_000, 3)]
        assert store.peek("blob", ranges) in (None, [blob[7:4107], blob[100_000:100_003]])
        assert store.peek("blob", [Range(0, PEEK_BYTES_MAX), Range(0, 1)]) is None
        assert store.peek("blob", [Range(199_999, 2)]) is None
        assert store.peek("other", [Range(0, 1)]) is None
        await store.delete("blob", timeout_s=T)
        assert store.peek("blob", ranges) is None


async def test_put_never_overwrites(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        await store.put("blob", [b"first"], timeout_s=T)
        with pytest.raises(ShardExists):
            await store.put("blob", [b"second"], timeout_s=T)
        assert await store.get("blob", [Range(0, 5)], timeout_s=T) == [b"first"]


async def test_of_concurrent_puts_of_one_name_exactly_one_wins(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        contents = [bytes([number]) * 5000 for number in range(8)]
        ends = await asyncio.gather(
            *(store.put("blob", [content], timeout_s=T) for content in contents), return_exceptions=True
        )
        winners = [content for content, end in zip(contents, ends, strict=True) if end is None]
        assert len(winners) == 1
        assert all(isinstance(end, ShardExists) for end in ends if end is not None)
        assert await store.get("blob", [Range(0, 5000)], timeout_s=T) == winners


async def test_a_range_that_ends_behind_the_blob_is_truncated(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        await store.put("blob", [b"0123456789"], timeout_s=T)
        beyond = [Range(9, 2), Range(10, 1), Range(5000, 1), Range(0, 11), Range(0, 3 << 20)]
        for range_ in beyond:
            for uncached in (False, True):
                with pytest.raises(ShardTruncated):
                    await store.get("blob", [Range(0, 1), range_], timeout_s=T, uncached=uncached)


async def test_a_blob_that_is_not_there_is_missing(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        await store.put("ab-other", [b"x"], timeout_s=T)
        for name in ("ab-gone", "zz-gone"):
            with pytest.raises(ShardMissing):
                await store.get(name, [Range(0, 1)], timeout_s=T)
            with pytest.raises(ShardMissing):
                await store.get(name, [Range(0, 1)], timeout_s=T, uncached=True)
            with pytest.raises(ShardMissing):
                await store.size(name, timeout_s=T)


async def test_delete_is_for_good_and_may_be_repeated(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        await store.put("blob", [b"x"], timeout_s=T)
        await store.get("blob", [Range(0, 1)], timeout_s=T)
        for _ in range(2):
            await store.delete("blob", timeout_s=T)
            with pytest.raises(ShardMissing):
                await store.get("blob", [Range(0, 1)], timeout_s=T)
        await store.delete("never-was", timeout_s=T)
        assert await store.list("", limit=10, timeout_s=T) == []


async def test_a_name_put_again_after_its_deletion_has_the_new_bytes(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        for content in (b"old", b"new"):
            await store.put("blob", [content], timeout_s=T)
            assert await store.get("blob", [Range(0, 3)], timeout_s=T) == [content]
            assert await store.get("blob", [Range(0, 3)], timeout_s=T, uncached=True) == [content]
            await store.delete("blob", timeout_s=T)


async def test_reads_beside_deletions_are_right_or_missing(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        for number in range(10):
            content = bytes([number]) * 100
            await store.put("blob", [content], timeout_s=T)
            reads = [store.get("blob", [Range(0, 100)], timeout_s=T) for _ in range(5)]
            ends = await asyncio.gather(*reads, store.delete("blob", timeout_s=T), return_exceptions=True)
            assert ends[-1] is None
            assert all(end == [content] or isinstance(end, ShardMissing) for end in ends[:-1])
            with pytest.raises(ShardMissing):
                await store.get("blob", [Range(0, 1)], timeout_s=T)


async def test_a_listing_is_complete_and_in_order_at_every_page_size(making: Making, tmp_path: Path) -> None:
    names = ["a", "a-", "a.b", "ab", "abc", "A", "_x", "-y", "0", "00", "00.0.1", "00.0.10", "ff", "f", "zz9"]
    names += [f"{number * 7919 % 256:02x}-{number}" for number in range(40)]
    async with making(tmp_path) as store:
        await asyncio.gather(*(store.put(name, [b"x"], timeout_s=T) for name in names))
        for limit in (1, 2, 7, len(names), 1000):
            found: list[str] = []
            while page := await store.list(found[-1] if found else "", limit=limit, timeout_s=T):
                assert len(page) <= limit
                found += page
            assert found == sorted(names)
        # `after` need not be a name that exists.
        assert await store.list("ab0", limit=1, timeout_s=T) == ["abc"]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (1 << 20) - 1, (1 << 20) + 1, (5 << 20) + 123])
async def test_blobs_of_every_size(adapter: Making, tmp_path: Path, size: int) -> None:
    blob = SeededRandomness(size).token(size)
    async with adapter(tmp_path) as store:
        await store.put("blob", [blob], timeout_s=T)
        assert await store.size("blob", timeout_s=T) == size
        if size:
            for uncached in (False, True):
                found = await store.get("blob", [Range(0, size)], timeout_s=T, uncached=uncached)
                assert found == [blob]


async def test_many_pieces_are_laid_end_to_end(adapter: Making, tmp_path: Path) -> None:
    pieces = [SeededRandomness(number).token(number % 1500) for number in range(3000)]
    blob = b"".join(pieces)
    async with adapter(tmp_path) as store:
        await store.put("blob", pieces, timeout_s=T)
        assert await store.get("blob", [Range(0, len(blob))], timeout_s=T) == [blob]


async def test_the_callers_buffer_may_be_reused_after_put(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        buffer = bytearray(b"kept")
        await store.put("blob", [memoryview(buffer)], timeout_s=T)
        buffer[:] = b"lost"
        assert await store.get("blob", [Range(0, 4)], timeout_s=T) == [b"kept"]


async def test_many_calls_at_once_all_succeed(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        names = [f"{number:02x}.0.1" for number in range(60)]
        await asyncio.gather(*(store.put(name, [name.encode() * 100], timeout_s=T) for name in names))
        found = await asyncio.gather(*(store.get(name, [Range(0, 600)], timeout_s=T) for name in names))
        assert found == [[name.encode() * 100] for name in names]


async def test_usage_and_probe(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        usage = await store.usage(timeout_s=T)
        assert 0 < usage.bytes_free <= usage.bytes_total - usage.bytes_reserve
        await store.probe(timeout_s=T)
        assert await store.list("", limit=10, timeout_s=T) == []


async def test_after_close_every_call_fails(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        await store.put("blob", [b"x"], timeout_s=T)
        await store.close()
        await store.close()
        assert store.peek("blob", [Range(0, 1)]) is None
        for call in (
            store.put("other", [b"x"], timeout_s=T),
            store.get("blob", [Range(0, 1)], timeout_s=T),
            store.get("blob", [Range(0, 1)], timeout_s=T, uncached=True),
            store.size("blob", timeout_s=T),
            store.delete("blob", timeout_s=T),
            store.list("", limit=1, timeout_s=T),
            store.usage(timeout_s=T),
            store.probe(timeout_s=T),
        ):
            with pytest.raises(StoreFailed):
                await call


async def test_a_name_that_is_none_is_our_bug(making: Making, tmp_path: Path) -> None:
    async with making(tmp_path) as store:
        for name in ("", ".", "..", ".hidden", "a/b", "a\0", "é", "x" * 129, "a\n"):
            with pytest.raises(AssertionError):
                await store.put(name, [b"x"], timeout_s=T)
            with pytest.raises(AssertionError):
                await store.get(name, [Range(0, 1)], timeout_s=T)
            with pytest.raises(AssertionError):
                await store.delete(name, timeout_s=T)
        await store.put("x" * 128, [b"x"], timeout_s=T)


async def test_a_call_without_time_ends_at_once(adapter: Making, tmp_path: Path) -> None:
    """No call outlives its time-out, whichever way it ends."""
    async with adapter(tmp_path) as store:
        await store.put("blob", [b"x" * 100_000], timeout_s=T)
        for _ in range(20):
            async with asyncio.timeout(T):
                for call in (
                    store.get("blob", [Range(0, 100_000)], timeout_s=0.0),
                    store.list("", limit=10, timeout_s=0.0),
                    store.size("blob", timeout_s=0.0),
                ):
                    try:
                        await call
                    except (StoreOverdue, StoreBusy):
                        continue


async def test_a_full_store_refuses_puts_and_takes_deletes(tmp_path: Path) -> None:
    store = MemoryStore(
        StoreId("m"),
        clock=SystemClock(),
        randomness=SeededRandomness(1),
        bytes_capacity=100,
        bytes_reserve=10,
    )
    await store.put("one", [b"x" * 90], timeout_s=T)
    with pytest.raises(StoreFull):
        await store.put("two", [b"x"], timeout_s=T)
    with pytest.raises(StoreFull):
        await store.probe(timeout_s=T)
    await store.put("needed", [b"x" * 5], timeout_s=T, reserve_share=0.5)
    with pytest.raises(StoreFull):
        await store.put("more", [b"x"], timeout_s=T, reserve_share=0.5)
    await store.delete("one", timeout_s=T)
    await store.put("two", [b"x"], timeout_s=T)


async def test_what_is_measured_is_what_happened(tmp_path: Path) -> None:
    tally = StoreTally()
    async with memory(tmp_path) as inner:
        store = MeasuredStore(inner, tally, SystemClock())
        await store.put("blob", [b"12345"], timeout_s=T)
        await store.get("blob", [Range(0, 2), Range(1, 4)], timeout_s=T)
        with pytest.raises(ShardMissing):
            await store.get("gone", [Range(0, 1)], timeout_s=T)
        with pytest.raises(ShardTruncated):
            await store.get("blob", [Range(4, 2)], timeout_s=T)
    puts, gets = tally.of(Operation.PUT), tally.of(Operation.GET)
    assert (puts.attempts, puts.successes, puts.bytes_moved, puts.errors) == (1, 1, 5, 0)
    assert (gets.attempts, gets.successes, gets.bytes_moved, gets.errors) == (3, 2, 6, 1)
    assert gets.by_error == {"ShardMissing": 1, "ShardTruncated": 1}
    assert 0 < gets.latency.quantile(0.5) < 1

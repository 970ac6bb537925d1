"""Decorators keep their word: time-outs and width hold, faults come as scripted, counts add up."""

import asyncio

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.bounded import BoundedStore
from holdfast.stores.faulty import FaultScript, FaultyStore
from holdfast.stores.measured import LatencyDigest, MeasuredStore, Operation, StoreTally
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import (
    Range,
    ShardExists,
    ShardMissing,
    StoreBusy,
    StoreFailed,
    StoreFull,
    StoreOverdue,
    StoreReadOnly,
)
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

T = 60.0
ALL = [Range(0, 4)]


def memory(latency_s: float = 0.0, seed: int = 1) -> MemoryStore:
    return MemoryStore(
        StoreId("m"),
        clock=VirtualClock(),
        randomness=SeededRandomness(seed),
        latency_s=(latency_s, latency_s),
    )


def scripted(script: FaultScript, inner: MemoryStore | None = None, seed: int = 2) -> FaultyStore:
    return FaultyStore(inner or memory(), script, clock=VirtualClock(), randomness=SeededRandomness(seed))


def now() -> float:
    return asyncio.get_running_loop().time()


class Deaf(MemoryStore):
    """Never answers, and does not listen to being cancelled until it is let go."""

    def __init__(self) -> None:
        super().__init__(StoreId("deaf"), clock=VirtualClock(), randomness=SeededRandomness(1))
        self.let_go = asyncio.Event()
        self.calls = 0

    async def size(self, name: str, *, timeout_s: float) -> int:
        self.calls += 1
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue
        return 1


# Bounded


async def test_bounded_keeps_the_deadline_of_a_store_that_does_not() -> None:
    deaf = Deaf()
    store = BoundedStore(deaf, width=1, waiting_max=10)
    with pytest.raises(StoreOverdue):
        await store.size("a", timeout_s=2.0)
    assert now() == pytest.approx(2.0)
    # The place stays taken until the call has really ended; waiting for it counts as time, too.
    with pytest.raises(StoreOverdue):
        await store.size("b", timeout_s=1.0)
    assert now() == pytest.approx(3.0)
    assert deaf.calls == 1
    deaf.let_go.set()
    assert await store.size("c", timeout_s=1.0) == 1
    assert deaf.calls == 2


async def test_bounded_lets_so_many_in_and_so_many_wait() -> None:
    store = BoundedStore(memory(latency_s=1.0), width=2, waiting_max=3)
    calls = [asyncio.ensure_future(store.put(f"b{number}", [b"x"], timeout_s=T)) for number in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(StoreBusy):
        await store.put("one-more", [b"x"], timeout_s=T)
    await asyncio.gather(*calls)
    assert now() == pytest.approx(3.0)
    assert await store.list("", limit=10, timeout_s=T) == [f"b{number}" for number in range(5)]


async def test_bounded_passes_the_turn_of_who_gave_up() -> None:
    store = BoundedStore(memory(latency_s=1.0), width=1, waiting_max=5)
    first = asyncio.ensure_future(store.size("a", timeout_s=T))
    second = asyncio.ensure_future(store.size("b", timeout_s=T))
    third = asyncio.ensure_future(store.put("c", [b"x"], timeout_s=T))
    await asyncio.sleep(0.5)
    second.cancel()
    assert await asyncio.gather(first, second, third, return_exceptions=True)
    assert now() == pytest.approx(2.0)
    assert third.exception() is None


async def test_bounded_fails_what_waits_and_what_runs_when_it_is_closed() -> None:
    store = BoundedStore(memory(latency_s=5.0), width=1, waiting_max=5)
    calls = [asyncio.ensure_future(store.size("a", timeout_s=T)) for _ in range(3)]
    await asyncio.sleep(0.5)
    await store.close()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [StoreFailed] * 3


# Faulty


async def test_a_script_without_faults_changes_nothing_and_may_change_at_any_time() -> None:
    script = FaultScript()
    store = scripted(script)
    await store.put("blob", [b"data"], timeout_s=T)
    script.vanished = True
    for call in (
        store.get("blob", ALL, timeout_s=T),
        store.probe(timeout_s=T),
        store.delete("b", timeout_s=T),
    ):
        with pytest.raises(StoreFailed):
            await call
    script.vanished = False
    assert await store.get("blob", ALL, timeout_s=T) == [b"data"]


async def test_delays_pass_and_those_beyond_the_time_out_are_overdue() -> None:
    script = FaultScript(delay_s=(2.0, 2.0))
    store = scripted(script)
    await store.put("blob", [b"data"], timeout_s=T)
    assert now() == pytest.approx(2.0)
    with pytest.raises(StoreOverdue):
        await store.get("blob", ALL, timeout_s=0.5)
    assert now() == pytest.approx(2.5)


async def test_a_put_that_is_overdue_lands_when_the_delay_is_over() -> None:
    store = scripted(FaultScript(put_delay_s=(3.0, 3.0)))
    buffer = bytearray(b"data")
    with pytest.raises(StoreOverdue):
        await store.put("blob", [buffer], timeout_s=1.0)
    buffer[:] = b"gone"
    with pytest.raises(ShardMissing):
        await store.get("blob", ALL, timeout_s=1.0)
    await asyncio.sleep(2.5)
    assert await store.get("blob", ALL, timeout_s=1.0) == [b"data"]


async def test_what_would_land_late_does_not_survive_a_crash() -> None:
    store = scripted(FaultScript(late=1.0, late_s=(1.0, 1.0)))
    with pytest.raises(StoreOverdue):
        await store.put("blob", [b"data"], timeout_s=1.0)
    store.crash()
    await asyncio.sleep(5.0)
    with pytest.raises(ShardMissing):
        await store.get("blob", ALL, timeout_s=T)


async def test_a_store_that_hangs_answers_nothing_by_the_time_out() -> None:
    store = scripted(FaultScript(hang=True))
    for call in (
        store.put("a", [b"x"], timeout_s=1.0),
        store.usage(timeout_s=1.0),
        store.probe(timeout_s=1.0),
    ):
        with pytest.raises(StoreOverdue):
            await call
    assert now() == pytest.approx(3.0)


async def test_full_and_read_only_stores_refuse_what_such_disks_refuse() -> None:
    script = FaultScript()
    store = scripted(script)
    await store.put("blob", [b"data"], timeout_s=T)
    script.full = True
    for call in (store.put("next", [b"x"], timeout_s=T), store.probe(timeout_s=T)):
        with pytest.raises(StoreFull):
            await call
    assert (await store.usage(timeout_s=T)).bytes_free == 0
    script.full, script.read_only = False, True
    for call in (
        store.put("next", [b"x"], timeout_s=T),
        store.delete("blob", timeout_s=T),
        store.probe(timeout_s=T),
    ):
        with pytest.raises(StoreReadOnly):
            await call
    assert await store.get("blob", ALL, timeout_s=T) == [b"data"]


async def test_errors_come_as_often_as_scripted() -> None:
    store = scripted(FaultScript(write_errors=0.3))
    ends = await asyncio.gather(
        *(store.put(f"{number}", [b"x"], timeout_s=T) for number in range(300)), return_exceptions=True
    )
    failed = {f"{number}" for number, end in enumerate(ends) if isinstance(end, StoreFailed)}
    assert 60 < len(failed) < 120
    names = set(await store.list("", limit=1000, timeout_s=T))
    assert names == {f"{number}" for number in range(300)} - failed


async def test_a_failing_sync_fails_the_put_whether_it_landed_or_not() -> None:
    script = FaultScript(sync_errors=1.0)
    store = scripted(script)
    for number in range(100):
        with pytest.raises(StoreFailed):
            await store.put(f"{number}", [b"x"], timeout_s=T)
    assert 20 < len(await store.list("", limit=1000, timeout_s=T)) < 80


async def test_one_bit_of_a_read_is_wrong_and_the_blob_is_not() -> None:
    script = FaultScript(flips=1.0)
    inner = memory()
    store = scripted(script, inner)
    await store.put("blob", [bytes(8)], timeout_s=T)
    assert store.peek("blob", ALL) is None
    found = b"".join(await store.get("blob", [Range(0, 4), Range(4, 4)], timeout_s=T))
    assert sum(byte.bit_count() for byte in found) == 1
    assert await inner.get("blob", [Range(0, 8)], timeout_s=T) == [bytes(8)]


async def test_lost_blobs_are_missing_everywhere_and_end_no_listing() -> None:
    script = FaultScript()
    store = scripted(script)
    for name in ("a", "b", "c"):
        await store.put(name, [b"data"], timeout_s=T)
    script.lost = {"a", "b"}
    assert await store.list("", limit=1, timeout_s=T) == ["c"]
    assert store.peek("a", ALL) is None
    with pytest.raises(ShardMissing):
        await store.get("a", ALL, timeout_s=T)
    with pytest.raises(ShardMissing):
        await store.size("b", timeout_s=T)


async def test_the_nth_call_fails_and_no_other() -> None:
    for at in range(5):
        script = FaultScript(fail_after=at)
        store = scripted(script)
        ends: list[BaseException | None] = []
        for number in range(5):
            ends += await asyncio.gather(store.put(f"{number}", [b"x"], timeout_s=T), return_exceptions=True)
        assert [type(end) for end in ends].index(StoreFailed) == at
        assert sum(end is not None for end in ends) == 1
        assert script.fail_after is None


async def test_the_same_seed_gives_the_same_faults() -> None:
    async def run(seed: int) -> list[str]:
        script = FaultScript(delay_s=(0.0, 1.0), read_errors=0.2, write_errors=0.2, late=0.1, flips=0.1)
        store, told = scripted(script, memory(latency_s=0.1), seed), []
        for number in range(100):
            for call in (
                store.put(f"{number}", [b"data"], timeout_s=0.8),
                store.get("1", ALL, timeout_s=0.8),
            ):
                end = (await asyncio.gather(call, return_exceptions=True))[0]
                told.append(type(end).__name__ if isinstance(end, HoldfastError) else str(end))
        return told

    assert await run(7) == await run(7) != await run(8)


# Measured


async def test_an_observer_hears_of_every_call_once_with_its_time() -> None:
    heard: list[tuple[str, Operation, float, int, str]] = []

    class Observer:
        def observed(
            self,
            store: StoreId,
            operation: Operation,
            seconds: float,
            bytes_moved: int,
            error: BaseException | None,
        ) -> None:
            heard.append((store, operation, round(seconds, 6), bytes_moved, type(error).__name__))

    store = MeasuredStore(memory(latency_s=0.5), Observer(), VirtualClock())
    await store.put("blob", [b"data", b"more"], timeout_s=T)
    await store.get("blob", ALL, timeout_s=T)
    await store.get("blob", ALL, timeout_s=T, uncached=True)
    with pytest.raises(StoreOverdue):
        await store.size("blob", timeout_s=0.2)
    cancelled = asyncio.ensure_future(store.usage(timeout_s=T))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert store.peek("blob", ALL) is None
    await store.delete("blob", timeout_s=T)
    await store.list("", limit=1, timeout_s=T)
    await store.probe(timeout_s=T)
    assert heard == [
        ("m", Operation.PUT, 0.5, 8, "NoneType"),
        ("m", Operation.GET, 0.5, 4, "NoneType"),
        ("m", Operation.GET_UNCACHED, 0.5, 4, "NoneType"),
        ("m", Operation.SIZE, 0.2, 0, "StoreOverdue"),
        ("m", Operation.USAGE, 0.1, 0, "CancelledError"),
        ("m", Operation.DELETE, 0.5, 0, "NoneType"),
        ("m", Operation.LIST, 0.5, 0, "NoneType"),
        ("m", Operation.PROBE, 0.5, 0, "NoneType"),
    ]


async def test_a_tally_tells_answers_errors_and_cancellations_apart() -> None:
    tally = StoreTally()
    store = MeasuredStore(memory(latency_s=0.5), tally, VirtualClock())
    await store.put("blob", [b"data"], timeout_s=T)
    for call in (store.put("blob", [b"x"], timeout_s=T), store.put("b", [b"x"], timeout_s=0.1)):
        with pytest.raises((ShardExists, StoreOverdue)):
            await call
    cancelled = asyncio.ensure_future(store.put("c", [b"x"], timeout_s=T))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    puts = tally.of(Operation.PUT)
    assert (puts.attempts, puts.successes, puts.errors, puts.cancelled) == (4, 2, 1, 1)
    assert puts.by_error == {"ShardExists": 1, "StoreOverdue": 1}
    assert puts.bytes_moved == 4


def test_quantiles_are_within_a_fifth_of_the_truth() -> None:
    digest = LatencyDigest()
    assert digest.quantile(0.5) == 0.0
    for number in range(1, 1001):
        digest.add(number / 1000)
    for fraction in (0.01, 0.5, 0.9, 0.99, 1.0):
        assert fraction <= digest.quantile(fraction) <= fraction * 1.2
    digest.add(1000.0)
    assert digest.quantile(1.0) == float("inf")
    digest.add(0.0)
    assert digest.quantile(0.0) <= 1e-6
    assert digest.count == 1002


# Memory under a power cut


async def test_a_power_cut_leaves_open_what_had_not_returned_and_keeps_what_had() -> None:
    landed = set()
    for seed in range(40):
        store = memory(latency_s=1.0)
        await store.put("acknowledged", [b"data"], timeout_s=T)
        put = asyncio.ensure_future(store.put("under-way", [b"data"], timeout_s=T))
        delete = asyncio.ensure_future(store.delete("acknowledged", timeout_s=T))
        await asyncio.sleep(0.5)
        store.crash(SeededRandomness(seed))
        ends = await asyncio.gather(put, delete, return_exceptions=True)
        assert [type(end) for end in ends] == [StoreFailed, StoreFailed]
        landed.add(tuple(await store.list("", limit=10, timeout_s=T)))
    assert landed == {(), ("acknowledged",), ("under-way",), ("acknowledged", "under-way")}


async def test_a_sync_that_lies_makes_even_what_had_returned_uncertain_until_it_settles() -> None:
    seen = set()
    for seed in range(20):
        store = memory()
        store.sync_lies = True
        await store.put("settled", [b"data"], timeout_s=T)
        store.settle()
        await store.put("cached", [b"data"], timeout_s=T)
        await store.delete("settled", timeout_s=T)
        store.crash(SeededRandomness(seed))
        seen.add(tuple(await store.list("", limit=10, timeout_s=T)))
    assert seen == {(), ("cached",), ("settled",), ("cached", "settled")}


async def test_a_lost_disk_is_empty_and_a_damaged_blob_differs_by_its_mask() -> None:
    store = memory()
    await store.put("blob", [bytes(4)], timeout_s=T)
    store.damage("blob", 2, 0x80)
    assert await store.get("blob", ALL, timeout_s=T) == [b"\0\0\x80\0"]
    free = (await store.usage(timeout_s=T)).bytes_free
    store.wipe()
    assert await store.list("", limit=10, timeout_s=T) == []
    assert (await store.usage(timeout_s=T)).bytes_free == free + 4


async def test_puts_under_way_take_room() -> None:
    store = MemoryStore(
        StoreId("m"),
        clock=VirtualClock(),
        randomness=SeededRandomness(1),
        bytes_capacity=10,
        latency_s=(1.0, 1.0),
    )
    first = asyncio.ensure_future(store.put("a", [bytes(6)], timeout_s=T))
    await asyncio.sleep(0)
    with pytest.raises(StoreFull):
        await store.put("b", [bytes(6)], timeout_s=T)
    await first
    with pytest.raises(StoreOverdue):
        await store.put("c", [b"x"], timeout_s=0.5)
    assert await store.list("", limit=10, timeout_s=T) == ["a"]

"""Large bodies: memory is bounded, digests keep pace, failure leaves no task, no memory and no row."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from holdfast.base.checksums import Buffer, ChecksumAlgorithm, new_hasher
from holdfast.base.clock import SystemClock
from holdfast.base.errors import Busy, Unavailable
from holdfast.objects.digests import BEHIND_BYTES_MAX, STEP_BYTES, RunningDigests
from holdfast.objects.errors import TooBusy
from holdfast.objects.model import ExpectedDigests, PutObject
from holdfast.objects.settings import ObjectsLimits
from holdfast.objects.turns import ByteBudget, Turns
from holdfast.packs.model import PACK_BYTES_MAX
from tests.kit.objects import BUCKET, BytesBody, Desk
from tests.kit.virtual import VirtualClock

MIB = 1 << 20


def put(key: str, body: object) -> PutObject:
    return PutObject(bucket=BUCKET, key=key, body=body)  # type: ignore[arg-type]


async def ready(clock: object, inflight_bytes: int = 3 * PACK_BYTES_MAX) -> Desk:
    desk = Desk(clock, limits=ObjectsLimits(hashing_threads=0, inflight_bytes=inflight_bytes))  # type: ignore[arg-type]
    return await desk.bucket()


@pytest.mark.virtual
async def test_a_body_holds_no_more_memory_than_its_packs_under_way() -> None:
    desk = await ready(VirtualClock(), 10 * PACK_BYTES_MAX)
    budget = desk.objects._context.budget
    lowest = budget.free
    under_way: list[asyncio.Future[None]] = []

    def gate() -> asyncio.Future[None]:
        nonlocal lowest
        lowest = min(lowest, budget.free)
        under_way.append(asyncio.get_running_loop().create_future())
        asyncio.get_running_loop().call_later(1.0, under_way[-1].set_result, None)
        return under_way[-1]

    desk.packs.write_gate = gate
    total = budget.free
    await desk.objects.put_object(put("key", BytesBody(bytes(5 * PACK_BYTES_MAX), step=MIB)))
    assert desk.packs.writing_most == 2
    assert total - lowest <= 3 * PACK_BYTES_MAX
    assert budget.free == total
    assert len(under_way) == 6


@pytest.mark.virtual
async def test_bodies_that_do_not_fit_wait_their_turn_and_are_told_when_it_does_not_come() -> None:
    desk = await ready(VirtualClock(), PACK_BYTES_MAX)
    held = asyncio.get_running_loop().create_future()
    desk.packs.write_gate = lambda: held
    first = asyncio.create_task(desk.objects.put_object(put("a", BytesBody(bytes(PACK_BYTES_MAX)))))
    second = asyncio.create_task(desk.objects.put_object(put("b", BytesBody(bytes(MIB)))))
    with pytest.raises(TooBusy):
        await second
    small = await desk.put("small", b"goes on")
    assert small.size == 7
    third = asyncio.create_task(desk.objects.put_object(put("c", BytesBody(bytes(MIB)))))
    await VirtualClock().sleep(1)
    held.set_result(None)
    await asyncio.gather(first, third)
    assert desk.objects._context.budget.free == PACK_BYTES_MAX


class Hanging:
    """A client that stops sending."""

    length = 3 * PACK_BYTES_MAX
    algorithm = None

    def expected(self) -> object:
        raise AssertionError("the body has not ended")

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for _ in range(2 * PACK_BYTES_MAX // MIB + 1):
            yield bytes(MIB)
        await asyncio.Event().wait()


@pytest.mark.virtual
@pytest.mark.parametrize("why", ["cancelled", "stores", "client"])
async def test_a_large_put_that_fails_leaves_no_task_no_memory_and_no_row(why: str) -> None:
    desk = await ready(VirtualClock())
    budget = desk.objects._context.budget
    total = budget.free
    if why == "cancelled":
        task = asyncio.create_task(desk.objects.put_object(put("key", Hanging())))
        await VirtualClock().sleep(1)
        assert budget.free < total
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif why == "stores":
        desk.packs.broken = 1
        with pytest.raises(Unavailable):
            await desk.objects.put_object(put("key", BytesBody(bytes(3 * PACK_BYTES_MAX), step=MIB)))
    else:
        body = BytesBody(bytes(3 * PACK_BYTES_MAX), step=MIB, fail_after=2 * PACK_BYTES_MAX + 5)
        with pytest.raises(ConnectionError):
            await desk.objects.put_object(put("key", body))
    assert budget.free == total
    assert len(asyncio.all_tasks()) == 1
    assert not await desk.rows(b"pack/")
    assert not await desk.rows(b"head/")
    await desk.put("key", b"fine")


class Slow:
    """A client that pauses before some of its pieces."""

    algorithm = None

    def __init__(self, data: bytes, pauses: dict[int, Callable[[], Awaitable[object]]], step: int) -> None:
        self._data = data
        self._pauses = pauses
        self._step = step
        self.length = len(data)

    def expected(self) -> ExpectedDigests:
        return ExpectedDigests()

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for number, at in enumerate(range(0, len(self._data), self._step)):
            if number in self._pauses:
                await self._pauses[number]()
            yield self._data[at : at + self._step]


def some(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(1009) * (size // 1009 + 1)


@pytest.mark.virtual
async def test_clients_that_stop_sending_hold_no_memory_that_others_wait_for() -> None:
    desk = await ready(VirtualClock(), PACK_BYTES_MAX)
    budget = desk.objects._context.budget
    total = budget.free
    going = asyncio.Event()
    bodies = {f"slow{n}": some(n, 5 * MIB) for n in range(10)}
    stopped = [
        asyncio.create_task(desk.objects.put_object(put(key, Slow(body, {6: going.wait}, MIB // 2))))
        for key, body in bodies.items()
    ]
    await VirtualClock().sleep(1)
    assert not any(task.done() for task in stopped)
    good = some(99, PACK_BYTES_MAX)
    await desk.objects.put_object(put("good", BytesBody(good, step=MIB)))
    assert await desk.get("good") == good
    going.set()
    await asyncio.gather(*stopped)
    for key, body in bodies.items():
        assert await desk.get(key) == body
    assert budget.free == total
    assert not budget.asked
    await desk.audit()


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(4))
async def test_many_slow_clients_get_through_with_little_memory(seed: int) -> None:
    chance = random.Random(seed)
    clock = VirtualClock()
    desk = await ready(clock, PACK_BYTES_MAX)

    def gate() -> asyncio.Future[None]:
        written = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(chance.random() / 50, written.set_result, None)
        return written

    desk.packs.write_gate = gate
    bodies = {f"key{n}": some(n, chance.randrange(2 * MIB, 8 * MIB)) for n in range(10)}
    await asyncio.gather(
        *(
            desk.objects.put_object(
                put(
                    key,
                    Slow(
                        body,
                        {n: partial(clock.sleep, chance.random()) for n in range(chance.randrange(20))},
                        chance.randrange(100_000, 2 * MIB),
                    ),
                )
            )
            for key, body in bodies.items()
        )
    )
    for key, body in bodies.items():
        assert await desk.get(key) == body
    assert desk.objects._context.budget.free == PACK_BYTES_MAX
    await desk.audit()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("step", [100_000, MIB, 7 * MIB + 1])
async def test_running_digests_are_those_of_the_whole(threads: int, step: int) -> None:
    data = bytes(range(251)) * 50_000
    algorithms = (ChecksumAlgorithm.CRC64NVME, ChecksumAlgorithm.SHA1)
    with ThreadPoolExecutor(2) as pool:
        running = RunningDigests(algorithms, pool if threads else None, SystemClock())
        for start in range(0, len(data), step):
            await running.feed(data[start : start + step])
            assert running._pending_bytes < BEHIND_BYTES_MAX + max(step, STEP_BYTES)
        sums = await running.finish()
    assert sums.md5 == hashlib.md5(data).digest()
    for algorithm in algorithms:
        hasher = new_hasher(algorithm)
        hasher.update(data)
        assert sums.checksum(algorithm).value == hasher.digest()


@pytest.mark.virtual
async def test_a_budget_is_handed_out_in_order_and_survives_cancellation() -> None:
    budget = ByteBudget(10, 5.0)
    await budget.take(8)
    order: list[int] = []

    async def take(size: int) -> None:
        await budget.take(size)
        order.append(size)

    waiting = [asyncio.create_task(take(size)) for size in (5, 2, 3)]
    await VirtualClock().sleep(1)
    assert order == [], "a small one does not overtake a large one for ever"
    waiting[0].cancel()
    await VirtualClock().sleep(1)
    assert order == [2]
    budget.give(8)
    await asyncio.gather(*waiting[1:])
    assert (order, budget.free) == ([2, 3], 5)
    with pytest.raises(TooBusy):
        await budget.take(6)
    assert budget.free == 5
    granted = asyncio.create_task(budget.take(6))
    await VirtualClock().sleep(0)
    budget.give(5)
    granted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await granted
    assert budget.free == 10


@pytest.mark.virtual
async def test_turns_are_taken_one_after_the_other_and_forgotten_afterwards() -> None:
    turns = Turns(1.0)
    inside = most = 0

    async def once() -> None:
        nonlocal inside, most
        async with turns.take(b"key"):
            inside += 1
            most = max(most, inside)
            await VirtualClock().sleep(0.1)
            inside -= 1

    results = await asyncio.gather(*(once() for _ in range(15)), return_exceptions=True)
    assert most == 1
    assert [type(result) for result in results if result is not None] == [Busy] * 5
    assert not turns.hot(b"key")

"""Which gets of many callers become one question to etcd, and how long one waits for the company."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from holdfast.base.errors import Unavailable
from holdfast.index.etcd.reading import BESIDE_AFTER_S, KEYS_AT_ONCE, Reader
from holdfast.index.etcd.schema import Keys, Known, Meta
from holdfast.index.port import Row

pytestmark = pytest.mark.virtual

AT_ONCE = 3


class Etcd:
    """Answers a question when told to, and keeps how many keys each was for."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[None]] = []
        self.sizes: list[int] = []

    async def call(self, method: str, request: bytes, read: Callable[[bytes], Any]) -> Any:
        answered = asyncio.get_running_loop().create_future()
        self.asked.append(answered)
        self.sizes.append(request.count(b"key-"))
        await answered
        return (1, {}), False


def reader(etcd: Etcd) -> Reader:
    return Reader(etcd, Keys("test"), Known(Meta(1, "this"), 1), AT_ONCE)  # type: ignore[arg-type]


def get(reading: Reader, keys: Sequence[bytes]) -> asyncio.Task[list[Row | None]]:
    return asyncio.create_task(reading.get(keys))


async def turns() -> None:
    """Let everything run that can without time going by."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_while_one_is_under_way_goes_together_as_soon_as_it_ends() -> None:
    etcd = Etcd()
    reading = reader(etcd)
    gets = [get(reading, [b"key-0"])]
    await turns()
    assert etcd.sizes == [1], "alone, it waits for nobody"
    gets += [get(reading, [b"key-%d" % number]) for number in range(1, 6)]
    await turns()
    assert etcd.sizes == [1]
    etcd.asked[0].set_result(None)
    await turns()
    assert etcd.sizes == [1, 5]
    etcd.asked[1].set_result(None)
    assert await asyncio.gather(*gets) == [[None]] * 6
    await reading.close()


async def test_nobody_waits_long_for_one_that_is_slow() -> None:
    etcd = Etcd()
    reading = reader(etcd)
    loop = asyncio.get_running_loop()
    gets = [get(reading, [b"key-0"])]
    await turns()
    for more in range(1, AT_ONCE):
        began = loop.time()
        gets += [get(reading, [b"key-%d" % more]), get(reading, [b"key-0%d" % more])]
        await asyncio.sleep(BESIDE_AFTER_S * 0.9)
        assert len(etcd.sizes) == more
        await asyncio.sleep(BESIDE_AFTER_S * 0.2)
        assert etcd.sizes[more] == 2, f"both, {loop.time() - began} s after they came"
    gets.append(get(reading, [b"key-9"]))
    await asyncio.sleep(100 * BESIDE_AFTER_S)
    assert len(etcd.sizes) == AT_ONCE, "there are no more places"
    etcd.asked[1].set_result(None)
    await asyncio.sleep(BESIDE_AFTER_S * 1.1)
    assert len(etcd.sizes) == AT_ONCE + 1
    for asked in etcd.asked:
        if not asked.done():
            asked.set_result(None)
    assert await asyncio.gather(*gets) == [[None]] * len(gets)
    await reading.close()


async def test_as_much_as_one_question_holds_does_not_wait() -> None:
    etcd = Etcd()
    reading = reader(etcd)
    many = [b"key-%d" % number for number in range(KEYS_AT_ONCE // 2)]
    gets = [get(reading, [b"key-alone"])]
    await turns()
    gets.append(get(reading, many))
    await turns()
    assert etcd.sizes == [1]
    gets.append(get(reading, [b"key-x%d" % number for number in range(KEYS_AT_ONCE // 2)]))
    await turns()
    assert etcd.sizes == [1, KEYS_AT_ONCE]
    for asked in etcd.asked:
        asked.set_result(None)
    assert [len(rows) for rows in await asyncio.gather(*gets)] == [1, len(many), len(many)]
    await reading.close()


async def test_whoever_waits_when_it_is_closed_is_told() -> None:
    etcd = Etcd()
    reading = reader(etcd)
    gets = [get(reading, [b"key-0"]), get(reading, [b"key-1"])]
    await turns()
    await reading.close()
    for task in gets:
        with pytest.raises(Unavailable):
            await task
    await asyncio.sleep(10 * BESIDE_AFTER_S)
    assert len(etcd.sizes) == 1

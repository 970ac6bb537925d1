"""A batch of gets: who is asked, who is believed, and whose copy is thrown away."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from holdfast.index.port import Row
from holdfast.index.sqlite.copy_batch import Batch, Get
from holdfast.index.sqlite.copy_place import Copy, CopyOptions

T = TypeVar("T")
HEDGE_S = 0.1


class Reading:
    """A copy's reader and its runner: answers when it is told to, with the rows it has."""

    def __init__(self, *has: bytes) -> None:
        self._has = has
        self._asked: list[tuple[Callable[[], object], asyncio.Future[object]]] = []

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        return [Row(key, b"value", 1) if key in self._has else None for key in keys]

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append((call, future))  # type: ignore[arg-type]
        return future

    @property
    def asked(self) -> int:
        return len(self._asked)

    async def answer(self) -> None:
        call, future = self._asked.pop(0)
        future.set_result(call())
        await asyncio.sleep(0)


class TwoCopies:
    """What a batch is told of two copies, and tells of them."""

    options = CopyOptions(hedge_s=HEDGE_S)

    def __init__(self, first: Reading, second: Reading) -> None:
        self.readings = first, second
        self.copies = [self._copy(reading) for reading in self.readings]
        self.serving: Copy | None = self.copies[0]
        self.thrown_away: list[tuple[int, str]] = []
        self.found: dict[bytes, Row | None] | None = None

    @staticmethod
    def _copy(reading: Reading) -> Copy:
        copy = Copy.__new__(Copy)
        copy.slow_since = None
        copy.reader = copy.reading = reading  # type: ignore[assignment]
        return copy

    def ready(self) -> list[Copy]:
        return [copy for n, copy in enumerate(self.copies) if n not in dict(self.thrown_away)]

    def overdue(self, copy: Copy) -> None:
        copy.slow_since = 0.0

    def discard(self, copy: Copy, reason: str) -> None:
        self.thrown_away.append((self.copies.index(copy), reason))

    def stall(self, batch: list[Get]) -> None:
        raise AssertionError("there are two")

    def finish(self, batch: list[Get], found: dict[bytes, Row | None]) -> None:
        self.found = found

    def values(self) -> dict[bytes, bool]:
        assert self.found is not None
        return {key: row is not None for key, row in self.found.items()}


def asked(copies: TwoCopies, *keys: bytes) -> Batch:
    batch = Batch(copies, [], list(keys), 100.0)
    batch.ask()
    return batch


@pytest.mark.virtual
async def test_an_absence_needs_a_second_opinion_and_a_row_does_not() -> None:
    copies = TwoCopies(Reading(b"a"), Reading(b"a"))
    first, second = copies.readings
    asked(copies, b"a", b"b")
    await first.answer()
    assert copies.found is None
    await second.answer()
    assert copies.values() == {b"a": True, b"b": False}
    asked(copies, b"a")
    await first.answer()
    assert copies.values() == {b"a": True}
    assert second.asked == 0
    assert copies.thrown_away == []


@pytest.mark.virtual
async def test_a_copy_that_lost_a_row_which_another_has_is_thrown_away() -> None:
    copies = TwoCopies(Reading(b"a"), Reading(b"a", b"b"))
    first, second = copies.readings
    asked(copies, b"a", b"b")
    await first.answer()
    await second.answer()
    assert copies.values() == {b"a": True, b"b": True}
    assert copies.thrown_away == [(0, "row b'b' was missing")]


@pytest.mark.virtual
async def test_one_that_is_late_with_its_answer_condemns_nobody_for_rows_that_both_have() -> None:
    """It was asked for everything, and says so; the other had been asked meanwhile, and had answered."""
    copies = TwoCopies(Reading(b"a"), Reading(b"a"))
    first, second = copies.readings
    third = Reading(b"a")
    copies.copies.append(copies._copy(third))
    asked(copies, b"a", b"b")
    await asyncio.sleep(1.5 * HEDGE_S)
    await second.answer()
    assert third.asked == 1, "for an opinion on what is absent"
    await first.answer()
    assert copies.values() == {b"a": True, b"b": False}
    assert copies.thrown_away == []

"""The memory index beyond the port: faults on command, crashes, and being away."""

import asyncio

import pytest

from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.index.memory import Fault, MemoryIndex, MemoryRows, Mishap
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, IndexState, Row, Transaction, Unknown
from tests.kit.virtual import VirtualClock


def put(key: bytes, value: bytes) -> Transaction:
    return Transaction((Expect(key, ABSENT),), ((key, value),))


@pytest.mark.virtual
async def test_a_fault_is_used_up_by_one_commit_and_does_what_it_says() -> None:
    index = MemoryIndex(VirtualClock())
    index.faults.extend([Fault(Mishap.APPLIED), Fault(Mishap.NOT_APPLIED), Fault(Mishap.UNAVAILABLE)])
    assert isinstance((await index.commit([put(b"a", b"1")]))[0], Unknown)
    assert isinstance((await index.commit([put(b"b", b"1")]))[0], Unknown)
    with pytest.raises(Unavailable):
        await index.commit([put(b"c", b"1")])
    assert await index.get([b"a", b"b", b"c"]) == [Row(b"a", b"1", 1), None, None]
    assert await index.commit([put(b"a", b"2"), put(b"b", b"2")]) == [Conflict(b"a"), Committed(2)]


@pytest.mark.virtual
async def test_what_is_applied_later_is_decided_later() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    index.faults.extend([Fault(Mishap.APPLIED_LATER, 5.0), Fault(Mishap.APPLIED_LATER, 5.0)])
    assert isinstance((await index.commit([put(b"a", b"late")]))[0], Unknown)
    assert isinstance((await index.commit([put(b"b", b"late")]))[0], Unknown)
    assert await index.commit([put(b"a", b"resolved")]) == [Committed(1)]
    await clock.sleep(6)
    assert await index.get([b"a", b"b"]) == [Row(b"a", b"resolved", 1), Row(b"b", b"late", 2)]
    await index.close()


@pytest.mark.virtual
async def test_a_cancelled_commit_may_still_be_applied() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock, commit_delay_s=0.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await index.commit([put(b"a", b"1")])
    assert await index.get([b"a"]) == [None]
    await clock.sleep(1)
    assert await index.get([b"a"]) == [Row(b"a", b"1", 1)]


@pytest.mark.virtual
async def test_whoever_opens_the_rows_fences_whoever_had_them() -> None:
    clock, rows = VirtualClock(), MemoryRows()
    old = MemoryIndex(clock, rows, commit_delay_s=0.5)
    under_way = asyncio.ensure_future(old.commit([put(b"a", b"old")]))
    await clock.sleep(0.1)
    new = MemoryIndex(clock, rows)
    with pytest.raises(Fenced):
        await old.get([b"a"])
    assert isinstance((await under_way)[0], Unknown)
    assert await new.commit([put(b"a", b"new")]) == [Committed(1)]
    assert (old.status().state, new.status().state) == (IndexState.FENCED, IndexState.SERVING)


@pytest.mark.virtual
async def test_closing_answers_what_is_under_way_as_unknown() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock, commit_delay_s=10)
    under_way = asyncio.ensure_future(index.commit([put(b"a", b"1")]))
    await clock.sleep(0.1)
    await index.close()
    assert isinstance((await under_way)[0], Unknown)


@pytest.mark.virtual
async def test_while_away_nothing_is_answered() -> None:
    index = MemoryIndex(VirtualClock())
    index.away = True
    for call in (index.get([b"a"]), index.commit([put(b"a", b"1")]), index.acquire("n", "h", ttl_s=1)):
        with pytest.raises(Unavailable):
            await call
    index.away = False
    assert await index.commit([put(b"a", b"1")]) == [Committed(1)]


@pytest.mark.virtual
async def test_the_feed_reaches_back_as_far_as_its_history() -> None:
    index = MemoryIndex(VirtualClock(), MemoryRows(changes_max=3))
    await index.commit([put(b"%d" % n, b"") for n in range(5)])
    assert [change.revision async for change, _ in _some(index, 2, 3)] == [3, 4, 5]
    with pytest.raises(InvalidInput):
        await anext(index.changes(1))


async def _some(index: MemoryIndex, after: int, count: int):  # type: ignore[no-untyped-def]
    async for change in index.changes(after):
        count -= 1
        yield change, count
        if not count:
            return


@pytest.mark.virtual
async def test_a_lease_whose_grant_is_unknown_is_asked_for_again() -> None:
    index = MemoryIndex(VirtualClock())
    index.faults.extend([Fault(Mishap.APPLIED), Fault(Mishap.NOT_APPLIED)])
    lease = await index.acquire("chores", "me", ttl_s=1)
    assert lease is not None
    assert lease.token == 2
    index.faults.extend([Fault(Mishap.APPLIED)] * 3)
    with pytest.raises(Unavailable):
        await index.acquire("other", "me", ttl_s=1)

"""Load on an index that counts: whatever was acknowledged must be there at the end, once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.index.port import ABSENT, Change, Committed, Expect, Index, Transaction


class Writer:
    """Counts up in a row of its own, one commit after the other, and knows what was acknowledged."""

    def __init__(self, index: Index, number: int) -> None:
        self._index = index
        self.key = b"writer/%d" % number
        self.acknowledged = 0
        self._moved = asyncio.Event()

    async def run(self, going: asyncio.Event) -> None:
        revision = ABSENT
        while going.is_set():
            value = b"%d" % (self.acknowledged + 1)
            put = Transaction((Expect(self.key, revision),), ((self.key, value),))
            (outcome,) = await self._index.commit([put])
            assert isinstance(outcome, Committed), outcome
            revision = outcome.revision
            self.acknowledged += 1
            self._moved.set()

    async def wait_for(self, count: int) -> None:
        """Until so many were acknowledged."""
        while self.acknowledged < count:
            self._moved.clear()
            await self._moved.wait()


@asynccontextmanager
async def under_load(index: Index, writers: int = 6, first: int = 0) -> AsyncIterator[list[Writer]]:
    """Writers that go on; at the end every one of them has gone on since, and nothing is lost or doubled."""
    going = asyncio.Event()
    going.set()
    all_writers = [Writer(index, number) for number in range(first, first + writers)]
    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        for writer in all_writers:
            tasks.create_task(writer.run(going))
        await asyncio.gather(*[writer.wait_for(20) for writer in all_writers])
        yield all_writers
        await asyncio.gather(*[writer.wait_for(writer.acknowledged + 20) for writer in all_writers])
        going.clear()
    rows = await index.get([writer.key for writer in all_writers])
    assert [row and int(row.value) for row in rows] == [writer.acknowledged for writer in all_writers]


async def first_changes(index: Index, count: int) -> AsyncIterator[Change]:
    """So many of the feed, from its beginning."""
    async for change in index.changes(0):
        yield change
        count -= 1
        if not count:
            return

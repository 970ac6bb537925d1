"""The active's commits as they come, and the bytes of the packs that they make known, ahead of them.

A bounded number of commits is read ahead of those that were applied. For each pack that one of them makes
known a task copies the bytes at once, several side by side; whoever applies the commit waits for just that
one."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.base.ids import PackId
from holdfast.index.port import Change
from holdfast.packs.rows import decode_row
from holdfast.sites.landing import Landed, Landing
from holdfast.sites.rows import PACKS, pack_of
from holdfast.sites.source import Source

AHEAD_MAX = 512
PACKS_AT_ONCE = 4
"""Bounds what copies hold in memory: about twice the largest pack each."""


class FeedCut(InvalidInput):
    """The feed does not reach back to where we are."""


class PackFetcher:
    """Copies packs, each once, until it is told to forget one."""

    def __init__(self, source: Source, landing: Landing) -> None:
        self._source = source
        self._landing = landing
        self._turns = asyncio.Semaphore(PACKS_AT_ONCE)
        self._tasks: dict[PackId, asyncio.Task[Landed | None]] = {}
        self._sizes: dict[PackId, int] = {}

    @property
    def bytes_awaited(self) -> int:
        """Of packs that are not durable here yet."""
        return sum(self._sizes[pack] for pack, task in self._tasks.items() if not task.done())

    def begin(self, pack: PackId, size: int) -> None:
        """Copy a pack, unless that was begun."""
        if pack not in self._tasks:
            self._sizes[pack] = size
            task = asyncio.get_running_loop().create_task(self._copy(pack))
            task.add_done_callback(_seen)
            self._tasks[pack] = task

    async def landed(self, pack: PackId, size: int) -> Landed | None:
        """The pack once it is durable here; None when the active has it no more."""
        self.begin(pack, size)
        try:
            return await asyncio.shield(self._tasks[pack])
        except BaseException:
            # What failed is begun anew by whoever asks again.
            if self._tasks[pack].done():
                self.forget(pack)
            raise

    def forget(self, pack: PackId) -> None:
        """It is known now, or nobody will ask for it."""
        self._sizes.pop(pack, None)
        if (task := self._tasks.pop(pack, None)) is not None and not task.done():
            task.cancel()

    async def _copy(self, pack: PackId) -> Landed | None:
        async with self._turns:
            copy = await self._source.pack(pack)
            return None if copy is None else await self._landing.land(pack, copy)

    async def close(self) -> None:
        """Stop; what was begun and is not known is left to the search for strays."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _seen(task: asyncio.Task[Landed | None]) -> None:
    """Whoever waits for the pack is told; nobody may ever wait for it."""
    if not task.cancelled():
        task.exception()


class Feed:
    """Commits after `after`, read ahead. `covers` says which keys are worth copying bytes for."""

    def __init__(
        self, source: Source, after: int, fetcher: PackFetcher, covers: Callable[[bytes], bool]
    ) -> None:
        self._source = source
        self._fetcher = fetcher
        self._covers = covers
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self.ahead: deque[Change] = deque()
        """What is to be applied; whoever has applied it takes it away, and calls `taken`."""
        self._task = asyncio.get_running_loop().create_task(self._read(after))

    def check(self) -> None:
        """Raises what ended the feed, once all that came before was taken."""
        if self._task.done() and not self.ahead:
            self._task.result()
            raise Unavailable("The active site tells of no more changes.", hint="It is asked again.")

    async def wait(self) -> None:
        """Until there is something, or the feed has ended."""
        while not self.ahead:
            self.check()
            self._news.clear()
            await self._news.wait()

    def taken(self) -> None:
        """There is room again."""
        self._room.set()

    async def close(self) -> None:
        """Stop reading."""
        self._task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._task

    async def _read(self, after: int) -> None:
        changes = self._source.changes(after)
        try:
            async for change in changes:
                while len(self.ahead) >= AHEAD_MAX:
                    self._room.clear()
                    await self._room.wait()
                buried = set(change.deletes)
                for key, value in change.puts:
                    if key.startswith(PACKS) and key not in buried and self._covers(key):
                        self._fetcher.begin(pack_of(key), decode_row(value).payload_bytes)
                self.ahead.append(change)
                self._news.set()
        except InvalidInput as error:
            raise FeedCut(error.message, hint=error.hint) from error
        finally:
            self._news.set()
            if isinstance(changes, AsyncGenerator):
                await changes.aclose()

"""A store that keeps to its deadline and its width, whatever the store behind it does.

Each call runs in a task of its own, at most `width` at once, a bounded number waiting in the order they
came. When the time is up the caller is answered with StoreOverdue at once; the task is cancelled, and
its place is taken until it has really ended, so that a store that hangs is not fed with ever more
calls. Time spent waiting counts.

For stores that cannot keep time themselves (a network client, a script of faults). DirectoryStore can,
and is faster without this.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from holdfast.base.checksums import Buffer
from holdfast.base.ids import StoreId
from holdfast.stores.port import Range, Store, StoreBusy, StoreFailed, StoreOverdue, Usage

T = TypeVar("T")


class BoundedStore:
    """`inner` with at most `width` calls under way and `waiting_max` waiting."""

    def __init__(self, inner: Store, *, width: int, waiting_max: int) -> None:
        assert width >= 1
        assert waiting_max >= 0
        self._inner = inner
        self._width = width
        self._waiting_max = waiting_max
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._promised = 0
        self._closed = False

    @property
    def id(self) -> StoreId:
        return self._inner.id

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        await self._bounded(
            lambda left_s: self._inner.put(name, data, timeout_s=left_s, reserve_share=reserve_share),
            timeout_s,
        )

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        return await self._bounded(
            lambda left_s: self._inner.get(name, ranges, timeout_s=left_s, uncached=uncached), timeout_s
        )

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """Takes no place: it cannot wait."""
        return None if self._closed else self._inner.peek(name, ranges)

    async def size(self, name: str, *, timeout_s: float) -> int:
        return await self._bounded(lambda left_s: self._inner.size(name, timeout_s=left_s), timeout_s)

    async def delete(self, name: str, *, timeout_s: float) -> None:
        await self._bounded(lambda left_s: self._inner.delete(name, timeout_s=left_s), timeout_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        return await self._bounded(
            lambda left_s: self._inner.list(after, limit=limit, timeout_s=left_s), timeout_s
        )

    async def usage(self, *, timeout_s: float) -> Usage:
        return await self._bounded(lambda left_s: self._inner.usage(timeout_s=left_s), timeout_s)

    async def probe(self, *, timeout_s: float) -> None:
        await self._bounded(lambda left_s: self._inner.probe(timeout_s=left_s), timeout_s)

    async def close(self) -> None:
        self._closed = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(self._closed_error())
        self._waiting.clear()
        for task in tuple(self._tasks):
            task.cancel()
        await self._inner.close()

    async def _bounded(self, call: Callable[[float], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        if self._closed:
            raise self._closed_error()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self._place(deadline, timeout_s)
        left_s = deadline - loop.time()
        task = loop.create_task(self._call(call, left_s))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait((task,), timeout=left_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            if task.cancelled():  # by `close`
                raise self._closed_error()
            return task.result()
        task.cancel()
        raise self._overdue(timeout_s)

    async def _call(self, call: Callable[[float], Coroutine[Any, Any, T]], left_s: float) -> T:
        return await call(left_s)

    async def _place(self, deadline: float, timeout_s: float) -> None:
        """Wait for a place among the `width`."""
        if not self._waiting and len(self._tasks) + self._promised < self._width:
            return
        if len(self._waiting) >= self._waiting_max:
            raise StoreBusy(
                f"Store {self.id} has {self._width} calls under way and {self._waiting_max} waiting.",
                store=self.id,
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = loop.call_at(deadline, _expire, turn, self._overdue(timeout_s))
        try:
            await turn
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                # Cancelled after it had been given the place: pass it on.
                self._promised -= 1
                self._pass_on()
            raise
        finally:
            timer.cancel()
        self._promised -= 1

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # of an overdue call: its caller was answered, nobody else waits for it
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and len(self._tasks) + self._promised < self._width:
            turn = self._waiting.popleft()
            if not turn.done():
                self._promised += 1
                turn.set_result(None)

    def _overdue(self, timeout_s: float) -> StoreOverdue:
        return StoreOverdue(f"Store {self.id} did not answer in {timeout_s:g} s.", store=self.id)

    def _closed_error(self) -> StoreFailed:
        return StoreFailed(f"Store {self.id} is closed.", store=self.id)


def _expire(turn: asyncio.Future[None], error: StoreOverdue) -> None:
    if not turn.done():
        turn.set_exception(error)

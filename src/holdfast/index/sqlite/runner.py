"""Where blocking work is done: one thread each, never the event loop.

A runner does its calls one after the other, in order. A call that hangs holds up its own runner and
nothing else; the thread is a daemon, so that the process can end without it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Runner(Protocol):
    """Does calls one after the other."""

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Do `call` after those before it. Cancelling the future does not stop the call."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a call is under way or waiting."""
        ...

    def close(self, last: Callable[[], None] | None = None) -> "asyncio.Future[None] | None":
        """Take no more calls; do `last` after those that wait, then end. Never waits; the future, if there is
        one, tells when `last` is done."""
        ...


async def ended(closing: Iterable[asyncio.Future[None] | None], timeout_s: float) -> None:
    """Wait a while for what `close` began; a disk that hangs is left behind."""
    futures = [future for future in closing if future is not None]
    if futures:
        await asyncio.wait(futures, timeout=timeout_s)


class ThreadRunner:
    """A daemon thread that starts with the first call. Use from one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending = 0
        self._closed = False

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        assert not self._closed, f"{self._name} is closed"
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending += 1
        self._queue.put((call, future))
        return future

    @property
    def busy(self) -> bool:
        return self._pending > 0

    def close(self, last: Callable[[], None] | None = None) -> asyncio.Future[None] | None:
        if self._closed:
            return None
        future = None
        if last is not None and self._loop is not None:
            future = self.submit(last)
        elif last is not None:
            last()
        self._closed = True
        self._queue.put(None)
        return future

    def _work(self) -> None:
        assert self._loop is not None
        while (item := self._queue.get()) is not None:
            call, future = item
            result, error = None, None
            try:
                result = call()
            except BaseException as caught:
                error = caught
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._done, future, result, error)
            del item, call, future, result, error

    def _done(self, future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        self._pending -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            # Whoever gave up waiting must not make the loop complain that nobody looked.
            future.exception()

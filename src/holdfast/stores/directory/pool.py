"""A small bounded pool of daemon threads for one kind of work of one store.

A hung disk holds a thread for ever, and nothing can free it. So each store has threads of its own, few
of them; a call whose time is up is answered with StoreOverdue while its thread stays occupied until
the kernel lets go of it; when every thread is held by such calls, new ones are refused at once
(StoreBusy), as they are when too many already wait; and the process never waits for these threads
at exit.

What must hold: every call is answered exactly once, by its time-out at the latest. A call that was
overdue or cancelled before a thread took it never runs. Threads touch the loop only through
`call_soon_threadsafe`, and a loop that is closed by then is no error.
"""

import asyncio
import threading
from collections.abc import Callable
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from holdfast.stores.port import StoreBusy, StoreFailed, StoreOverdue

T = TypeVar("T")


class _State(Enum):
    WAITING = 0
    RUNNING = 1
    GIVEN_UP = 2


class _Job:
    """One call. `state` and `overdue` change under the lane's lock only."""

    __slots__ = ("arguments", "function", "future", "loop", "overdue", "state")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.function = function
        self.arguments = arguments
        self.state = _State.WAITING
        self.overdue = False


class Lane:
    """Up to `threads` threads, started when first needed, and up to `waiting_max` calls waiting for
    one. `name` is for messages and thread names."""

    def __init__(self, name: str, *, threads: int, waiting_max: int) -> None:
        assert threads >= 1
        assert waiting_max >= 0
        self._name = name
        self._threads_max = threads
        self._waiting_max = waiting_max
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._waiting = 0
        self._overdue = 0
        self._closed = False

    @property
    def overdue(self) -> int:
        """Threads that are held by calls that were given up: what a hung disk has taken."""
        return self._overdue

    async def run(self, function: Callable[..., T], *arguments: Any, timeout_s: float) -> T:
        """Call `function(*arguments)` in a thread of this lane.

        Raises what it raises, or StoreOverdue, StoreBusy (it was not and will not be called),
        StoreFailed (the lane is closed).
        """
        loop = asyncio.get_running_loop()
        job = _Job(loop, function, arguments)
        self._enter(job)
        timer = loop.call_later(timeout_s, self._expire, job, timeout_s)
        try:
            result: T = await job.future
            return result
        except asyncio.CancelledError:
            self._give_up(job, overdue=False)
            raise
        finally:
            timer.cancel()
            # This frame is part of the traceback of what is raised here: see `_perform`.
            del job, arguments

    def close(self) -> None:
        """Refuse what waits and what comes. Threads end when their calls do; nobody waits for them."""
        with self._lock:
            self._closed = True
            threads = self._threads
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None and self._take(job, running=False):
                _deliver(job.future, None, self._closed_error())
        for _ in range(threads):
            self._jobs.put(None)

    def _enter(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if self._overdue >= self._threads_max:
                raise StoreBusy(
                    f"All {self._threads_max} threads for {self._name} are held by calls that are overdue."
                )
            startable = self._threads_max - self._threads
            if self._waiting >= self._idle + startable + self._waiting_max:
                raise StoreBusy(f"Too many calls wait for {self._name}.")
            self._waiting += 1
            start = self._waiting > self._idle and startable > 0
            if start:
                self._threads += 1
                self._idle += 1
        self._jobs.put(job)
        if start:
            thread = threading.Thread(target=self._work, name=f"holdfast {self._name}", daemon=True)
            thread.start()

    def _expire(self, job: _Job, timeout_s: float) -> None:
        if not job.future.done():
            self._give_up(job, overdue=True)
            job.future.set_exception(StoreOverdue(f"No answer from {self._name} in {timeout_s:g} s."))

    def _give_up(self, job: _Job, *, overdue: bool) -> None:
        with self._lock:
            if job.state is _State.WAITING:
                job.state = _State.GIVEN_UP
                self._waiting -= 1
                job.function, job.arguments = _nothing, ()  # lets go of the caller's buffers
            elif job.state is _State.RUNNING and overdue:
                job.overdue = True
                self._overdue += 1

    def _take(self, job: _Job, *, running: bool) -> bool:
        """Take a job off the queue; False when it was given up."""
        with self._lock:
            if job.state is not _State.WAITING:
                return False
            self._waiting -= 1
            job.state = _State.RUNNING if running else _State.GIVEN_UP
            if running:
                self._idle -= 1
            return True

    def _leave(self, job: _Job) -> None:
        with self._lock:
            self._idle += 1
            job.state = _State.GIVEN_UP
            if job.overdue:
                self._overdue -= 1

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            if self._take(job, running=True):
                self._perform(job)
            # While it waits, an idle thread must not hold on to what it worked on last.
            del job

    def _perform(self, job: _Job) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = job.function(*job.arguments)
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure = error
        job.function, job.arguments = _nothing, ()
        self._leave(job)
        try:
            job.loop.call_soon_threadsafe(_deliver, job.future, result, failure)
        except RuntimeError:
            # The loop is closed: nobody is left to tell.
            pass
        finally:
            # A traceback keeps this frame. If the frame kept the job, whose future has the exception, they
            # would hold each other, and megabytes of buffers with them, until the collector comes.
            failure = None
            del job

    def _closed_error(self) -> StoreFailed:
        return StoreFailed(f"The store is closed; no more work for {self._name}.")


def _nothing() -> None:
    """Stands in for a call that was let go of."""


def _deliver(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)

"""A loop whose clock is virtual: time-outs take no time, and the same seed gives the same run.

When nothing is ready to run, time jumps to the next timer. When there is no timer either, nothing can
ever happen again, and the run fails as a deadlock instead of hanging. No threads, no sockets.

A simulation is hundreds of thousands of turns of this loop, so that a turn does what has to be done and no
more: nothing outside is asked for anything, and nothing is prepared for a debugger.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from typing import Any, TypeVar, cast

T = TypeVar("T")

ROUNDING_S = 1e-9
"""Timers a rounding error ahead are due; without this, time could crawl."""

TIMERS_MIN = 64
"""So many timers are never looked through for those that were cancelled."""


class _Call:
    """Something that the loop is to do, as `asyncio.Handle` and `asyncio.TimerHandle`."""

    __slots__ = ("_args", "_callback", "_context", "_is_cancelled", "_when")

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._context = copy_context() if context is None else context
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True
        self._args = ()

    def cancelled(self) -> bool:
        return self._is_cancelled

    def when(self) -> float:
        return self._when


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on virtual time, starting at 0."""

    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._soon: deque[_Call] = deque()
        # The number keeps timers of one moment in the order in which they were set.
        self._timers: list[tuple[float, int, _Call]] = []
        self._timers_set = 0
        self._look_through_at = TIMERS_MIN

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        call = _Call(self.now, callback, args, context)
        self._soon.append(call)
        return call

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        call = _Call(when, callback, args, context)
        timers = self._timers
        if len(timers) >= self._look_through_at:
            timers[:] = [timer for timer in timers if not timer[2]._is_cancelled]
            heapify(timers)
            self._look_through_at = max(TIMERS_MIN, 2 * len(timers))
        self._timers_set += 1
        heappush(timers, (when, self._timers_set, call))
        return call

    def _run_once(self) -> None:
        """One turn: all that is ready now, but not what becomes ready on the way."""
        soon, timers = self._soon, self._timers
        if not soon and not self._stopping:
            while timers and timers[0][2]._is_cancelled:
                heappop(timers)
            if not timers:
                raise RuntimeError("deadlock: no task can run and no timer is set")
            self.now = max(self.now, timers[0][0])
        due = self.now + ROUNDING_S
        while timers and timers[0][0] < due:
            soon.append(heappop(timers)[2])
        for _ in range(len(soon)):
            call = soon.popleft()
            if call._is_cancelled:
                continue
            try:
                call._context.run(call._callback, *call._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"{call._callback} failed", "exception": error})

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who had to be woken."""


_running = cast("Callable[[], VirtualLoop]", asyncio.get_running_loop)


def _end(sleep: asyncio.Future[None]) -> None:
    if not sleep.done():
        sleep.set_result(None)


class VirtualClock:
    """The Clock of a virtual loop. `jump` moves the wall clock alone, either way."""

    def __init__(self, wall_start: float = 1_790_000_000.0) -> None:
        self._offset = wall_start

    def monotonic(self) -> float:
        return _running().now

    def aging(self) -> float:
        return _running().now

    def wall(self) -> float:
        return self._offset + _running().now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = _running()
        over: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(loop.now + seconds, _end, over)
        try:
            await over
        finally:
            timer.cancel()

    def jump(self, seconds: float) -> None:
        self._offset += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a virtual loop of its own; cancels whatever it left behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)

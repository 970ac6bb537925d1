"""A loop whose clock is virtual: time-outs take no time, and the same seed gives the same run.

When nothing is ready to run, time jumps to the next timer. When there is no timer either, nothing can
ever happen again, and the run fails as a deadlock instead of hanging. No threads, no sockets.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

ASK_EVERY = 64
"""Turns of the loop between two looks at what the world outside wants (a signal)."""


class _NeverWaits(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Nothing but the loop's own pipe is ever there; asking the kernel each time would cost most of a run.
        self._turns += 1
        ready = super().select(0) if timeout is None or self._turns % ASK_EVERY == 0 else []
        if not ready:
            if timeout is None:
                raise RuntimeError("deadlock: no task can run and no timer is set")
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, starting at 0."""

    def __init__(self) -> None:
        self._virtual = _NeverWaits()
        super().__init__(self._virtual)
        # Timers a rounding error ahead are due; without this, time could crawl.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now


class VirtualClock:
    """The Clock of a virtual loop. `jump` moves the wall clock alone, either way."""

    def __init__(self, wall_start: float = 1_790_000_000.0) -> None:
        self._offset = wall_start

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self._offset + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def jump(self, seconds: float) -> None:
        self._offset += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a virtual loop of its own; cancels whatever it left behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)

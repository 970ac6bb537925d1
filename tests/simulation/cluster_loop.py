"""A virtual loop on which one simulated process can be stopped and continued, as by SIGSTOP and SIGCONT.

What belongs to a process is told by the context variable that `tests.simulation.world` sets: every callback
that runs in such a context is held back while its process is stopped, timers that fire meanwhile, too. Time
goes on for everybody else. When the process goes on, what was held runs in the order in which it would have.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.kit.virtual import VirtualLoop
from tests.simulation.world import Process, _process

T = TypeVar("T")

_Held = tuple[Callable[..., object], tuple[Any, ...], contextvars.Context, list[asyncio.Handle]]


class PausableLoop(VirtualLoop):
    """Knows which processes are stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped: dict[Process, list[_Held]] = {}

    def stop_process(self, process: Process) -> None:
        """Nothing of it runs from now on."""
        self._stopped.setdefault(process, [])

    def continue_process(self, process: Process) -> None:
        """It goes on, with everything that came meanwhile."""
        for callback, args, context, cell in self._stopped.pop(process, ()):
            if not cell[0].cancelled():
                # The handle that its owner knows is spent: what it cancels from now on is looked up here.
                cell.append(super().call_soon(_unless_cancelled, cell[0], callback, args, context=context))

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        process, context = _of(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        cell: list[asyncio.Handle] = []
        handle = super().call_soon(self._gate, process, callback, args, context, cell, context=context)
        cell.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        process, context = _of(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        cell: list[asyncio.Handle] = []
        handle = super().call_at(when, self._gate, process, callback, args, context, cell, context=context)
        cell.append(handle)
        return handle

    def _gate(
        self,
        process: Process,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        cell: list[asyncio.Handle],
    ) -> None:
        held = self._stopped.get(process)
        if held is None:
            callback(*args)
        else:
            held.append((callback, args, context, cell))


def _unless_cancelled(handle: asyncio.Handle, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
    if not handle.cancelled():
        callback(*args)


def _of(context: contextvars.Context | None) -> tuple[Process | None, contextvars.Context]:
    if context is None:
        context = contextvars.copy_context()
    return context.get(_process), context


def run_pausable(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a loop of its own; cancels whatever it left behind."""
    with asyncio.Runner(loop_factory=PausableLoop) as runner:
        return runner.run(main)

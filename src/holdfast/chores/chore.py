"""What a chore is, and who runs it.

A chore does one bounded unit of work at a time and says whether there was any. The runner gives each a
task, sleeps `THROTTLE` times as long as a unit took, so that clients come first, and waits the chore's
own interval when there is nothing to do. A unit that fails is told to the observer and tried again after
the interval: no chore ever ends because of an error, neither the world's nor our own.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from holdfast.base.clock import Clock
from holdfast.base.errors import Bug, HoldfastError

THROTTLE = 1.0
"""Sleep this many times as long as the work took: chores get half of one task's time at most."""


class Chore(Protocol):
    """Background work."""

    @property
    def name(self) -> str:
        """One word, for status and logs."""
        ...

    @property
    def interval_s(self) -> float:
        """How long to wait when there is nothing to do."""
        ...

    async def step(self) -> bool:
        """One bounded unit of work; False when there was none."""
        ...


ChoreObserver = Callable[[str, HoldfastError], None]
"""Told of a unit that failed: the chore's name and the error."""


class ChoreRunner:
    """Runs chores until it is closed."""

    def __init__(self, chores: Sequence[Chore], clock: Clock, observer: ChoreObserver) -> None:
        self._chores = chores
        self._clock = clock
        self._observer = observer
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._run(chore)) for chore in self._chores]

    async def close(self) -> None:
        """Stop where they are: every unit may be cut at any point."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, chore: Chore) -> None:
        while True:
            began = self._clock.monotonic()
            try:
                worked = await chore.step()
            except Exception as error:
                self._observer(chore.name, _ours(error))
                worked = False
            took = self._clock.monotonic() - began
            await self._clock.sleep(THROTTLE * took if worked else chore.interval_s)


def _ours(error: Exception) -> HoldfastError:
    """The error for the observer. A mistake of ours goes to the loop's handler, too, with its traceback."""
    if isinstance(error, HoldfastError) and not isinstance(error, Bug):
        return error
    asyncio.get_running_loop().call_exception_handler({"message": "a chore failed", "exception": error})
    if isinstance(error, Bug):
        return error
    bug = Bug(f"{type(error).__name__}: {error}", hint="Please report it.")
    bug.__cause__ = error
    return bug

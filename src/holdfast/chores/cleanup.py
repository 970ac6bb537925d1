"""Finishing what completed, aborted and huge objects left over: parts nobody chose, bytes of long tables.

The work itself is objects' (`holdfast.objects.cleanup`): bounded, resumable after a crash, safe to do twice.
"""

from collections.abc import Awaitable, Callable

STEPS = 20


class Cleanup:
    """A few steps at a time. `finish` is `Objects.finish_cleanups`."""

    name = "cleanup"
    interval_s = 2.0

    def __init__(self, finish: Callable[[int], Awaitable[bool]]) -> None:
        self._finish = finish

    async def step(self) -> bool:
        """So many steps; False when nothing is left."""
        return not await self._finish(STEPS)

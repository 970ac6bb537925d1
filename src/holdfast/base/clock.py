"""Time is a value that is passed in.

Nothing else in the house may ask the operating system what time it is or wait for it to pass;
the linter bans it. `SystemClock` is the real thing; the simulation brings its own, whose wall
clock may jump. Durations and deadlines use `monotonic`; `wall` only ever labels things for
people (Last-Modified, events) or is compared with what a client signed. Order never depends
on `wall`. `aging` is for how long ago something was, on a machine that may have been suspended meanwhile.

`asyncio.timeout` and `loop.call_later` are allowed everywhere: they follow the loop's clock, and
the loop itself is virtual in a simulation.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def aging(self) -> float:
        """Seconds since an arbitrary start; never goes back, and runs while the machine is suspended."""
        ...

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC, as this machine believes; may jump either way."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass. Zero lets other tasks run once."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()

    def aging(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

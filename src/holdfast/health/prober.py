"""Carries out the probes that health asks for: the thin shell round `StoreHealth.tick`.

A probe is a real write, an uncached read and a delete. What must hold: at most one is under way at a store,
so that a hung store holds no more than that; nobody waits for a slow one longer than `GRACE_S`, so that one
store's silence does not delay the look at the others; and every probe ends by its own deadline, and is told.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.health.comparing import LOOK_S
from holdfast.health.monitor import StoreHealth
from holdfast.stores.port import Store, StoreBusy

PROBE_TIMEOUT_S = 2.0
GRACE_S = 0.1

assert GRACE_S < LOOK_S


async def paced(clock: Clock, period_s: float) -> AsyncIterator[None]:
    """Once each period, whatever is done between takes out of it; what takes longer begins a new count."""
    due = clock.monotonic()
    while True:
        due = max(due + period_s, clock.monotonic())
        await clock.sleep(due - clock.monotonic())
        yield


class Prober:
    """Looks at the stores of a mapping that may change between looks."""

    def __init__(self, stores: Mapping[StoreId, Store], health: StoreHealth, clock: Clock) -> None:
        self._stores = stores
        self._health = health
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: dict[StoreId, HoldfastError] = {}

    async def look(self) -> dict[StoreId, HoldfastError]:
        """One look at everybody. Answers the probes that failed since the last one, and how."""
        new = []
        for store in self._health.tick(self._clock.monotonic()):
            task = asyncio.create_task(self._probe(store))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            new.append(task)
        if new:
            await asyncio.wait(new, timeout=GRACE_S)
        failed, self._failed = self._failed, {}
        return failed

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, store: StoreId) -> None:
        error: HoldfastError | None = None
        try:
            if (there := self._stores.get(store)) is None:
                error = StoreBusy(f"Store {store} is not attached.")
            else:
                await there.probe(timeout_s=PROBE_TIMEOUT_S)
        except HoldfastError as raised:
            error = self._failed[store] = raised
        self._health.probed(store, error, self._clock.monotonic())

"""Stores under watch, without packs: memory stores with scripted faults, bounded and measured, their health,
its prober, and clients that read and write. Make it on a running virtual loop.
"""

import asyncio
from collections.abc import Callable, Sequence

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.health import HealthObserver, StoreEvent, StoreHealth, StoreState
from holdfast.health.comparing import LOOK_S
from holdfast.health.prober import Prober, paced
from holdfast.stores.bounded import BoundedStore
from holdfast.stores.faulty import FaultScript, FaultyStore
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import Range, Store
from tests.kit.distant import DistantStore, Way
from tests.kit.virtual import VirtualClock

BLOB = bytes(4096)
CALL_TIMEOUT_S = 10.0


class WatchedStores:
    """`stores` of them, of which `cap` may be out of use. `events` is every change of state. `trips_s` are
    the round trips to them, in turn, each up to `jitter` times longer."""

    def __init__(
        self,
        seed: int | str,
        *,
        stores: int = 6,
        cap: int = 2,
        latency_s: tuple[float, float] = (0.0005, 0.002),
        trips_s: Sequence[float] = (0.0,),
        jitter: float = 0.0,
    ) -> None:
        self.clock = clock = VirtualClock()
        self.chance = chance = SeededRandomness(f"{seed}/watched")
        self.ids = [StoreId(f"store-{number}") for number in range(stores)]
        self.scripts = {store: FaultScript() for store in self.ids}
        self.health = StoreHealth(self.ids, cap, clock.monotonic())
        observer = HealthObserver(self.health, clock)
        self.stores: dict[StoreId, Store] = {}
        self.ways: dict[StoreId, Way] = {}
        for store in self.ids:
            memory = MemoryStore(store, clock=clock, randomness=chance, latency_s=latency_s)
            faulty = FaultyStore(memory, self.scripts[store], clock=clock, randomness=chance)
            trip_s = trips_s[len(self.ways) % len(trips_s)]
            self.ways[store] = way = Way(trip_s, clock, chance, jitter * trip_s)
            there: Store = DistantStore(faulty, way) if trip_s else faulty
            self.stores[store] = observer.measure(BoundedStore(there, width=8, waiting_max=64))
            if trip_s:
                self.health.is_elsewhere(store)
        self._prober = Prober(self.stores, self.health, clock)
        self.events: list[StoreEvent] = []
        self.on_look: Callable[[], None] = lambda: None
        self._calls: set[asyncio.Task[None]] = set()
        self._names = 0
        self._tasks = [asyncio.create_task(self._watch())]
        self._tasks += [
            asyncio.create_task(self._ping(store)) for store, way in self.ways.items() if way.trip_s
        ]

    async def _ping(self, store: StoreId) -> None:
        """What a node does with its peers."""
        while True:
            took = await self.ways[store].ping()
            self.health.travelled(store, took, self.clock.monotonic())
            await self.clock.sleep(1.0)

    async def _watch(self) -> None:
        async for _ in paced(self.clock, LOOK_S):
            await self._prober.look()
            self.events += self.health.take_events()
            self.on_look()

    def begin_load(self, writes_per_s: float, reads_per_write: int = 1) -> None:
        """Clients that write to every store in use, and read from one, whatever became of the last call."""
        self._tasks.append(asyncio.create_task(self._load(writes_per_s, reads_per_write)))

    async def _load(self, writes_per_s: float, reads_per_write: int) -> None:
        there: dict[StoreId, str] = {}
        while True:
            await self.clock.sleep(2 * self.chance.fraction() / writes_per_s)
            self._names += 1
            for store in self.ids:
                if self.health.writable(store):
                    self._begin(self._put(store, f"blob-{self._names}", there))
            for _ in range(reads_per_write):
                store = self.ids[self.chance.below(len(self.ids))]
                if store in there and self.health.readable(store):
                    self._begin(self._get(store, there[store]))

    def _begin(self, call: object) -> None:
        task = asyncio.ensure_future(call)  # type: ignore[call-overload]
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _put(self, store: StoreId, name: str, there: dict[StoreId, str]) -> None:
        try:
            await self.stores[store].put(name, [BLOB], timeout_s=CALL_TIMEOUT_S)
        except HoldfastError:
            return
        there[store] = name

    async def _get(self, store: StoreId, name: str) -> None:
        try:
            await self.stores[store].get(name, [Range(0, len(BLOB))], timeout_s=CALL_TIMEOUT_S)
        except HoldfastError:
            return

    async def until(self, store: StoreId, *states: StoreState, within_s: float) -> float:
        """Wait until `store` is in one of `states`; how long that took. Fails after `within_s`."""
        began = self.clock.monotonic()
        while self.health.state(store) not in states:
            took = self.clock.monotonic() - began
            assert took <= within_s, (store, self.health.state(store), self.events)
            await self.clock.sleep(0.01)
        return self.clock.monotonic() - began

    @property
    def out(self) -> list[StoreId]:
        """Stores that are not in use."""
        return [store for store in self.ids if not self.health.readable(store)]

    async def close(self) -> None:
        """Stop."""
        tasks = [*self._tasks, *self._calls]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._prober.close()

"""A node's storage over regions that are far apart: a service over memory stores at the end of emulated ways.

One's own region is the first, at distance nought. Stores and index themselves take no time, so that what an
operation takes is round trips and nothing else, exactly. The index has a member in each of three regions,
its leader in one's own: a read and a commit wait for a majority, so for the nearest other region. Peers are
pinged and stores are probed as by a node.
"""

import asyncio
from collections.abc import Sequence

from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.health import HealthObserver
from holdfast.health.comparing import LOOK_S
from holdfast.health.prober import Prober, paced
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Outcome, Prefix, Row, Transaction
from holdfast.objects.model import PutObject, ReadObject
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.promising import choose_scheme
from holdfast.stores.faulty import FaultyStore
from holdfast.topology import Location, Topology
from tests.kit.distant import DistantStore, Way
from tests.kit.objects import BytesBody, content
from tests.kit.rig import build_rig
from tests.kit.virtual import VirtualClock

BUCKET = "bucket"


class DistantIndex(MemoryIndex):
    """An index of which each call takes a round trip."""

    way: Way

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        await self.way.ping()
        return await super().get(keys)

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        await self.way.ping()
        return await super().scan(start, end, limit=limit, delimiter=delimiter, skip=skip)

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        await self.way.ping()
        return await super().commit(transactions)


class Continents:
    """`trips_s` are the round trips to each region, the first of which is one's own; `stores` are in each."""

    def __init__(self, trips_s: Sequence[float], stores: int, *, seed: int = 1) -> None:
        clock, chance = VirtualClock(), SeededRandomness(f"{seed}/continents")
        index = DistantIndex(clock)
        others = sorted(trips_s[1:])
        index.way = Way(others[0], clock, chance)
        self.rig = rig = build_rig(
            len(trips_s) * stores, seed=seed, clock=clock, latency_s=(0.0, 0.0), index=index
        )
        self.ways = [Way(trip_s, clock, chance) for trip_s in trips_s]
        self.region: dict[StoreId, int] = {
            store: number % len(trips_s) for number, store in enumerate(rig.stores)
        }
        observer = HealthObserver(rig.health, clock)
        for store, region in self.region.items():
            faulty = FaultyStore(rig.memories[store], rig.scripts[store], clock=clock, randomness=chance)
            rig.attached[store] = observer.measure(DistantStore(faulty, self.ways[region]))
            if region:
                rig.health.is_elsewhere(store)
        rig.topology = Topology(
            Location(store, region=f"r{region}", host=f"h{region}", device=store)
            for store, region in self.region.items()
        )
        self.objects = Objects(
            index,
            rig.packs,
            clock,
            SeededRandomness(5),
            ObjectsSettings(
                default_scheme="mirror-2",
                stores=lambda: len(self.region),
                choose_scheme=lambda survive: choose_scheme(rig.topology, survive),
                learn=rig.packs.writer.promises.learn,
                limits=ObjectsLimits(hashing_threads=0),
            ),
        )
        self._prober = Prober(rig.attached, rig.health, clock)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._ping())]

    async def _watch(self) -> None:
        async for _ in paced(self.rig.clock, LOOK_S):
            await self._prober.look()

    async def _ping(self) -> None:
        async for _ in paced(self.rig.clock, 1.0):
            for number, way in enumerate(self.ways):
                if number and not way.cut:
                    took = await way.ping()
                    for store, region in self.region.items():
                        if region == number:
                            self.rig.health.travelled(store, took, self.rig.clock.monotonic())

    def cut(self, region: int, *, off: bool = True) -> None:
        """A region hangs: nothing answers there, or does again."""
        self.ways[region].cut = off

    async def put(self, key: str, data: bytes) -> tuple[float, dict[str, int]]:
        """How long it took, and what the receipt says is survived."""
        began = self.rig.clock.monotonic()
        stored = await self.objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(data)))
        assert stored.receipt is not None
        return self.rig.clock.monotonic() - began, stored.receipt.survives

    async def get(self, key: str) -> tuple[float, bytes]:
        """How long it took, and the content."""
        began = self.rig.clock.monotonic()
        found = await content(await self.objects.read_object(ReadObject(bucket=BUCKET, key=key)))
        return self.rig.clock.monotonic() - began, found

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._prober.close()

"""A node's storage without a node: memory stores under scripted faults, a memory index, real packs."""

from dataclasses import dataclass, field

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.health import HealthObserver, StoreHealth
from holdfast.index.memory import MemoryIndex
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import Verifier
from holdfast.stores.faulty import FaultScript, FaultyStore
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import Store
from holdfast.topology import Location, Topology
from tests.kit.virtual import VirtualClock


@dataclass
class Rig:
    """Everything within reach of a test. `attached` is what packs see; take from it, put into it. `topology`
    is what they believe the installation to be."""

    clock: Clock
    randomness: SeededRandomness
    memories: dict[StoreId, MemoryStore]
    scripts: dict[StoreId, FaultScript]
    attached: dict[StoreId, Store]
    index: MemoryIndex
    health: StoreHealth
    packs: Packs
    rewriter: Rewriter
    verifier: Verifier
    houses: list[Topology]
    damage: list[tuple[PackId, int, str]] = field(default_factory=list)

    @property
    def topology(self) -> Topology:
        return self.houses[-1]

    @topology.setter
    def topology(self, changed: Topology) -> None:
        self.houses.append(changed)

    @property
    def stores(self) -> list[StoreId]:
        return list(self.memories)


def build_rig(
    stores: int = 6,
    *,
    seed: int = 1,
    clock: Clock | None = None,
    latency_s: tuple[float, float] = (0.0005, 0.002),
    ejections_max: int = 2,
    index: MemoryIndex | None = None,
) -> Rig:
    """`stores` memory stores, each its own device."""
    clock = clock or VirtualClock()
    randomness = SeededRandomness(seed)
    ids = [StoreId(f"store-{number}") for number in range(stores)]
    memories = {
        store: MemoryStore(store, clock=clock, randomness=randomness, latency_s=latency_s) for store in ids
    }
    scripts = {store: FaultScript() for store in ids}
    health = StoreHealth(ids, ejections_max, 0.0)
    observer = HealthObserver(health, clock)
    attached: dict[StoreId, Store] = {
        store: observer.measure(
            FaultyStore(memories[store], scripts[store], clock=clock, randomness=randomness)
        )
        for store in ids
    }
    houses = [Topology(Location(store, device=store) for store in ids)]
    index = index or MemoryIndex(clock)
    damage: list[tuple[PackId, int, str]] = []
    packs = Packs(
        attached,
        lambda: houses[-1],
        index,
        health,
        clock,
        randomness,
        lambda pack, shard, what: damage.append((pack, shard, what)),
    )
    rewriter = Rewriter(
        attached, lambda: houses[-1], index, packs.rows, packs.reader, packs.writer, clock, randomness
    )
    verifier = Verifier(attached, index, packs.rows, packs.reader, clock)
    return Rig(
        clock,
        randomness,
        memories,
        scripts,
        attached,
        index,
        health,
        packs,
        rewriter,
        verifier,
        houses,
        damage,
    )

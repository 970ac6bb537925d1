"""The node under simulation: real packs, health, chores and objects over memory stores under `faulty`, put
together as `holdfast.node` does it, with a keeper that attaches and detaches simulated disks.
"""

import asyncio
from typing import TYPE_CHECKING

from msgspec import Struct

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.chores.absent import FindAbsent
from holdfast.chores.audit import Audit
from holdfast.chores.away import Away
from holdfast.chores.chore import Chore
from holdfast.chores.cleanup import Cleanup
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import Compact
from holdfast.chores.repair import PayDebts, Repair
from holdfast.chores.replaced import FindReplaced
from holdfast.chores.runner import ChoreRunner
from holdfast.chores.strays import FindStrays
from holdfast.health import HealthObserver, StoreHealth, StoreState
from holdfast.health.comparing import LOOK_S
from holdfast.health.prober import Prober, paced
from holdfast.index.memory import MemoryIndex
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.disposal import Disposal
from holdfast.packs.named import NamedPacks
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import Verifier
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.keeping import Keeping
from holdfast.scheme import parse_scheme
from holdfast.stores.faulty import FaultyStore
from holdfast.stores.identity import Noted, judge
from holdfast.stores.port import Attachment, Store
from holdfast.topology import Location, Topology
from tests.simulation.parts import NotedIndex, PluggedStore, Power

if TYPE_CHECKING:
    from tests.simulation.world import Slot, World

LOOK_EVERY_ROUNDS = 12
NOTE_EVERY_ROUNDS = 20
PATIENCE_S = 30.0
"""Runs last minutes: stores that are away are given up within them."""


class SimulationSettings(Struct, frozen=True, kw_only=True):
    """What a run is made of. `losses` is how many stores may be at fault at once: no more than the m of
    any scheme in use."""

    stores: int = 6
    losses: int = 2
    scheme: str = "rs-4-2"
    other_scheme: str = "mirror-3"
    latency_s: tuple[float, float] = (0.0005, 0.002)
    commit_delay_s: float = 0.001
    inline_bytes_max: int = 32 << 10
    part_bytes_min: int = 64 << 10
    compact_every_s: float = 10.0
    audit_every_s: float = 10.0


class SimulatedNode:
    """One life of the node: everything here is lost with it."""

    def __init__(self, world: "World", life: int) -> None:
        settings = world.settings
        self._world = world
        self._life = life
        self.clock = clock = world.clock
        self.randomness = randomness = world.chance(f"node {life}")
        self.power = Power()
        self.index = MemoryIndex(clock, world.rows, commit_delay_s=settings.commit_delay_s)
        self.watched_index = index = WatchedIndex(
            NotedIndex(self.index, world.trace, world.index_nth, self._spoil)
        )
        self.health = StoreHealth([], settings.losses, clock.monotonic())
        self._observer = HealthObserver(self.health, clock)
        self.attached: dict[StoreId, Store] = {}
        self._prober = Prober(self.attached, self.health, clock)
        self._held: dict[str, StoreId] = {}
        self._faulty: list[FaultyStore] = []
        self._rounds = 0
        self.mended = 0
        self.packs = Packs(self.attached, self.topology, index, self.health, clock, randomness, self._damaged)
        self.rewriter = Rewriter(
            self.attached,
            self.topology,
            index,
            self.packs.rows,
            self.packs.reader,
            self.packs.writer,
            clock,
            randomness,
        )
        self.verifier = Verifier(self.attached, index, self.packs.rows, self.packs.reader, clock)
        self.away = Away(self._away_s, lambda: frozenset(self.topology().stores), PATIENCE_S)
        self.repair = Repair(
            self.rewriter, self.verifier, self.packs.rows, clock, self._mended, away=self.away
        )
        self.debts = PayDebts(self.rewriter, index, self._writable, clock, self._mended)
        self.absent = FindAbsent(self.attached, index, self.repair.report, lambda: self.repair.has_room)
        self.objects = Objects(
            index,
            self.packs,
            clock,
            randomness,
            ObjectsSettings(
                default_scheme=settings.scheme,
                stores=lambda: settings.stores,
                limits=ObjectsLimits(
                    hashing_threads=0,
                    part_bytes_min=settings.part_bytes_min,
                    inline_bytes_max=settings.inline_bytes_max,
                ),
            ),
        )
        self.compact = Compact(index, self.objects.moving(clock).move, walk_every_s=settings.compact_every_s)
        self.collect = Collect(
            index, self.packs.rows, self.packs.reader.in_use, self.compact.partly_dead, index.let_go
        )
        scheme = parse_scheme(settings.scheme, settings.stores)
        named = NamedPacks(self.attached, self.topology, self.health, clock, randomness, lambda: scheme)
        self.keeping = Keeping(
            index, named, self._writable, clock, randomness, lambda told: None, journal_bytes_min=50_000
        )
        strays = FindStrays(self.attached, index, clock)
        chores: list[Chore] = [
            self.repair,
            self.debts,
            self.absent,
            FindReplaced(index, self.away, self.repair.report_lost, clock),
            self.collect,
            self.compact,
            Audit(index, self.objects.auditing(clock).audit, clock, walk_every_s=settings.audit_every_s),
            Sweep(
                Disposal(
                    self.attached,
                    index,
                    self._is_gone,
                    lambda pack: strays.is_awaited(pack) or index.in_doubt(pack),
                    self.keeping.journal.covers,
                )
            ),
            strays,
            Cleanup(self.objects.finish_cleanups),
            *self.keeping.chores,
        ]
        self.chores = ChoreRunner(chores, clock, self._chore_failed, index=index, holder=f"node {life}")

    def _spoil(self) -> None:
        self.index.faults.appendleft(self._world.index_fault)

    def topology(self) -> Topology:
        """All stores that have a slot, those that are away, too."""
        return Topology(Location(store, device=slot) for slot, store in self._held.items())

    def _away_s(self) -> dict[StoreId, float]:
        """As the node's: how long stores have been away."""
        now = self.clock.monotonic()
        return {
            store: now - self.health.since(store)
            for store in self._held.values()
            if store not in self.attached or self.health.state(store) is StoreState.DOWN
        }

    def _is_gone(self, store: StoreId) -> bool:
        return store not in self._held.values()

    def start(self) -> None:
        """Attach who is there, begin the chores and the watch."""
        for slot in self._world.slots:
            if (reason := self._refusal(slot)) is None:
                self._attach(slot)
            elif (store := slot.expects.store) is not None:
                self._held[slot.name] = store
                self.health.add(store, self.clock.monotonic())
                self.health.vanished(store, self.clock.monotonic(), reason)
        self.chores.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def unplug(self) -> None:
        """Nothing that this node does reaches a store any more, not even what was to land late."""
        self.power.on = False
        for store in self._faulty:
            store.crash()

    def _refusal(self, slot: "Slot") -> str | None:
        """Why what is found at a place cannot be used; None when it can. Who is new moves in."""
        judgement = judge(slot.found, slot.expects)
        if judgement.attachment is Attachment.NEW:
            slot.move_in()
            judgement = judge(slot.found, slot.expects)
        return None if judgement.attachment is Attachment.READY else judgement.reason

    def _attach(self, slot: "Slot") -> None:
        world = self._world
        store = slot.memory.id
        slot.memory_in_use = slot.memory
        faulty = FaultyStore(
            slot.memory,
            slot.script,
            clock=self.clock,
            randomness=world.chance(f"faults of {store} in {self._life}"),
        )
        self._faulty.append(faulty)
        plugged = PluggedStore(faulty, self.power, world.trace, world.nth, world.put_log)
        self._held[slot.name] = store
        self.health.add(store, self.clock.monotonic())
        self.attached[store] = self._observer.measure(plugged)

    async def _watch(self) -> None:
        async for _ in paced(self.clock, LOOK_S):
            await self._round()

    async def _round(self) -> None:
        """As the keeper's: look at everybody's health, and for those that are away or seem to be."""
        self._rounds += 1
        failed = await self._prober.look()
        for slot in self._world.slots:
            store = self._held.get(slot.name)
            away = store not in self.attached and self._rounds % LOOK_EVERY_ROUNDS == 0
            if away or store in failed:
                self._look_again(slot)
        if self._rounds % NOTE_EVERY_ROUNDS == 0:
            self._note()
        for event in self.health.take_events():
            self._world.trace.note(event.store, event.before.value, "->", event.after.value, event.reason)

    def _look_again(self, slot: "Slot") -> None:
        store = self._held[slot.name]
        if (reason := self._refusal(slot)) is not None:
            if self.attached.pop(store, None) is not None:
                self._world.trace.note("away", store, reason)
                self.health.vanished(store, self.clock.monotonic(), reason)
        elif slot.memory is not slot.memory_in_use or store not in self.attached:
            self.attached.pop(store, None)
            self._world.trace.note("attached", slot.memory.id)
            self._attach(slot)
            self.absent.look_at(slot.memory.id)

    def _note(self) -> None:
        """As the node's: the stores remember how far the index is, so that old images are recognised."""
        noted = Noted(self._world.rows.incarnation, self._world.rows.revision)
        for slot in self._world.slots:
            if slot.memory is slot.memory_in_use and not slot.script.vanished:
                slot.note(noted)

    def _writable(self) -> frozenset[StoreId]:
        health = self.health
        return frozenset(
            store for store in self.attached if health.writable(store) and not health.is_full(store)
        )

    def _damaged(self, pack: PackId, shard: int, what: str) -> None:
        self._world.trace.note("damage", pack.hex(), shard, what)
        self.repair.report(pack, shard, what)

    def _mended(self, pack: PackId, why: str) -> None:
        self.mended += 1
        self._world.trace.note("mended", pack.hex(), why)

    def _chore_failed(self, name: str, error: HoldfastError) -> None:
        self._world.trace.note("chore", name, type(error).__name__, error)

    @property
    def is_still(self) -> bool:
        """Whether nothing is being changed on any disk, nor may still land there."""
        return not self.power.changing and not any(store.lands_late for store in self._faulty)

    @property
    def is_quiet(self) -> bool:
        """Whether every store is in use and nothing is waiting to be mended."""
        stores = self.topology().stores
        return not self.repair.waiting and all(
            store in self.attached and self.health.readable(store) and not self.health.is_full(store)
            for store in stores
        )

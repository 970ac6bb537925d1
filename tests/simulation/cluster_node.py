"""A node among others under simulation: real packs, health, chores and objects, put together as
`holdfast.node` does it, over its own disks and, through the network, over those of the other machines.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.chores.absent import FindAbsent
from holdfast.chores.audit import Audit
from holdfast.chores.away import Away
from holdfast.chores.balance import Fill
from holdfast.chores.chore import Chore
from holdfast.chores.cleanup import Cleanup
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import Compact
from holdfast.chores.drain import Drain
from holdfast.chores.fencing import TendFences, graves_wait
from holdfast.chores.findings import Findings
from holdfast.chores.rebalance import Rebalance
from holdfast.chores.repair import PayDebts, Repair
from holdfast.chores.replaced import FindReplaced
from holdfast.chores.rescheme import Rescheme, Waiting
from holdfast.chores.runner import ChoreRunner
from holdfast.chores.scrub import Scrub
from holdfast.chores.spreading import Respread
from holdfast.chores.strays import FindStrays
from holdfast.cluster.fences import OwnFences
from holdfast.cluster.others import ClusterOthers
from holdfast.cluster.rows import FORMAT, BeatRow, beat_row, encode
from holdfast.health import HealthObserver, StoreHealth, StoreState
from holdfast.health.comparing import LOOK_S
from holdfast.health.prober import Prober, paced
from holdfast.index.port import Transaction
from holdfast.node.census import Census
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.disposal import Disposal
from holdfast.packs.named import NamedPacks
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import PackReport, Verifier
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.keeping import Keeping
from holdfast.scheme import parse_scheme
from holdfast.stores.faulty import FaultyStore
from holdfast.stores.identity import Expected, Identity, judge
from holdfast.stores.port import Attachment, Store
from holdfast.topology import Location, Topology
from tests.simulation.cluster_index import IndexClient
from tests.simulation.cluster_network import RemoteStore
from tests.simulation.parts import NotedIndex, Nth, PluggedStore, Power

if TYPE_CHECKING:
    from tests.simulation.cluster_world import ClusterWorld, Machine
    from tests.simulation.world import Slot

CLUSTER = "simulation"
PATIENCE_S = 30.0
DISK_BYTES = 4 << 20
"""Small, so that it matters where things lie."""

LOOK_EVERY_ROUNDS = 12
PING_EVERY_ROUNDS = 4


class ClusterNode:
    """One life of one node: everything here is lost with it."""

    def __init__(self, world: "ClusterWorld", machine: "Machine", life: int) -> None:
        settings = world.cluster
        self.name = machine.name
        self._world = world
        self._machine = machine
        self.clock = clock = machine.clock
        self.randomness = randomness = world.chance(f"node {machine.name} {life}")
        self.power = Power()
        self.client = IndexClient(world.service, world.network, machine.name, clock)
        noted = NotedIndex(self.client, world.trace, Nth(), world.put_log, lambda: None)
        self.watched_index = index = WatchedIndex(noted)
        self.health = StoreHealth([], settings.losses, clock.monotonic())
        self._observer = HealthObserver(self.health, clock)
        self.attached: dict[StoreId, Store] = {}
        self._own: dict[str, tuple[StoreId, Store]] = {}
        self._held: dict[str, tuple[StoreId, str]] = {}
        self._leaving: frozenset[StoreId] = frozenset()
        self._faulty: list[FaultyStore] = []
        self._prober = Prober(self.attached, self.health, clock)
        self._rounds = 0
        self._pings: set[asyncio.Task[None]] = set()
        self.mended = 0
        self.boot = randomness.token(8).hex()
        self.fences = OwnFences(index, clock, randomness, machine.name, self.boot, lambda: graves_wait(index))
        self.others = ClusterOthers(index, clock)
        self.packs = Packs(
            self.attached,
            self.topology,
            index,
            self.health,
            clock,
            randomness,
            self._damaged,
            room=self._room,
            fences=self.fences,
            shared=True,
        )
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
        self.findings = Findings(
            index, self.repair, lambda: self.chores.is_here("repair"), clock, machine.name
        )
        self.absent = FindAbsent(self.attached, index, self.repair.report, lambda: self.repair.has_room)
        self.objects = Objects(
            index,
            self.packs,
            clock,
            randomness,
            ObjectsSettings(
                default_scheme=settings.scheme,
                stores=lambda: settings.machines * settings.disks,
                limits=ObjectsLimits(
                    hashing_threads=0,
                    part_bytes_min=settings.part_bytes_min,
                    inline_bytes_max=settings.inline_bytes_max,
                ),
            ),
        )
        scheme = parse_scheme(settings.scheme, settings.machines * settings.disks)
        named = NamedPacks(
            self.attached, self.topology, self.health, clock, randomness, lambda: scheme, room=self._room
        )
        self.keeping = Keeping(
            index, named, self._writable, clock, randomness, lambda told: None, journal_bytes_min=50_000
        )
        self.keeping.journal.began_elsewhere = lambda: self.fences.began
        self.keeping.journal.on_change = index.changed
        self.census = Census(
            index,
            self.attached,
            lambda store: self.health.readable(store) or self.health.writable(store),
            self.topology,
            clock,
            lambda: frozenset(store for store, host in self._held.values() if host == self.name),
        )
        self._merging: Waiting | None = None
        self.chores = ChoreRunner(
            self._chores(index), clock, self._chore_failed, index=index, holder=self.boot, shared=True
        )

    def _chores(self, index: WatchedIndex) -> list[Chore]:
        settings, clock = self._world.cluster, self.clock
        journal = self.keeping.journal
        self.rescheme = rescheme = Rescheme(
            index,
            self.rewriter,
            self.objects.rescheming(clock),
            lambda: self.census.last.packs,
            clock,
            lambda: self._merging is not None and self._merging.at_work,
        )
        self.compact = Compact(index, self.objects.moving(clock).move, walk_every_s=settings.compact_every_s)
        self._merging = Waiting(self.compact, lambda: rescheme.in_the_way or not journal.is_sound)
        self.drain = Drain(index, self.rewriter, lambda: self._world.leaving_now(self._leaving), clock)
        self.scrub = Scrub(
            self.attached,
            lambda: self.topology().stores,
            index,
            self.verifier,
            clock,
            self._scrubbed,
            pass_s=settings.scrub_pass_s,
            rate_bytes=0,
            bytes_stored=lambda: self.census.status().bytes_stored,
            fence=lambda: self.chores.fence("scrub"),
        )
        self.collect = Collect(
            index, self.packs.rows, self.packs.reader.in_use, self.compact.partly_dead, index.let_go
        )
        strays = FindStrays(self.attached, index, clock, self.others)
        return [
            self.repair,
            PayDebts(self.rewriter, index, self._writable, clock, self._mended),
            self.absent,
            FindReplaced(index, self.away, self.repair.report_lost, clock),
            self.collect,
            self._merging,
            Waiting(rescheme, lambda: not journal.is_sound),
            self.scrub,
            self.census,
            self.drain,
            Rebalance(
                index,
                self.rewriter,
                self._fills,
                self.topology,
                lambda: self.repair.waiting > 0 or bool(self._leaving),
                clock,
            ),
            Respread(
                index,
                self.rewriter,
                lambda: frozenset(self._fills()[1]),
                self.topology,
                lambda: self.repair.waiting > 0 or bool(self._leaving),
                clock,
            ),
            Audit(index, self.objects.auditing(clock).audit, clock, walk_every_s=settings.audit_every_s),
            Sweep(
                Disposal(
                    self.attached,
                    index,
                    self._is_gone,
                    is_covered=self.keeping.journal.covers,
                    others=self.others,
                )
            ),
            strays,
            self.findings,
            TendFences(self.fences, self.others),
            Cleanup(self.objects.finish_cleanups),
            *self.keeping.chores,
        ]

    async def start(self) -> None:
        """Attach who is there, begin the chores and the watch."""
        for slot in self._machine.slots:
            if self._refusal(slot) is None:
                self._attach_own(slot)
        self._meet()
        await self.fences.open()
        self.chores.start()
        loop = asyncio.get_running_loop()
        self._watching = loop.create_task(self._watch())
        self._beating = loop.create_task(self._beat())

    def unplug(self) -> None:
        """Nothing that this node does reaches a store any more, not even what was to land late."""
        self.power.on = False
        for store in self._faulty:
            store.crash()

    def exported(self, slot: str, store: StoreId) -> Store | None:
        """A disk of this machine, for its peers."""
        own = self._own.get(slot)
        return own[1] if own is not None and own[0] == store and self.power.on else None

    # Who is there

    def topology(self) -> Topology:
        """All stores that have a slot, those that are away, too."""
        return Topology(
            Location(store, f"r{self._world.region(host)}", host=host, device=f"{host}/{slot}")
            for slot, (store, host) in self._held.items()
        )

    def _refusal(self, slot: "Slot") -> str | None:
        expects = self._world.expects
        judgement = judge(slot.found, expects[slot.name])
        if judgement.attachment is Attachment.NEW:
            slot.identity = Identity(slot.memory.id, CLUSTER, slot.name)
            expects[slot.name] = Expected(CLUSTER, slot.name, slot.memory.id)
            judgement = judge(slot.found, expects[slot.name])
        return None if judgement.attachment is Attachment.READY else judgement.reason

    def _attach_own(self, slot: "Slot") -> None:
        world = self._world
        store = slot.memory.id
        slot.memory_in_use = slot.memory
        faulty = FaultyStore(
            slot.memory,
            slot.script,
            clock=self.clock,
            randomness=world.chance(f"faults of {store} in {self._machine.lives}"),
        )
        self._faulty.append(faulty)
        self._own[slot.name] = (store, faulty)
        self._hold(slot, store, self._machine, faulty)

    def _hold(self, slot: "Slot", store: StoreId, machine: "Machine", there: Store) -> None:
        world = self._world
        plugged = PluggedStore(there, self.power, world.trace, Nth(), world.put_log)
        self._held[slot.name] = (store, machine.name)
        self.health.add(store, self.clock.monotonic())
        self.attached[store] = self._observer.measure(plugged)

    def _meet(self) -> None:
        """Know the stores of all machines, as their nodes' rows say."""
        self._leaving = frozenset(self._world.leaving)
        there = {slot.name for machine in self._world.machines for slot in machine.slots}
        for name in [name for name in self._held if name not in there]:
            store, _ = self._held.pop(name)
            self._own.pop(name, None)
            self.attached.pop(store, None)
            self.health.forget(store)
        for machine in self._world.machines:
            for slot in machine.slots:
                store = self._world.expects[slot.name].store
                if machine is self._machine or store is None:
                    continue
                held = self._held.get(slot.name)
                if held is None or held[0] != store:
                    if held is not None:
                        self.attached.pop(held[0], None)
                    remote = RemoteStore(self._world.network, self.name, machine, slot.name, store)
                    self._hold(slot, store, machine, remote)
                    if self._world.cluster.trips_s:
                        self.health.is_elsewhere(store)

    async def _ping(self, machine: "Machine") -> None:
        """How far another machine is."""
        network, began = self._world.network, self.clock.monotonic()
        if not await network.carry(self.name, machine.name) or not machine.is_up:
            return
        if not await network.carry(machine.name, self.name):
            return
        now = self.clock.monotonic()
        for store, host in self._held.values():
            if host == machine.name:
                self.health.travelled(store, now - began, now)

    async def _watch(self) -> None:
        async for _ in paced(self.clock, LOOK_S):
            await self._round()

    async def _round(self) -> None:
        self._rounds += 1
        if self._world.cluster.trips_s and self._rounds % PING_EVERY_ROUNDS == 0:
            for machine in self._world.machines:
                if machine is not self._machine:
                    task = asyncio.create_task(self._ping(machine))
                    self._pings.add(task)
                    task.add_done_callback(self._pings.discard)
        failed = await self._prober.look()
        self._meet()
        for slot in self._machine.slots:
            held = self._held.get(slot.name)
            away = (held is None or held[0] not in self.attached) and self._rounds % LOOK_EVERY_ROUNDS == 0
            if away or (held is not None and held[0] in failed):
                self._look_again(slot)
        for event in self.health.take_events():
            self._world.trace.note(
                self.name, event.store, event.before.value, "->", event.after.value, event.reason
            )

    def _look_again(self, slot: "Slot") -> None:
        held = self._held.get(slot.name)
        if (reason := self._refusal(slot)) is not None:
            if held is not None and self.attached.pop(held[0], None) is not None:
                self._own.pop(slot.name, None)
                self.health.vanished(held[0], self.clock.monotonic(), reason)
        elif slot.memory is not slot.memory_in_use or held is None or held[0] not in self.attached:
            if held is not None:
                self.attached.pop(held[0], None)
            self._attach_own(slot)
            for node in self._world.nodes:
                node.absent.look_at(slot.memory.id)  # as all see it coming back

    def _away_s(self) -> dict[StoreId, float]:
        now = self.clock.monotonic()
        return {
            store: now - self.health.since(store)
            for store, _ in self._held.values()
            if store not in self.attached or self.health.state(store) is StoreState.DOWN
        }

    def _is_gone(self, store: StoreId) -> bool:
        return store not in {held for held, _ in self._held.values()}

    def _room(self, store: StoreId) -> int:
        return 0 if store in self._leaving else 1

    def _fills(self) -> tuple[float, dict[StoreId, Fill]]:
        count = self.census.last
        return count.began_at, {
            store: Fill(count.bytes_at[store], DISK_BYTES)
            for store in self.attached
            if store not in self._leaving
        }

    def _writable(self) -> frozenset[StoreId]:
        health = self.health
        return frozenset(
            store
            for store in self.attached
            if health.writable(store) and not health.is_full(store) and self._room(store)
        )

    def stop_beating(self) -> None:
        """Say nothing more."""
        self._beating.cancel()

    async def _beat(self) -> None:
        """As the room `cluster` says: each second a row that others see change."""
        count = 0
        async for _ in paced(self.clock, 1.0):
            count += 1
            known = self.client.status().revision
            row = BeatRow(FORMAT, self.boot, count, self.packs.reader.oldest_read(known), True)
            with suppress(HoldfastError):
                await self.client.commit([Transaction((), ((beat_row(self.name), encode(row)),))])

    # What is told

    def _damaged(self, pack: PackId, shard: int, what: str) -> None:
        self._world.trace.note(self.name, "damage", pack.hex(), shard, what)
        self.findings.report(pack, shard, what)

    def _scrubbed(self, report: PackReport) -> None:
        self._world.trace.note(self.name, "scrub found", report.pack.hex())

    def _mended(self, pack: PackId, why: str) -> None:
        self.mended += 1
        self._world.trace.note(self.name, "mended", pack.hex(), why)

    def _chore_failed(self, name: str, error: HoldfastError) -> None:
        self._world.trace.note(self.name, "chore", name, type(error).__name__, error)

    @property
    def is_quiet(self) -> bool:
        """Whether every store is in use and nothing is waiting to be mended."""
        stores = self.topology().stores
        return not self.repair.waiting and all(
            store in self.attached and self.health.readable(store) and not self.health.is_full(store)
            for store in stores
        )

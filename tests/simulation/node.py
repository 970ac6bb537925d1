"""The node under simulation: the real parts, put together as `holdfast.node.node` does it, over simulated
disks, with an index in memory and without a face.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from holdfast.base.ids import PackId, StoreId
from holdfast.chores.compact import Compact
from holdfast.chores.repair import Repair
from holdfast.chores.runner import ChoreRunner
from holdfast.health import HealthObserver, StoreHealth
from holdfast.health.events import Kind
from holdfast.node.background import Background, Paces
from holdfast.node.config import ChoresSettings, Config, StorePlace
from holdfast.node.keeper import Keeper
from holdfast.node.managing import StoreManaging
from holdfast.node.shared_index import Elsewhere
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.disposal import shards_of
from holdfast.packs.model import pack_row
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.rows import decode_row
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import Verifier
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.keeping import Keeping
from holdfast.scheme import parse_scheme
from holdfast.stores.port import Store
from holdfast.topology import Topology
from tests.simulation.ground import SimulatedGround
from tests.simulation.parts import DoubtfulIndex, NotedIndex, Power

if TYPE_CHECKING:
    from tests.simulation.world import World

NOTE_EVERY_S = 1.0
PATIENCE_S = 30.0
"""Runs last minutes: stores that are away are given up within them."""


class SimulationSettings(Struct, frozen=True, kw_only=True):
    """What a run is made of. `losses` is how many stores may be at fault at once: no more than the m of
    any scheme in use. `spares` come on top of `stores`."""

    stores: int = 6
    spares: int = 0
    losses: int = 2
    scheme: str = "rs-4-2"
    other_scheme: str = "mirror-3"
    latency_s: tuple[float, float] = (0.0005, 0.002)
    commit_delay_s: float = 0.001
    inline_bytes_max: int = 32 << 10
    part_bytes_min: int = 64 << 10
    compact_every_s: float = 10.0
    audit_every_s: float = 10.0
    scrub_pass_s: float = 600.0


def config_of(world: "World") -> Config:
    """As `holdfast.toml` would say it."""
    settings = world.settings
    return Config(
        data=Path("/data"),
        stores=tuple(
            StorePlace(slot.path, slot.name, spare=number >= settings.stores)
            for number, slot in enumerate(world.slots[: settings.stores + settings.spares])
        ),
        scheme=parse_scheme(settings.scheme, settings.stores),
        chores=ChoresSettings(
            scrub_pass_s=settings.scrub_pass_s, scrub_rate_bytes=0, away_patience_s=PATIENCE_S
        ),
    )


class SimulatedNode:
    """One life of the node: everything here is lost with it."""

    def __init__(self, world: "World", life: int) -> None:
        settings = world.settings
        self._world = world
        self._life = life
        self.under_way = 0
        self.clock = clock = world.clock
        self.randomness = randomness = world.chance(f"node {life}")
        self.power = Power()
        self.index = DoubtfulIndex(clock, world.rows, commit_delay_s=settings.commit_delay_s)
        self.watched_index = index = WatchedIndex(
            NotedIndex(self.index, world.trace, world.index_nth, world.put_log, self._spoil)
        )
        self.config = config = config_of(world)
        self.ground = SimulatedGround(world, life, self.power)
        self.keeper = keeper = Keeper(
            config, clock=clock, randomness=randomness, on_event=self._tell, ground=self.ground
        )
        self.health = StoreHealth([], config.scheme.m, clock.monotonic())
        self.packs = Packs(
            keeper.attached,
            keeper.topology,
            index,
            self.health,
            clock,
            randomness,
            self._damaged,
            room=keeper.room,
        )
        self.objects = Objects(
            index,
            self.packs,
            clock,
            randomness,
            ObjectsSettings(
                default_scheme=config.scheme.name,
                stores=keeper.count,
                limits=ObjectsLimits(
                    hashing_threads=0,
                    part_bytes_min=settings.part_bytes_min,
                    inline_bytes_max=settings.inline_bytes_max,
                ),
            ),
        )
        self.background = Background(
            keeper,
            self.health,
            index,
            self.packs,
            clock,
            randomness,
            self._tell,
            scheme=config.scheme,
            settings=config.chores,
            may_delete=True,
            holder=f"node {life}",
            under_way=lambda: self.under_way,
            paces=Paces(settings.compact_every_s, settings.audit_every_s, 50_000),
        )
        self.background.repair.observer = self._healed
        keeper.on_attached = self._attached
        reader, rows = self.packs.reader, self.packs.rows
        self.rewriter = Rewriter(
            keeper.attached, keeper.topology, index, rows, reader, self.packs.writer, clock, randomness
        )
        self.verifier = Verifier(keeper.attached, index, rows, reader, clock)
        self.managing = StoreManaging(
            keeper, Elsewhere(), index, self.health, self.background, config, clock, self._tell
        )
        self._tasks: list[asyncio.Task[None]] = []

    def _spoil(self) -> None:
        self.index.faults.appendleft(self._world.index_fault)

    async def start(self) -> None:
        """Attach who is there, begin the chores and the watch."""
        keeper, observer = self.keeper, HealthObserver(self.health, self.clock)
        await keeper.open()
        keeper.start(self.health, lambda _, store: observer.measure(store))
        self._check_not_ahead()
        self.background.start(self.objects, self.managing.housekeeping)
        self._watch(keeper.watch())
        self._watch(self._keep_noting())

    def _watch(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    def unplug(self) -> None:
        """Nothing that this node does reaches a store any more, not even what was to land late."""
        self.power.on = False
        for store in self.ground.disks:
            store.crash()

    async def _keep_noting(self) -> None:
        while True:
            status = self.index.status()
            await self.keeper.note(status.incarnation, status.revision)
            await self.clock.sleep(NOTE_EVERY_S)

    # What the parts tell

    def _tell(
        self,
        text: str,
        *,
        kind: str = Kind.NOTE,
        subject: str = "",
        before: str = "",
        after: str = "",
        evidence: Mapping[str, str] | None = None,
    ) -> None:
        self._world.trace.note("event", kind, subject, before, "->", after, text, dict(evidence or {}))

    def _damaged(self, pack: PackId, shard: int, what: str) -> None:
        self._world.trace.note("damage", pack.hex(), shard, what)
        self.background.damaged(pack, shard, what)

    def _healed(self, pack: PackId, why: str) -> None:
        """A repair is closed: now all of the pack is right on its disks, parity included."""
        world = self._world
        self._tell(f"{pack.hex()} is healed: {why}")
        if (row := world.rows.get(pack_row(pack))) is not None:
            wrong = world.wrong_shards(shards_of(pack, decode_row(row.value)))
            assert not wrong, f"the repair of {pack.hex()} was closed, and {wrong} are wrong"

    def _attached(self, store: StoreId) -> None:
        self.background.attached(store)
        self._check_not_ahead()

    def _check_not_ahead(self) -> None:
        status = self.index.status()
        ahead = self.keeper.ahead_of(status.incarnation, status.revision)
        assert not ahead, f"{ahead} have seen more of the index than there is"

    # What is asked

    @property
    def attached(self) -> dict[StoreId, Store]:
        """The stores in use."""
        return self.keeper.attached

    def topology(self) -> Topology:
        """All stores that have a slot, those that are away, too."""
        return self.keeper.topology()

    @property
    def repair(self) -> Repair:
        """The chore."""
        return self.background.repair

    @property
    def compact(self) -> Compact:
        """The chore."""
        assert self.background.compact is not None
        return self.background.compact

    @property
    def keeping(self) -> Keeping:
        """Journal and snapshots."""
        return self.background.keeping

    @property
    def chores(self) -> ChoreRunner:
        """All chores."""
        return self.background.runner

    @property
    def mended(self) -> int:
        """How many packs were healed, or have what they were owed."""
        return self.background.repair.repaired + self.background.debts.paid

    @property
    def is_still(self) -> bool:
        """Whether nothing is being changed on any disk, nor may still land there."""
        return not self.power.changing and not any(store.lands_late for store in self.ground.disks)

    @property
    def outruns_journal(self) -> bool:
        """Whether dead shards may go before the journal says so: room is needed, or it has a gap."""
        return self.background._room_is_needed() or self.keeping.journal.starts_anew

    @property
    def is_quiet(self) -> bool:
        """Whether every store is in use and nothing is waiting to be mended."""
        return not self.repair.waiting and all(
            store in self.attached and self.health.readable(store) and not self.health.is_full(store)
            for store in self.topology().stores
        )

"""The simulated machine as a keeper sees it: places with disks in them, and the record of the cluster.

A place whose disk has vanished shows nothing, or the empty directory below its mount point. Looking at a disk
that hangs takes until the time is up.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.node.cluster import Cluster
from holdfast.node.config_cloud import StorePath
from holdfast.node.ground import ATTACH_TIMEOUT_S, Opened
from holdfast.stores.directory import Attached, DirectoryStore
from holdfast.stores.faulty import FaultyStore
from holdfast.stores.identity import Expected, Found, Identity, Noted, judge
from holdfast.stores.port import Attachment, Store, StoreFailed, StoreOverdue
from tests.simulation.parts import PluggedStore, Power

if TYPE_CHECKING:
    from tests.simulation.world import Slot, World


class OpenDisk(PluggedStore):
    """A disk that a node has opened, with what a keeper asks of one."""

    def __init__(self, world: "World", slot: "Slot", faulty: FaultyStore, power: Power) -> None:
        super().__init__(faulty, power, world.trace, world.nth, world.put_log)
        assert slot.identity is not None
        self._slot = slot
        self._memory = slot.memory
        self._faulty = faulty
        self._is_open = True
        self.identity = slot.identity
        self.device = slot.name
        self.mounted = True

    async def close(self) -> None:
        """The disk stays as it is, for whoever opens it next."""
        self._is_open = False
        self._faulty.crash()

    def _check(self) -> None:
        super()._check()
        if not self._is_open:
            raise StoreFailed("It is closed.", store=self.id)

    async def note_revision(self, incarnation: str, revision: int, *, timeout_s: float) -> None:
        """The disk remembers how far the index is."""
        slot = self._slot
        if slot.script.hang:
            await slot.world.clock.sleep(timeout_s)
            raise StoreOverdue("It hangs.", store=self.id)
        self._check()
        if slot.script.vanished or slot.script.read_only or slot.memory is not self._memory:
            raise StoreFailed("It cannot be written.", store=self.id)
        seen = self.identity.noted
        if seen is None or seen.revision < revision:
            slot.identity = self.identity = replace(self.identity, noted=Noted(incarnation, revision))


class SimulatedGround:
    """What one life of the node stands on."""

    def __init__(self, world: "World", life: int, power: Power) -> None:
        self._world = world
        self._life = life
        self._power = power
        self._clock: Clock = world.clock
        self._opened = 0
        self.disks: list[FaultyStore] = []
        """All that were opened in this life."""

    def read_cluster(self) -> Cluster | None:
        return self._world.cluster

    def write_cluster(self, cluster: Cluster) -> None:
        if not self._power.on:
            return
        self._world.cluster = cluster
        recorded = self._world.recorded
        for slot in cluster.slots.values():
            if slot.store is not None and slot.noted is not None:
                recorded[slot.store] = max(recorded.get(slot.store, 0), slot.noted.revision)

    def make_folder(self, path: StorePath) -> None:
        assert path in self._world.places

    async def inspect(self, path: StorePath) -> Found:
        assert isinstance(path, Path)
        slot = self._world.places[path]
        await self._look(slot)
        return slot.found

    def dress(self, path: StorePath, opened: Opened) -> Store:
        return opened

    async def keep_keys(self, folders: Sequence[Path]) -> None:
        """Nothing is sealed."""

    async def attach(self, path: StorePath, expected: Expected, *, initialise: bool) -> Attached:
        assert isinstance(path, Path)
        world, slot = self._world, self._world.places[path]
        await self._look(slot)
        judgement = judge(slot.found, expected)
        if judgement.attachment is Attachment.NEW and initialise:
            if slot.script.full or slot.script.read_only:
                raise StoreFailed("Nobody can move in there.")
            slot.identity = Identity(slot.memory.id, expected.cluster, expected.slot)
        elif judgement.attachment is not Attachment.READY:
            return Attached(judgement, slot.found.identity, None)
        assert slot.identity is not None
        seen = slot.identity.noted.revision if slot.identity.noted else 0
        assert seen >= world.recorded.get(slot.memory.id, 0), (
            f"an old image of {slot.memory.id} is taken back: it has seen revision {seen}"
        )
        self._opened += 1
        slot.memory_in_use = slot.memory
        faulty = FaultyStore(
            slot.memory,
            slot.script,
            clock=self._clock,
            randomness=world.chance(f"faults of {slot.memory.id} in {self._life}, {self._opened}"),
        )
        self.disks.append(faulty)
        world.trace.note("attached", path, slot.memory.id)
        opened = OpenDisk(world, slot, faulty, self._power)
        return Attached(judgement, slot.identity, cast("DirectoryStore", opened))

    async def _look(self, slot: "Slot") -> None:
        if slot.script.hang:
            await self._clock.sleep(ATTACH_TIMEOUT_S)
            raise StoreOverdue("It hangs.")
        await self._clock.sleep(self._world.latency_s[1])
        if not self._power.on:
            raise StoreFailed("The process has crashed.")
        if slot.script.read_errors >= 1.0:
            raise StoreFailed("Its identity cannot be read.")


def stores_of(cluster: Cluster) -> set[StoreId]:
    """All that are part of the house."""
    return {slot.store for slot in cluster.slots.values() if slot.store is not None}

"""Who runs a cluster while clients work and machines fail: has stores emptied, replaced and removed, puts
empty disks in, and changes what buckets want.

Nothing is forced: a store is removed when no pack names it any more, as the command does. What must hold is
for the proofs to find: whichever node does the work, and whoever dies or is cut off in between, nothing is
lost, and in the end what was to be emptied is empty, and every pack has what its bucket wants.
"""

from collections.abc import Callable, Coroutine

from msgspec import Struct

from holdfast.base.errors import HoldfastError
from holdfast.base.randomness import SeededRandomness
from holdfast.node.leaving import Cost, cost_of_leaving
from holdfast.objects import keys
from tests.simulation.book import Violation
from tests.simulation.cluster_world import ClusterWorld, Machine
from tests.simulation.proofs import check_schemes, scan
from tests.simulation.world import Slot

DONE_WITHIN_S = 900.0

Deed = Callable[[], Coroutine[None, None, None]]


class ClusterOperator(Struct):
    """`schemes` are those that buckets may get: none bears less than what a run takes away. `counts` says
    what was done. `may_lose` is whether a disk may be exchanged for an empty one before the next proof."""

    world: ClusterWorld
    chance: SeededRandomness
    buckets: tuple[str, ...]
    schemes: tuple[str, ...]
    counts: dict[str, int]
    may_lose: bool = True

    async def work(self, deeds: int, length_s: float) -> None:
        """So many deeds in about that time."""
        kinds: tuple[Deed, ...] = (
            self.drain,
            self.drain,
            self.replace,
            self.cancel,
            self.remove,
            self.exchange,
            self.rescheme,
            self.rescheme,
        )
        for _ in range(deeds):
            await self.world.clock.sleep(length_s / deeds * self.chance.fraction())
            await kinds[self.chance.below(len(kinds))]()

    async def drain(self) -> None:
        """Have a store emptied, once its machine has another one."""
        if (slot := self._some_slot()) is not None:
            self._count("store drain")
            self.world.add_disk(self.world.machine_of(slot))
            self.world.leaving[slot.memory.id] = None

    async def replace(self) -> None:
        """Have another disk of the same machine take a store's place."""
        if (slot := self._some_slot()) is not None:
            self._count("store replace")
            heir = self.world.add_disk(self.world.machine_of(slot))
            self.world.leaving[slot.memory.id] = heir.memory.id

    async def cancel(self) -> None:
        """Let one stay after all."""
        if (slot := self._some_slot(leaving=True)) is not None:
            self._count("store drain cancelled")
            del self.world.leaving[slot.memory.id]

    async def remove(self) -> None:
        """Let go of a store, if it holds nothing."""
        slot = self._some_slot(leaving=True)
        if slot is None:
            return
        self._count("store remove")
        store = slot.memory.id
        machine = self._some_machine()
        if machine is None:
            return
        try:
            cost = await self.world.ask(machine, lambda node: _cost(node, store), 15.0)
        except HoldfastError as error:
            self.world.trace.note("operator: remove", store, repr(error))
            return
        self.world.trace.note("operator: remove", store, cost.shards)
        if not cost.shards and store in self.world.leaving:
            self._count("store remove done")
            self.world.take_disk(slot)

    async def exchange(self) -> None:
        """A disk is taken out and an empty one put in, without a word to anybody."""
        if self.may_lose and (slot := self._some_slot()) is not None:
            self._count("store exchanged")
            self.may_lose = False
            slot.replace()

    async def rescheme(self) -> None:
        """Have everything in a bucket protected in another way."""
        bucket = self.buckets[self.chance.below(len(self.buckets))]
        scheme = self.schemes[self.chance.below(len(self.schemes))]
        machine = self._some_machine()
        if machine is None:
            return
        self._count("change of scheme")
        try:
            await self.world.ask(machine, lambda node: node.objects.set_bucket_scheme(bucket, scheme), 15.0)
        except HoldfastError as error:
            self.world.trace.note("operator: scheme", bucket, scheme, repr(error))

    async def finish(self) -> None:
        """Until all that was to be emptied is, and has gone, and every pack has what its bucket wants."""
        deadline = self.world.clock.monotonic() + DONE_WITHIN_S
        while self.world.leaving or scan(self.world, keys.RESCHEMES):
            if self.world.clock.monotonic() > deadline:
                drains = [(node.name, node.drain.stuck, node.drain.reason) for node in self.world.nodes]
                marks = [row.key for row in scan(self.world, keys.RESCHEMES)]
                raise Violation(f"not done after {DONE_WITHIN_S:g} s: {self.world.leaving} {drains}, {marks}")
            await self.remove()
            await self.world.clock.sleep(2.0)
        check_schemes(self.world)

    def _some_slot(self, *, leaving: bool = False) -> Slot | None:
        found = [
            slot
            for machine in self.world.machines
            for slot in machine.slots
            if (slot.memory.id in self.world.leaving) is leaving
            and slot.memory.id not in self.world.leaving.values()
            and slot.identity is not None
        ]
        return found[self.chance.below(len(found))] if found else None

    def _some_machine(self) -> Machine | None:
        found = self.world.running
        return found[self.chance.below(len(found))] if found else None

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self.world.trace.note("operator:", what)


async def _cost(node, store) -> Cost:  # type: ignore[no-untyped-def]
    there = frozenset(node.attached)
    return await cost_of_leaving(node.watched_index, store, there, there - {store})

"""Who runs the house while clients work and disks fail: adds stores, has others emptied, replaced and
removed, and changes what buckets want.

All by the node's own commands, which may refuse; nothing is forced. What must hold is for the proofs to find:
whatever was commanded, and whenever the node crashed in between, nothing is lost, and in the end every store
that was to be emptied is empty, goes, and every pack has what its bucket wants.
"""

from collections.abc import Callable, Coroutine

from msgspec import Struct

from holdfast.base.errors import Fenced, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.index.port import Row
from holdfast.node.cluster import Draining
from holdfast.packs.rows import decode_row
from tests.simulation.book import Violation
from tests.simulation.world import Crashed, World

DONE_WITHIN_S = 900.0

Deed = Callable[[], Coroutine[None, None, None]]


class Operator(Struct):
    """`schemes` are those that buckets may get: none loses more than what a run takes away. `counts` says
    what was done."""

    world: World
    chance: SeededRandomness
    buckets: tuple[str, ...]
    schemes: tuple[str, ...]
    counts: dict[str, int]

    async def work(self, deeds: int, length_s: float) -> None:
        """So many deeds in about that time."""
        kinds: tuple[Deed, ...] = (
            self.add,
            self.drain,
            self.drain,
            self.cancel,
            self.replace,
            self.replace,
            self.remove,
            self.rescheme,
            self.rescheme,
        )
        for _ in range(deeds):
            await self.world.clock.sleep(length_s / deeds * self.chance.fraction())
            await kinds[self.chance.below(len(kinds))]()

    async def add(self) -> None:
        """One more store."""
        slot = self.world.add_slot()
        await self._command("add", path=str(slot.path), slot=slot.name)

    async def drain(self) -> None:
        """Have a store emptied; after another was added, if there would be too few."""
        if self._taking() <= self.world.settings.stores:
            await self.add()
        if self._taking() > self.world.settings.stores and (slot := self._some_slot()):
            await self._command("drain", slot=slot)
            if self.chance.below(2) == 0:
                await self.remove()  # far too early, mostly

    async def cancel(self) -> None:
        """Let one stay after all."""
        if (slot := self._some_slot(draining=True)) is not None:
            await self._command("drain", slot=slot, cancel="yes")

    async def replace(self) -> None:
        """Have another disk take a slot over."""
        if (name := self._some_slot()) is not None:
            await self._command("replace", slot=name, path=str(self.world.add_slot().path))

    async def remove(self) -> None:
        """Let go of a store; refused while it holds something."""
        if (slot := self._some_slot(draining=True)) is not None:
            store = self.world.node.keeper.held[slot].id
            if await self._command("remove", slot=slot):
                self._check_empty(slot, store)

    def _check_empty(self, slot: str, store: StoreId | None) -> None:
        """A store that was let go without force is needed for nothing."""
        rows = self.world.rows.scan(b"pack/", b"pack0", 1 << 30, b"", 0)
        needed = [
            row.key.decode()
            for row in rows
            if isinstance(row, Row) and any(one.store == store for one in decode_row(row.value).places)
        ]
        if needed:
            raise Violation(f"{slot} was removed, and {len(needed)} packs need it: {needed[:3]}")

    async def rescheme(self) -> None:
        """Have everything in a bucket protected in another way."""
        bucket = self.buckets[self.chance.below(len(self.buckets))]
        scheme = self.schemes[self.chance.below(len(self.schemes))]
        self._count("change of scheme")
        try:
            await self.world.call(lambda node: node.objects.set_bucket_scheme(bucket, scheme))
        except (HoldfastError, Crashed) as error:
            self.world.trace.note("operator: scheme", bucket, scheme, repr(error))

    async def finish(self) -> None:
        """Until all that was to be emptied is, and has gone."""
        deadline = self.world.clock.monotonic() + DONE_WITHIN_S
        while self.world.clock.monotonic() < deadline:
            left = {
                name: slot.known_as
                for name, slot in self.world.node.keeper.cluster.slots.items()
                if slot.draining is not Draining.NO
            }
            if not left:
                return
            for name, known_as in left.items():
                if not known_as:
                    await self._command("remove", slot=name)
            await self.world.clock.sleep(5.0)
        drain = self.world.node.background.drain
        raise Violation(
            f"{left} are not empty after {DONE_WITHIN_S:g} s: {drain.stuck} stuck, {drain.reason}"
        )

    def _taking(self) -> int:
        return self.world.node.keeper.count() if self.world.is_up else 0

    def _some_slot(self, *, draining: bool = False) -> str | None:
        if not self.world.is_up:
            return None
        keeper = self.world.node.keeper
        found = [
            name
            for name, line in keeper.cluster.slots.items()
            if not line.known_as and (line.draining is not Draining.NO) is draining and name in keeper.held
        ]
        return found[self.chance.below(len(found))] if found else None

    async def _command(self, action: str, **asked: str) -> bool:
        """Whether it was done."""
        self._count(f"store {action}")
        try:
            done = await self.world.call(lambda node: node.managing.commands.do(action, asked))
        except (InvalidInput, Fenced) as error:
            self.world.trace.note("operator:", action, asked, "refused:", error)
        except (HoldfastError, Crashed) as error:
            self.world.trace.note("operator:", action, asked, repr(error))
        else:
            self.world.trace.note("operator:", action, asked, *done.sentences)
            self._count(f"store {action} done")
            return True
        return False

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

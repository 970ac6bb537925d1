"""Looking after slots: spares that start by themselves, replaced stores that go when they are empty.

A spare (`spare = true` in the configuration) takes nothing until another store has been away for
`SPARE_PATIENCE_S`, or for as long as makes it count as lost; then it stands in for that one and is a store
like any other from then on. What must hold: each store that is away gets one spare and no more, also over
restarts; a store that was replaced goes only after a walk over all packs found nothing on it, or when it has
been away for as long.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.health import StoreHealth
from holdfast.node.changing import Changes
from holdfast.node.keeper import Held, Keeper

SPARE_PATIENCE_S = 60.0
"""Longer than a restart of a machine's disks or a cable that is plugged in again; a spare that started for
nothing costs nothing but being one."""


LOOK_AGAIN_S = 60.0


class SlotView(Struct, frozen=True):
    """A slot as the decision sees it. `away_s` is how long its store has been away, 0 when it is there."""

    slot: str
    store: StoreId | None
    away_s: float = 0.0
    spare: bool = False
    stands_in_for: str = ""


def spare_to_start(slots: Sequence[SlotView], patience_s: float) -> tuple[str, StoreId] | None:
    """The spare that starts now, and the store that it stands in for. Pure."""
    covered = {slot.stands_in_for for slot in slots}
    spares = [slot for slot in slots if slot.spare and not slot.stands_in_for and not slot.away_s]
    gone = (
        slot.store
        for slot in slots
        if slot.store is not None
        and slot.store not in covered
        and slot.away_s > patience_s
        and (slot.stands_in_for or not slot.spare)
    )
    store = next(gone, None)
    return (spares[0].slot, store) if spares and store is not None else None


class Housekeeping:
    """A chore of the node. `is_empty` says whether nothing is left on a store."""

    name = "housekeeping"
    interval_s = 2.0

    def __init__(
        self,
        keeper: Keeper,
        health: StoreHealth,
        changes: Changes,
        is_empty: Callable[[StoreId], bool],
        clock: Clock,
        tell: Callable[[str], None],
        *,
        patience_s: float = SPARE_PATIENCE_S,
        is_needed: Callable[[StoreId], Awaitable[bool]] | None = None,
    ) -> None:
        self._is_needed = is_needed
        self._look_again: dict[StoreId, float] = {}
        self._patience_s = patience_s
        self._keeper = keeper
        self._health = health
        self._changes = changes
        self._is_empty = is_empty
        self._clock = clock
        self._tell = tell

    async def step(self) -> bool:
        """One look."""
        now = self._clock.monotonic()
        keeper = self._keeper
        views = [
            SlotView(
                slot,
                held.id,
                self._away_s(held, now),
                held.place.spare,
                keeper.cluster.slots[slot].stands_in_for,
            )
            for slot, held in keeper.held.items()
        ]
        if (found := spare_to_start(views, self._patience_s)) is not None:
            spare, store = found
            line = replace(keeper.cluster.slots[spare], stands_in_for=str(store))
            keeper.write(keeper.cluster.with_slot(spare, line))
            self._tell(f"the spare {spare} starts, in place of {keeper.slot_of(store)}, which is away")
        for view in views:
            await self._let_go_of_replaced(view)
        return False

    def _away_s(self, held: Held, now: float) -> float:
        if held.opened is None:
            return now - held.since
        if held.id is not None and not self._health.readable(held.id) and not self._health.writable(held.id):
            return now - self._health.since(held.id)
        return 0.0

    async def _must_wait(self, store: StoreId) -> bool:
        """Whether a pack could not be read any more without a store: who lets go of it now will not take it
        back when it returns. All packs are asked, so not too often."""
        if self._is_needed is None:
            return False
        now = self._clock.monotonic()
        if now < self._look_again.get(store, now):
            return True
        needed = await self._is_needed(store)
        self._look_again = {store: now + LOOK_AGAIN_S} if needed else {}
        return needed

    async def _let_go_of_replaced(self, view: SlotView) -> None:
        line = self._keeper.cluster.slots.get(view.slot)
        if line is None or not line.known_as or view.store is None:
            return
        if self._is_empty(view.store):
            await self._changes.dismiss(view.slot)
            self._tell(f"{line.path} is empty and no longer needed: {line.known_as} has taken its place")
        elif view.away_s > self._patience_s and not await self._must_wait(view.store):
            await self._changes.dismiss(view.slot)
            self._tell(f"{line.path}, which {line.known_as} replaced, is gone: the rest is made again")

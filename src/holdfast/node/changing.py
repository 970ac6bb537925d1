"""Stores that come and go while the node runs: admitted, replaced, dismissed.

What is meant is written to `cluster.json` before anything is done, so that a crash in between is mended by
starting again: an empty directory that a slot expects is moved into. What must hold: a change that cannot be
made changes nothing, and undoes nothing that happened at other slots meanwhile; only an empty directory is
ever taken into use; a store that was let go for good is retired, and refused when it turns up again.
"""

from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError
from holdfast.health.prober import PROBE_TIMEOUT_S
from holdfast.node.cluster import REMOVED, REPLACED, Cluster, Draining, Labels, Retired, Slot, slot_beside
from holdfast.node.config import StorePlace
from holdfast.node.config_cloud import Bucket, StorePath
from holdfast.node.keeper import Held, Keeper


class Changes:
    """Changes the stores of a keeper, one at a time."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock

    async def admit(self, place: StorePlace) -> None:
        """Take an empty directory into use as a new store, in a slot of its own. Raises Fenced when it is not
        empty, and what attaching raises."""
        keeper = self._keeper
        async with keeper.changing:
            held, line = Held(place), keeper.cluster.slots.get(place.slot)
            added = Labels(place.region, place.zone, place.host)
            line_new = Slot(str(place.path), added=added, bucket=_bucket_of(place.path))
            keeper.write(keeper.cluster.with_slot(place.slot, line_new))
            try:
                await self._move_in(held)
            except BaseException:
                keeper.write(_with_line(keeper.cluster, place.slot, line))
                raise
            keeper.held[place.slot] = held
            keeper.remap()

    async def replace(self, slot: str, path: StorePath, *, keep: bool = False) -> str | None:
        """Have an empty directory take a slot over. The store that was there is kept under another name,
        which is returned, until it is empty, if it can be read; else it is retired, and what it held is made
        again, unless it is to be kept: then nothing is done. Raises as `admit`."""
        keeper = self._keeper
        async with keeper.changing:
            await keeper.quiet(slot)
            cluster, held, line = keeper.cluster, keeper.held[slot], keeper.cluster.slots[slot]
            readable = held.opened is not None
            if keep and not readable:
                raise Fenced(f"{slot} went away at this moment.", hint="Look why, or say it again.")
            old = replace(held, place=replace(held.place, slot=slot_beside(slot, keeper.held)))
            redirected = "" if line.added else line.instead_of or line.path
            redirected = redirected if redirected != str(path) else ""
            new = Slot(
                str(path),
                added=line.added,
                instead_of=redirected,
                stands_in_for=line.stands_in_for,
                bucket=_bucket_of(path),
            )
            cluster, retired = cluster.with_slot(slot, new), None
            if readable:
                labels = Labels(old.place.region, old.place.zone, old.place.host)
                leaving = replace(line, added=labels, draining=Draining.YES, known_as=slot, instead_of="")
                cluster = cluster.with_slot(old.place.slot, leaving)
            elif line.store is not None:
                retired = self._retired(slot, REPLACED)
                cluster = cluster.with_retired(retired)
            keeper.write(cluster)
            fresh = Held(replace(held.place, path=path))
            try:
                await self._move_in(fresh)
            except BaseException:
                undone = _with_line(keeper.cluster, slot, line)
                undone = undone.without_slot(old.place.slot) if readable else undone
                kept = tuple(one for one in undone.retired if one is not retired)
                keeper.write(replace(undone, retired=kept))
                raise
            # The same `Held` stands for the slot from here on, and the index's member follows it.
            for name in Held.__struct_fields__:
                setattr(held, name, getattr(fresh, name))
            if readable:
                keeper.held[old.place.slot] = old
            else:
                keeper.forget(line.store)
            keeper.remap()
            return old.place.slot if readable else None

    async def dismiss(self, slot: str) -> None:
        """Let go of a store for good: what it still holds counts as lost, and it is not taken back."""
        keeper = self._keeper
        async with keeper.changing:
            await keeper.quiet(slot)
            held, line = keeper.held[slot], keeper.cluster.slots[slot]
            retired = self._retired(slot, REPLACED if line.known_as else REMOVED)
            keeper.write(keeper.cluster.without_slot(slot).with_retired(retired))
            del keeper.held[slot]
            store = held.id
            if held.opened is not None:
                await keeper.let_go(held)
            keeper.forget(store)
            keeper.remap()

    def forget(self, slot: str) -> None:
        """Take a slot off the record that the configuration does not name any more."""
        keeper = self._keeper
        assert slot not in keeper.held
        keeper.write(keeper.cluster.without_slot(slot).with_retired(self._retired(slot, REMOVED)))

    async def _move_in(self, held: Held) -> None:
        await self._keeper.attach(held)
        if held.opened is None:
            raise Fenced(
                f"{held.place.path} cannot be used for slot {held.place.slot!r}: {held.reason}",
                hint="Name an empty directory.",
            )
        try:
            held.usage = await held.opened.usage(timeout_s=PROBE_TIMEOUT_S)
        except HoldfastError:
            held.usage = None  # the keeper asks again

    def _retired(self, slot: str, how: str) -> Retired:
        line = self._keeper.cluster.slots[slot]
        return Retired(line.known_as or slot, line.path, line.store, how, self._clock.wall())


def _bucket_of(path: StorePath) -> Bucket | None:
    return path if isinstance(path, Bucket) else None


def _with_line(cluster: Cluster, slot: str, line: Slot | None) -> Cluster:
    """`cluster` with the line that a slot had before; None when there was no such slot."""
    return cluster.without_slot(slot) if line is None else cluster.with_slot(slot, line)

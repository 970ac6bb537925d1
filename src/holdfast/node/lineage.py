"""Whether an index is the one that the stores know: the guard against one that was made anew, or lost.

Each recovery begins a new incarnation, which knows the ones before it. What must hold: whoever has an older
one than the stores have seen is fenced, and an index that was lost is not quietly replaced by an empty one.
"""

from pathlib import Path

from holdfast.base.errors import Fenced
from holdfast.index.port import Index
from holdfast.node.index import Members
from holdfast.node.keeper import Keeper
from holdfast.recovery.format import LINEAGE_ROW, LineageRow, decode_lineage

LATELY_MS = 24 * 3600 * 1000


def _noted(keeper: Keeper) -> dict[str, str]:
    """The incarnation that each attached store has noted, by slot."""
    opened = {slot: held.opened for slot, held in keeper.held.items() if held.opened is not None}
    return {slot: store.identity.noted.incarnation for slot, store in opened.items() if store.identity.noted}


def check_not_lost(keeper: Keeper, members: Members) -> None:
    """Raises Fenced when there was an index and every part of it is gone: to begin a new one would make all
    objects unknown."""
    was = {keeper.cluster.incarnation, *_noted(keeper).values()} - {""}
    if not was:
        return
    for name in members.first:
        place = Path(members.all[name].place) if name in members.all else None
        if place is None or not place.parent.is_dir() or (place / "member").exists():
            return  # one that is away may come back; opening says what is missing
    raise Fenced(
        f"Every part of the index is gone ({', '.join(members.first)}), and there was one.",
        hint="Put the directories back that held it. If they are lost, `holdfast recover` makes it again "
        "from the stores.",
    )


async def lineage_of(index: Index) -> tuple[str, ...]:
    """The incarnation of an index, and those that it was made from."""
    (row,) = await index.get([LINEAGE_ROW])
    made = decode_lineage(row.value) if row else None
    return (index.status().incarnation, *(made.ancestors if made else ()))


async def check_lineage(keeper: Keeper, index: Index) -> LineageRow | None:
    """What the index was made from, if it was made anew. Raises Fenced when stores have noted an index that
    this one was not made from."""
    (row,) = await index.get([LINEAGE_ROW])
    made = decode_lineage(row.value) if row else None
    ours = {index.status().incarnation, *(made.ancestors if made else ())}
    if others := {slot: noted for slot, noted in _noted(keeper).items() if noted not in ours}:
        raise Fenced(
            f"The index that was found is {index.status().incarnation}, but {', '.join(others)} have seen "
            f"{', '.join(sorted(set(others.values())))}, which came after it or has nothing to do with it:",
            hint="it was recovered or replaced meanwhile. Use the newer one, or name the stores of this one.",
        )
    return made


def recovered_lately(made: LineageRow | None, wall: float) -> str:
    """A sentence for the events, on the first day after a recovery; empty otherwise."""
    if made is None or not 0 <= wall * 1000 - made.made_ms < LATELY_MS:
        return ""
    return f"the index was made again from the stores (recovery-{made.number}.json tells what came of it)"

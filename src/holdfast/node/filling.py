"""Which stores take something new, how full they are, and which are to be emptied: what the keeper knows, for
the chores that move shards."""

from collections.abc import Mapping

from holdfast.base.ids import StoreId
from holdfast.chores.balance import Fill
from holdfast.chores.drain import Leaving
from holdfast.node.census import Census
from holdfast.node.cluster import Draining
from holdfast.node.keeper import Keeper
from holdfast.topology import Topology


def fills_of(keeper: Keeper, census: Census) -> tuple[float, Mapping[StoreId, Fill]]:
    """When the last count was begun, and how full each store is that is there and takes something new."""
    count = census.last
    fills = {
        held.id: Fill(count.bytes_at[held.id], count.bytes_at[held.id] + held.usage.bytes_free)
        for slot, held in keeper.held.items()
        if held.id is not None
        and held.opened is not None
        and held.usage is not None
        and keeper.takes_new(slot)
    }
    for other in keeper.others.values():
        if other.store is not None and other.usage is not None and other.row.takes_new:
            held_there = count.bytes_at[other.id]
            fills[other.id] = Fill(held_there, held_there + other.usage.bytes_free)
    return count.began_at, fills


def leaving_of(keeper: Keeper) -> list[Leaving]:
    """The stores that are to be emptied, with those that take their place."""
    found = []
    for slot, held in keeper.held.items():
        line = keeper.cluster.slots[slot]
        if line.draining is Draining.NO or held.id is None:
            continue
        heir = keeper.held.get(line.known_as)
        into = heir.id if heir is not None and heir.id in keeper.attached else None
        found.append(Leaving(held.id, into, line.draining is Draining.FORCED))
    for other in keeper.others.values():
        if other.row.draining:
            heir_id = StoreId(other.row.into)
            found.append(Leaving(other.id, heir_id if heir_id in keeper.attached else None, other.row.forced))
    return found


def lasting(keeper: Keeper) -> Topology:
    """The stores that take something new, with those that are away: what schemes are chosen for. Those that
    are emptied, and spares that wait, are none of them."""
    own = [held.id for slot, held in keeper.held.items() if held.id is not None and keeper.takes_new(slot)]
    others = [other.id for other in keeper.others.values() if other.row.takes_new]
    topology = keeper.topology()
    found = map(topology.location, [*own, *others])
    return Topology(location for location in found if location is not None)

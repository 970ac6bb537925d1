"""Keeping the loss of a region survivable: which scheme a pack gets, and when enough of it is durable. Pure.

A scheme promises a region where, laid over all stores that are known, it would survive the loss of one. Then
every pack is laid so, and is acknowledged so: any one region may go, and as many shards are left as a read
needs. Counting shards alone does not say that: of rs-4-2 over three regions of two stores, five are durable
soon, and a region that holds two of them leaves three.

When stores are missing, m is kept and k shrinks, as ever, but until the region can be lost again. What must
hold: as long as stores of two regions can be written, some k does that; k = 1 does. Only when one region is
all that is left, there is nothing to keep, and the receipt says so.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from holdfast.base.ids import StoreId
from holdfast.packs.layout import Layout, choose_scheme
from holdfast.scheme import Scheme
from holdfast.topology import Level, Topology, place


def keeps_region(topology: Topology, stores: Collection[StoreId], needed: int) -> bool:
    """Whether any one region may be lost with `needed` of the shards left that are at these stores."""
    held = Counter(topology.domain(store, Level.REGION) for store in stores)
    return len(stores) - max(held.values(), default=0) >= needed


def promises_region(topology: Topology, promised: Scheme) -> bool:
    """Whether a full pack of this scheme survives the loss of a region when all stores are well."""
    if not promised.m or topology.count(Level.REGION) < 2:
        return False
    scheme = promised.shrunk(len(topology.stores))
    return scheme is not None and keeps_region(topology, place(topology, scheme.n, topology.stores), scheme.k)


def can_keep_region(topology: Topology, promised: Scheme, stores: Collection[StoreId]) -> bool:
    """Whether some k makes the loss of a region survivable on these stores alone; k = 1 does, if any."""
    homes = place(topology, 1 + promised.m, sorted(stores))
    return len(homes) == 1 + promised.m and keeps_region(topology, homes, 1)


def fitting_scheme(
    promised: Scheme, stored_bytes: int, candidates: Sequence[StoreId], topology: Topology
) -> Scheme | None:
    """The scheme closest to `promised` for what can be written now: m kept, k as large as the stores and the
    promised region allow. None when not even one data shard fits."""
    most = choose_scheme(promised, stored_bytes, len(candidates))
    if most is None or not promises_region(topology, promised):
        return most
    for k in range(most.k, 0, -1):
        needed = Layout(k, stored_bytes).real_data_shards
        if keeps_region(topology, place(topology, needed + promised.m, candidates), needed):
            return Scheme(k, promised.m)
    return most


def without_slow(
    promised: Scheme,
    stored_bytes: int,
    candidates: Sequence[StoreId],
    waited_for: Callable[[StoreId], bool],
    topology: Topology,
) -> list[StoreId]:
    """The candidates without those that a write does not wait for, where those are enough to keep the region:
    else each write would find out anew that it has to wait for them after all."""
    well = [store for store in candidates if waited_for(store)]
    if len(well) == len(candidates) or not promises_region(topology, promised):
        return list(candidates)
    scheme = fitting_scheme(promised, stored_bytes, well, topology)
    if scheme is None:
        return list(candidates)
    needed = Layout(scheme.k, stored_bytes).real_data_shards
    homes = place(topology, needed + scheme.m, well)
    return well if keeps_region(topology, homes, needed) else list(candidates)

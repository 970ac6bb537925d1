"""Keeping a loss survivable: which scheme a pack gets, and when enough of it is durable. Pure.

What a pack must survive is what the buckets of its scheme were told to (`packs.promising`), and a region in
any case, where its scheme promises one: where, laid over all stores that are known, it would survive the
loss of it. Then every pack is laid so, and is acknowledged so: any one of these domains may go, and as many
shards are left as a read needs. Counting shards alone does not say that: of rs-4-2 over three regions of
two stores, five are durable soon, and a region that holds two of them leaves three.

When stores are missing, m is kept and k shrinks, as ever, but until the loss is survivable again. What must
hold: as long as stores of two regions can be written, some k keeps a region; k = 1 does. Only when too few
domains are left there is nothing to keep, and the receipt says so; what is wider is kept before what is
narrower.
"""

from collections.abc import Callable, Collection, Sequence

from holdfast.base.ids import StoreId
from holdfast.packs.layout import Layout
from holdfast.packs.layout import choose_scheme as scheme_for_stores
from holdfast.packs.promising import Required, required
from holdfast.scheme import Scheme
from holdfast.topology import Topology, keeps, place


def can_keep(topology: Topology, promised: Scheme, wanted: Required, stores: Collection[StoreId]) -> bool:
    """Whether some k makes all that survivable on these stores alone; k = 1 does, if any."""
    homes = place(topology, 1 + promised.m, sorted(stores))
    return len(homes) == 1 + promised.m and keeps(topology, wanted, homes, 1)


def fitting_scheme(
    promised: Scheme,
    stored_bytes: int,
    candidates: Sequence[StoreId],
    topology: Topology,
    told: Required = (),
) -> Scheme | None:
    """The scheme closest to `promised` for what can be written now: m kept, k as large as the stores and what
    has to be survived allow. None when not even one data shard fits."""
    most = scheme_for_stores(promised, stored_bytes, len(candidates))
    wanted = required(topology, promised, told) if most is not None else ()
    while most is not None and wanted:
        for k in range(most.k, 0, -1):
            needed = Layout(k, stored_bytes).real_data_shards
            if keeps(topology, wanted, place(topology, needed + promised.m, candidates), needed):
                return Scheme(k, promised.m)
        wanted = wanted[:-1]
    return most


def without_slow(
    promised: Scheme,
    stored_bytes: int,
    candidates: Sequence[StoreId],
    waited_for: Callable[[StoreId], bool],
    topology: Topology,
    told: Required = (),
) -> list[StoreId]:
    """The candidates without those that a write does not wait for, where those are enough to keep what has to
    be survived: else each write would find out anew that it has to wait for them after all."""
    well = [store for store in candidates if waited_for(store)]
    if len(well) == len(candidates) or not (wanted := required(topology, promised, told)):
        return list(candidates)
    scheme = fitting_scheme(promised, stored_bytes, well, topology, told)
    if scheme is None:
        return list(candidates)
    needed = Layout(scheme.k, stored_bytes).real_data_shards
    homes = place(topology, needed + scheme.m, well)
    return well if keeps(topology, wanted, homes, needed) else list(candidates)

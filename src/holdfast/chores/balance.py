"""Which shards to move so that all stores are equally full. Pure.

A store's *room* is what it could hold of ours: what it holds and what is free. Even is when every store
holds the same part of its room; what a store holds beyond that is its excess, and the least that any plan
has to move is the sum of all excesses. Packs are shown one after the other, in any order, a page at a
time; for each the plan says which of its shards go where, and counts them as moved.

What must hold: nothing is moved away from a store that has too little, nor to one that has too much, so
that no more than the least is moved, and half a shard for each store at most on top; no pack is spread
less well afterwards at any level, judged by `topology.check` and by what it survives; stores that take
nothing (they are draining, spare, away) are neither givers nor takers.
"""

from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow
from holdfast.topology import Topology, check, survived

BEGIN_ABOVE = 0.05
"""Moving begins when a store is further than this from even, relative to even..."""

END_BELOW = 0.02
"""... and goes on until all are nearer than this, or nothing helps: so it does not begin again at once."""

BEGIN_BYTES = 8 << 20
"""Less than this is not worth moving, however uneven: a few packs do not fill stores evenly."""

_JUDGED_MAX = 10_000


class Fill(Struct, frozen=True):
    """How full a store is. `bytes_room` is what it holds of ours and what it could still take."""

    bytes_held: int
    bytes_room: int


class Balance:
    """One plan, from what the stores hold now. `fills` are the stores that take part."""

    def __init__(self, fills: Mapping[StoreId, Fill], topology: Topology) -> None:
        self._topology = topology
        held = sum(fill.bytes_held for fill in fills.values())
        room = sum(fill.bytes_room for fill in fills.values())
        even = held / room if room else 0.0
        self._wanted = {store: even * fill.bytes_room for store, fill in fills.items()}
        self._excess = {store: fill.bytes_held - self._wanted[store] for store, fill in fills.items()}
        self._judged: dict[tuple[frozenset[StoreId], StoreId, StoreId, int], bool] = {}

    @property
    def bytes_to_move(self) -> int:
        """The least that has to be moved."""
        return int(sum(excess for excess in self._excess.values() if excess > 0))

    @property
    def uneven(self) -> float:
        """How far the store that is furthest from even is from it, relative to even."""
        return max(
            (
                abs(excess) / self._wanted[store]
                for store, excess in self._excess.items()
                if self._wanted[store] > 0
            ),
            default=0.0,
        )

    @property
    def worth_beginning(self) -> bool:
        """Whether stores are so uneven that moving is worth its reads and writes."""
        return self.uneven > BEGIN_ABOVE and self.bytes_to_move >= BEGIN_BYTES

    @property
    def done(self) -> bool:
        """Whether it is even enough."""
        return self.uneven <= END_BELOW

    def moves(self, row: PackRow) -> tuple[tuple[int, StoreId], ...]:
        """Which shards of this pack should go where; they count as moved from now on."""
        layout = Layout(row.scheme.k, row.stored_bytes)
        if len(row.places) < layout.real_data_shards + row.scheme.m:
            return ()  # it lacks shards: that is mended first
        size = layout.shard_bytes
        at = {place.shard: place.store for place in row.places}
        givers = [shard for shard in at if self._excess.get(at[shard], 0) >= size / 2]
        givers.sort(key=lambda shard: -self._excess[at[shard]])
        found: list[tuple[int, StoreId]] = []
        for shard in givers:
            giver = at[shard]
            if self._excess[giver] < size / 2:
                continue
            taker = self._taker(at, shard, size, layout.real_data_shards)
            if taker is None:
                continue
            self._count(giver, taker, size)
            at[shard] = taker
            found.append((shard, taker))
        return tuple(found)

    def failed(self, row: PackRow, moves: tuple[tuple[int, StoreId], ...]) -> None:
        """Moves that were not made after all."""
        size = Layout(row.scheme.k, row.stored_bytes).shard_bytes
        at = {place.shard: place.store for place in row.places}
        for shard, taker in moves:
            self._count(taker, at[shard], size)

    def _count(self, giver: StoreId, taker: StoreId, size: int) -> None:
        self._excess[giver] -= size
        self._excess[taker] += size

    def _taker(self, at: Mapping[int, StoreId], shard: int, size: int, needed: int) -> StoreId | None:
        """The emptiest store that may have this shard."""
        stores = set(at.values())
        # Less than that is no gain: giver and taker would have changed places, and the next walk back again.
        most = self._excess[at[shard]] - size * (1 + END_BELOW)
        takers = [
            store
            for store, excess in self._excess.items()
            if excess <= -size / 2 and excess < most and store not in stores
        ]
        takers.sort(key=lambda store: self._excess[store] / max(1.0, self._wanted[store]))
        return next(
            (store for store in takers if self._keeps_spread(frozenset(stores), at[shard], store, needed)),
            None,
        )

    def _keeps_spread(self, stores: frozenset[StoreId], giver: StoreId, taker: StoreId, needed: int) -> bool:
        question = (stores, giver, taker, needed)
        known = self._judged.get(question)
        if known is None:
            if len(self._judged) >= _JUDGED_MAX:
                self._judged.clear()
            known = self._judged[question] = keeps_spread(
                self._topology, frozenset(self._excess), stores, stores - {giver} | {taker}, needed
            )
        return known


def keeps_spread(
    topology: Topology,
    candidates: frozenset[StoreId],
    before: frozenset[StoreId],
    after: frozenset[StoreId],
    needed: int,
) -> bool:
    """Whether a pack that needs `needed` shards lies no worse on `after` than on `before`: nothing that it
    survives is lost, and placement by `candidates` has no more to say against it."""
    losses_before = survived(topology, sorted(before), needed)
    losses_after = survived(topology, sorted(after), needed)
    if any(losses_after[level] < losses for level, losses in losses_before.items()):
        return False

    def faults(stores: frozenset[StoreId]) -> int:
        return len(check(topology, len(stores), sorted(candidates | stores), sorted(stores)))

    return faults(after) <= faults(before)

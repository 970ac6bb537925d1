"""What it would cost to do without a store, worked out from the rows of all packs.

What must hold: nothing is rounded in favour of leaving. A pack counts with the stores that are there now, and
whether the others suffice is asked of the stores that take something new.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.base.wording import counted
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.layout import Layout
from holdfast.packs.rows import decode_row
from holdfast.scheme import Scheme
from holdfast.topology import Level, Topology, place, survived

PAGE = 500
_PACKS = b"pack/"


class Cost(Struct):
    """What lies on a store: shards, their bytes. `remaining` counts the packs by how many more losses each
    survives once the store is gone, -1 for those that could not be read any more; `short` counts by scheme
    those that have more shards than there are other stores."""

    shards: int = 0
    bytes_held: int = 0
    remaining: Counter[int] = Counter()
    short: Counter[Scheme] = Counter()

    @property
    def lost(self) -> int:
        """Packs that could not be read any more."""
        return self.remaining[-1]

    def sentences(self) -> list[str]:
        """What would be lost, for a person."""
        found = []
        if self.lost:
            found.append(f"{counted(self.lost, 'pack')} would be lost for good")
        if self.remaining[0]:
            found.append(f"{counted(self.remaining[0], 'pack')} could lose no further store")
        if rest := sum(count for left, count in self.remaining.items() if left > 0):
            least = min(left for left in self.remaining if left > 0)
            found.append(f"{counted(rest, 'pack')} could lose {least} more")
        return found

    def once_gone(self, holder: str, more: Sequence[str] = ()) -> list[str]:
        """What is to be said to whoever did without `holder` all the same. What is lost is not made again."""
        rest = [*self.sentences()[bool(self.lost) :], *more]
        said = (
            [f"{counted(self.lost, 'pack')} cannot be read without what {holder} held."] if self.lost else []
        )
        if rest:
            what = f"What else {holder} held" if self.lost else f"What {holder} held"
            said.append(f"{what} is made again from the others; until then {', '.join(rest)}.")
        return said


async def cost_of_leaving(
    index: Index, store: StoreId, there: frozenset[StoreId], others: frozenset[StoreId]
) -> Cost:
    """What lies on `store`, and what its loss would leave, given the stores that are `there` and the `others`
    that would take what lies on it."""
    return await cost_of_all_leaving(index, frozenset({store}), there, others)


async def cost_of_all_leaving(
    index: Index, stores: frozenset[StoreId], there: frozenset[StoreId], others: frozenset[StoreId]
) -> Cost:
    """The same for `stores` that leave together."""
    cost = Cost(remaining=Counter(), short=Counter())
    start = _PACKS
    while True:
        found = await index.scan(start, prefix_end(_PACKS), limit=PAGE)
        for item in found:
            if not isinstance(item, Row):
                continue
            row = decode_row(item.value)
            leaving = sum(place_.store in stores for place_ in row.places)
            if not leaving:
                continue
            layout = Layout(row.scheme.k, row.stored_bytes)
            left = sum(place_.store in there and place_.store not in stores for place_ in row.places)
            cost.shards += leaving
            cost.bytes_held += leaving * layout.shard_bytes
            cost.remaining[max(-1, left - layout.real_data_shards)] += 1
            if layout.real_data_shards + row.scheme.m > len(others):
                cost.short[row.scheme] += 1
        if len(found) < PAGE:
            return cost
        start = found[-1].key + b"\0"


def weaker_levels(
    schemes: Sequence[Scheme], topology: Topology, now: Sequence[StoreId], then: Sequence[StoreId]
) -> list[str]:
    """What new packs of these schemes survive on the stores of `now` and would not on those of `then`."""
    found = []
    for scheme in schemes:
        before, after = _survives(scheme, topology, now), _survives(scheme, topology, then)
        found += [
            f"{scheme.name} would survive {after[level]} instead of {before[level]} {level.value}s lost"
            for level in before
            if after[level] < before[level]
        ]
    return found


def _survives(scheme: Scheme, topology: Topology, stores: Sequence[StoreId]) -> Mapping[Level, int]:
    return survived(topology, place(topology, scheme.n, stores), scheme.k)

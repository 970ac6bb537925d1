"""Counting packs: how many there are, how many lack shards, how much the weakest may still lose.

Walks the pack rows page by page, behind everything else, and keeps the last full count. Packs with the
same stores are alike, so what a set of stores survives is worked out once per walk. What must hold: a
shard counts as there only while its store is attached and not known to be down; whether its bytes are
right is for `verify` to say.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.node.status import PacksStatus
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow
from holdfast.packs.rows import decode_row
from holdfast.stores.port import Store
from holdfast.topology import LEVELS, Level, Topology, survived

PAGE = 500

_PACKS = b"pack/"
_DEBTS = b"debt/"


class Count:
    """One walk's result so far."""

    def __init__(self, topology: Topology, own: frozenset[StoreId] = frozenset()) -> None:
        self._topology = topology
        self._own = own
        self._survives: dict[tuple[frozenset[StoreId], int], Mapping[Level, int]] = {}
        self.packs = 0
        self.bytes_stored = 0
        self.degraded = 0
        self.unreadable = 0
        self.unreadable_without_own = 0
        """Packs that can be read now, and could not without the stores of this node."""
        self.redundancy_most = 0
        """The greatest m of any pack."""
        self.debts = 0
        self.shards_missing = 0
        self.losses_survivable: int | None = None
        self.survives: dict[Level, int] = {}
        self.redundancy_least: int | None = None
        """The least m among packs that have redundancy at all."""
        self.bytes_at: Counter[StoreId] = Counter()
        self.shards_at: Counter[StoreId] = Counter()
        self.schemes: Counter[str] = Counter()
        self.began_at = 0.0

    def add(self, row: PackRow, there: frozenset[StoreId]) -> None:
        """Count one pack, given the stores that are there."""
        layout = Layout(row.scheme.k, row.stored_bytes)
        homes = [place.store for place in row.places if place.store in there]
        absent = layout.real_data_shards + row.scheme.m - len(homes)
        left = len(homes) - layout.real_data_shards
        if row.scheme.m and (self.redundancy_least is None or row.scheme.m < self.redundancy_least):
            self.redundancy_least = row.scheme.m
        self.redundancy_most = max(self.redundancy_most, row.scheme.m)
        if left >= 0 and left < sum(store in self._own for store in homes):
            self.unreadable_without_own += 1
        self.packs += 1
        self.schemes[row.scheme.name] += 1
        self.bytes_stored += len(row.places) * layout.shard_bytes
        self.shards_missing += absent
        self.degraded += absent > 0
        self.unreadable += left < 0
        if self.losses_survivable is None or left < self.losses_survivable:
            self.losses_survivable = max(0, left)
        for place in row.places:
            self.bytes_at[place.store] += layout.shard_bytes
            self.shards_at[place.store] += 1
        key = (frozenset(homes), layout.real_data_shards)
        found = self._survives.get(key)
        if found is None:
            found = self._survives[key] = (
                survived(self._topology, homes, layout.real_data_shards)
                if left >= 0
                else dict.fromkeys(LEVELS, 0)
            )
        for level, count in found.items():
            self.survives[level] = min(count, self.survives.get(level, count))


class Census:
    """The last count, and the walk that makes the next."""

    name = "census"
    interval_s = 5.0

    def __init__(
        self,
        index: Index,
        stores: Mapping[StoreId, Store],
        is_up: Callable[[StoreId], bool],
        topology: Callable[[], Topology],
        clock: Clock,
        own: Callable[[], frozenset[StoreId]] = frozenset,
    ) -> None:
        self._index = index
        self._stores = stores
        self._is_up = is_up
        self._topology = topology
        self._clock = clock
        self._own = own
        self._count: Count | None = None
        self._next = _PACKS
        self._done = Count(topology())
        self._done_at = self._done.began_at = clock.monotonic()
        self.on_counted: Callable[[Count], None] = _nobody_asks
        self._one_by_one = asyncio.Lock()

    @property
    def survives(self) -> dict[Level, int]:
        """How many domains of each level every pack can lose; empty without packs."""
        return self._done.survives

    @property
    def last(self) -> Count:
        """The last full count."""
        return self._done

    def status(self) -> PacksStatus:
        """The last full count."""
        done = self._done
        return PacksStatus(
            packs=done.packs,
            bytes_stored=done.bytes_stored,
            degraded=done.degraded,
            unreadable=done.unreadable,
            debts=done.debts,
            shards_missing=done.shards_missing,
            losses_survivable=done.losses_survivable,
            counted_s_ago=self._clock.monotonic() - self._done_at,
        )

    async def step(self) -> bool:
        """Count one page; False when a walk has ended."""
        async with self._one_by_one:
            return await self._step()

    async def _step(self) -> bool:
        count = self._count
        if count is None:
            count = self._count = Count(self._topology(), self._own())
            count.began_at = self._clock.monotonic()
            self._next = _PACKS
        there = frozenset(store for store in self._stores if self._is_up(store))
        page = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
        rows = [row for row in page if isinstance(row, Row)]
        for row in rows:
            count.add(decode_row(row.value), there)
        if len(rows) == PAGE:
            self._next = rows[-1].key + b"\0"
            return True
        count.debts = await self._count_debts()
        self._done, self._count = count, None
        self._done_at = self._clock.monotonic()
        self.on_counted(count)
        return False

    async def whole(self) -> None:
        """Finish the walk under way, or make one, at once; for who asks for the status now."""
        async with self._one_by_one:
            self._count = None
            while await self._step():
                await self._clock.sleep(0)

    async def _count_debts(self) -> int:
        start, debts = _DEBTS, 0
        while True:
            page = await self._index.scan(start, prefix_end(_DEBTS), limit=PAGE)
            debts += len(page)
            if len(page) < PAGE:
                return debts
            start = page[-1].key + b"\0"


def _nobody_asks(count: Count) -> None:
    """Until somebody wants to know of each full count."""

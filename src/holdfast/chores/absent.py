"""Looking for shards that a store should hold and does not, as after an empty disk came in.

Asks the store for each shard that a pack row places there, a page of rows at a time, and reports what is
missing to `Repair`, which looks again before it writes. What must hold: nothing absent is passed over; so
it waits while `Repair` has no room for what it may find.
"""

from collections.abc import Callable, Mapping

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.rows import decode_row
from holdfast.stores.port import ShardMissing, Store

PAGE = 200
TIMEOUT_S = 10.0


class FindAbsent:
    """Looks through the packs of each store that `look_at` names."""

    name = "absent"
    interval_s = 1.0

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        index: Index,
        report: Callable[[PackId, int, str], None],
        has_room: Callable[[], bool],
        *,
        page: int = PAGE,
    ) -> None:
        self._has_room = has_room
        self._page = page
        self._stores = stores
        self._index = index
        self._report = report
        self._looking: dict[StoreId, bytes] = {}

    def look_at(self, store: StoreId) -> None:
        """Begin (again) with a store that was attached."""
        self._looking[store] = b"pack/"

    async def step(self) -> bool:
        """One page of rows for one store."""
        store = next((store for store in self._looking if store in self._stores), None)
        if store is None or not self._has_room():
            return False
        there, start = self._stores[store], self._looking[store]
        found = await self._index.scan(start, prefix_end(b"pack/"), limit=self._page)
        rows = [row for row in found if isinstance(row, Row)]
        for row in rows:
            pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
            for place in decode_row(row.value).places:
                if place.store == store:
                    await self._check(there, pack, place.shard, place.attempt)
        if len(rows) < self._page:
            del self._looking[store]
        else:
            self._looking[store] = rows[-1].key + b"\0"
        return True

    async def _check(self, store: Store, pack: PackId, shard: int, attempt: int) -> None:
        try:
            await store.size(shard_name(pack, shard, attempt), timeout_s=TIMEOUT_S)
        except HoldfastError as error:
            # Whatever it is, `Repair` looks again: a store that did not answer may lack the shard, too.
            self._report(pack, shard, "absent" if isinstance(error, ShardMissing) else str(error))

"""Looking for packs that place shards at stores that are not part of this installation any more.

A store that came back empty has a new identity, and one that was taken out of the configuration has no
slot: what rows place at the old one will never be found. Such shards are reported to `Repair`, which
gives them a new home. What must hold: a store that is only away keeps its shards; it is still in the
topology.
"""

from collections.abc import Callable

from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.rows import decode_row
from holdfast.topology import Topology

PAGE = 500
_PACKS = b"pack/"


class FindReplaced:
    """Walks all pack rows when the stores have changed, and again while it still finds something:
    `Repair` takes a bounded number of reports."""

    name = "replaced"
    interval_s = 5.0

    def __init__(
        self,
        index: Index,
        topology: Callable[[], Topology],
        report: Callable[[PackId, int, str], None],
    ) -> None:
        self._index = index
        self._topology = topology
        self._report = report
        self._next = _PACKS
        self._found = 0
        self._settled: frozenset[StoreId] | None = None

    async def step(self) -> bool:
        """One page of rows; False at the end of each walk, and when there is no reason for one."""
        known = frozenset(self._topology().stores)
        if known == self._settled:
            return False
        page = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
        rows = [row for row in page if isinstance(row, Row)]
        for row in rows:
            for place in decode_row(row.value).places:
                if place.store not in known:
                    self._found += 1
                    pack = PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode()))
                    self._report(pack, place.shard, f"its store {place.store} is gone for good")
        if len(rows) == PAGE:
            self._next = rows[-1].key + b"\0"
            return True
        self._settled = known if self._found == 0 else None
        self._next, self._found = _PACKS, 0
        return False

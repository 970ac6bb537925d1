"""Looking for packs that place shards where they will not be found again.

That is: at stores that are not part of this installation any more (one that came back empty has a new
identity, one that was taken out of the configuration has no slot), and at those that have been away for
longer than there is patience for (`chores.away`). Rows say where shards are; no store is asked. All that
is found is told to `Repair`, which keeps the most urgent, and added up as the debt of repairs.

A write that was under way when its store went makes its row afterwards, when the walk is over: hours later,
where an object is large and comes slowly. So each count of all packs (`counted`) says where their shards are,
and a walk follows when some are at stores that are gone. What must hold: a store that is only away for a
while keeps its shards.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, StoreId
from holdfast.base.wording import counted
from holdfast.chores.away import Absence, Away
from holdfast.chores.chore import Progress
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.layout import Layout
from holdfast.packs.rows import decode_row

PAGE = 500
INTERVAL_S = 5.0
WALK_SHARE = 10
"""Between two walks that both found something, so many times as long as the first of them took."""

_PACKS = b"pack/"

ReportLost = Callable[[PackId, frozenset[int], str, int, int], None]
"""Told of a pack, its lost shards, why, how many more it can lose, and bytes to be written again."""


class Owed(NamedTuple):
    """Packs and bytes that have to be written again."""

    packs: int = 0
    bytes: int = 0


class FindReplaced:
    """Walks all pack rows when somebody came, went, or is given up, and again while it still finds something:
    `Repair` takes a bounded number of reports."""

    name = "replaced"

    def __init__(self, index: Index, away: Away, report: ReportLost, clock: Clock) -> None:
        self._index = index
        self._away = away
        self._report = report
        self._clock = clock
        self._next = _PACKS
        self._absence: Absence | None = None
        self._settled: tuple[frozenset[StoreId], ...] | None = None
        self._counting: dict[int, Owed] = {}
        self._looked = 0
        self._began = 0.0
        self._took_s = 0.0
        self.owed: dict[int, Owed] = {}

    @property
    def interval_s(self) -> float:
        """Longer, the longer a walk takes."""
        return max(INTERVAL_S, WALK_SHARE * self._took_s)

    @property
    def bytes_owed(self) -> int:
        """What is to be written again, by the last walk."""
        return sum(owed.bytes for owed in self.owed.values())

    def took_over(self) -> None:
        """Another node may have written shards again: walk anew, for this one's repairs."""
        self._absence = self._settled = None

    def counted(self, homes: AbstractSet[StoreId]) -> None:
        """A count of all packs has found shards at these stores."""
        absence = self._away.now()
        if homes - absence.known or homes & absence.gone:
            self._settled = None

    def progress(self) -> Progress:
        """Rows of the walk under way."""
        packs = sum(owed.packs for owed in self.owed.values())
        return Progress(
            self._looked,
            None,
            "packs",
            f"{counted(packs, 'pack')} found to have lost shards" if packs else "",
        )

    async def step(self) -> bool:
        """One page of rows; False at the end of each walk, and when there is no reason for one."""
        if self._absence is None and not self._begin():
            return False
        absence = self._absence
        assert absence is not None
        page = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
        rows = [row for row in page if isinstance(row, Row)]
        for row in rows:
            self._look(row, absence)
        self._looked += len(rows)
        if len(rows) == PAGE:
            self._next = rows[-1].key + b"\0"
            return True
        self._absence = None
        self.owed = self._counting
        self._settled = None if self.owed else _view(absence)
        self._took_s = self._clock.monotonic() - self._began
        return False

    def _begin(self) -> bool:
        absence = self._away.now()
        if _view(absence) == self._settled:
            return False
        self._absence, self._counting, self._looked, self._next = absence, {}, 0, _PACKS
        self._began = self._clock.monotonic()
        return True

    def _look(self, row: Row, absence: Absence) -> None:
        packed = decode_row(row.value)
        lost, left = absence.lost(packed)
        if not lost:
            return
        size = len(lost) * Layout(packed.scheme.k, packed.stored_bytes).shard_bytes
        owed = self._counting.get(left, Owed())
        self._counting[left] = Owed(owed.packs + 1, owed.bytes + size)
        pack = PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode()))
        at = {place.store for place in packed.places if place.shard in lost}
        gone = sorted(at - absence.known)
        why = (
            f"its store {gone[0]} is gone for good" if gone else f"its store {min(at)} has been away too long"
        )
        self._report(pack, lost, why, left, size)


def _view(absence: Absence) -> tuple[frozenset[StoreId], ...]:
    """What decides about the outcome of a walk."""
    return absence.known, absence.away, absence.gone, absence.gone_urgently

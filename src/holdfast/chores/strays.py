"""Looking for shards that no row names: what a crash, a failed upload or a put that landed too late left.

Walks the names at every store, a page at a time. A name is *stray* when its pack's row does not name it, or
there is no such row, and it is not on the list of a grave. A stray that is still one a day later is declared
dead in the index, where `Sweep` finds it. What must hold:

- nothing is removed on the word of a clock. An orphan (no pack row) is buried expecting that its row is
  absent, and whoever would write that row expects that the id was not buried: exactly one wins. For that
  its grave has to outlive the removal: it stays for as long as this process lives (`is_awaited`), and
  with the process every writer ends that could still come with a row. A stray of a pack that is alive is
  thrown away together with a touch of the pack's row, at the revision at which it was not named.
- where other nodes use the same index, both rest on fences (`holdfast.cluster`): a stray is left alone as
  long as there is a fence that was there when it was first seen, and a grave as long as there is one that is
  older. So whoever could still make the shard somebody's, after whatever pause, has lost the fence that this
  takes.
- the day of waiting is for the sake of writers under way, so that none is turned away for being slow;
  and it is longer than a late put is waited for (`packs.settling`), which enters shards by its own memory.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, parse_shard_name
from holdfast.cluster.others import NOBODY, Others, Said
from holdfast.index.port import Committed, Expect, Index, Row, Transaction
from holdfast.packs.disposal import further_burial, shards_buried, shards_of
from holdfast.packs.model import buried_row, pack_row, trash_row
from holdfast.packs.rows import decode_row
from holdfast.packs.settling import GIVE_UP_S
from holdfast.stores.port import Store

PAGE = 250
STRAY_AGE_S = 24 * 3600.0
WALK_EVERY_S = 6 * 3600.0
STRAYS_MAX = 100_000
"""Strays that are remembered; beyond, they are found again once the others have gone."""

TIMEOUT_S = 10.0

assert STRAY_AGE_S > 2 * GIVE_UP_S


class _Sighting(NamedTuple):
    """When a stray was first seen, and the newest fence that was there."""

    at: float
    fence: int


class FindStrays:
    """Declares strays dead."""

    name = "strays"
    interval_s = 10.0

    def __init__(
        self, stores: Mapping[StoreId, Store], index: Index, clock: Clock, others: Others = NOBODY
    ) -> None:
        self._others = others
        self._stores = stores
        self._index = index
        self._clock = clock
        self._left: list[StoreId] = []
        self._after = ""
        self._next_walk = clock.monotonic()
        self._since: dict[tuple[StoreId, str], _Sighting] = {}
        self._seen: dict[tuple[StoreId, str], _Sighting] = {}
        self._buried: set[PackId] = set()
        self.found = 0

    def is_awaited(self, pack: PackId) -> bool:
        """Whether a writer of this process might still come with the row of a pack that was buried."""
        return pack in self._buried

    async def step(self) -> bool:
        """One page of one store's names."""
        now = self._clock.monotonic()
        if not self._left:
            if now < self._next_walk:
                return False
            self._next_walk = now + WALK_EVERY_S
            self._left, self._after = list(self._stores), ""
            self._since, self._seen = self._seen, {}
            return bool(self._left)
        store = self._stores.get(self._left[0])
        names: list[str] = []
        if store is not None:
            try:
                names = await store.list(self._after, limit=PAGE, timeout_s=TIMEOUT_S)
            except HoldfastError:
                names = []  # the next walk begins here anew
        if not names:
            self._left.pop(0)
            self._after = ""
            return True
        await self._look(self._left[0], names, now)
        self._after = names[-1]
        return True

    async def _look(self, store: StoreId, names: Sequence[str], now: float) -> None:
        by_pack: dict[PackId, list[str]] = {}
        for name in names:
            if (parts := parse_shard_name(name)) is not None:
                by_pack.setdefault(parts[0], []).append(name)
        packs = list(by_pack)
        if not packs:
            return
        said = await self._others.look()
        rows = await self._index.get([pack_row(pack) for pack in packs])
        graves = await self._index.get([buried_row(pack) for pack in packs])
        for pack, row, grave in zip(packs, rows, graves, strict=True):
            known: set[tuple[StoreId, str]] = set()
            if row is not None:
                known |= set(shards_of(pack, decode_row(row.value)))
            if grave is not None:
                known |= set(shards_buried(grave))
            strays = [(store, name) for name in by_pack[pack] if (store, name) not in known]
            if old := [stray for stray in strays if self._is_old(stray, now, said)]:
                await self._dispose(pack, row, grave, old)

    def _is_old(self, stray: tuple[StoreId, str], now: float, said: Said) -> bool:
        first = self._since.get(stray) or _Sighting(now, said.newest_fence)
        if len(self._seen) < STRAYS_MAX:
            self._seen[stray] = first
        return now - first.at >= STRAY_AGE_S and not said.may_come_back(first.fence)

    async def _dispose(
        self, pack: PackId, row: Row | None, grave: Row | None, strays: list[tuple[StoreId, str]]
    ) -> None:
        if row is None:
            # Before the commit: its answer may be lost, and the grave must not be removed too early.
            self._buried.add(pack)
            change = further_burial(pack, grave, strays)
        else:
            trash = [(trash_row(store, name), b"") for store, name in strays]
            change = Transaction((Expect(row.key, row.revision),), ((row.key, row.value), *trash))
        (outcome,) = await self._index.commit([change])
        if isinstance(outcome, Committed):
            self.found += len(strays)
            for stray in strays:
                self._seen.pop(stray, None)

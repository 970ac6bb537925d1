"""Emptying stores: every shard that lies on a store that is to be left gets another home.

Walks the pack rows, a page at a time, for as long as a store is to be left, and moves what it finds there
with `Rewriter.rewrite`: copied from where it lies, read back, and only then does the row move. Nothing is
kept between walks, so that it goes on after a restart by looking again. What must hold: a store counts as
empty only after a walk that began when it was to be left already and found nothing on it; a pack that can't
be moved now does not hold up the others.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.base.wording import counted
from holdfast.chores.chore import Progress
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewriter, Rewritten
from holdfast.packs.rows import decode_row

PAGE = 200
LOOK_AGAIN_S = 30.0
"""How long to rest after a walk that moved nothing: for what writes that were under way left behind, and for
packs that could not be moved."""

_PACKS = b"pack/"


class Leaving(Struct, frozen=True):
    """A store to be emptied. `into` is the store that takes its place, where there is one: shards go there
    when they may. `shrink` allows a smaller scheme where there are too few other stores."""

    store: StoreId
    into: StoreId | None = None
    shrink: bool = False


class Drain:
    """Empties the stores that `leaving` names. `stuck` is how many packs the last walk could not move, and
    `reason` what stood in the way of one of them."""

    name = "drain"
    interval_s = 2.0

    def __init__(
        self, index: Index, rewriter: Rewriter, leaving: Callable[[], Sequence[Leaving]], clock: Clock
    ) -> None:
        self._index = index
        self._rewriter = rewriter
        self._leaving = leaving
        self._clock = clock
        self._next = _PACKS
        self._page: list[Row] = []
        self._walk: tuple[Leaving, ...] = ()
        self._found: set[StoreId] = set()
        self._again = 0.0
        self._began = 0.0
        self._failed = 0
        self._moved_in_walk = 0
        self.bytes_moved = 0
        self.shards_moved = 0
        self.empty: frozenset[StoreId] = frozenset()
        self.stuck = 0
        self.reason = ""

    @property
    def rate_bytes_s(self) -> float:
        """How fast it went since the stores to be left last changed."""
        took = self._clock.monotonic() - self._began
        return self.bytes_moved / took if took > 0 else 0.0

    def progress(self) -> Progress:
        """Since the stores to be left last changed; how much is left, the last count of the packs says."""
        stuck = f"{counted(self.stuck, 'pack')} cannot be moved now: {self.reason}" if self.stuck else ""
        return Progress(self.shards_moved, None, "shards", stuck)

    @property
    def pressure(self) -> float:
        """Somebody waits for the stores to be empty."""
        return 1.0 if self._leaving() else 0.0

    async def step(self) -> bool:
        """Move one pack; False when there is nothing to do now."""
        leaving = tuple(self._leaving())
        if leaving != self._walk:
            self._begin_anew(leaving)
        if not leaving or (self._next == _PACKS and not self._page and self._clock.monotonic() < self._again):
            return False
        while not self._page:
            if not await self._turn_page():
                return False
        row = self._page.pop(0)
        await self._look(PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode())), decode_row(row.value))
        return True

    def _begin_anew(self, leaving: tuple[Leaving, ...]) -> None:
        self._walk, self._next, self._page = leaving, _PACKS, []
        self._found, self._failed, self._moved_in_walk = set(), 0, 0
        self.empty = self.empty & {one.store for one in leaving}
        self.stuck, self.reason = 0, ""
        self.bytes_moved = self.shards_moved = 0
        self._again = self._began = self._clock.monotonic()

    async def _turn_page(self) -> bool:
        """Fetch rows with something to move; False at the end of a walk."""
        found = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
        rows = [row for row in found if isinstance(row, Row)]
        stores = {one.store for one in self._walk}
        self._page = [row for row in rows if self._is_there(decode_row(row.value), stores)]
        if len(rows) == PAGE:
            self._next = rows[-1].key + b"\0"
            return True
        self._next = rows[-1].key + b"\0" if self._page else _PACKS
        if self._page:
            return True
        self.empty = frozenset(stores - self._found)
        self.stuck = self._failed
        if not self._moved_in_walk:
            self._again = self._clock.monotonic() + LOOK_AGAIN_S
        self._found, self._failed, self._moved_in_walk = set(), 0, 0
        return False

    def _is_there(self, row: PackRow, stores: set[StoreId]) -> bool:
        there = {place.store for place in row.places} & stores
        self._found |= there
        return bool(there)

    async def _look(self, pack: PackId, row: PackRow) -> None:
        done = False
        try:
            done = await self._move(pack, row)
        except HoldfastError as error:
            self.reason = str(error)
        if not done:
            self._failed += 1
            return
        stores = {one.store for one in self._walk}
        shards = sum(place.store in stores for place in row.places)
        self._moved_in_walk += 1
        self.shards_moved += shards
        self.bytes_moved += shards * Layout(row.scheme.k, row.stored_bytes).shard_bytes

    async def _move(self, pack: PackId, row: PackRow) -> bool:
        """Whether nothing of the pack is left on stores that are to be left."""
        heirs = {one.store: one.into for one in self._walk}
        there = [place for place in row.places if place.store in heirs]
        moves = tuple((place.shard, into) for place in there if (into := heirs[place.store]) is not None)
        outcome = Rewritten.NOTHING_TO_DO
        if moves:
            outcome = await self._rewriter.rewrite(pack, Reason.DRAIN, Target(moves=moves))
        if outcome is not Rewritten.DONE or len(moves) < len(there):
            target = Target(leave=frozenset(heirs), shrink=any(one.shrink for one in self._walk))
            outcome = await self._rewriter.rewrite(pack, Reason.DRAIN, target)
            if outcome is Rewritten.NOT_POSSIBLE_NOW:
                self.reason = "there are too few other stores that can be written"
        return outcome in (Rewritten.DONE, Rewritten.GONE, Rewritten.NOTHING_TO_DO)

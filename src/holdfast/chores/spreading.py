"""Spreading packs again that lie more densely than they have to.

What was healed while a region was away lies on the regions that were left, whole, but the loss of another
one may be more than it can lose. Once there are stores again, this moves as few shards as it takes until
each pack survives what it must (`packs.promising`). It walks all packs when stores have come, and now and
then; what must hold: a pack is only moved when it is whole and when it survives all that it must
afterwards; and no store gets two of its shards.
"""

from collections import Counter
from collections.abc import Callable, Collection

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.chores.chore import Progress
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow
from holdfast.packs.promising import Required, required
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewriter, Rewritten
from holdfast.packs.rows import decode_row
from holdfast.scheme import Scheme
from holdfast.topology import Level, Location, Topology, keeps, place

PAGE = 200
SETTLED_S = 60.0
AGAIN_S = 3600.0
"""What is healed later lies as it can, too."""

_PACKS = b"pack/"

Moves = tuple[tuple[int, StoreId], ...]


def respread(topology: Topology, row: PackRow, usable: Collection[StoreId], wanted: Required) -> Moves:
    """The moves after which the pack keeps all that is wanted; none when it does, or when there are no stores
    for that. Pure."""
    layout = Layout(row.scheme.k, row.stored_bytes)
    needed = layout.real_data_shards
    at = {place_.shard: place_.store for place_ in row.places}
    if not wanted or len(at) < needed + row.scheme.m:
        return ()  # it lacks shards: that is mended first
    moves: dict[int, StoreId] = {}
    for survive in wanted:
        level = Level(survive.level)
        while not keeps(topology, (survive,), at.values(), needed):
            held = Counter(topology.domain(store, level) for store in at.values())
            fullest = max(held, key=lambda domain: (held[domain], domain))
            inside = [shard for shard, store in at.items() if topology.domain(store, level) == fullest]
            others = [store for store in usable if topology.domain(store, level) != fullest]
            shard = next((shard for shard in inside if shard not in moves), None)
            if shard is None:
                return ()
            taken = [store for other, store in at.items() if other != shard]
            home = place(topology, 1, others, taken=taken)
            if not home or held[topology.domain(home[0], level)] + 1 >= held[fullest]:
                return ()
            at[shard] = moves[shard] = home[0]
    return tuple(moves.items()) if keeps(topology, wanted, at.values(), needed) else ()


class Respread:
    """See above. `usable` are the stores that take something new; `told` is what packs of a scheme were
    told to survive."""

    name = "spread"
    interval_s = 5.0

    def __init__(
        self,
        index: Index,
        rewriter: Rewriter,
        usable: Callable[[], frozenset[StoreId]],
        topology: Callable[[], Topology],
        busy: Callable[[], bool],
        clock: Clock,
        told: Callable[[Scheme], Required] = lambda _: (),
    ) -> None:
        self._index = index
        self._rewriter = rewriter
        self._usable = usable
        self._topology = topology
        self._busy = busy
        self._clock = clock
        self._told = told
        self._stores: frozenset[StoreId] = frozenset()
        self._due = clock.monotonic()
        self._walking = False
        self._next = _PACKS
        self._page: list[Row] = []
        self._house: frozenset[Location | None] = frozenset()
        self._wanted: dict[Scheme, Required] = {}
        self.moved = 0
        """Packs, since the start."""
        self._looked = 0

    def took_over(self) -> None:
        """Another node may have moved what was seen here."""
        self._walking, self._page = False, []

    def progress(self) -> Progress:
        """Of the walk that is under way."""
        return Progress(self._looked, None, "packs") if self._walking else Progress()

    async def step(self) -> bool:
        """Move what one pack needs, or look through one page; False when there is nothing to do now."""
        now, usable, topology = self._clock.monotonic(), self._usable(), self._topology()
        house = frozenset(map(topology.location, topology.stores))
        if (usable, house) != (self._stores, self._house):
            self._stores, self._house, self._wanted = usable, house, {}
            self._due, self._walking = now + SETTLED_S, False
        if self._busy():
            return False
        if not self._walking:
            if now < self._due:
                return False
            self._walking, self._next, self._page, self._looked = True, _PACKS, [], 0
        if not self._page:
            found = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
            self._page = [row for row in found if isinstance(row, Row)]
            if not self._page:
                self._walking, self._due = False, now + AGAIN_S
                return False
        while self._page:
            row = self._page.pop(0)
            self._next = row.key + b"\0"
            self._looked += 1
            if await self._move(row, topology, usable):
                break
        return True

    async def _move(self, row: Row, topology: Topology, usable: frozenset[StoreId]) -> bool:
        """Whether there was something to move."""
        known = decode_row(row.value)
        wanted = self._wanted.get(known.scheme)
        if wanted is None:
            wanted = self._wanted[known.scheme] = required(topology, known.scheme, self._told(known.scheme))
        moves = respread(topology, known, sorted(usable), wanted)
        if not moves:
            return False
        pack = PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode()))
        try:
            outcome = await self._rewriter.rewrite(pack, Reason.REBALANCE, Target(moves=moves))
            self.moved += outcome is Rewritten.DONE
        except HoldfastError:
            pass  # read again by who looks after damage, and looked at again in the next walk
        return True

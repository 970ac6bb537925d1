"""Making all stores equally full, after one was added or when they have drifted apart.

What to move is for `balance` to say, from what the stores hold by the last full count; this walks the
packs once, moves what the plan wants, and rests. What must hold: it begins only when it is worth it, and by a
count that was begun after the last move, so that it does not run for nothing; it waits while something more
urgent goes on (`busy`).
"""

from collections.abc import Callable, Mapping

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.chores.balance import Balance, Fill
from holdfast.chores.chore import Progress
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.layout import Layout
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewriter, Rewritten
from holdfast.packs.rows import decode_row
from holdfast.topology import Topology

PAGE = 200
REST_S = 30.0
REST_IN_VAIN_S = 3600.0
"""After a walk that moved nothing although stores are uneven: the placement does not allow more."""

_PACKS = b"pack/"

Fills = Callable[[], tuple[float, Mapping[StoreId, Fill]]]
"""When the count was begun (monotonic seconds), and how full each store that takes part is."""


class Rebalance:
    """See above. `bytes_moved` and `bytes_to_move` are of the walk that is under way, or was the last."""

    name = "rebalance"
    interval_s = 5.0

    def __init__(
        self,
        index: Index,
        rewriter: Rewriter,
        fills: Fills,
        topology: Callable[[], Topology],
        busy: Callable[[], bool],
        clock: Clock,
        *,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_full = is_full
        self._index = index
        self._rewriter = rewriter
        self._fills = fills
        self._topology = topology
        self._busy = busy
        self._clock = clock
        self._plan: Balance | None = None
        self._stores: frozenset[StoreId] = frozenset()
        self._next = _PACKS
        self._page: list[Row] = []
        self._ended = self._rest_until = clock.monotonic()
        self.bytes_moved = 0
        self.bytes_to_move = 0

    @property
    def running(self) -> bool:
        """Whether a walk is under way."""
        return self._plan is not None

    @property
    def pressure(self) -> float:
        """Room is wanted while stores are full."""
        return 1.0 if self._is_full() else 0.0

    def progress(self) -> Progress:
        """Of the walk that is under way, or was the last."""
        return Progress(self.bytes_moved, max(self.bytes_moved, self.bytes_to_move), "bytes")

    async def step(self) -> bool:
        """Move one pack's shards, or look through one page; False when there is nothing to do now."""
        if self._busy():
            return False
        counted, fills = self._fills()
        if self._plan is not None and frozenset(fills) != self._stores:
            self._end()  # stores came or went: what is even is another matter now
        if self._plan is None and not self._begin(counted, fills):
            return False
        assert self._plan is not None
        if self._plan.done:
            self._end()
            return False
        if not self._page:
            found = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
            self._page = [row for row in found if isinstance(row, Row)]
            if not self._page:
                self._end()
                return False
        while self._page:
            row = self._page.pop(0)
            self._next = row.key + b"\0"
            if await self._move(self._plan, row):
                break
        return True

    def _begin(self, counted: float, fills: Mapping[StoreId, Fill]) -> bool:
        now = self._clock.monotonic()
        changed = frozenset(fills) != self._stores
        if counted < self._ended or (now < self._rest_until and not changed):
            return False
        plan = Balance(fills, self._topology())
        self._stores = frozenset(fills)
        if not plan.worth_beginning:
            self._rest_until = now + REST_S
            return False
        self._plan, self._next, self._page = plan, _PACKS, []
        self.bytes_moved, self.bytes_to_move = 0, plan.bytes_to_move
        return True

    def _end(self) -> None:
        now = self._clock.monotonic()
        self._rest_until = now + (REST_S if self.bytes_moved else REST_IN_VAIN_S)
        self._plan, self._page, self._ended = None, [], now

    async def _move(self, plan: Balance, row: Row) -> bool:
        """Whether there was something to move."""
        pack = PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode()))
        known = decode_row(row.value)
        moves = plan.moves(known)
        if not moves:
            return False
        done = False
        try:
            outcome = await self._rewriter.rewrite(pack, Reason.REBALANCE, Target(moves=moves))
            done = outcome is Rewritten.DONE
        except HoldfastError:
            done = False  # read again by who looks after damage; this walk goes on
        if done:
            self.bytes_moved += len(moves) * Layout(known.scheme.k, known.stored_bytes).shard_bytes
        else:
            plan.failed(known, moves)
        return True

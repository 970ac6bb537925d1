"""Repair: what reads found wrong is written back, what writes left owing is paid.

Two chores over one mechanism, `Rewriter.rewrite`: `Repair` takes the packs that readers and the search for
absent shards report, `PayDebts` walks the `debt` rows. Reports are kept in memory, a bounded number of
packs; what is forgotten in a crash, or for lack of room when reads report it, is found again by the next
read or verify.
"""

from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewriter, Rewritten

REPORTS_MAX = 10_000
DEBTS_PAGE = 50
ROUND_AGAIN_S = 60.0
REST_MAX = 64
"""Idle steps, about seconds, between two tries for a pack that can't be mended."""

RepairObserver = Callable[[PackId, str], None]
"""Told of a pack that was made whole, and why."""


class _Report(Struct):
    """What is said of a pack's shards; how often mending it failed, and at which idle step to try again."""

    shards: dict[int, str]
    tries: int = 0
    again: int = 0


class Repair:
    """Writes back what was found wrong. `report` is what packs call `on_damage`.

    What can't be mended now is kept and tried again when nothing else waits, ever less often; a report is
    dropped only when the pack is whole, or gone.
    """

    name = "repair"
    interval_s = 1.0

    def __init__(
        self, rewriter: Rewriter, observer: RepairObserver, *, reports_max: int = REPORTS_MAX
    ) -> None:
        self._rewriter = rewriter
        self._observer = observer
        self._reports_max = reports_max
        self._new: OrderedDict[PackId, _Report] = OrderedDict()
        self._put_off: OrderedDict[PackId, _Report] = OrderedDict()
        self._idle = 0
        self._in_hand = 0
        self.repaired = 0

    @property
    def waiting(self) -> int:
        """Packs that wait, the one in hand among them."""
        return len(self._new) + len(self._put_off) + self._in_hand

    @property
    def has_room(self) -> bool:
        """Whether there is room for many more reports; whoever looks for damage waits while not."""
        return 2 * self.waiting < self._reports_max

    def report(self, pack: PackId, shard: int, what: str) -> None:
        """Something is wrong with a shard. Cheap; called from reads."""
        report = self._new.get(pack) or self._put_off.get(pack)
        if report is None:
            if self.waiting >= self._reports_max:
                return
            report = self._new[pack] = _Report({})
        report.shards[shard] = what

    async def step(self) -> bool:
        """Mend one pack."""
        if self._new:
            await self._mend(*self._new.popitem(last=False))
            return True
        due = next((pack for pack, report in self._put_off.items() if report.again <= self._idle), None)
        if due is None:
            self._idle += 1
            return False
        await self._mend(due, self._put_off.pop(due))
        return True

    async def _mend(self, pack: PackId, report: _Report) -> None:
        shards = report.shards
        outcome = Rewritten.NOT_POSSIBLE_NOW
        self._in_hand = 1
        try:
            target = Target(bad=tuple(shard for shard in shards if shard >= 0))
            outcome = await self._rewriter.rewrite(pack, Reason.HEAL, target)
        finally:
            self._in_hand = 0
            if outcome in (Rewritten.NOT_POSSIBLE_NOW, Rewritten.OVERTAKEN):
                report.tries += 1
                report.again = self._idle + min(2**report.tries, REST_MAX)
                self._put_off[pack] = report
        if outcome is Rewritten.DONE:
            self.repaired += 1
            self._observer(pack, "; ".join(f"shard {shard}: {what}" for shard, what in shards.items()))


class PayDebts:
    """Gives packs what they were promised, once the stores allow it.

    A round in which nothing could be paid is not repeated while the same stores are there, but for once in
    `ROUND_AGAIN_S`, or ten times as long as it took: a long list of debts, as where a promise needs more
    stores than there are, must not be walked for nothing all the time.
    """

    name = "debts"
    interval_s = 2.0

    def __init__(
        self,
        rewriter: Rewriter,
        index: Index,
        candidates: Callable[[], frozenset[StoreId]],
        clock: Clock,
        observer: RepairObserver,
    ) -> None:
        self._rewriter = rewriter
        self._index = index
        self._candidates = candidates
        self._clock = clock
        self._observer = observer
        self._next = b"debt/"
        self._page: list[Row] = []
        self._round_in_vain = True
        self._round_stores: frozenset[StoreId] = frozenset()
        self._futile: frozenset[StoreId] | None = None
        self._again = 0.0
        self._began = 0.0
        self.paid = 0

    async def step(self) -> bool:
        """Try one debt; False at the end of each round."""
        if not self._page and not await self._turn_page():
            return False
        row = self._page.pop(0)
        self._next = row.key + b"\0"
        pack = PackId(bytes.fromhex(row.key.removeprefix(b"debt/").decode()))
        in_vain = self._round_in_vain
        # One that failed says nothing of what is possible: the round is worth repeating soon.
        self._round_in_vain = False
        outcome = await self._rewriter.rewrite(pack, Reason.DEBT)
        self._round_in_vain = in_vain and outcome is not Rewritten.DONE
        if outcome is Rewritten.DONE:
            self.paid += 1
            self._observer(pack, "debt paid")
        return True

    async def _turn_page(self) -> bool:
        if self._next == b"debt/":
            stores, now = self._candidates(), self._clock.monotonic()
            if stores == self._futile and now < self._again:
                return False
            self._round_stores, self._round_in_vain, self._futile, self._began = stores, True, None, now
        found = await self._index.scan(self._next, prefix_end(b"debt/"), limit=DEBTS_PAGE)
        self._page = [row for row in found if isinstance(row, Row)]
        if self._page:
            return True
        if self._next != b"debt/" and self._round_in_vain:
            self._futile = self._round_stores
            now = self._clock.monotonic()
            self._again = now + max(ROUND_AGAIN_S, 10 * (now - self._began))
        self._next = b"debt/"
        return False

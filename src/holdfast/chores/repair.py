"""Repair: what reads found wrong and what stores took with them is written again, what writes owe is paid.

Two chores over one mechanism, `Rewriter.rewrite`: `Repair` takes the packs that readers, scrub and the
searches for lost shards report, those first that are fewest failures away from loss; `PayDebts` walks the
`debt` rows.

A repair has two halves. First the shards are written again, of all packs that wait, because what counts is
that there are enough of them; then each pack is proven: all of its shards are read from their media, and
compared with each other. What must hold: a repair is over only when that proof agrees; until then it goes
on, and a store whose shard was wrong again after it was written (`LIES_MAX` times) is given up for that
pack. Reports are kept in memory, a bounded number of packs; what is forgotten in a crash, or for lack of
room, is found again by the next read, walk or scrub.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged
from holdfast.base.ids import PackId, StoreId
from holdfast.base.wording import counted
from holdfast.chores.away import Away
from holdfast.chores.chore import Progress
from holdfast.chores.heal_queue import LEFT_UNKNOWN, HealQueue, Wound
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.errors import PackGone
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewriter, Rewritten
from holdfast.packs.rows import KnownPack, PackRows
from holdfast.packs.verifying import PackHealth, PackReport, Verifier

REPORTS_MAX = 10_000
DEBTS_PAGE = 50
ROUND_AGAIN_S = 60.0
DEBTS_PRESS_S = 3600.0
"""Debts that have waited for so long press with all their might."""

REST_MAX_S = 64.0
"""Between two tries for a pack that can't be mended now."""

REST_UNCHANGED_MAX_S = 3600.0
"""Between two tries for a pack that does not agree although there is nothing to write."""

WIDTH = 4
"""Packs at a time while no client is there; one whose shards are made again weighs about 10 MiB."""

STEP_S = 0.5
"""For so long packs follow each other in each place, as long as no client is there."""

ANEW_WIDTH = 1
"""Of those, packs at a time that may have to be written in another scheme: they weigh about 40 MiB."""

LIES_MAX = 2

RepairObserver = Callable[[PackId, str], None]
"""Told of a pack that was made whole, and why."""


class Repair:
    """Writes back what was found wrong. `report` is what packs call `on_damage`.

    What can't be mended now is kept and tried again when nothing else waits, ever less often; a report is
    dropped only when the pack is proven whole, or gone, or when more urgent ones need its place.
    """

    name = "repair"
    interval_s = 1.0

    def __init__(
        self,
        rewriter: Rewriter,
        verifier: Verifier,
        rows: PackRows,
        clock: Clock,
        observer: RepairObserver,
        *,
        away: Away | None = None,
        is_idle: Callable[[], bool] = lambda: True,
        bytes_lost: Callable[[], int] = lambda: 0,
        reports_max: int = REPORTS_MAX,
    ) -> None:
        self._rewriter = rewriter
        self._verifier = verifier
        self._rows = rows
        self._clock = clock
        self.observer = observer
        self._away = away
        self._is_idle = is_idle
        self._bytes_lost = bytes_lost
        self._reports_max = reports_max
        self._new = HealQueue(reports_max)
        self._put_off: OrderedDict[PackId, Wound] = OrderedDict()
        self._unproven: OrderedDict[PackId, Wound] = OrderedDict()
        self._at_work: dict[PackId, Wound] = {}
        self._anew = asyncio.Semaphore(ANEW_WIDTH)
        self.repaired = 0
        self.bytes_written = 0
        self.tenure = 0
        """Grows when the lease comes back from another node: what was reported before is not known any
        more."""

    def took_over(self) -> None:
        """See `holdfast.chores.sharing`."""
        self.tenure += 1

    def handed_over(self) -> None:
        """Whoever has the lease now finds all of it, and nobody here has to wait for it."""
        self._new = HealQueue(self._reports_max)
        self._put_off.clear()
        self._unproven.clear()

    def has(self, pack: PackId) -> bool:
        """Whether a pack is not proven whole yet."""
        there = pack in self._at_work or pack in self._unproven or pack in self._put_off
        return there or self._new.find(pack) is not None

    @property
    def waiting(self) -> int:
        """Packs that are not proven whole yet."""
        return len(self._new) + len(self._put_off) + len(self._unproven) + len(self._at_work)

    @property
    def unproven(self) -> int:
        """Packs that were written again and wait for their proof."""
        return len(self._unproven)

    @property
    def has_room(self) -> bool:
        """Whether there is room for many more reports; whoever looks for damage waits while not."""
        return 2 * self.waiting < self._reports_max

    @property
    def is_urgent(self) -> bool:
        """Whether a pack waits that can lose nothing more."""
        return self._new.least_left <= 0

    @property
    def pressure(self) -> float:
        """Whatever waits to be written again has less than it was promised."""
        return 1.0 if self.waiting else 0.0

    @property
    def let_go(self) -> int:
        """Reports that there was no room for, since the start."""
        return self._new.let_go

    def waiting_by_losses_left(self) -> dict[int, tuple[int, int]]:
        """Packs that wait to be written again, and bytes, by how many more shards they can lose."""
        return self._new.counts()

    def progress(self) -> Progress:
        """What was written again, and what is known to be left of it."""
        waiting = sum(size for _, size in self._new.counts().values())
        left = max(self._bytes_lost(), waiting)
        detail = (
            f"{counted(self.waiting, 'pack')} waiting, {self.unproven} of them for their proof"
            if self.waiting
            else ""
        )
        return Progress(self.bytes_written, self.bytes_written + left, "bytes", detail)

    def report(self, pack: PackId, shard: int, what: str) -> None:
        """Something is wrong with a shard (-1: not one alone). Cheap; called from reads."""
        for wounds in (self._at_work, self._unproven, self._put_off):
            if (wound := wounds.get(pack)) is not None:
                wound.shards[shard] = what
                if wounds is self._put_off:
                    # Of what waits for its proof nobody knows yet which shards are wrong still.
                    self._wake(wounds, pack, *self._cost(pack, frozenset(wound.shards), wound.left))
                return
        found = self._new.find(pack)
        if found is not None:
            found.shards[shard] = what
        left, size = self._cost(pack, frozenset(found.shards if found else (shard,)), LEFT_UNKNOWN)
        if found is not None:
            found.bytes = size
            self._new.urgent(pack, left)
        elif self.waiting < self._reports_max or left < LEFT_UNKNOWN:
            self._new.add(pack, Wound({shard: what}, left, size, self._clock.monotonic()))

    def report_lost(self, pack: PackId, shards: frozenset[int], what: str, left: int, size: int) -> None:
        """Shards are lost with their stores; `left` is how many more the pack can lose, `size` what is to be
        written. For walks over all rows: the most urgent of what they find is kept."""
        for wounds in (self._at_work, self._unproven, self._put_off):
            if (wound := wounds.get(pack)) is not None:
                wound.shards |= {shard: what for shard in shards if shard not in wound.shards}
                self._wake(wounds, pack, left, size)
                return
        if self._new.find(pack) is not None:
            self._new.urgent(pack, left)
            return
        self._new.add(pack, Wound(dict.fromkeys(shards, what), left, size, self._clock.monotonic()))

    def _cost(self, pack: PackId, shards: frozenset[int], left: int) -> tuple[int, int]:
        """How many more shards a pack can lose without these, and how many bytes they are; `left` and none,
        when its row is not at hand."""
        if (known := self._rows.cached(pack)) is None:
            return left, 0
        left = self._away.now().losses_left(known.row, shards) if self._away else left
        return left, len(shards) * known.layout.shard_bytes

    def _wake(self, wounds: MutableMapping[PackId, Wound], pack: PackId, left: int, size: int) -> None:
        """What was put off, and can lose less than it could then, is not left to rest."""
        if wounds is not self._at_work and left < wounds[pack].left:
            wound = wounds.pop(pack)
            wound.left, wound.bytes = left, size
            self._new.add(pack, wound)

    async def step(self) -> bool:
        """Write some packs again; when none is waiting, prove some, or try again what was put off."""
        if len(self._new):
            await self._side_by_side(self._new.pop, self._mend)
            return True
        if self._unproven:
            await self._side_by_side(self._next_unproven, self._prove)
            return True
        now = self._clock.monotonic()
        due = deque(pack for pack, wound in self._put_off.items() if wound.rest_until <= now)

        def next_due() -> tuple[PackId, Wound] | None:
            while due and not len(self._new):
                if (wound := self._put_off.pop(pack := due.popleft(), None)) is not None:
                    return pack, wound
            return None

        there = bool(due)
        await self._side_by_side(next_due, self._mend)
        return there

    def _next_unproven(self) -> tuple[PackId, Wound] | None:
        # What has fewer shards than it was promised goes first.
        return self._unproven.popitem(last=False) if self._unproven and not len(self._new) else None

    async def _side_by_side(
        self,
        following: Callable[[], tuple[PackId, Wound] | None],
        work: Callable[[PackId, Wound], Awaitable[None]],
    ) -> None:
        """One pack, or, as long as no client is there and the step is young, one after the other in each of
        `WIDTH` places. Raises what went wrong first, when all have ended; what has failed has no follower."""
        until = self._clock.monotonic() + STEP_S
        begun = 0

        async def go_on() -> None:
            nonlocal begun
            while not begun or (self._is_idle() and self._clock.monotonic() < until):
                if (one := following()) is None:
                    return
                begun += 1
                pack, wound = one
                self._at_work[pack] = wound
                try:
                    await work(pack, wound)
                finally:
                    self._at_work.pop(pack, None)

        for error in await asyncio.gather(*[go_on() for _ in range(WIDTH)], return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    async def _mend(self, pack: PackId, wound: Wound) -> None:
        """Write a pack's lost shards again, as far as that is possible now."""
        outcome = Rewritten.NOT_POSSIBLE_NOW
        try:
            before = await self._rows.fresh(pack)
            target = self._target(before, wound)
            async with self._anew if target.shrink else contextlib.nullcontext():
                outcome = await self._rewriter.rewrite(pack, Reason.HEAL, target)
            self._count_written(before, outcome)
        except PackGone:
            outcome = Rewritten.GONE
        except Damaged as error:
            # What was written is not there, or is not what was written.
            if isinstance(store := error.facts.get("store"), str):
                wound.accuse(StoreId(store))
            raise
        finally:
            # Cancelled, or it raised: nothing is forgotten.
            if outcome in (Rewritten.NOT_POSSIBLE_NOW, Rewritten.OVERTAKEN):
                self._rest(pack, wound, REST_MAX_S)
        if outcome in (Rewritten.DONE, Rewritten.NOTHING_TO_DO):
            wound.changed |= outcome is Rewritten.DONE
            wound.told = wound.told or "; ".join(
                f"shard {shard}: {what}" for shard, what in wound.shards.items()
            )
            self._unproven[pack] = wound

    def _target(self, before: KnownPack, wound: Wound) -> Target:
        bad = tuple(shard for shard in wound.shards if shard >= 0)
        liars = {store for store, lies in wound.liars.items() if lies >= LIES_MAX}
        if self._away is None:
            return Target(bad=bad, gone=frozenset(liars), condemned=wound.condemned, shrink=bool(liars))
        absence = self._away.now()
        gone = absence.given_up(wound.left) | liars
        waited_s = self._clock.monotonic() - wound.since
        # A smaller scheme has its price: it is for packs that have more shards than there are stores, and for
        # those whose shard has found no home for long.
        shards = before.layout.real_data_shards + before.row.scheme.m
        homeless = any(store in gone or store not in absence.known for store in before.stores)
        few = len(absence.known - absence.away - gone) < shards
        return Target(
            bad=bad,
            gone=gone,
            condemned=wound.condemned,
            shrink=(homeless and few) or waited_s >= self._away.patience_s,
        )

    def _count_written(self, before: KnownPack, outcome: Rewritten) -> None:
        after = self._rows.cached(before.pack)
        if outcome is Rewritten.DONE and after is not None:
            written = set(after.row.places) - set(before.row.places)
            self.bytes_written += len(written) * after.layout.shard_bytes

    async def _prove(self, pack: PackId, wound: Wound) -> None:
        """Read all of a pack from the media. It is healed when all agrees; else it goes on."""
        proven = False
        try:
            report = await self._verifier.verify(await self._rows.fresh(pack))
            proven = report.state is PackHealth.WHOLE
        except PackGone:
            return
        finally:
            if not proven:
                self._rest(pack, wound, REST_MAX_S if wound.changed else REST_UNCHANGED_MAX_S)
        if not proven:
            self._learn(wound, report)
        elif wound.changed:
            self.repaired += 1
            self.observer(pack, wound.told)

    def _learn(self, wound: Wound, report: PackReport) -> None:
        """What the proof has found takes the place of what was told before."""
        wrong = [fault for fault in report.faults if not fault.in_doubt]
        wound.shards = {fault.shard: fault.fault for fault in wrong}
        wound.condemned = report.condemned
        wound.left = min(wound.left, report.losses_left)
        for fault in wrong:
            if wound.changed and fault.store is not None:
                wound.accuse(fault.store)

    def _rest(self, pack: PackId, wound: Wound, rest_max_s: float) -> None:
        """Try again later, ever less often."""
        wound.tries += 1
        wound.rest_until = self._clock.monotonic() + min(2.0**wound.tries, rest_max_s)
        if len(self._put_off) < self._reports_max:
            self._put_off[pack] = wound
        else:
            self._new.let_go += 1


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
        self._owing_since: float | None = None
        self.paid = 0

    @property
    def pressure(self) -> float:
        """Grows with the time for which there were debts."""
        if self._owing_since is None:
            return 0.0
        return min(1.0, (self._clock.monotonic() - self._owing_since) / DEBTS_PRESS_S)

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
            if self._owing_since is None:
                self._owing_since = self._clock.monotonic()
            return True
        if self._next == b"debt/":
            self._owing_since = None
        elif self._round_in_vain:
            self._futile = self._round_stores
            now = self._clock.monotonic()
            self._again = now + max(ROUND_AGAIN_S, 10 * (now - self._began))
        self._next = b"debt/"
        return False

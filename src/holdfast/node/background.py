"""The node's chores: built from its parts, run side by side, asked for the status.

What must hold: on the word of an index that shows less than a store has seen, nothing is ever deleted; so
the chores that delete are not even built then, and end when it turns out later.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.base.randomness import Randomness
from holdfast.chores.absent import FindAbsent
from holdfast.chores.audit import WALK_EVERY_S as AUDIT_EVERY_S
from holdfast.chores.audit import Audit
from holdfast.chores.away import Away
from holdfast.chores.choosing import ChooseSchemes
from holdfast.chores.chore import Chore, ChoreState
from holdfast.chores.cleanup import Cleanup
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import WALK_EVERY_S as COMPACT_EVERY_S
from holdfast.chores.compact import Compact
from holdfast.chores.drain import Drain
from holdfast.chores.fencing import TendFences
from holdfast.chores.findings import Findings
from holdfast.chores.giving_way import GivingWay
from holdfast.chores.rebalance import Rebalance
from holdfast.chores.repair import PayDebts, Repair
from holdfast.chores.replaced import FindReplaced
from holdfast.chores.rescheme import Rescheme, Waiting
from holdfast.chores.runner import ChoreRunner
from holdfast.chores.scrub import Scrub
from holdfast.chores.spreading import Respread
from holdfast.chores.strays import FindStrays
from holdfast.chores.throttle import Throttle
from holdfast.cluster.fences import OwnFences
from holdfast.cluster.others import NOBODY, ClusterOthers
from holdfast.health import StoreHealth
from holdfast.health.events import Kind, Teller
from holdfast.node.away import away_of
from holdfast.node.census import Census, Count
from holdfast.node.config import ChoresSettings
from holdfast.node.filling import fills_of, lasting, leaving_of
from holdfast.node.keeper import Keeper
from holdfast.node.report import FULL_BELOW_BYTES
from holdfast.node.status import PacksStatus
from holdfast.objects.service import Objects
from holdfast.objects.settings import as_it_is
from holdfast.packs.disposal import Disposal
from holdfast.packs.named import NamedPacks
from holdfast.packs.rewriting import Rewriter
from holdfast.packs.storage import Packs
from holdfast.packs.verifying import PackReport, Verifier
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.keeping import Keeping, RecoveryStatus
from holdfast.recovery.snapshot import JOURNAL_BYTES_MIN
from holdfast.s3.observing import Answered, Ending, RequestObserver
from holdfast.scheme import Scheme
from holdfast.topology import Location

FINISH_S = 5.0


class Cluster(Struct, frozen=True):
    """What chores of a node go by where others use the same index: its name, its fences, what all have said,
    and whether it reaches them."""

    node: str
    fences: OwnFences
    others: ClusterOthers
    reaches_others: Callable[[], bool] = lambda: True


class Paces(Struct, frozen=True):
    """How often what nobody configures is done: a simulation has no hours. Seconds between two walks of
    compact and of audit, and how much journal makes a snapshot due."""

    compact_every_s: float = COMPACT_EVERY_S
    audit_every_s: float = AUDIT_EVERY_S
    journal_bytes_min: int = JOURNAL_BYTES_MIN


PACES = Paces()


class FeltRequests:
    """A `RequestObserver` that tells the throttle what requests took, and passes them on."""

    def __init__(self, observer: RequestObserver, throttle: Throttle, clock: Clock) -> None:
        self._observer = observer
        self._throttle = throttle
        self._clock = clock

    def answered(self, answered: Answered) -> None:
        """One request is over; those that failed or broke off say nothing of how fast things go."""
        if answered.ending is Ending.COMPLETE and answered.status < 400:
            size = answered.bytes_in + answered.bytes_out
            now = self._clock.monotonic()
            self._throttle.request(answered.operation, size, answered.seconds, now)
        self._observer.answered(answered)


class Background:
    """All chores of a node. `tell` takes a sentence about what happened; `may_delete` is whether the index
    can be trusted with that; `holder` is this process on leases; `cluster` is for where there are several
    nodes; `under_way` says how many requests of clients are; `verifying` are threads for it; `fit` is what
    becomes of `scheme`, given the stores that there are."""

    def __init__(
        self,
        keeper: Keeper,
        health: StoreHealth,
        index: WatchedIndex,
        packs: Packs,
        clock: Clock,
        randomness: Randomness,
        tell: Teller,
        *,
        scheme: Scheme,
        fit: Callable[[Scheme], Scheme] = as_it_is,
        settings: ChoresSettings,
        may_delete: bool,
        holder: str,
        cluster: Cluster | None = None,
        under_way: Callable[[], int],
        verifying: Executor | None = None,
        paces: Paces = PACES,
    ) -> None:
        self._paces = paces
        self._keeper = keeper
        self._health = health
        self._index = index
        self._packs = packs
        self._clock = clock
        self._tell = tell
        self._may_delete = may_delete
        self._deleting: tuple[str, ...] = ()
        self._holder = holder
        self._cluster = cluster
        self._giving_way = giving_way = GivingWay(clock, Throttle(clock.monotonic()), under_way)
        stores, topology = keeper.attached, keeper.topology
        self._rewriter = rewriter = Rewriter(
            stores, topology, index, packs.rows, packs.reader, packs.writer, giving_way, randomness
        )
        verifier = Verifier(stores, index, packs.rows, packs.reader, giving_way, verifying)
        away = Away(self._away_s, lambda: frozenset(topology().stores), settings.away_patience_s)
        self.repair = Repair(
            rewriter,
            verifier,
            packs.rows,
            clock,
            self._mended,
            away=away,
            is_idle=lambda: giving_way.is_idle,
            bytes_lost=lambda: self.replaced.bytes_owed,
        )
        self.replaced = FindReplaced(index, away, self.repair.report_lost, clock)
        self.scrub = Scrub(
            stores,
            lambda: topology().stores,
            index,
            verifier,
            giving_way,
            self._scrubbed,
            pass_s=settings.scrub_pass_s,
            rate_bytes=settings.scrub_rate_bytes,
            is_idle=lambda: giving_way.is_idle,
            bytes_stored=lambda: self.census.status().bytes_stored,
            fence=lambda: self.runner.fence("scrub"),
            unread=keeper.buckets,
        )
        self.debts = PayDebts(rewriter, index, self._writable, clock, self._paid)
        self.census = Census(index, stores, self._is_up, topology, clock, keeper.own)
        self.census.on_counted = self._counted
        self._default_m = health.ejections_max
        self._absent = FindAbsent(stores, index, self.repair.report, lambda: self.repair.has_room)
        self._findings: Findings | None = None
        self._compact: Compact | None = None
        self._merging: Waiting | None = None
        self._collect: Collect | None = None
        self.named = NamedPacks(
            stores, topology, health, clock, randomness, lambda: fit(scheme), room=keeper.room
        )
        self.keeping = Keeping(
            index,
            self.named,
            self._writable,
            clock,
            randomness,
            tell,
            journal_bytes_min=paces.journal_bytes_min,
        )
        self.keeping.journal.room_is_needed = self._room_is_needed
        if cluster is not None:
            self._findings = Findings(
                index, self.repair, lambda: self.runner.is_here(self.repair.name), clock, cluster.node
            )
            fences = cluster.fences
            self.keeping.journal.began_elsewhere = lambda: fences.began
            self.keeping.journal.on_change = index.changed
        self.drain = Drain(index, rewriter, lambda: leaving_of(keeper), clock)
        self.rebalance = Rebalance(
            index,
            rewriter,
            lambda: fills_of(keeper, self.census),
            topology,
            self._is_urgent,
            clock,
            is_full=self._is_short_of_room,
        )
        self._spread = Respread(
            index,
            rewriter,
            lambda: frozenset(fills_of(keeper, self.census)[1]),
            topology,
            self._is_urgent,
            clock,
            packs.writer.promises.of,
        )
        self.runner = self._make_runner([])

    @property
    def compact(self) -> Compact | None:
        """The chore; None before the start, and where nothing may be deleted."""
        return self._compact

    def start(self, objects: Objects, *more: Chore) -> None:
        """Begin, with chores that others have built."""
        index, packs = self._index, self._packs
        rescheme = Rescheme(
            index,
            self._rewriter,
            objects.rescheming(self._giving_way),
            lambda: self.census.last.packs,
            self._clock,
            lambda: self._merging is not None and self._merging.at_work,
        )
        chores: list[Chore] = [
            self.repair,
            self.debts,
            self._absent,
            self.replaced,
            self.scrub,
            Cleanup(objects.finish_cleanups),
            self.census,
            *self.keeping.chores,
            self.drain,
            self.rebalance,
            self._spread,
            Waiting(rescheme, lambda: not self.keeping.journal.is_sound),
            ChooseSchemes(self._house, objects.choose_schemes, self._clock),
            *more,
        ]
        others = NOBODY
        if self._cluster is not None and self._findings is not None:
            others = self._cluster.others
            chores += [self._findings, TendFences(self._cluster.fences, others)]
        if self._may_delete:
            strays = FindStrays(self._keeper.attached, index, self._clock, others)
            disposal = Disposal(
                self._keeper.attached,
                index,
                self._keeper.is_gone,
                lambda pack: strays.is_awaited(pack) or index.in_doubt(pack),
                self.keeping.journal.covers,
                others,
            )
            self._compact = compact = Compact(
                index,
                objects.moving(self._giving_way).move,
                walk_every_s=self._paces.compact_every_s,
                is_full=self._is_short_of_room,
            )
            self._collect = Collect(index, packs.rows, packs.reader.in_use, compact.partly_dead, index.let_go)
            audit = Audit(
                index,
                objects.auditing(self._giving_way).audit,
                self._clock,
                walk_every_s=self._paces.audit_every_s,
            )
            # What is being given another scheme must not be mixed with what has the old one still.
            # And while recovery would look for things where they were, nothing is moved.
            self._merging = merging = Waiting(
                compact, lambda: rescheme.in_the_way or not self.keeping.journal.is_sound
            )
            deleting: list[Chore] = [self._collect, Sweep(disposal), strays, merging, audit]
            self._deleting = tuple(chore.name for chore in deleting)
            chores += deleting
        self.runner = self._make_runner(chores)
        self.runner.start()

    def _house(self) -> frozenset[Location | None]:
        topology = lasting(self._keeper)
        return frozenset(map(topology.location, topology.stores))

    def _make_runner(self, chores: list[Chore]) -> ChoreRunner:
        return ChoreRunner(
            chores,
            self._clock,
            self._failed,
            index=self._index,
            holder=self._holder,
            giving_way=self._giving_way,
            shared=self._cluster is not None,
            reaches_others=self._cluster.reaches_others if self._cluster is not None else lambda: True,
        )

    def stop_deleting(self) -> None:
        """The index can not be trusted with that any more."""
        self._may_delete = False
        self.runner.stop(self._deleting, "the index went back: nothing is deleted on its word")

    async def close(self) -> None:
        """Stop where they are."""
        await self.runner.close()

    def packs_status(self) -> PacksStatus:
        """All packs as last counted, and what was done for them since the start."""
        packs = replace(
            self.census.status(),
            repairs_waiting=self.repair.waiting,
            repaired=self.repair.repaired,
            debts_paid=self.debts.paid,
        )
        packs = replace(packs, oldest_read_s=self.scrub.oldest_age_s)
        if self._collect is None or self._compact is None:
            return packs
        return replace(
            packs,
            mergeable=self._compact.mergeable,
            bytes_dead=self._collect.dead_bytes,
            bytes_reclaimed=self._collect.reclaimed_bytes,
        )

    def recovery_status(self) -> RecoveryStatus | None:
        """How far a lost index could be made again; None where another node looks after that."""
        journal = self.keeping.journal.name
        chores = {chore.name: chore.state for chore in self.runner.status()}
        return None if chores.get(journal) is ChoreState.ELSEWHERE else self.keeping.status()

    async def finish(self) -> None:
        """Once nothing is served any more: what was committed last goes into the journal, too."""
        with suppress(HoldfastError, TimeoutError):
            async with asyncio.timeout(FINISH_S):
                if await self.runner.holds(self.keeping.journal.name):
                    await self.keeping.finish()
                await self.runner.let_go()

    def observing(self, observer: RequestObserver) -> RequestObserver:
        """`observer`, and the throttle of chores, which goes by what clients meet."""
        return FeltRequests(observer, self._giving_way.throttle, self._clock)

    def damaged(self, pack: PackId, shard: int, what: str) -> None:
        """Packs found something wrong; see `holdfast.packs.reading.DamageReport`."""
        (self._findings or self.repair).report(pack, shard, what)

    def attached(self, store: StoreId) -> None:
        """A store came, or came back: what it should hold is looked for."""
        self._absent.look_at(store)

    def _counted(self, count: Count) -> None:
        """Health may take out of use what every scheme in use can lose. Packs without redundancy need all
        their stores, whatever health says, and are read from them: they do not count."""
        written = self._health.written_since(count.began_at)
        known = [m for m in (self._default_m, count.redundancy_least, *written) if m]
        self._health.ejections_max = min(known, default=0)
        self.replaced.counted(count.shards_at.keys())

    def _away_s(self) -> dict[StoreId, float]:
        return away_of(self._keeper, self._health, self._clock.monotonic())

    def _scrubbed(self, report: PackReport) -> None:
        self._tell(
            "scrub found shards that are missing or wrong: they are written again",
            kind=Kind.DATA,
            evidence={
                "pack": report.pack.hex(),
                **{
                    f"shard {fault.shard}": f"{self._keeper.slot_of(fault.store)}: {fault.fault}"
                    for fault in report.faults
                    if fault.store is not None
                },
            },
        )

    def _paid(self, pack: PackId, why: str) -> None:
        self._tell("packs that were written with less than was promised have it now", kind=Kind.DATA)

    def _mended(self, pack: PackId, why: str) -> None:
        self._tell(
            "shards that were missing or wrong were written again, and their packs read, and whole",
            kind=Kind.DATA,
        )

    def _failed(self, name: str, error: HoldfastError) -> None:
        self._tell(f"the chore {name} will try again: {error}", kind=Kind.CHORE, subject=name)

    def _is_up(self, store: StoreId) -> bool:
        return self._health.readable(store) or self._health.writable(store)

    def _room_is_needed(self) -> bool:
        """Whether a store is full: then dead shards go although the journal does not say so yet."""
        return any(
            held.id is not None
            and (self._health.is_full(held.id) or (held.usage is not None and not held.usage.bytes_free))
            for held in self._keeper.held.values()
        ) or any(
            self._health.is_full(other.id) or (other.usage is not None and not other.usage.bytes_free)
            for other in self._keeper.others.values()
            if other.store is not None
        )

    def _is_short_of_room(self) -> bool:
        """Whether a store would not take its shard of a large pack: then room is to be made."""
        return self._room_is_needed() or any(
            held.usage is not None and held.usage.bytes_free < FULL_BELOW_BYTES
            for held in self._keeper.held.values()
        )

    def _is_urgent(self) -> bool:
        """Whether something goes on that is worth more than stores that are equally full."""
        return self.repair.waiting > 0 or bool(leaving_of(self._keeper))

    def _writable(self) -> frozenset[StoreId]:
        keeper, health = self._keeper, self._health
        return frozenset(
            store
            for store in keeper.attached
            if health.writable(store) and not health.is_full(store) and keeper.room(store)
        )

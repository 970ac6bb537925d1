"""Making a lost index again, without a node: who is there, what was kept, what becomes of it.

The order is that of a start, with one difference: nothing is written before everything was read, and the new
index counts only when all of it is there. What must hold: no other process has the data folder or a store
while this runs, nor serves from a store of another node; an index that can be opened is never replaced unless
that is asked for; and from the first moment that the new index can be opened, stores and data folders know
it, so that nobody who has the old one is believed.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from enum import Enum

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.cluster.secret import check_of
from holdfast.health import StoreHealth
from holdfast.health.events import HEAD, decode_head, encode_head
from holdfast.index.port import prefix_end
from holdfast.index.sqlite.refounding import new_incarnation
from holdfast.node import credentials
from holdfast.node.borrowing import Borrowed, PeerNamed, borrow
from holdfast.node.config import Config, scheme_for
from holdfast.node.config_cluster import read_secrets
from holdfast.node.recovering_embedded import EmbeddedTarget
from holdfast.node.recovering_shared import SharedTarget
from holdfast.node.recovering_stores import OwnFound
from holdfast.node.runtime import DataLock
from holdfast.packs.named import NamedPacks, find_names
from holdfast.recovery.applying import Applied, Applier, Told, candidates, read_young
from holdfast.recovery.first_snapshot import write_first
from holdfast.recovery.format import FORMAT, LINEAGE_ROW, LineageRow, encode_lineage
from holdfast.recovery.loading import Loaded, load, newest_lineage
from holdfast.recovery.names import PREFIX, Lineage, lineages_of
from holdfast.recovery.nodes import KnownNode, keep_order_of_parts, known_nodes, settle_nodes
from holdfast.recovery.relocating import Relocator
from holdfast.recovery.report import NodeFound, Report, StoreFound
from holdfast.recovery.scratch import Scratch
from holdfast.recovery.surveying import Survey, survey
from holdfast.scheme import Scheme
from holdfast.stores.port import Store
from holdfast.topology import Location, Topology, place

SCRATCH_NAME = "recovery.tmp"
TOLD_MAX = 100
EVENTS_OF_A_LINEAGE_BITS = 40
"""So many events, as a power of two, may be numbered before an index is made again."""


Tell = Callable[[str], None]


class Step(Enum):
    """What was done last. Broken off behind any of them, recovery is given again."""

    READ = "read"
    FILLED = "filled"
    NOTED = "noted"
    KEPT = "kept"
    JOINED = "joined"


class Wanted(Struct, frozen=True, kw_only=True):
    """What was asked for. `incarnation` chooses among several; `force` replaces an index that is whole;
    `peers` are the nodes that lend their stores."""

    dry_run: bool = False
    force: bool = False
    incarnation: str = ""
    peers: tuple[PeerNamed, ...] = ()


async def recover(
    config: Config,
    wanted: Wanted,
    environment: Mapping[str, str],
    clock: Clock,
    randomness: Randomness,
    tell: Tell,
    done: Callable[[Step], None] = lambda _: None,
) -> Report:
    """Make the index again, or say what would come of it. `tell` takes sentences about what is going on,
    `done` each step that was taken.

    Raises Busy and Fenced (somebody else is using it, or it belongs elsewhere), InvalidInput (the index is
    whole; it is not clear which is meant), Unavailable and Damaged (too little can be read)."""
    if config.cluster is None and wanted.peers:
        raise InvalidInput(
            "This node has no [cluster] in its configuration, and so no peers:", hint="leave --peer out."
        )
    async with AsyncExitStack() as stack:
        run = _Run(config, wanted, environment, clock, randomness, tell, done)
        return await run.run(stack)


class _Run:
    def __init__(
        self,
        config: Config,
        wanted: Wanted,
        environment: Mapping[str, str],
        clock: Clock,
        randomness: Randomness,
        tell: Tell,
        done: Callable[[Step], None],
    ) -> None:
        self._done = done
        self._config = config
        self._wanted = wanted
        self._environment = environment
        self._clock = clock
        self._randomness = randomness
        self._tell = tell
        self._own = OwnFound(config, clock, randomness)
        self._borrowed: Borrowed | None = None
        self._secrets: tuple[bytes, ...] = ()
        self._nodes: list[NodeFound] = []
        self._known: list[KnownNode] = []
        self._revision = 0
        self._number = 0
        self._ancestors: tuple[str, ...] = ()

    async def run(self, stack: AsyncExitStack) -> Report:
        began = self._clock.monotonic()
        self._take_data(stack)
        await self._own.open(stack)
        stores = self._own.stores
        if self._config.cluster is None:
            self._check_enough()
        else:
            self._borrowed = await self._borrow(stack)
            stores |= self._borrowed.stores
        target = await self._find_target(stack)
        names = await find_names(stores, PREFIX)
        lineage = newest_lineage(names, self._wanted.incarnation)
        # One more than any: one that was lost before its first snapshot is not made from, and has a number.
        self._number = lineages_of(names.names)[0].number + 1
        scratch = Scratch(self._config.data / SCRATCH_NAME if self._config.data.is_dir() else None)
        stack.callback(scratch.close)
        try:
            loaded = await load(stores, names, lineage, scratch, self._tell)
        except HoldfastError as error:
            older = [one.incarnation for one in lineages_of(names.names) if one.number < lineage.number]
            if older:
                # It was recovered, and lost again before its first snapshot was whole.
                error.hint += f" The index that it was made from is there, too: --incarnation {older[0]}"
            raise
        await self._look_for_nodes(scratch, set(stores) - set(names.silent))
        journal_revision = loaded.revision
        loaded, log_member, log_changes = target.follow_log(scratch, loaded)
        self._revision = loaded.revision
        self._tell(f"the journal ends at revision {journal_revision:,}; looking through the stores")
        surveyed = await survey(stores, scratch, loaded.window, self._next)
        self._check_known(surveyed, set(stores) - set(surveyed.silent))
        applied = Applied([], [], [], [])
        young = await read_young(stores, loaded, surveyed.nameless, surveyed.recent, applied)
        relocator = Relocator(stores, scratch, young, surveyed.lost, self._next)
        await relocator.run(applied)
        applier = Applier(
            scratch, loaded, young, self._next, self._config.region, self._randomness, relocator.changed
        )
        applier.run(candidates(young, applied), applied)
        incarnation = new_incarnation(self._randomness)
        self._settle(scratch)
        self._say_whence(scratch, loaded)
        report = self._report(loaded, surveyed, applied, scratch, incarnation, target.places)
        report = replace(
            report, journal_revision=journal_revision, log_member=log_member, log_changes=log_changes
        )
        self._done(Step.READ)
        if not self._wanted.dry_run:
            report = await self._write(scratch, incarnation, target, stores, report)
        report = replace(report, seconds=round(self._clock.monotonic() - began, 3))
        if not self._wanted.dry_run:
            self._keep(report)
        return report

    def _next(self) -> int:
        self._revision += 1
        return self._revision

    def _take_data(self, stack: AsyncExitStack) -> None:
        data = self._config.data
        if not data.is_dir():
            if self._wanted.dry_run:
                return
            data.mkdir()
        lock = DataLock(data)
        stack.callback(lock.release)

    async def _find_target(self, stack: AsyncExitStack) -> EmbeddedTarget | SharedTarget:
        ours = self._noted()
        if self._config.index is None:
            embedded = EmbeddedTarget(self._config, self._own, self._randomness, self._tell)
            await embedded.check(ours, force=self._wanted.force)
            return embedded
        shared = SharedTarget(self._config, self._clock, self._randomness, stack, self._tell)
        await shared.check(ours, force=self._wanted.force, dry_run=self._wanted.dry_run)
        return shared

    def _noted(self) -> set[str]:
        return self._own.noted() | (self._borrowed.noted() if self._borrowed is not None else set())

    # The other nodes of a cluster

    async def _borrow(self, stack: AsyncExitStack) -> Borrowed:
        assert self._config.cluster is not None
        self._secrets = read_secrets(self._config.cluster.secret_file)
        return await borrow(
            self._config,
            self._own.cluster.cluster,
            self._own.cluster.node,
            self._secrets,
            self._wanted.peers,
            self._randomness,
            stack,
            self._tell,
        )

    async def _look_for_nodes(self, scratch: Scratch, here: set[StoreId]) -> None:
        """Raises Busy when a node runs, Unavailable when so many stores are missing that the newest of the
        journal may be, too."""
        if self._borrowed is None:
            return
        self._known = known_nodes(scratch)
        self._nodes = await self._borrowed.look_for_others(self._known, self._config.name)
        listed = {store.store for node in self._known for store in node.stores}
        self._check_missing(listed - here, here)

    def _settle(self, scratch: Scratch) -> None:
        """Leave the rows of nodes as the new index begins with them."""
        if self._borrowed is None:
            return
        present = {loan.peer.name: loan.lent.uuid for loan in self._borrowed.loans}
        present[self._config.name] = self._own.cluster.node
        cluster = self._own.cluster.cluster
        made_ms = int(self._clock.wall() * 1000)
        checks = [check_of(secret, cluster) for secret in self._secrets]
        for sentence in settle_nodes(scratch, cluster, checks, present, made_ms, self._next):
            self._tell(sentence)
        keep_order_of_parts(scratch)

    # Whether enough is there

    def _check_enough(self) -> None:
        """Raises Unavailable when so many stores are missing that the newest of the journal may be, too."""
        slots = self._own.slots()
        away, m = sorted(slots - set(self._own.held)), self._config.scheme.m
        if len(away) > m:
            what = f"{len(away)} of {len(slots)} stores are missing ({', '.join(away)})"
            self._too_few(what, self._config.scheme)

    def _check_known(self, surveyed: Survey, here: set[StoreId]) -> None:
        """The same by what the packs say: without the data folder nobody else knows of a store."""
        self._check_missing(surveyed.stores - here, here, "packs name")

    def _check_missing(self, away: set[StoreId], here: set[StoreId], who: str = "the nodes have") -> None:
        locations = self._locations()
        names = {store.store: f"{node.name}/{store.slot}" for node in self._known for store in node.stores}
        scheme = self._scheme(len(away | here))
        if held_at_most(locations, scheme, away, here) > scheme.m:
            listed = ", ".join(sorted(names.get(store, store) for store in away))
            self._too_few(f"{who} {len(away)} stores that are not here ({listed})", scheme)

    def _locations(self) -> list[Location]:
        """Where all stores are, as far as that is known."""
        found = {
            store.store: Location(store.store, store.region, store.zone, store.host, store.device)
            for node in self._known
            for store in node.stores
        }
        if self._borrowed is not None:
            found |= {
                store.store: store.location for loan in self._borrowed.loans for store in loan.lent.stores
            }
        return list((found | {location.store: location for location in self._own.locations}).values())

    def _scheme(self, stores: int) -> Scheme:
        """The node's default scheme, as it is with so many stores."""
        config = self._config
        return config.scheme if config.scheme_given or stores < 2 else scheme_for(None, stores)

    def _too_few(self, what: str, scheme: Scheme) -> None:
        m, name = scheme.m, scheme.name
        if not self._wanted.force:
            raise Unavailable(
                f"{what}; with {name}, {m} can be done without.",
                hint="Name all that there are. --force goes on with these: the newest of the journal may be "
                "missing without anybody knowing.",
            )
        self._tell(f"{what}; going on with the others, as --force says")

    # The new one

    def _say_whence(self, scratch: Scratch, loaded: Loaded) -> None:
        # Those that stores have noted, too: of a recovery that was interrupted nothing else is left.
        noted = sorted(self._noted())
        ancestors = dict.fromkeys(
            (*loaded.ancestors, *noted, *sorted(loaded.later), loaded.lineage.incarnation)
        )
        made_ms = int(self._clock.wall() * 1000)
        row = LineageRow(FORMAT, self._number, tuple(ancestors), made_ms)
        scratch.apply(self._next(), ((LINEAGE_ROW, encode_lineage(row)),), ())
        self._ancestors = row.ancestors
        # Those of the last moment may have been shown and sent: their numbers are not given again.
        (events,) = scratch.get([HEAD])
        head = decode_head(events).skipping_to(self._number << EVENTS_OF_A_LINEAGE_BITS)
        scratch.apply(self._next(), ((HEAD, encode_head(head)),), ())

    async def _write(
        self,
        scratch: Scratch,
        incarnation: str,
        target: EmbeddedTarget | SharedTarget,
        stores: Mapping[StoreId, Store],
        report: Report,
    ) -> Report:
        self._revision = await target.write(scratch, incarnation, self._revision)
        self._done(Step.FILLED)
        # From here on the old index is not believed any more; until `join` there is no new one.
        members = target.places if isinstance(target, EmbeddedTarget) else ()
        for sentence in await self._own.note(incarnation, self._revision, members):
            self._tell(sentence)
        if self._borrowed is not None:
            await self._borrowed.note(incarnation, self._revision)
        self._done(Step.NOTED)
        report = await self._write_first(scratch, incarnation, stores, report)
        self._done(Step.KEPT)
        await target.join()
        self._done(Step.JOINED)
        if self._borrowed is not None:
            await self._borrowed.done(incarnation)
        return replace(report, revision=self._revision, set_aside=target.set_aside)

    async def _write_first(
        self, scratch: Scratch, incarnation: str, stores: Mapping[StoreId, Store], report: Report
    ) -> Report:
        """The new index's first snapshot, before it can be opened: what is done on it is never known to the
        journal alone. Stores that do not take it are no reason to be without an index."""
        topology = Topology(one for one in self._locations() if one.store in stores)
        scheme = self._scheme(len(stores))
        health = StoreHealth(list(stores), scheme.m, self._clock.monotonic())
        packs = NamedPacks(stores, lambda: topology, health, self._clock, self._randomness, lambda: scheme)
        try:
            name = await write_first(
                packs,
                scratch.scan(b""),
                Lineage(self._number, incarnation),
                self._revision,
                self._ancestors,
                int(self._clock.wall() * 1000),
                self._randomness,
            )
        except HoldfastError as error:
            self._tell(f"the first snapshot of the new index is left to the node: {error}")
            return replace(report, first_snapshot_failed=str(error))
        return replace(report, first_snapshot=name.head)

    def _keep(self, report: Report) -> None:
        path = self._config.data / f"recovery-{report.lineage}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")

    def _report(
        self,
        loaded: Loaded,
        surveyed: Survey,
        applied: Applied,
        scratch: Scratch,
        incarnation: str,
        places: tuple[str, ...],
    ) -> Report:
        return Report(
            dry_run=self._wanted.dry_run,
            cluster=self._own.cluster.cluster,
            stores=tuple(self._own.found) + self._of_others(),
            incarnation_before=loaded.lineage.incarnation,
            incarnation=incarnation,
            lineage=self._number,
            snapshot=loaded.snapshot.head if loaded.snapshot else "",
            snapshot_revision=loaded.head.through if loaded.head else 0,
            snapshot_rows=loaded.head.rows if loaded.head else 0,
            snapshot_written_ms=loaded.head.written_ms if loaded.head else 0,
            journal_pieces=loaded.pieces,
            journal_revision=loaded.revision,
            journal_written_ms=loaded.written_ms,
            gap=loaded.gap,
            log_member="",
            log_changes=0,
            passed_over=loaded.passed_over,
            packs=surveyed.packs,
            shards=surveyed.shards,
            packs_degraded=surveyed.degraded,
            packs_short=surveyed.short_count,
            packs_short_named=tuple(surveyed.short),
            packs_moved=surveyed.moved,
            packs_added=applied.packs_added,
            packs_left=applied.older,
            packs_unreadable=applied.unreadable,
            pieces_left=applied.pieces,
            applied=_some(applied.applied),
            applied_count=len(applied.applied),
            relocated=_some(applied.relocated),
            relocated_count=len(applied.relocated),
            doubtful=_some(applied.doubtful),
            doubtful_count=len(applied.doubtful),
            incomplete=_some(applied.incomplete),
            incomplete_count=len(applied.incomplete),
            buckets_made=tuple(dict.fromkeys(applied.buckets_made)),
            buckets=scratch.count(b"bucket/", prefix_end(b"bucket/")),
            objects=scratch.count(b"head/", prefix_end(b"head/")),
            uploads=scratch.count(b"upload/", prefix_end(b"upload/")),
            rows=scratch.count(),
            revision=self._revision,
            members=places,
            set_aside=(),
            first_snapshot="",
            first_snapshot_failed="",
            credentials=self._credentials(),
            missing_from_ms=loaded.written_ms,
            missing_to_ms=None,
            seconds=0.0,
            nodes=tuple(self._nodes),
        )

    def _of_others(self) -> tuple[StoreFound, ...]:
        """The stores of other nodes, named as `<node>/<slot>`."""
        if self._borrowed is None:
            return ()
        lent = tuple(
            replace(found, slot=f"{loan.peer.name}/{found.slot}")
            for loan in self._borrowed.loans
            for found in loan.lent.found
        )
        names = {loan.peer.name for loan in self._borrowed.loans} | {self._config.name}
        away = tuple(
            StoreFound(store.path, f"{node.name}/{store.slot}", store.store, "its node lends nothing")
            for node in self._known
            if node.name not in names
            for store in node.stores
        )
        return lent + away

    def _credentials(self) -> str:
        try:
            there = credentials.find(
                self._config.data, self._environment, secret=self._secrets[0] if self._secrets else None
            )
        except HoldfastError as error:
            return str(error)
        return "kept" if there is not None else "new ones are made at the next start, unless they are given"


def _some(told: list[Told]) -> tuple[Told, ...]:
    return tuple(told[:TOLD_MAX])


def held_at_most(
    locations: Iterable[Location], scheme: Scheme, away: set[StoreId], here: set[StoreId]
) -> int:
    """How many shards of one pack the stores that are away may hold, when it was spread over all there are.
    Of one whose place is not known, it is one. Pure."""
    known = list(locations)
    placed = {location.store for location in known}
    topology = Topology(known)
    # Those that are away first: the worst that could be.
    order = [*sorted(away & placed), *sorted(here & placed)]
    chosen = place(topology, scheme.n, order)
    return len(away.intersection(chosen)) + len(away - placed)

"""Making a lost index again, without a node: who is there, what was kept, what becomes of it.

The order is that of a start, with one difference: nothing is written before everything was read, and the new
index counts only when all of it is there. What must hold: no other process has the data folder or a store
while this runs; an index that can be opened is never replaced unless that is asked for; what lay where the
new one goes is set aside, not removed; and from the first moment that the new index can be opened, stores
and data folder know it, so that nobody who has the old one is believed.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.health import StoreHealth
from holdfast.health.events import HEAD, decode_head, encode_head
from holdfast.index.port import prefix_end
from holdfast.index.sqlite.folder import DirectoryFolder
from holdfast.index.sqlite.recovery import Choice, Verdict, choose
from holdfast.index.sqlite.refounding import Refounding, new_incarnation
from holdfast.index.sqlite.remains import changes_after, look
from holdfast.index.sqlite.scan import Scan
from holdfast.node import credentials
from holdfast.node.cluster import Cluster, Slot, assign_slots, cluster_from, read_cluster, write_cluster
from holdfast.node.config import Config, StorePlace
from holdfast.node.index import Members
from holdfast.node.keeper import Held
from holdfast.node.placing import place_stores
from holdfast.node.runtime import DataLock
from holdfast.packs.named import NamedPacks, find_names
from holdfast.recovery.applying import Applied, Applier, Told, candidates, read_young
from holdfast.recovery.first_snapshot import write_first
from holdfast.recovery.format import FORMAT, LINEAGE_ROW, LineageRow, encode_lineage
from holdfast.recovery.loading import Loaded, follow_log, load, newest_lineage
from holdfast.recovery.names import PREFIX, Lineage, lineages_of
from holdfast.recovery.relocating import Relocator
from holdfast.recovery.report import Report, StoreFound
from holdfast.recovery.scratch import Scratch
from holdfast.recovery.surveying import Survey, survey
from holdfast.stores.directory import DirectoryOptions, attach, inspect
from holdfast.stores.identity import Expected, Identity, Noted
from holdfast.stores.port import Attachment, Store
from holdfast.topology import Location, Topology

ATTACH_TIMEOUT_S = 30.0
SCRATCH_NAME = "recovery.tmp"
ASIDE = ".before-recovery"
TOLD_MAX = 100
EVENTS_OF_A_LINEAGE_BITS = 40
"""So many events, as a power of two, may be numbered before an index is made again."""


Tell = Callable[[str], None]


class Wanted(Struct, frozen=True, kw_only=True):
    """What was asked for. `incarnation` chooses among several; `force` replaces an index that is whole."""

    dry_run: bool = False
    force: bool = False
    incarnation: str = ""


async def recover(
    config: Config,
    wanted: Wanted,
    environment: Mapping[str, str],
    clock: Clock,
    randomness: Randomness,
    tell: Tell,
) -> Report:
    """Make the index again, or say what would come of it. `tell` takes sentences about what is going on.

    Raises Busy and Fenced (somebody else is using it, or it belongs elsewhere), InvalidInput (the index is
    whole; it is not clear which is meant), Unavailable and Damaged (too little can be read)."""
    if config.index is not None:
        raise InvalidInput(
            f"The index is at {config.index.shown}, and recovery makes an embedded one.",
            hint=f"Restore it by the means of {config.index.engine.value}.",
        )
    async with AsyncExitStack() as stack:
        run = _Run(config, wanted, environment, clock, randomness, tell)
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
    ) -> None:
        self._config = config
        self._wanted = wanted
        self._environment = environment
        self._clock = clock
        self._randomness = randomness
        self._tell = tell
        self.held: dict[str, Held] = {}
        self.cluster = Cluster("", {})
        self._found: list[StoreFound] = []
        self._remains: list[tuple[tuple[int, int], str, Path]] = []
        self._revision = 0
        self._number = 0
        self._ancestors: tuple[str, ...] = ()

    async def run(self, stack: AsyncExitStack) -> Report:
        began = self._clock.monotonic()
        self._take_data(stack)
        await self._find_stores(stack)
        stores: dict[StoreId, Store] = {
            held.opened.id: held.opened for held in self.held.values() if held.opened is not None
        }
        self._check_enough()
        members = self._check_no_index()
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
        journal_revision = loaded.revision
        loaded, log_member, log_changes = self._follow_log(scratch, loaded)
        self._revision = loaded.revision
        self._tell(f"the journal ends at revision {journal_revision:,}; looking through the stores")
        surveyed = await survey(stores, scratch, loaded.window, self._next)
        self._check_known(surveyed)
        applied = Applied([], [], [], [])
        young = await read_young(stores, loaded, surveyed.nameless, surveyed.recent, applied)
        relocator = Relocator(stores, scratch, young, surveyed.lost, self._next)
        await relocator.run(applied)
        applier = Applier(
            scratch, loaded, young, self._next, self._config.region, self._randomness, relocator.changed
        )
        applier.run(candidates(young, applied), applied)
        incarnation = new_incarnation(self._randomness)
        self._say_whence(scratch, loaded)
        report = self._report(loaded, surveyed, applied, scratch, incarnation, members)
        report = replace(
            report, journal_revision=journal_revision, log_member=log_member, log_changes=log_changes
        )
        if not self._wanted.dry_run:
            report = await self._write(scratch, incarnation, members, stores, report)
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

    # Who is there

    async def _find_stores(self, stack: AsyncExitStack) -> None:
        known = read_cluster(self._config.data) or Cluster("", {})
        places = place_stores(self._config.stores, known).places
        seen: dict[Path, Identity] = {}
        trouble: dict[Path, str] = {}
        for place in places:
            try:
                found = await inspect(place.path, timeout_s=ATTACH_TIMEOUT_S)
            except HoldfastError as error:
                trouble[place.path] = str(error)
                continue
            if found.identity is not None:
                seen[place.path] = found.identity
            else:
                trouble[place.path] = found.problem or ("empty" if found.exists else "not there")
        self.cluster = self._cluster_of(seen, {place.path: place.slot for place in places if place.slot})
        named = {place.path: place for place in assign_slots(places, self.cluster, seen)}
        for place in places:
            await self._attach(named[place.path], seen.get(place.path), trouble.get(place.path, ""), stack)
        if not self.held:
            listed = "; ".join(f"{found.path}: {found.state}" for found in self._found)
            raise Unavailable("None of the stores can be used.", hint=f"{listed}.")

    def _cluster_of(self, seen: Mapping[Path, Identity], named: Mapping[Path, str]) -> Cluster:
        known, said = read_cluster(self._config.data), cluster_from(seen, named)
        if known is None and said is None:
            raise Unavailable(
                "None of these directories is a store of Holdfast.",
                hint="Name the stores with --store, or in the configuration file.",
            )
        if known is not None and said is not None and known.cluster != said.cluster:
            raise Fenced(
                f"The stores belong to cluster {said.cluster}, the data folder to {known.cluster}.",
                hint="Name the stores that belong to it, or another --data.",
            )
        cluster = known or said
        assert cluster is not None
        return cluster

    async def _attach(
        self, place: StorePlace, identity: Identity | None, trouble: str, stack: AsyncExitStack
    ) -> None:
        line = self.cluster.slots.get(place.slot)
        if identity is None:
            self._found.append(StoreFound(str(place.path), place.slot, "", trouble))
            return
        expected = Expected(
            self.cluster.cluster,
            (line.known_as if line else "") or place.slot,
            line.store if line else None,
            line.noted if line else None,
        )
        try:
            attached = await attach(
                place.path,
                expected,
                clock=self._clock,
                randomness=self._randomness,
                options=DirectoryOptions(bytes_reserve=self._config.limits.reserve_bytes),
                timeout_s=ATTACH_TIMEOUT_S,
            )
        except Fenced:
            raise
        except HoldfastError as error:
            self._found.append(StoreFound(str(place.path), place.slot, str(identity.store), str(error)))
            return
        opened, judgement = attached.store, attached.judgement
        if opened is None:
            state = f"{judgement.attachment.value}: {judgement.reason}"
            self._found.append(StoreFound(str(place.path), place.slot, str(identity.store), state))
            return
        stack.push_async_callback(opened.close)
        held = Held(
            place, Attachment.READY, "", opened.id, opened, opened, opened.device, mounted=opened.mounted
        )
        self.held[place.slot] = held
        self._found.append(StoreFound(str(place.path), place.slot, str(identity.store), "used"))

    def _check_enough(self) -> None:
        """Raises Unavailable when so many stores are missing that the newest of the journal may be, too."""
        slots = {name for name, slot in self.cluster.slots.items() if slot.store is not None}
        slots |= {found.slot for found in self._found}
        away, m = sorted(slots - set(self.held)), self._config.scheme.m
        if len(away) > m:
            self._too_few(f"{len(away)} of {len(slots)} stores are missing ({', '.join(away)})")

    def _check_known(self, surveyed: Survey) -> None:
        """The same by what the packs say: without the data folder nobody else knows of a store."""
        here = {held.id for held in self.held.values()}
        away = surveyed.stores - here
        if len(away) > self._config.scheme.m:
            self._too_few(f"packs name {len(away)} stores that are not here ({', '.join(sorted(away))})")

    def _too_few(self, what: str) -> None:
        m, name = self._config.scheme.m, self._config.scheme.name
        if not self._wanted.force:
            raise Unavailable(
                f"{what}; with {name}, {m} can be done without.",
                hint="Name all that there are. --force goes on with these: the newest of the journal may be "
                "missing without anybody knowing.",
            )
        self._tell(f"{what}; going on with the others, as --force says")

    # Whether there is an index already

    def _check_no_index(self) -> Members:
        """Raises InvalidInput when the old index can be opened. Answers where the new one goes."""
        old = Members(self._config, self)
        choice = self._look_at(old)
        ours = {self.cluster.incarnation, *self._noted()} - {""}
        if choice.verdict is Verdict.CHOSEN and (not ours or choice.incarnation.hex() in ours):
            have, of = len(choice.voters), len(choice.members)
            if not self._wanted.force:
                raise InvalidInput(
                    f"The index is there: {', '.join(choice.voters)} can be read, {have} of {of} members.",
                    hint="`holdfast serve` opens it. --force goes back to what snapshots and journal hold: "
                    "what was changed since, about the last second, is given up.",
                )
            self._remains = []
            self._tell(f"an index that is whole ({have} of {of} members) is replaced, as --force says")
        before = self.cluster
        # Members that are gone cannot be part of the new one; it is begun on what is there.
        self.cluster = replace(before, index=())
        members = Members(self._config, self)
        self.cluster = before
        return members

    def _look_at(self, members: Members) -> Choice:
        names = [name for name in (self.cluster.index or tuple(members.all)) if name in members.all]
        scans: dict[str, Scan] = {}
        failed: dict[str, str] = {}
        for name in names:
            place = Path(members.all[name].place)
            if not place.is_dir():
                failed[name] = "is not there"
                continue
            try:
                scan = look(DirectoryFolder(place))
            except HoldfastError as error:
                failed[name] = str(error)
                continue
            if scan.incarnation is not None:
                scans[name] = scan
                self._remains.append((scan.tip, name, place))
            else:
                failed[name] = "is empty"
        self._look_aside(members)
        return choose(names, scans, failed) if scans else Choice(Verdict.TOO_FEW)

    def _look_aside(self, members: Members) -> None:
        """A recovery that was interrupted has set aside what it read on from."""
        for name, member in members.all.items():
            place = Path(member.place)
            for aside in place.parent.glob(f"{place.name}{ASIDE}*"):
                try:
                    scan = look(DirectoryFolder(aside))
                except HoldfastError:
                    continue
                if scan.incarnation is not None:
                    self._remains.append((scan.tip, f"{name} ({aside.name})", aside))

    def _follow_log(self, scratch: Scratch, loaded: Loaded) -> tuple[Loaded, str, int]:
        """Go on with what the index's members that are left know beyond the journal's end. One of them: what
        two have of which nothing was acknowledged need not agree."""
        for _, name, place in sorted(self._remains, reverse=True):
            changes = changes_after(DirectoryFolder(place), loaded.lineage.incarnation, loaded.revision)
            loaded, count, error = follow_log(scratch, loaded, changes)
            if error is not None:
                self._tell(f"the index's member {name} cannot be read on: {error}")
            if count:
                self._tell(f"{count:,} changes behind the journal's end are on the index's member {name}")
                return loaded, name, count
        return loaded, "", 0

    def _noted(self) -> set[str]:
        opened = [held.opened for held in self.held.values() if held.opened is not None]
        return {store.identity.noted.incarnation for store in opened if store.identity.noted is not None}

    # The new one

    def _say_whence(self, scratch: Scratch, loaded: Loaded) -> None:
        # Those that stores have noted, too: of a recovery that was interrupted nothing else is left.
        noted = sorted(self._noted() | ({self.cluster.incarnation} - {""}))
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
        members: Members,
        stores: Mapping[StoreId, Store],
        report: Report,
    ) -> Report:
        aside = self._set_aside(members)
        accesses = [members.all[name] for name in members.first]
        refounding = Refounding(
            accesses, lambda: scratch.scan(b""), incarnation, self._revision, self._randomness
        )
        self._tell(f"writing the new index to {', '.join(members.first)}")
        refounding.write()
        # From here on the old index is not believed any more; until `join` there is no new one.
        await self._note(incarnation, members)
        report = await self._write_first(scratch, incarnation, stores, report)
        refounding.join()
        return replace(report, set_aside=tuple(aside))

    async def _write_first(
        self, scratch: Scratch, incarnation: str, stores: Mapping[StoreId, Store], report: Report
    ) -> Report:
        """The new index's first snapshot, before it can be opened: what is done on it is never known to the
        journal alone. Stores that do not take it are no reason to be without an index."""
        topology = Topology(
            Location(held.id, held.place.region, held.place.zone, held.place.host, held.device)
            for held in self.held.values()
            if held.id is not None
        )
        health = StoreHealth(list(stores), self._config.scheme.m, self._clock.monotonic())
        packs = NamedPacks(
            stores, lambda: topology, health, self._clock, self._randomness, lambda: self._config.scheme
        )
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

    def _set_aside(self, members: Members) -> list[str]:
        """Move what lies where an index lay. It is kept: a person may still want it."""
        moved = []
        for member in members.all.values():
            place = Path(member.place)
            if not place.is_dir() or not any(place.iterdir()):
                continue
            to, number = place.with_name(f"{place.name}{ASIDE}"), 1
            while to.exists():
                number += 1
                to = place.with_name(f"{place.name}{ASIDE}-{number}")
            place.rename(to)
            moved.append(str(to))
        return moved

    async def _note(self, incarnation: str, members: Members) -> None:
        noted = Noted(incarnation, self._revision)

        async def tell(held: Held) -> None:
            assert held.opened is not None
            line = self.cluster.slots.get(held.place.slot) or Slot("")
            slot = replace(
                line,
                path=str(held.place.path),
                store=held.opened.id,
                noted=None,
                device=held.device,
                mounted=held.mounted,
            )
            try:
                await held.opened.note_revision(incarnation, self._revision, timeout_s=ATTACH_TIMEOUT_S)
                slot = replace(slot, noted=noted)
            except HoldfastError as error:
                self._tell(f"{held.place.slot} does not take note of the new index: {error}")
            self.cluster = self.cluster.with_slot(held.place.slot, slot)

        await asyncio.gather(*[tell(held) for held in self.held.values()])
        self.cluster = replace(self.cluster, index=members.first, incarnation=incarnation)
        write_cluster(self._config.data, self.cluster)

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
        members: Members,
    ) -> Report:
        return Report(
            dry_run=self._wanted.dry_run,
            cluster=self.cluster.cluster,
            stores=tuple(self._found),
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
            members=members.first,
            set_aside=(),
            first_snapshot="",
            first_snapshot_failed="",
            credentials=self._credentials(),
            missing_from_ms=loaded.written_ms,
            missing_to_ms=None,
            seconds=0.0,
        )

    def _credentials(self) -> str:
        try:
            there = credentials.find(self._config.data, self._environment)
        except HoldfastError as error:
            return str(error)
        return "kept" if there is not None else "new ones are made at the next start, unless they are given"


def _some(told: list[Told]) -> tuple[Told, ...]:
    return tuple(told[:TOLD_MAX])

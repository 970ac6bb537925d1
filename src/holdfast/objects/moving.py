"""Moving: what is needed of some packs is written into a new one, and the rows move on.

The order is that of every write: bytes first, then the new pack's row, then what refers to it, each owner
in a transaction of its own that expects its rows as they were read. Who changed meanwhile meets a
conflict, and stays where it is; what was written for it is let go. What must hold: an object is all in the
old place or all in the new one at every instant; a conflict of one never harms another; bytes in a new
pack belong to somebody, or are let go once; memory is bounded by one pack, and its tables. On full stores, a
move that gives back more than it takes may use a share of the reserve.

Copies that share bytes follow in a second step, on the word of their owner's new head row. The packs that
were left die by the ordinary way: all of them is dead, nobody shares, nobody reads.
"""

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, VersionId
from holdfast.index.port import Expect, Row, Transaction
from holdfast.objects import rows
from holdfast.objects.claims import Claim, UploadClaim, give_back, sizes_of
from holdfast.objects.context import Context
from holdfast.objects.surveying import Survey, Surveyor
from holdfast.packs.batching import aligned
from holdfast.packs.layout import bytes_on_stores
from holdfast.packs.manifest import encode_manifest
from holdfast.packs.model import PACK_BYTES_MAX, Extent, ManifestEntry, Written, pack_row
from holdfast.packs.rows import decode_row
from holdfast.scheme import Scheme
from holdfast.stores.port import MOVING_SHARE

PIECES_MAX = 2048
"""Pieces of one new pack: bounds its manifest, and how long a step takes."""

MOVES_AT_ONCE = 64
SMALL_READ_BYTES = 1 << 20

GIVES_BACK = 1.25
"""A move may take of the reserve if the packs that it empties take so many times as much as it does."""

_HERE = PackId(b"")


class MoveReport(Struct, frozen=True):
    """What a step came to: bytes written, owners and copies that moved, those that were changed meanwhile,
    and the packs of which nothing was written anew."""

    bytes_moved: int = 0
    moved: int = 0
    refused: int = 0
    untouched: tuple[PackId, ...] = ()


class _Home(Struct):
    """What was written for one owner. Until it is certain that the owner never moves in, its rows have to
    show that it did not."""

    owner: str
    row: bytes
    sizes: dict[PackId, int]
    certain: bool = True


class _Change(Struct, frozen=True):
    """A transaction that moves an owner (or the parts of an upload) in."""

    transaction: Transaction
    homes: tuple[_Home, ...]


class _Described(NamedTuple):
    """What the new pack's manifest says, and what the pack may take on the stores (None: anything)."""

    entries: list[ManifestEntry]
    bytes_max: int | None


class Moving:
    """Empties packs, one step at a time."""

    def __init__(self, context: Context, clock: Clock) -> None:
        self._context = context
        self._index = context.index
        self._clock = clock
        self._surveyor = Surveyor(context, clock)
        self._open: list[_Home] = []

    async def move(
        self,
        worth: Mapping[PackId, int],
        scheme: Scheme,
        alone: Container[PackId] | None = None,
        *,
        only: frozenset[str] | None = None,
        thrifty: bool = False,
    ) -> MoveReport:
        """Move what is needed of these packs into a new pack of `scheme`; of the buckets `only`, if they are
        named. A pack of which more is needed than `worth` says stays as it is; what finds no room, or cannot
        be moved, stays for another time; and so does a pack that would be the only one, unless it is worth
        it `alone` (None: every one is). `thrifty` moves only what gives back more than it takes, and may use
        a share of the stores' reserve. Raises Unavailable and TooBusy, with nothing lost. One call at a
        time."""
        await self._settle_open()
        survey = await self._surveyor.survey(list(worth))
        if only is not None:
            survey.of_buckets(only)
        survey.without([pack for pack, needed in survey.needed.items() if needed > worth[pack]])
        data: dict[Extent, Buffer] = {}
        while True:
            plan = Plan(survey)
            left = {extent.pack for extent in plan.places}
            if not left or (alone is not None and len(left) == 1 and not any(one in alone for one in left)):
                return MoveReport(untouched=tuple(worth))
            entries = await self._describe(plan)
            described = _Described(entries, await self._allowance(plan, survey) if thrifty else None)
            if described.bytes_max is not None and plan.taken(scheme, entries) > described.bytes_max:
                return MoveReport(untouched=tuple(worth))
            await self._context.budget.take(plan.bytes)
            try:
                unreadable = await self._read(plan, data)
                if unreadable is None:
                    return await self._carry_out(plan, data, scheme, list(worth), described)
            finally:
                self._context.budget.give(plan.bytes)
            survey.without([unreadable])
            data = {extent: bytes_ for extent, bytes_ in data.items() if extent.pack != unreadable}

    async def _read(self, plan: "Plan", data: dict[Extent, Buffer]) -> PackId | None:
        """All that is to move; a pack that cannot be read, if there is one."""
        for extent in plan.places:
            if extent in data:
                continue
            await self._clock.sleep(0)
            try:
                if extent.length == 0:
                    data[extent] = b""
                elif extent.length <= SMALL_READ_BYTES:
                    data[extent] = await self._context.packs.read_small(extent)
                else:
                    data[extent] = await self._surveyor.whole(extent)
            except HoldfastError:
                return extent.pack
        return None

    async def _allowance(self, plan: "Plan", survey: Survey) -> int:
        """What the new pack may take on the stores to give back more than that."""
        packs = plan.emptied(survey)
        found = await self._index.get([pack_row(pack) for pack in packs])
        emptied = [decode_row(row.value) for row in found if row is not None]
        return int(sum(bytes_on_stores(row.scheme, row.stored_bytes) for row in emptied) / GIVES_BACK)

    async def _carry_out(
        self,
        plan: "Plan",
        data: dict[Extent, Buffer],
        scheme: Scheme,
        packs: Sequence[PackId],
        described: "_Described",
    ) -> MoveReport:
        entries, bytes_max = described
        share = 0.0 if bytes_max is None else MOVING_SHARE
        written = await self._context.packs.write(
            scheme,
            plan.payload(data),
            lambda _: entries,
            plan.object_bytes,
            reserve_share=share,
            bytes_max=bytes_max,
        )
        data.clear()
        try:
            moved, done, count = await self._move_in(plan, written, scheme, share)
        except HoldfastError:
            written.abandon()
            raise
        await self._settle_open()
        followed = await self._follow(plan, moved, written.extent.pack.hex())
        left = {extent.pack for extent in plan.places}
        return MoveReport(
            plan.object_bytes,
            done + followed,
            count + len(plan.followers) - done - followed,
            tuple(pack for pack in packs if pack not in left),
        )

    async def _move_in(
        self, plan: "Plan", written: Written, scheme: Scheme, reserve_share: float
    ) -> tuple[dict[Extent, Extent], int, int]:
        """Commit the new pack and everybody's move; where everything lies then, and how many of how many
        changes went through."""
        new = written.extent.pack
        moved = {extent: Extent(new, place.offset, place.length) for extent, place in plan.places.items()}
        tables, tables_at = await self._write_tables(plan, moved, scheme, reserve_share)
        try:
            changes = [_upload_change(claim, moved, new.hex()) for claim in plan.uploads]
            for number, claim in enumerate(plan.owners):
                if number % MOVES_AT_ONCE == 0:
                    await self._clock.sleep(0)
                table_at = tables_at.get(claim.record.version)
                changes.append(_version_change(claim, moved, table_at, new.hex()))
            rows_of_packs = [*written.transactions, *(tables.transactions if tables is not None else ())]
            done = await self._commit(rows_of_packs, changes)
        except HoldfastError:
            if tables is not None:
                tables.abandon()
            raise
        return moved, done, len(changes)

    async def _describe(self, plan: "Plan") -> list[ManifestEntry]:
        """What the new pack's manifest says, worked out without holding up others."""
        entries: list[ManifestEntry] = []
        claims: list[Claim | UploadClaim] = [*plan.owners, *plan.uploads]
        for number, claim in enumerate(claims):
            if number % MOVES_AT_ONCE == 0:
                await self._clock.sleep(0)
            entries += claim.entries(plan.places)
        return entries

    async def _write_tables(
        self, plan: "Plan", moved: Mapping[Extent, Extent], scheme: Scheme, reserve_share: float
    ) -> tuple[Written | None, dict[VersionId, Extent]]:
        """The tables that name what moved, anew, in a pack of their own."""
        claims = [claim for claim in plan.owners if claim.table is not None]
        if not claims:
            return None, {}
        payload: list[Buffer] = [claim.moved_table(moved) for claim in claims]
        places, end = [], 0
        for table in payload:
            places.append(Extent(_HERE, end, len(table)))
            end += len(table)

        def describe(_: Extent) -> Sequence[ManifestEntry]:
            return [claim.table_entry(moved, at) for claim, at in zip(claims, places, strict=True)]

        written = await self._context.packs.write(scheme, payload, describe, reserve_share=reserve_share)
        pack = written.extent.pack
        return written, {
            claim.record.version: Extent(pack, at.offset, at.length)
            for claim, at in zip(claims, places, strict=True)
        }

    async def _commit(self, before: Sequence[Transaction], changes: Sequence[_Change]) -> int:
        """Commit the new packs' rows, then the changes; how many went through. What did not is open."""
        self._open = [home for change in changes for home in change.homes]
        done = 0
        for start in range(0, max(len(changes), 1), MOVES_AT_ONCE):
            await self._clock.sleep(0)
            some = changes[start : start + MOVES_AT_ONCE]
            for change in some:
                for home in change.homes:
                    home.certain = False
            transactions = (*before, *(change.transaction for change in some))
            decided = await self._context.committer.decide(transactions)
            for change, outcome in zip(some, decided[len(before) :], strict=True):
                done += outcome.committed
                for home in change.homes:
                    home.certain = outcome.certain
                    if outcome.committed:
                        home.sizes = {}
            before = ()
        self._open = [home for home in self._open if home.sizes]
        return done

    async def _settle_open(self) -> None:
        """Let go what was written for owners that have not moved in, and never will. Nothing else moves
        before: what the rows show of these owners would not be of this move."""
        while self._open:
            home = self._open[-1]
            if home.sizes:
                await self._settle(home)
            self._open.pop()

    async def _settle(self, home: _Home) -> None:
        change = give_back(home.sizes, home.owner, home.owner)
        if not home.certain:
            (row,) = await self._index.get((home.row,))
            if row is None or not _stays(row, home):
                return  # it moved in; or it ended, and only the audit of packs can tell
            change = change._replace(expects=(*change.expects, Expect(row.key, row.revision)))
        await self._context.committer.decide_one(change)

    async def _follow(self, plan: "Plan", moved: Mapping[Extent, Extent], cause: str) -> int:
        """Let copies follow, where their owner has moved."""
        done = 0
        for start in range(0, len(plan.followers), MOVES_AT_ONCE):
            some = plan.followers[start : start + MOVES_AT_ONCE]
            found = await self._index.get([owner.where.head_row for _, owner in some])
            transactions = []
            for (claim, _), row in zip(some, found, strict=True):
                (_, extent), *_ = claim.extents
                if row is not None and moved[extent] in rows.decode_head(row.value).current.extents:
                    transactions.append(claim.follow(moved, Expect(row.key, row.revision), cause))
            if transactions:
                decided = await self._context.committer.decide(transactions)
                done += sum(outcome.committed for outcome in decided)
        return done


class Plan:
    """What goes into the new pack: where its pieces lie, who gets them, and which copies follow whom.
    Whoever finds no room is left out as a whole."""

    def __init__(self, survey: Survey) -> None:
        self.owners: list[Claim] = []
        self.uploads: list[UploadClaim] = []
        self.followers: list[tuple[Claim, Claim]] = []
        self.places: dict[Extent, Extent] = {}
        self._end = 0
        self._tables = 0
        owner_of: dict[Extent, Claim] = {}
        for claim in survey.owners:
            if self._take([extent for _, extent in claim.extents], claim.table):
                self.owners.append(claim)
            owner_of.update((extent, claim) for _, extent in claim.extents)
        for upload in survey.uploads:
            if self._take([extent for part in upload.parts for _, extent in part.extents], None):
                self.uploads.append(upload)
        for claim in survey.sharers:
            ((_, extent),) = claim.extents
            owner = owner_of.get(extent)
            if owner is not None:
                if extent in self.places:
                    self.followers.append((claim, owner))
            elif self._take([extent], None):
                # Its owner is gone: what nobody owns any more becomes its own.
                owner_of[extent] = claim
                self.owners.append(claim)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return min(self._end + self._tables, PACK_BYTES_MAX)

    def taken(self, scheme: Scheme, entries: Sequence[ManifestEntry]) -> int:
        """What it takes on the stores."""
        return bytes_on_stores(scheme, self._end + self._tables + len(encode_manifest(entries)))

    def emptied(self, survey: Survey) -> set[PackId]:
        """The packs of which nothing is needed any more, once all of this has moved."""
        stay = {extent.pack for extent in survey.extents() if extent not in self.places}
        return {extent.pack for extent in self.places} - stay

    @property
    def object_bytes(self) -> int:
        """Bytes of pieces, without filling."""
        return sum(place.length for place in self.places.values())

    def _take(self, extents: Sequence[Extent], table: Buffer | None) -> bool:
        """Give these bytes a place; False, and nothing is changed, when there is no room."""
        added: dict[Extent, Extent] = {}
        end = self._end
        for extent in extents:
            if extent not in self.places and extent not in added:
                start = aligned(end, extent.length)
                added[extent] = Extent(_HERE, start, extent.length)
                end = start + extent.length
        tables = self._tables + (0 if table is None else len(table))
        if len(self.places) + len(added) > PIECES_MAX or end + tables > PACK_BYTES_MAX:
            return False
        self.places |= added
        self._end, self._tables = end, tables
        return True

    def payload(self, data: Mapping[Extent, Buffer]) -> list[Buffer]:
        """The pieces, with filling between them."""
        payload: list[Buffer] = []
        end = 0
        for extent, place in self.places.items():
            if place.offset > end:
                payload.append(bytes(place.offset - end))
            payload.append(data[extent])
            end = place.offset + place.length
        return payload


def _version_change(
    claim: Claim, moved: Mapping[Extent, Extent], table_at: Extent | None, cause: str
) -> _Change:
    new = [moved[extent] for _, extent in claim.extents] + ([table_at] if table_at is not None else [])
    home = _Home(claim.record.version, claim.where.head_row, sizes_of(new))
    return _Change(claim.transaction(moved, table_at, cause), (home,))


def _upload_change(claim: UploadClaim, moved: Mapping[Extent, Extent], cause: str) -> _Change:
    homes = tuple(
        _Home(part.attempt, part.key, sizes_of(moved[extent] for _, extent in part.extents))
        for part in claim.parts
    )
    return _Change(claim.transaction(moved, cause), homes)


def _stays(row: Row, home: _Home) -> bool:
    """Whether an owner is shown by its row, and not in the new packs."""
    if row.key.startswith(b"part/"):
        named = {extent.pack for extent in rows.decode_part(row.value).extents}
        return named.isdisjoint(home.sizes)
    record = rows.decode_head(row.value).current
    named = {extent.pack for extent in record.extents}
    if record.extents_at is not None:
        named.add(record.extents_at.pack)
    return record.version == home.owner and named.isdisjoint(home.sizes)

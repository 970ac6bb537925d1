"""Versions and parts whose packs are gone, found where they were moved to.

Before bytes that are still needed lose their old pack, the journal says where the new one is; so rows and
stores agree. Where the journal was held up while stores were full, old packs may be gone all the same: the
rows lead nowhere, and the bytes lie in a pack that no row names. That pack's manifest says whose they are.
What must hold:

- only a place changes. What the rows do not show as it was (a version that was deleted or replaced, a part
  that is not there any more) is not touched, whatever a manifest says: nothing that is gone comes back.
- a version stays where the rows have it as long as its bytes are there.
- it moves with all of its bytes: every pack that its new place names can be read.
- the rows change as a move would have changed them: copies follow, and what was left is let go.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import PackId, StoreId, VersionId, shard_name
from holdfast.index.port import Expect, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.claims import Claim, PartClaim
from holdfast.objects.heads import Target, packs_of, target
from holdfast.objects.model import VersionRecord
from holdfast.objects.rows import DeadRow, PartRow
from holdfast.objects.table import extents_in
from holdfast.packs.found import FoundPack, FoundReader, FoundShard
from holdfast.packs.model import Extent, ManifestEntry, PackRow, pack_row
from holdfast.packs.rows import decode_row
from holdfast.recovery.applying import Applied, Told, Young, in_place, pack_rows
from holdfast.recovery.scratch import Scratch
from holdfast.scheme import Scheme
from holdfast.stores.port import Store

_TABLE_STEP = 4096
_NOBODY = Expect(b"", 0)


class _Move(NamedTuple):
    """What one manifest says: this version, or attempt of a part, lies there now."""

    revision: int
    pack: PackId
    entry: ManifestEntry


class _Everything:
    def __contains__(self, pack: object) -> bool:
        return True


class Relocator:
    """Changes the rows of what was moved. `young` are packs that no row names, or a recent one, with their
    manifests; `short` are packs with rows that cannot be read from the stores."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        scratch: Scratch,
        young: Mapping[PackId, Young],
        short: set[PackId],
        next_revision: Callable[[], int],
    ) -> None:
        self._stores = stores
        self._scratch = scratch
        self._young = young
        self._short = short
        self._next_revision = next_revision
        self.changed: set[bytes] = set()
        """Heads that were put anew: their revisions say nothing of what clients did."""

    async def run(self, applied: Applied) -> None:
        """All of them: what was moved twice is looked for where it was moved to last. Before anything younger
        is applied: a copy follows the version that it shares bytes with, also where that one was replaced
        a moment later."""
        if not self._short:
            return
        moves: dict[tuple[str, str, str, int], list[_Move]] = {}
        for pack, (_, manifest, _) in self._young.items():
            for entry in manifest.entries:
                if entry.moved and entry.record:
                    one = (entry.bucket, entry.key, entry.version, entry.part)
                    moves.setdefault(one, []).append(_Move(manifest.revision, pack, entry))
        for (bucket, key, version, part), found in moves.items():
            found.sort(key=lambda move: (-move.revision, move.pack))
            told = Told(bucket, key, version)
            try:
                done = await (self._part(found) if part else self._version(target(bucket, key), found))
            except Damaged as error:
                applied.doubtful.append(Told(bucket, key, version, str(error)))
                continue
            if done is None:
                continue
            if done:
                applied.relocated.append(told)
            else:
                why = "it was moved, and its bytes are not all there"
                applied.incomplete.append(Told(bucket, key, version, why))

    async def _version(self, where: Target, moves: Sequence[_Move]) -> bool | None:
        """Whether the version has its bytes again; None when it lacks none, or is not what the key holds."""
        (row,) = self._scratch.get([where.head_row])
        if row is None:
            return None
        head = rows.decode_head(row.value)
        record = head.current
        if record.version != moves[0].entry.version or not await self._is_lost(record):
            return None
        for move in moves:
            there = in_place(rows.decode_record(move.entry.record), move.pack)
            if _lengths(record) != _lengths(there) or not await self._is_whole(there):
                continue
            self._add_rows(packs_of(there), there.scheme)
            await self._move(Claim(where, row.revision, head, ()), there, move.pack.hex())
            return True
        return False

    async def _move(self, claim: Claim, there: VersionRecord, cause: str) -> None:
        record = claim.record
        before, after = list(record.extents), list(there.extents)
        if record.extents_at is not None and there.extents_at is not None:
            # What a table that is gone named is let go by nobody; its packs are gone as well.
            before = await self._named_by_table(record.extents_at) or []
            after = await self._named_by_table(there.extents_at) or []
            self._add_rows({extent.pack for extent in after}, there.scheme)
        moved = dict(zip(before, after, strict=False))
        left = tuple((n, extent) for n, extent in enumerate(before) if moved[extent] != extent)
        table = None if record.extents_at is None else b""
        self._apply(replace(claim, extents=left, table=table).transaction(moved, there.extents_at, cause))
        if record.extents_at is None and len(before) == 1:
            self._follow(before[0], moved, cause)

    def _follow(self, extent: Extent, moved: Mapping[Extent, Extent], cause: str) -> None:
        """Copies that share the bytes."""
        prefix = keys.share_row(extent.pack, VersionId(""))
        for item in list(self._scratch.scan(prefix, keys.after_prefix(prefix))):
            share = rows.decode_share(item.value)
            where = target(share.bucket, share.key)
            (row,) = self._scratch.get([where.head_row])
            if row is None:
                continue
            head = rows.decode_head(row.value)
            record = head.current
            if item.key != keys.share_row(extent.pack, record.version) or record.extents != (extent,):
                continue
            claim = Claim(where, row.revision, head, ((0, extent),))
            self._apply(claim.follow(moved, _NOBODY, cause))

    async def _part(self, moves: Sequence[_Move]) -> bool | None:
        """The same for an attempt of a part of an open upload."""
        attempt, number = VersionId(moves[0].entry.version), moves[0].entry.part
        for move in moves:
            said = rows.decode_part(move.entry.record)
            key = keys.part_row(said.upload, number, attempt)
            (row,) = self._scratch.get([key])
            if row is None:
                return None
            part = rows.decode_part(row.value)
            if not any(extent.pack in self._short for extent in part.extents):
                return None
            there = _extents_in_place(said, move.pack)
            if [one.length for one in there] != [one.length for one in part.extents]:
                continue
            if not all(self._is_there(extent.pack) for extent in there):
                continue
            self._add_rows({extent.pack for extent in there}, None)
            moved = dict(zip(part.extents, there, strict=True))
            left = tuple((n, extent) for n, extent in enumerate(part.extents) if moved[extent] != extent)
            claim = PartClaim(key, row.revision, number, attempt, part, left)
            dead = [
                (keys.dead_row(pack, attempt), rows.encode(DeadRow(rows.FORMAT, size, move.pack.hex())))
                for pack, size in claim.left.items()
            ]
            self._apply(Transaction((), ((key, rows.encode(claim.moved_row(moved))), *dead)))
            return True
        return False

    # What is there

    async def _is_lost(self, record: VersionRecord) -> bool:
        """Whether some of a version's bytes are not where the rows have them."""
        if any(pack in self._short for pack in packs_of(record)):
            return True
        if record.extents_at is None:
            return False
        named = await self._named_by_table(record.extents_at)
        return named is None or any(extent.pack in self._short for extent in named)

    async def _is_whole(self, record: VersionRecord) -> bool:
        """Whether all bytes are there that a version names."""
        if not all(self._is_there(pack) for pack in packs_of(record)):
            return False
        if record.extents_at is None:
            return True
        named = await self._named_by_table(record.extents_at)
        return named is not None and all(self._is_there(extent.pack) for extent in named)

    def _is_there(self, pack: PackId) -> bool:
        if pack in self._short:
            return False
        (row,) = self._scratch.get([pack_row(pack)])
        return row is not None or (pack in self._young and self._young[pack].found.losses_left >= 0)

    async def _named_by_table(self, at: Extent) -> list[Extent] | None:
        """What a table names; None when it cannot be read."""
        (row,) = self._scratch.get([pack_row(at.pack)])
        found = _found(at.pack, decode_row(row.value)) if row is not None else None
        if found is None and at.pack in self._young:
            found = self._young[at.pack].found
        if found is None:
            return None
        try:
            table = await FoundReader(self._stores, found).read(at.offset, at.length)
            named: list[Extent] = []
            while some := extents_in(table, _Everything(), len(named), _TABLE_STEP):
                named += [extent for _, extent in some]
        except HoldfastError:
            return None
        return named

    # What changes

    def _add_rows(self, packs: Iterable[PackId], promised: Scheme | None) -> None:
        revision = self._next_revision()
        for pack in packs:
            (row,) = self._scratch.get([pack_row(pack)])
            if row is None:
                self._scratch.apply(revision, pack_rows(pack, self._young[pack], promised), ())

    def _apply(self, change: Transaction) -> None:
        self._scratch.apply(self._next_revision(), change.puts, change.deletes)
        self.changed.update(key for key, _ in change.puts)


def _lengths(record: VersionRecord) -> list[int]:
    """What two records of one version have in common that differ in nothing but its place."""
    table = -1 if record.extents_at is None else record.extents_at.length
    return [table, *(extent.length for extent in record.extents)]


def _extents_in_place(part: PartRow, pack: PackId) -> tuple[Extent, ...]:
    return tuple(
        extent if extent.pack else Extent(pack, extent.offset, extent.length) for extent in part.extents
    )


def _found(pack: PackId, row: PackRow) -> FoundPack:
    shards = tuple(
        FoundShard(place.store, shard_name(pack, place.shard, place.attempt), place.shard, place.attempt)
        for place in row.places
    )
    return FoundPack(pack, row.scheme, row.payload_bytes, row.manifest_bytes, shards)

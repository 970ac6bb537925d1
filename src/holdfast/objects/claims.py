"""Who needs the bytes of packs that are to be emptied, and the transactions that let them have others.

Pure: rows in, rows out. What must hold:

- bytes that move leave `dead` rows for the packs they leave, in the transaction that moves them. For the
  pack under which the version's end would have been marked until now, that row is the mark: so what
  could be turned away before can be turned away after, by whoever still follows the old extents.
- a version leaves all that it has in a pack at once, and goes only to packs that are new; its table never
  shares a pack with its pieces. So its bytes in a pack are let go once, by one row.
- a version that shares the bytes of another either follows them, on the word of the other's head row, or
  becomes the owner of bytes of its own.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.ids import PackId, UploadId, VersionId
from holdfast.index.port import PRESENT, Expect, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.heads import Target, mark, not_let_go
from holdfast.objects.model import VersionRecord
from holdfast.objects.rows import DeadRow, HeadRow, PartRow, UploadRow, encode_record
from holdfast.objects.table import with_extents
from holdfast.packs.model import Extent, ManifestEntry, pack_row

Moved = Mapping[Extent, Extent]
"""Where bytes lay, and where they lie now."""


class Claim(Struct, frozen=True):
    """A version that needs bytes of the packs. `extents` are those that move, with their numbers in the
    version's list; `table` is the version's whole table when they are named there: it is written anew."""

    where: Target
    revision: int
    head: HeadRow
    extents: tuple[tuple[int, Extent], ...]
    table: bytes | None = None

    @property
    def record(self) -> VersionRecord:
        """The version."""
        return self.head.current

    @property
    def left(self) -> dict[PackId, int]:
        """Bytes of each pack that are not needed any more once it has moved."""
        left = [extent for _, extent in self.extents]
        if self.table is not None:
            assert self.record.extents_at is not None
            left.append(self.record.extents_at)
        return sizes_of(left)

    def moved_record(self, moved: Moved, table_at: Extent | None) -> VersionRecord:
        """The version as it is then. What moves belongs to it, even if it shared it before."""
        record = self.record
        at = record.extents_at
        if at is not None:
            at = table_at if table_at is not None else moved.get(at, at)
        extents = tuple(moved.get(extent, extent) for extent in record.extents)
        return replace(record, extents=extents, extents_at=at, shared=False)

    def moved_table(self, moved: Moved) -> bytes:
        """The table as it is then."""
        assert self.table is not None
        return with_extents(self.table, {number: moved[extent] for number, extent in self.extents})

    def entries(self, moved: Moved) -> list[ManifestEntry]:
        """What the new pack's manifest says; `moved` is without its id. The record comes with the last
        piece, or, where the table is written anew, in the table's pack."""
        last = self.extents[-1][0]
        record = b""
        if self.table is None:
            record = encode_record(self.moved_record(moved, None)).raw
        return [
            self._entry(moved[extent], number, record if number == last else b"")
            for number, extent in self.extents
        ]

    def table_entry(self, moved: Moved, at: Extent) -> ManifestEntry:
        """What the manifest of the new table's pack says; `at` is without its id."""
        return self._entry(at, 0, encode_record(self.moved_record(moved, at)).raw)

    def _entry(self, at: Extent, piece: int, record: bytes) -> ManifestEntry:
        where, version = self.where, self.record.version
        return ManifestEntry(where.bucket, where.key, version, at.offset, at.length, 0, piece, record, True)

    def transaction(self, moved: Moved, table_at: Extent | None, cause: str) -> Transaction:
        """Moves it."""
        record = self.record
        version = record.version
        new = [moved[extent] for _, extent in self.extents]
        if table_at is not None:
            new.append(table_at)
        homes = sizes_of(new)
        puts = [(self.where.head_row, self._row(self.moved_record(moved, table_at)))]
        deletes: tuple[bytes, ...] = ()
        if record.shared:
            deletes = tuple(keys.share_row(pack, version) for pack in self.left)
            puts.append(_dead(mark(record), 0, cause))
        else:
            puts += [_dead(keys.dead_row(pack, version), size, cause) for pack, size in self.left.items()]
        expects = (Expect(self.where.head_row, self.revision), *moved_in(homes, version))
        return Transaction(expects, tuple(puts), deletes)

    def follow(self, moved: Moved, owner: Expect, cause: str) -> Transaction:
        """Follows bytes that it shares, if their owner's head row is as expected: the new pack can't have
        been let go by all its owners then."""
        record = self.record
        assert record.shared
        after = replace(self.moved_record(moved, None), shared=True)
        version = record.version
        homes = sizes_of(moved[extent] for _, extent in self.extents)
        share = rows.encode(rows.ShareRow(rows.FORMAT, self.where.bucket, self.where.key))
        puts = [
            (self.where.head_row, self._row(after)),
            *((keys.share_row(pack, version), share) for pack in homes),
            _dead(mark(record), 0, cause),
        ]
        deletes = tuple(keys.share_row(pack, version) for pack in self.left)
        alive = (Expect(pack_row(pack), PRESENT) for pack in homes)
        expects = (Expect(self.where.head_row, self.revision), owner, *alive)
        return Transaction(expects, tuple(puts), deletes)

    def _row(self, record: VersionRecord) -> bytes:
        return rows.encode_head(encode_record(record), self.head.request, self.head.earlier)


class PartClaim(Struct, frozen=True):
    """One attempt of a part of an open upload that needs bytes of the packs."""

    key: bytes
    revision: int
    number: int
    attempt: VersionId
    row: PartRow
    extents: tuple[tuple[int, Extent], ...]

    @property
    def left(self) -> dict[PackId, int]:
        """Bytes of each pack that are not needed any more once it has moved."""
        return sizes_of(extent for _, extent in self.extents)

    def moved_row(self, moved: Moved) -> PartRow:
        """The row as it is then."""
        extents = tuple(moved.get(extent, extent) for extent in self.row.extents)
        return replace(self.row, extents=extents, arrived=self.row.arrived or self.revision)


class UploadClaim(Struct, frozen=True):
    """An open upload, with those of its parts that need bytes of the packs."""

    where: Target
    upload: UploadId
    key: bytes
    revision: int
    row: UploadRow
    parts: tuple[PartClaim, ...]

    def entries(self, moved: Moved) -> list[ManifestEntry]:
        """What the new pack's manifest says of them; `moved` is without its id."""
        found = []
        for part in self.parts:
            last = part.extents[-1][0]
            for number, extent in part.extents:
                at = moved[extent]
                record = rows.encode(replace(part.moved_row(moved), receipt=None)) if number == last else b""
                found.append(
                    ManifestEntry(
                        self.where.bucket,
                        self.where.key,
                        part.attempt,
                        at.offset,
                        at.length,
                        part.number,
                        number,
                        record,
                        True,
                    )
                )
        return found

    def transaction(self, moved: Moved, cause: str) -> Transaction:
        """Moves them all. The upload's row is put anew: who completes it has to read its parts again."""
        expects = [Expect(self.key, self.revision)]
        puts = [(self.key, rows.encode(self.row))]
        for part in self.parts:
            homes = sizes_of(moved[extent] for _, extent in part.extents)
            expects += [Expect(part.key, part.revision), *moved_in(homes, part.attempt)]
            puts.append((part.key, rows.encode(part.moved_row(moved))))
            puts += [
                _dead(keys.dead_row(pack, part.attempt), size, cause) for pack, size in part.left.items()
            ]
        return Transaction(tuple(expects), tuple(puts))


def sizes_of(extents: Iterable[Extent]) -> dict[PackId, int]:
    """Bytes of each pack."""
    sizes: dict[PackId, int] = {}
    for extent in extents:
        sizes[extent.pack] = sizes.get(extent.pack, 0) + extent.length
    return sizes


def moved_in(homes: Mapping[PackId, int], owner: str) -> tuple[Expect, ...]:
    """What is expected of packs that get a new owner: that they are alive, and not given up for it."""
    return (*(Expect(pack_row(pack), PRESENT) for pack in homes), *not_let_go(homes, owner))


def give_back(homes: Mapping[PackId, int], owner: str, cause: str) -> Transaction:
    """Lets go what was written for an owner who does not move in, once."""
    puts = tuple(_dead(keys.dead_row(pack, owner), size, cause) for pack, size in homes.items())
    return Transaction(moved_in(homes, owner), puts)


def _dead(key: bytes, size: int, cause: str) -> tuple[bytes, bytes]:
    return key, rows.encode(DeadRow(rows.FORMAT, size, cause))

"""Finding out who needs the bytes of packs that are to be emptied.

A pack's manifest is as old as the pack, so it is only a hint where to look: what holds is what the rows
say that it leads to. What must hold: whoever is not found keeps its bytes where they are, so a hint that
is wrong costs space, and never an object.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, VersionId
from holdfast.index.port import Row
from holdfast.objects import keys, rows
from holdfast.objects.claims import Claim, PartClaim, UploadClaim
from holdfast.objects.context import Context
from holdfast.objects.heads import Target, target
from holdfast.objects.table import extents_in
from holdfast.packs.errors import PackGone
from holdfast.packs.model import Extent, ManifestEntry

_C = TypeVar("_C", Claim, PartClaim)

SHARES_MAX = 256
"""A pack with more copies than this stays where it is."""

UPLOADS_MAX = 64
"""Open uploads of one key that are looked at; the parts of others stay where they are."""

PARTS_AT_ONCE = 200
"""Parts of one upload that move in one transaction; the others stay for the next round."""

KEYS_AT_ONCE = 128
TABLE_STEP = 4096
"""Extents of a table that are looked at without letting others on."""


class Survey(Struct):
    """Who needs bytes of the packs: versions that own them, versions that share them, open uploads.
    `needed` are the bytes of each pack that somebody needs; packs that are not in it stay as they are."""

    owners: list[Claim]
    sharers: list[Claim]
    uploads: list[UploadClaim]
    needed: dict[PackId, int]
    heads: dict[bytes, int]
    """Revisions of the head rows that were looked at and are there."""
    keys_with_uploads: set[tuple[str, str]]
    complete: bool = True
    """Whether all was looked at that the manifests point to."""

    @classmethod
    def of(cls, packs: Iterable[PackId]) -> "Survey":
        """Of these packs, with nothing found yet."""
        return cls([], [], [], dict.fromkeys(packs, 0), {}, set())

    def extents(self) -> set[Extent]:
        """All that is needed."""
        found = {extent for claim in (*self.owners, *self.sharers) for _, extent in claim.extents}
        return found | {extent for one in self.uploads for part in one.parts for _, extent in part.extents}

    def uploads_of(self, entry: ManifestEntry) -> bool:
        """Whether the part that an entry describes may still come to be: its key has open uploads."""
        return (entry.bucket, entry.key) in self.keys_with_uploads

    def without(self, packs: Iterable[PackId]) -> None:
        """Leave some of the packs as they are."""
        for pack in packs:
            self.needed.pop(pack, None)
        self.owners = [_cut(claim, self.needed) for claim in self.owners if _touches(claim, self.needed)]
        self.sharers = [claim for claim in self.sharers if _touches(claim, self.needed)]
        uploads = []
        for upload in self.uploads:
            parts = tuple(_cut(part, self.needed) for part in upload.parts if _touches(part, self.needed))
            if parts:
                uploads.append(replace(upload, parts=parts))
        self.uploads = uploads

    def of_buckets(self, buckets: frozenset[str]) -> None:
        """Leave what belongs to other buckets where it is. A copy whose owner stays becomes an owner."""
        self.owners = [claim for claim in self.owners if claim.where.bucket in buckets]
        self.sharers = [claim for claim in self.sharers if claim.where.bucket in buckets]
        self.uploads = [upload for upload in self.uploads if upload.where.bucket in buckets]
        self.count()

    def count(self) -> None:
        """Work out `needed` anew."""
        extents = {extent for claim in (*self.owners, *self.sharers) for _, extent in claim.extents}
        extents |= {extent for upload in self.uploads for part in upload.parts for _, extent in part.extents}
        self.needed = dict.fromkeys(self.needed, 0)
        for extent in extents:
            self.needed[extent.pack] += extent.length


def _touches(claim: Claim | PartClaim, packs: Mapping[PackId, int]) -> bool:
    return any(extent.pack in packs for _, extent in claim.extents)


def _cut(claim: _C, packs: Mapping[PackId, int]) -> _C:
    extents = tuple(one for one in claim.extents if one[1].pack in packs)
    return claim if len(extents) == len(claim.extents) else replace(claim, extents=extents)


class Surveyor:
    """Looks into manifests and rows."""

    def __init__(self, context: Context, clock: Clock) -> None:
        self._context = context
        self._index = context.index
        self._clock = clock

    async def survey(self, packs: Sequence[PackId]) -> Survey:
        """Who needs bytes of `packs`. Packs that cannot be read, or that must stay, are left out."""
        survey = Survey.of(())
        entries: list[tuple[PackId, ManifestEntry]] = []
        for pack in packs:
            await self._clock.sleep(0)
            try:
                found = await self._context.packs.manifest(pack)
            except HoldfastError:
                continue
            if await self._add_sharers(pack, survey):
                survey.needed[pack] = 0
                entries += [(pack, entry) for entry in found]
        # A copy that shares bytes of several packs was found with each of them, also with those that stay.
        survey.sharers = [claim for claim in survey.sharers if _touches(claim, survey.needed)]
        await self._look(entries, survey)
        return survey

    async def owners_of(self, pack: PackId, entries: Sequence[ManifestEntry]) -> Survey:
        """Who owns bytes of one pack; who shares them is not looked for."""
        survey = Survey.of((pack,))
        await self._look([(pack, entry) for entry in entries], survey)
        return survey

    async def _look(self, entries: Sequence[tuple[PackId, ManifestEntry]], survey: Survey) -> None:
        names = dict.fromkeys((entry.bucket, entry.key) for _, entry in entries)
        await self._clock.sleep(0)
        targets = [where for one in names if (where := _target(*one)) is not None]
        survey.complete = survey.complete and len(targets) == len(names)
        await self._add_owners(targets, survey)
        await self._clock.sleep(0)
        await self._add_parts(entries, survey)
        await self._clock.sleep(0)
        survey.count()

    async def _add_sharers(self, pack: PackId, survey: Survey) -> bool:
        """Whether all copies that need the pack can move: each has all its bytes in one extent of it."""
        prefix = b"share/" + pack.hex().encode() + b"/"
        shares = await self._index.scan(prefix, keys.after_prefix(prefix), limit=SHARES_MAX + 1)
        if len(shares) > SHARES_MAX:
            return False
        found = []
        for item in shares:
            assert isinstance(item, Row)
            share = rows.decode_share(item.value)
            where = target(share.bucket, share.key)
            (row,) = await self._index.get((where.head_row,))
            if row is None:
                return False
            head = rows.decode_head(row.value)
            record = head.current
            if item.key != keys.share_row(pack, record.version) or record.extents_at is not None:
                return False
            if len(record.extents) != 1 or record.extents[0].pack != pack or not record.shared:
                return False
            found.append(Claim(where, row.revision, head, ((0, record.extents[0]),)))
        survey.sharers += found
        return True

    async def _add_owners(self, targets: Sequence[Target], survey: Survey) -> None:
        for start in range(0, len(targets), KEYS_AT_ONCE):
            await self._clock.sleep(0)
            some = targets[start : start + KEYS_AT_ONCE]
            for where, row in zip(some, await self._index.get([one.head_row for one in some]), strict=True):
                if row is None:
                    continue
                survey.heads[row.key] = row.revision
                head = rows.decode_head(row.value)
                if not head.current.shared and (
                    claim := await self._claim(where, row.revision, head, survey)
                ):
                    survey.owners.append(claim)

    async def _claim(self, where: Target, revision: int, head: rows.HeadRow, survey: Survey) -> Claim | None:
        record, packs = head.current, survey.needed
        at = record.extents_at
        if at is None:
            extents = tuple((n, extent) for n, extent in enumerate(record.extents) if extent.pack in packs)
            return Claim(where, revision, head, extents) if extents else None
        try:
            table = await self.whole(at)
        except PackGone:
            survey.complete = False  # it has changed meanwhile
            return None
        numbered: list[tuple[int, Extent]] = []
        start = 0
        while (found := extents_in(table, packs, start, TABLE_STEP)) is not None:
            numbered += found
            start += TABLE_STEP
            await self._clock.sleep(0)
        if not numbered:
            return Claim(where, revision, head, ((0, at),)) if at.pack in packs else None
        return Claim(where, revision, head, tuple(numbered), table)

    async def _add_parts(self, entries: Sequence[tuple[PackId, ManifestEntry]], survey: Survey) -> None:
        owned = {extent for claim in survey.owners for _, extent in claim.extents}
        asked: dict[tuple[str, str], dict[tuple[int, str], None]] = {}
        for pack, entry in entries:
            if entry.part and Extent(pack, entry.offset, entry.length) not in owned:
                asked.setdefault((entry.bucket, entry.key), {})[entry.part, entry.version] = None
        for names, attempts in asked.items():
            where = _target(*names)
            if where is None:
                continue
            prefix = keys.uploads(where.bucket) + where.encoded + b"\0"
            found = await self._index.scan(prefix, keys.after_prefix(prefix), limit=UPLOADS_MAX)
            if found:
                survey.keys_with_uploads.add(names)
            for item in found:
                assert isinstance(item, Row)
                await self._add_upload(where, item, list(attempts), survey)

    async def _add_upload(
        self, where: Target, row: Row, attempts: Sequence[tuple[int, str]], survey: Survey
    ) -> None:
        upload = keys.parse_upload_row(row.key)
        parts: list[PartClaim] = []
        for start in range(0, len(attempts), KEYS_AT_ONCE):
            some = attempts[start : start + KEYS_AT_ONCE]
            names = [keys.part_row(upload, number, VersionId(attempt)) for number, attempt in some]
            for (number, attempt), found in zip(some, await self._index.get(names), strict=True):
                if found is None:
                    continue
                part = rows.decode_part(found.value)
                extents = tuple(
                    (n, extent) for n, extent in enumerate(part.extents) if extent.pack in survey.needed
                )
                if extents:
                    claim = PartClaim(found.key, found.revision, number, VersionId(attempt), part, extents)
                    parts.append(claim)
        if parts:
            survey.complete = survey.complete and len(parts) <= PARTS_AT_ONCE
            survey.uploads.append(
                UploadClaim(
                    where,
                    upload,
                    row.key,
                    row.revision,
                    rows.decode_upload(row.value),
                    tuple(parts[:PARTS_AT_ONCE]),
                )
            )

    async def whole(self, extent: Extent) -> bytes:
        """All bytes of an extent. Raises as `PackStorage.read`."""
        pieces = self._context.packs.read((extent,), 0, extent.length)
        return b"".join([bytes(piece) async for piece in pieces])


def _target(bucket: str, key: str) -> Target | None:
    try:
        return target(bucket, key) if bucket else None
    except HoldfastError:
        return None  # a manifest is only a hint

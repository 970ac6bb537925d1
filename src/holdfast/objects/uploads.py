"""Multipart uploads: begin, parts, listing of parts, abort. How they complete is in `completing`.

Each part that arrives is an attempt of its own, an immutable row; of several attempts for one number the
one committed last counts. What must hold: a part is visible whole or not at all; none joins an upload
that has ended (every part expects the upload's row as it was read); the bytes of a part whose upload
ended first are recorded as dead if it is certain that no row ever referred to them, and else are left
to the audit of packs.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from msgspec.structs import replace

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.base.errors import Busy, Unavailable
from holdfast.base.ids import PackId, UploadId, VersionId, is_repeatable, new_upload_id, new_version_id
from holdfast.index.port import ABSENT, PRESENT, Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.cleanup import Cleanups
from holdfast.objects.commit import Decided
from holdfast.objects.context import Context
from holdfast.objects.digests import DEFAULT_ALGORITHM, Sums, wanted
from holdfast.objects.errors import InvalidPartNumber, InvalidRequest, NoSuchUpload
from holdfast.objects.heads import Target, dead_puts, not_let_go, target
from holdfast.objects.listing import upload_view
from holdfast.objects.model import (
    LISTING_MAX,
    PARTS_MAX,
    CreateUpload,
    ListedPart,
    PartListing,
    Stored,
    Upload,
    UploadPart,
)
from holdfast.objects.receiving import Label, receive_small
from holdfast.objects.repeats import Overtaken, Try, digest_of
from holdfast.objects.rows import CleanupRow, PartRow, UploadRow
from holdfast.objects.writing import check_length, check_metadata
from holdfast.packs.model import SMALL_BYTES_MAX, Extent, ManifestEntry, Piece, Receipt, pack_row

_CRCS = (ChecksumAlgorithm.CRC32, ChecksumAlgorithm.CRC32C, ChecksumAlgorithm.CRC64NVME)
_PAGE = 128


class OpenUpload(NamedTuple):
    """An upload that is open, as it was read."""

    where: Target
    upload: UploadId
    row: UploadRow
    key: bytes
    revision: int

    @property
    def algorithm(self) -> ChecksumAlgorithm:
        """The checksum that every part is stored with."""
        return self.row.algorithm or DEFAULT_ALGORITHM


class FoundPart(NamedTuple):
    """The attempt of a part that counts."""

    number: int
    attempt: VersionId
    row: PartRow


def ended(upload: OpenUpload) -> tuple[tuple[bytes, bytes], ...]:
    """What the end of an upload puts so that it never comes back."""
    return ((keys.ended_row(upload.upload), b""),) if upload.row.unsure else ()


def no_such_upload(upload: str) -> NoSuchUpload:
    """The error that says so."""
    return NoSuchUpload(
        f"There is no upload {upload[:80]!r} of this key.",
        hint="It may have been completed or aborted.",
        upload=upload[:80],
    )


class Uploads:
    """Multipart uploads that are open."""

    def __init__(self, context: Context, cleanups: Cleanups) -> None:
        self._context = context
        self._heads = context.heads
        self._cleanups = cleanups

    async def create(self, create: CreateUpload) -> Upload:
        """CreateMultipartUpload. Raises InvalidRequest for a checksum type that does not exist."""
        context = self._context
        where = target(create.bucket, create.key)
        check_metadata(create.metadata)
        _check_type(create.algorithm, create.full_object)
        # A second try finds the upload that the first one made.
        named = UploadId(create.request) if is_repeatable(create.request) else None
        upload = named or new_upload_id(context.randomness)
        key = keys.upload_row(create.bucket, where.encoded, upload)
        certain = True
        backoff = context.committer.backoff(context.settings.patience.conflict_s)
        while True:
            state = await self._heads.read_to_write(where)
            row = UploadRow(
                rows.FORMAT,
                context.now_ms(),
                create.algorithm,
                create.full_object,
                create.headers,
                create.metadata,
                create.storage_class,
                state.bucket.scheme,
            )
            expects = (
                Expect(where.bucket_row, state.bucket_revision),
                Expect(key, ABSENT),
                Expect(keys.ended_row(upload), ABSENT),
            )
            decided = await context.committer.decide_one(Transaction(expects, ((key, rows.encode(row)),)))
            certain = certain and decided.certain
            if decided.committed or (await context.index.get((key,)))[0] is not None:
                if not certain:
                    unsure = ((key, rows.encode(replace(row, unsure=True))),)
                    await context.committer.decide_one(Transaction((Expect(key, PRESENT),), unsure))
                return upload_view(create.bucket, create.key, upload, row)
            if not await backoff.wait():
                raise Busy(f"The bucket {create.bucket!r} is changing.", hint="Try again.")

    async def read(self, bucket: str, key: str, upload: UploadId) -> OpenUpload:
        """An open upload. Raises NoSuchBucket, NoSuchUpload."""
        where = target(bucket, key)
        name = keys.upload_row(bucket, where.encoded, upload) if keys.is_upload_id(upload) else None
        bucket_, row = await self._context.index.get((where.bucket_row, name or where.bucket_row))
        self._heads.bucket(bucket, bucket_)
        if name is None or row is None:
            raise no_such_upload(upload)
        return OpenUpload(where, upload, rows.decode_upload(row.value), name, row.revision)

    async def put_part(self, part: UploadPart, tried: Try) -> Stored:
        """UploadPart."""
        context = self._context
        if not 1 <= part.number <= PARTS_MAX:
            raise InvalidPartNumber(
                f"Part {part.number} is not possible.",
                hint=f"Number parts from 1 to {PARTS_MAX}.",
                part=part.number,
            )
        check_length(part.body.length, context.settings.limits.body_bytes_max)
        upload = await self.read(part.bucket, part.key, part.upload)
        announced = part.body.algorithm
        if announced is not None and upload.row.algorithm not in (None, announced):
            raise InvalidRequest(
                f"The upload was begun with {upload.algorithm.value} checksums, "
                f"the part has {announced.value}.",
                hint="Use the same for all parts.",
            )
        attempt = _Attempt(context, upload, tried, part.number, part.body.length)
        if part.body.length <= SMALL_BYTES_MAX:
            return await self._put_small(part, upload, attempt)
        return await self._put_large(part, upload, attempt)

    async def _put_small(self, part: UploadPart, upload: OpenUpload, attempt: "_Attempt") -> Stored:
        data, sums = await receive_small(part.body, wanted(upload.algorithm, part.body.algorithm))

        def describe(extent: Extent) -> ManifestEntry:
            return attempt.label.entry(extent, 0, rows.encode(attempt.row(sums, (extent,), None)))

        def propose(extent: Extent) -> Transaction:
            return attempt.transaction(upload.revision, attempt.row(sums, (extent,), None))

        appended = await self._context.packs.append(upload.row.scheme, Piece(data, describe, propose))
        decided = await self._context.committer.settle(appended.transaction, appended.outcome)
        if not decided.committed:
            row = attempt.row(sums, (appended.extent,), appended.receipt)
            await self._persist(upload, attempt, row, decided)
        return attempt.stored(sums, appended.receipt)

    async def _put_large(self, part: UploadPart, upload: OpenUpload, attempt: "_Attempt") -> Stored:
        received = await self._context.receiver.receive(
            part.body,
            upload.row.scheme,
            wanted(upload.algorithm, part.body.algorithm),
            attempt.label,
            lambda extents, sums: rows.encode(attempt.row(sums, extents, None)),
        )
        row = attempt.row(received.sums, received.extents, received.receipt)
        change = attempt.transaction(upload.revision, row, alive=True)
        decided = (await self._context.committer.decide((*received.transactions(), change)))[-1]
        if not decided.committed:
            await self._persist(upload, attempt, row, decided)
        return attempt.stored(received.sums, received.receipt)

    async def _persist(self, upload: OpenUpload, attempt: "_Attempt", row: PartRow, decided: Decided) -> None:
        """A part that is durable, after its transaction met a conflict."""
        context = self._context
        backoff = context.committer.backoff(context.settings.patience.conflict_s)
        certain, conflict = decided.certain, decided.conflict
        while True:
            found, mine = await context.index.get((upload.key, attempt.key))
            if mine is not None:
                return
            if found is None:
                if certain:
                    await self._give_back(row, attempt.attempt)
                raise no_such_upload(upload.upload)
            if conflict.startswith(keys.REQUESTS):
                if certain:
                    await self._give_back(row, attempt.attempt)
                raise Overtaken
            if conflict.startswith((b"pack/", b"dead/")):
                raise Unavailable(
                    "The part was given up before it was committed.", hint="Send the part again."
                )
            decided = await context.committer.decide_one(attempt.transaction(found.revision, row, alive=True))
            if decided.committed:
                return
            certain, conflict = certain and decided.certain, decided.conflict
            if not await backoff.wait():
                raise Busy("The upload is changing again and again.", hint="Send the part again.")

    async def _give_back(self, row: PartRow, attempt: VersionId) -> None:
        sizes = _sizes(row)
        expects = tuple(Expect(pack_row(pack), PRESENT) for pack in sizes)
        await self._context.committer.decide_one(
            Transaction((*expects, *not_let_go(sizes, attempt)), dead_puts(sizes, attempt, attempt))
        )

    async def abort(self, bucket: str, key: str, upload: UploadId, tried: Try) -> None:
        """AbortMultipartUpload. Raises NoSuchUpload."""
        context = self._context
        digest = digest_of(bucket, key, upload)
        if digest in tried.earned:
            return
        cause = context.randomness.token(16).hex()
        backoff = context.committer.backoff(context.settings.patience.conflict_s)
        certain = True
        while True:
            try:
                open_ = await self.read(bucket, key, upload)
            except NoSuchUpload:
                if certain or not await self._aborted_by(upload, cause):
                    raise
                break
            cleanup = rows.encode(CleanupRow(rows.FORMAT, cause, upload, bucket=bucket, key=key))
            decided = await context.committer.decide_one(
                Transaction(
                    (*tried.expects(), Expect(open_.key, open_.revision)),
                    ((keys.cleanup_row(upload), cleanup), *ended(open_), *tried.ended(digest)),
                    (open_.key,),
                )
            )
            if decided.committed:
                break
            if decided.conflict.startswith(keys.REQUESTS):
                raise Overtaken
            certain = certain and decided.certain
            if not await backoff.wait():
                raise Busy("The upload is changing again and again.", hint="Try again.")
        await self._cleanups.begin(upload)

    async def _aborted_by(self, upload: UploadId, cause: str) -> bool:
        (row,) = await self._context.index.get((keys.cleanup_row(upload),))
        if row is None:
            raise Unavailable(
                "Whether this request aborted the upload cannot be found out any more: it has ended.",
                hint="Look whether the object is there.",
                unknown=True,
            )
        return rows.decode_cleanup(row.value).cause == cause

    async def found_parts(self, upload: UploadId, after: int = 0) -> AsyncGenerator[FoundPart, None]:
        """The parts of an upload behind number `after`, in order: of each the attempt that counts."""
        prefix = keys.parts(upload)
        start, end = prefix + b"%05d0" % after, keys.after_prefix(prefix)
        best: Row | None = None
        best_number = 0
        while start < end:
            page = await self._context.index.scan(start, end, limit=_PAGE)
            for item in page:
                assert isinstance(item, Row)
                number, _ = keys.parse_part_row(item.key)
                if best is not None and number != best_number:
                    yield _found(best)
                    best = None
                if best is None or _rank(item) > _rank(best):
                    best, best_number = item, number
            if len(page) < _PAGE:
                break
            start = page[-1].key + b"\0"
            await self._context.clock.sleep(0)
        if best is not None:
            yield _found(best)

    async def list_parts(
        self, bucket: str, key: str, upload: UploadId, after: int, limit: int
    ) -> PartListing:
        """ListParts: those behind number `after`, at most `limit`."""
        open_ = await self.read(bucket, key, upload)
        view = upload_view(bucket, key, upload, open_.row)
        limit = min(limit, LISTING_MAX)
        found: list[ListedPart] = []
        if limit <= 0 or after >= PARTS_MAX:
            return PartListing(view, (), False, 0)
        async with aclosing(self.found_parts(upload, max(after, 0))) as parts:
            async for part in parts:
                if len(found) == limit:
                    return PartListing(view, tuple(found), True, found[-1].number)
                row = part.row
                found.append(ListedPart(part.number, row.size, row.md5.hex(), row.modified_ms, row.checksum))
        return PartListing(view, tuple(found), False, 0)


class _Attempt:
    """One attempt of a part, on its way."""

    def __init__(self, context: Context, upload: OpenUpload, tried: Try, number: int, size: int) -> None:
        self.attempt = new_version_id(context.randomness)
        self.key = keys.part_row(upload.upload, number, self.attempt)
        where = upload.where
        self.label = Label(where.bucket, where.key, self.attempt, number)
        self._upload = upload
        self._tried = tried
        self._size = size
        self._modified_ms = context.now_ms()

    def row(self, sums: Sums, extents: tuple[Extent, ...], receipt: Receipt | None) -> PartRow:
        """The part's row."""
        upload = self._upload
        checksum = sums.checksum(upload.algorithm)
        return PartRow(
            rows.FORMAT,
            upload.upload,
            self._size,
            sums.md5,
            checksum,
            self._modified_ms,
            extents,
            receipt,
        )

    def transaction(self, revision: int, row: PartRow, *, alive: bool = False) -> Transaction:
        """Puts the row, if the upload is still as it was at `revision`."""
        expects = [*self._tried.expects(), Expect(self._upload.key, revision), Expect(self.key, ABSENT)]
        expects += not_let_go(_sizes(row), self.attempt)
        if alive:
            expects.extend(Expect(pack_row(pack), PRESENT) for pack in _sizes(row))
        return Transaction(tuple(expects), ((self.key, rows.encode(row)),))

    def stored(self, sums: Sums, receipt: Receipt) -> Stored:
        """What the client is told."""
        checksum = sums.checksum(self._upload.algorithm)
        return Stored(sums.md5.hex(), checksum, self._size, self._modified_ms, None, receipt)


def _sizes(row: PartRow) -> dict[PackId, int]:
    sizes: dict[PackId, int] = {}
    for extent in row.extents:
        sizes[extent.pack] = sizes.get(extent.pack, 0) + extent.length
    return sizes


def _rank(row: Row) -> int:
    """Which of several attempts came last: a part that was moved has its place from before."""
    return rows.decode_part(row.value).arrived or row.revision


def _found(row: Row) -> FoundPart:
    number, attempt = keys.parse_part_row(row.key)
    return FoundPart(number, attempt, rows.decode_part(row.value))


def _check_type(algorithm: ChecksumAlgorithm | None, full_object: bool) -> None:
    if algorithm in (None, ChecksumAlgorithm.CRC64NVME):
        if not full_object:
            raise InvalidRequest(
                "CRC64NVME checksums are of the full object.", hint="Ask for checksum type FULL_OBJECT."
            )
    elif full_object and algorithm not in _CRCS:
        assert algorithm is not None
        raise InvalidRequest(
            f"{algorithm.value} checksums of multipart uploads are composite.",
            hint="Ask for checksum type COMPOSITE.",
        )

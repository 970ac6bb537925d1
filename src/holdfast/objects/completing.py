"""CompleteMultipartUpload.

The parts are chosen and checked from their rows; no byte of them moves. Then one transaction ends the
upload and makes the version, expecting the upload's row as it was read: that stands for all its parts,
because who moves the bytes of a part changes the upload's row as well. The part rows are cleaned up
afterwards; the chosen attempts are named in what is left over, so that a later attempt of the same part
is told from them.

What must hold: the version has exactly the bytes of the attempts that were checked; asked again, a
completed upload gives the same answer.
"""

from collections.abc import Sequence
from contextlib import aclosing

from msgspec import Struct

from holdfast.base.checksums import ChecksumAlgorithm, combine_crcs, new_hasher, new_md5
from holdfast.base.errors import Busy
from holdfast.base.ids import VersionId, new_version_id
from holdfast.index.port import PRESENT, Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.cleanup import Cleanups
from holdfast.objects.conditions import check_write
from holdfast.objects.context import Context
from holdfast.objects.errors import (
    BadDigest,
    EntityTooLarge,
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    InvalidRequest,
    NoSuchUpload,
)
from holdfast.objects.heads import Claim, State, mark, put_transaction, remembered, target
from holdfast.objects.model import (
    PARTS_MAX,
    Checksum,
    CompletePart,
    CompleteUpload,
    PartInfo,
    Stored,
    VersionRecord,
)
from holdfast.objects.receiving import Label, weakest
from holdfast.objects.repeats import Try
from holdfast.objects.rows import CleanupRow, Encoded, encode_record
from holdfast.objects.table import EXTENTS_MAX, TableBuilder
from holdfast.objects.uploads import FoundPart, OpenUpload, Uploads, ended, no_such_upload
from holdfast.objects.writing import AnsweredBefore, answer, conflict_error
from holdfast.packs.model import Extent, ManifestEntry, Receipt, Written, pack_row

_ROWS_MAX_TRIES = 5


def _memory(upload: str) -> str:
    """What the head row remembers a completed upload as; no request id has a space."""
    return f"upload {upload}"


class _UploadChanged(Busy):
    """The upload's row is not as it was when its parts were read."""


class _Chosen(Struct, frozen=True):
    """The parts that make the object, checked."""

    size: int
    etag: str
    checksum: Checksum
    count: int
    attempts: bytes
    extents: tuple[Extent, ...]
    parts: tuple[PartInfo, ...]
    table: TableBuilder | None
    receipt: Receipt | None


class Completing:
    """Completes multipart uploads."""

    def __init__(self, context: Context, uploads: Uploads, cleanups: Cleanups) -> None:
        self._context = context
        self._uploads = uploads
        self._cleanups = cleanups

    async def complete(self, complete: CompleteUpload, tried: Try) -> Stored:
        """CompleteMultipartUpload."""
        _check_order(complete.parts)
        try:
            for _ in range(_ROWS_MAX_TRIES):
                try:
                    return await self._once(complete, tried)
                except _UploadChanged:
                    continue
        except AnsweredBefore as error:
            return answer(error.result)
        raise Busy("The parts of the upload are being moved again and again.", hint="Try again.")

    async def _once(self, complete: CompleteUpload, tried: Try) -> Stored:
        context = self._context
        where = target(complete.bucket, complete.key)
        state = await context.heads.read(where)
        self._check(complete, state)
        try:
            open_ = await self._uploads.read(complete.bucket, complete.key, complete.upload)
        except NoSuchUpload:
            # It may have been completed between the two reads.
            self._check(complete, await context.heads.read(where))
            raise
        chosen = await self._choose(complete, open_)
        version = new_version_id(context.randomness)
        modified_ms = context.now_ms()
        written = await self._write_table(complete, open_, chosen, version)
        at = None if written is None else written.extent

        def record(order: int) -> Encoded:
            return encode_record(
                VersionRecord(
                    version,
                    order,
                    chosen.size,
                    chosen.etag,
                    modified_ms,
                    open_.row.headers,
                    open_.row.metadata,
                    chosen.checksum,
                    chosen.extents if at is None else (),
                    at,
                    chosen.parts if at is None else (),
                    open_.row.storage_class,
                    open_.row.scheme,
                    False,
                    chosen.count,
                )
            )

        cleanup = CleanupRow(
            rows.FORMAT,
            version,
            complete.upload,
            chosen.attempts,
            bucket=complete.bucket,
            key=complete.key,
        )
        left_over = (keys.cleanup_row(complete.upload), rows.encode(cleanup))

        def propose(state: State, others: Sequence[Row | None]) -> Transaction:
            self._check(complete, state)
            (upload,) = others
            if upload is None:
                raise no_such_upload(complete.upload)
            if upload.revision != open_.revision:
                raise _UploadChanged("The parts of the upload are being moved.", hint="Try again.")
            expects = [*tried.expects(), Expect(open_.key, open_.revision)]
            if at is not None:
                expects.append(Expect(pack_row(at.pack), PRESENT))
            return put_transaction(
                state,
                record(state.next_order),
                _memory(complete.upload),
                expects=tuple(expects),
                puts=(left_over, *ended(open_)),
                deletes=(open_.key,),
            )

        claim = Claim(version, mark(record(0).record), {} if at is None else {at.pack: at.length}, True)
        await context.heads.persist(
            where,
            claim,
            propose,
            conflict_error(complete.conditions, complete.key),
            (open_.key,),
            () if written is None else written.transactions,
        )
        await self._cleanups.begin(complete.upload)
        return Stored(chosen.etag, chosen.checksum, chosen.size, modified_ms, None, chosen.receipt)

    @staticmethod
    def _check(complete: CompleteUpload, state: State) -> None:
        if (before := remembered(state.head, _memory(complete.upload))) is not None:
            raise AnsweredBefore(before)
        check_write(complete.conditions, state.current, complete.key)

    async def _choose(self, complete: CompleteUpload, upload: OpenUpload) -> _Chosen:
        limits = self._context.settings.limits
        choice = _Choice(upload, limits.inline_bytes_max)
        wanted = iter(complete.parts)
        want = next(wanted, None)
        small: EntityTooSmall | None = None
        async with aclosing(self._uploads.found_parts(upload.upload)) as found:
            async for part in found:
                if want is None or part.number < want.number:
                    continue
                if part.number > want.number:
                    break
                _check_part(want, part)
                following = next(wanted, None)
                if following is not None and part.row.size < limits.part_bytes_min and small is None:
                    small = _too_small(part, limits.part_bytes_min)
                choice.add(part)
                want = following
        if want is not None:
            raise InvalidPart(f"Part {want.number} was never uploaded.", part=want.number, etag=want.etag)
        if small is not None:
            raise small  # only now: a part that is missing or another is the graver mistake
        chosen = choice.finish()
        if chosen.size > limits.object_bytes_max:
            raise EntityTooLarge(
                f"The parts have {chosen.size} bytes together;",
                hint=f"an object takes at most {limits.object_bytes_max}.",
                size=chosen.size,
            )
        if complete.size is not None and complete.size != chosen.size:
            raise InvalidRequest(
                f"The parts have {chosen.size} bytes together, not the {complete.size} announced.",
                hint="Check x-amz-mp-object-size and the list of parts.",
            )
        _check_checksum(complete.checksum, chosen)
        return chosen

    async def _write_table(
        self, complete: CompleteUpload, upload: OpenUpload, chosen: _Chosen, version: VersionId
    ) -> Written | None:
        if chosen.table is None:
            return None
        label = Label(complete.bucket, complete.key, version)

        def describe(extent: Extent) -> Sequence[ManifestEntry]:
            return (label.entry(extent),)

        return await self._context.packs.write(upload.row.scheme, chosen.table.finish(), describe)


def _too_small(part: FoundPart, bytes_min: int) -> EntityTooSmall:
    return EntityTooSmall(
        f"Part {part.number} has {part.row.size} bytes;",
        hint=f"all but the last need {bytes_min}.",
        part=part.number,
        size=part.row.size,
        size_min=bytes_min,
        etag=part.row.md5.hex(),
    )


class _Choice:
    """Collects the chosen parts: in rows while they are few, and always in a table."""

    def __init__(self, upload: OpenUpload, inline_bytes_max: int) -> None:
        self._upload = upload
        self._inline_bytes_max = inline_bytes_max
        self._inline_bytes = 0
        self._table = TableBuilder(upload.algorithm)
        self._extents: list[Extent] = []
        self._parts: list[PartInfo] = []
        self._md5 = new_md5()
        self._composite = new_hasher(upload.algorithm)
        self._full: bytes | None = None
        self._size = 0
        self._count = 0
        self._attempts: list[bytes] = []
        self._receipts: list[Receipt | None] = []
        self._first: Extent | None = None

    def add(self, part: FoundPart) -> None:
        """The next part."""
        row = part.row
        info = PartInfo(part.number, row.size, row.checksum)
        extents = [extent for extent in row.extents if extent.length]
        self._first = self._first or row.extents[0]
        self._table.add_extents(extents)
        self._table.add_part(info)
        self._inline_bytes += _inline_bytes(len(extents), info)
        if self._inline_bytes <= self._inline_bytes_max:
            self._extents.extend(extents)
            self._parts.append(info)
        self._md5.update(row.md5)
        self._add_checksum(row.checksum.value, row.size)
        self._size += row.size
        self._count += 1
        self._attempts.append(bytes.fromhex(part.attempt))
        self._receipts.append(row.receipt)

    def _add_checksum(self, value: bytes, size: int) -> None:
        if not self._upload.row.full_object:
            self._composite.update(value)
        elif self._full is None:
            self._full = value
        else:
            self._full = combine_crcs(self._upload.algorithm, self._full, value, size)

    def finish(self) -> _Chosen:
        """All of them."""
        assert self._first is not None
        if self._table.extents > EXTENTS_MAX:
            raise InvalidRequest("The object is in more pieces than can be kept.", hint="Use larger parts.")
        inline = self._inline_bytes <= self._inline_bytes_max
        algorithm: ChecksumAlgorithm = self._upload.algorithm
        if self._upload.row.full_object:
            assert self._full is not None
            checksum = Checksum(algorithm, self._full)
        else:
            checksum = Checksum(algorithm, self._composite.digest(), self._count)
        receipts = [receipt for receipt in self._receipts if receipt is not None]
        return _Chosen(
            self._size,
            f"{self._md5.digest().hex()}-{self._count}",
            checksum,
            self._count,
            b"".join(self._attempts),
            # An object of no bytes still has an extent, which names the pack that its end is marked under.
            tuple(self._extents) or (self._first,),
            tuple(self._parts),
            None if inline else self._table,
            weakest(receipts) if len(receipts) == self._count else None,
        )


def _inline_bytes(extents: int, part: PartInfo) -> int:
    """About what a part takes in a head row: 18 bytes of pack id and up to 11 of numbers for each
    extent; numbers, name and value of the checksum for the part."""
    value = len(part.checksum.value) if part.checksum is not None else 0
    return extents * 29 + 30 + value


def _check_order(wanted: tuple[CompletePart, ...]) -> None:
    if not wanted:
        raise InvalidRequest("No parts are named.", hint="Name at least one.")
    before = 0
    for part in wanted:
        if not 1 <= part.number <= PARTS_MAX:
            raise InvalidPart(f"Part {part.number} is not possible.", part=part.number, etag=part.etag)
        if part.number <= before:
            raise InvalidPartOrder("The parts are not in ascending order.", hint="Sort them by number.")
        before = part.number


def _check_part(want: CompletePart, part: FoundPart) -> None:
    row = part.row
    if want.etag != row.md5.hex():
        raise InvalidPart(
            f"Part {want.number} has another ETag.",
            hint="It may have been uploaded again.",
            part=want.number,
            etag=want.etag,
        )
    if want.checksum is None:
        return
    if want.checksum.algorithm is not row.checksum.algorithm:
        raise InvalidRequest(
            f"Part {want.number} was stored with a {row.checksum.algorithm.value} checksum, "
            f"not {want.checksum.algorithm.value}.",
            hint="Use the upload's checksum algorithm.",
        )
    if want.checksum.value != row.checksum.value:
        raise InvalidPart(
            f"Part {want.number} has another {row.checksum.algorithm.value} checksum.",
            part=want.number,
            etag=want.etag,
        )


def _check_checksum(given: Checksum | None, chosen: _Chosen) -> None:
    if given is None:
        return
    actual = chosen.checksum
    if given.algorithm is not actual.algorithm:
        raise InvalidRequest(
            f"The upload has {actual.algorithm.value} checksums, not {given.algorithm.value}.",
            hint="Send the algorithm that the upload was begun with.",
        )
    if given.value != actual.value or given.parts not in (0, actual.parts):
        name = given.algorithm.value
        raise BadDigest(f"The object does not have the {name} that was sent.", digest=name)

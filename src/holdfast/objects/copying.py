"""CopyObject, and the bytes of UploadPartCopy.

Where source and target are protected alike, a copy moves nothing: it names the same extents, and
`share` rows say that their packs are needed by it, too. It expects the source's head row as it was read, so
that the bytes cannot have been let go in between. Else, or when another checksum is wanted, the bytes are
read and written again.

What must hold: a pack that a copy needs has a `share` row for as long as the copy exists; a copy onto itself
takes over what its predecessor had, and nothing is let go.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.errors import Busy
from holdfast.base.ids import PackId, RequestId, new_version_id
from holdfast.index.port import ABSENT, PRESENT, Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.conditions import check_source, check_write
from holdfast.objects.context import Context
from holdfast.objects.errors import InvalidRange, InvalidRequest, NoSuchKey, NoSuchVersion
from holdfast.objects.heads import (
    Claim,
    State,
    Target,
    mark,
    packs_of,
    put_transaction,
    remembered,
    target,
)
from holdfast.objects.model import (
    BODY_BYTES_MAX,
    CopyObject,
    CopyPart,
    ExpectedDigests,
    PutObject,
    Stored,
    UploadPart,
    VersionRecord,
)
from holdfast.objects.ranges import Span
from holdfast.objects.reading import NULL_VERSION, Reading
from holdfast.objects.repeats import Try, digest_of
from holdfast.objects.rows import Encoded, ShareRow, encode_record
from holdfast.objects.table import WINDOW, Table
from holdfast.objects.uploads import Uploads
from holdfast.objects.writing import AnsweredBefore, Writing, answer, check_metadata, conflict_error
from holdfast.packs.errors import PackGone
from holdfast.packs.model import pack_row

SHARED_PACKS_MAX = 2048
"""A copy that would need more packs than this is written anew: its rows have to fit one transaction."""

_TRIES = 5


class _SourceChanged(Busy):
    """The source is not as it was read."""


class _CopiedBody:
    """The bytes of a source as the body of a write. They were verified, so nothing is expected of them."""

    def __init__(
        self,
        length: int,
        algorithm: ChecksumAlgorithm | None,
        stream: AsyncGenerator[Buffer, None],
    ) -> None:
        self._length = length
        self._algorithm = algorithm
        self._stream = stream

    async def aclose(self) -> None:
        """Stop reading ahead."""
        await self._stream.aclose()

    @property
    def length(self) -> int:
        return self._length

    @property
    def algorithm(self) -> ChecksumAlgorithm | None:
        return self._algorithm

    def expected(self) -> ExpectedDigests:
        return ExpectedDigests()

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self._stream


class Copying:
    """Copies objects."""

    def __init__(self, context: Context, reading: Reading, writing: Writing, uploads: Uploads) -> None:
        self._context = context
        self._heads = context.heads
        self._reading = reading
        self._writing = writing
        self._uploads = uploads

    async def copy(self, copy: CopyObject, tried: Try) -> Stored:
        """CopyObject."""
        if tried.earned and (earned := tried.earned.get(digest_of(copy.bucket, copy.key))) is not None:
            return answer(earned)
        if copy.replace:
            check_metadata(copy.metadata)
        source = target(copy.source_bucket, copy.source_key)
        where = target(copy.bucket, copy.key)
        try:
            for _ in range(_TRIES):
                try:
                    return await self._once(copy, tried, source, where)
                except (_SourceChanged, PackGone):
                    continue
        except AnsweredBefore as error:
            return answer(error.result)
        raise Busy("The source is changing again and again.", hint="Try again.")

    async def _once(self, copy: CopyObject, tried: Try, source: Target, where: Target) -> Stored:
        origin = await self._heads.read(source)
        state = await self._heads.read_to_write(where)
        if (before := remembered(state.head, copy.request)) is not None:
            return answer(before)  # whatever has become of the source since
        record = self._source(copy, origin)
        check_write(copy.conditions, state.current, copy.key)
        _check_onto_itself(copy, record, onto_itself=source.head_row == where.head_row)
        packs = await self._shareable(copy, origin, record, state)
        if packs is None:
            return await self._rewrite(copy, tried, source, record)
        return await self._share(copy, tried, origin, record, where, packs)

    def _source(self, copy: CopyObject | CopyPart, origin: State) -> VersionRecord:
        key = origin.target.key
        if copy.source_version is not None and copy.source_version != NULL_VERSION:
            raise NoSuchVersion(f"There is no such version of {key!r}.", key=key)
        record = origin.current
        if record is None:
            raise NoSuchKey(f"There is no object {key!r}.", key=key)
        check_source(copy.source_conditions, record)
        return record

    async def _shareable(
        self, copy: CopyObject, origin: State, record: VersionRecord, state: State
    ) -> dict[PackId, int] | None:
        """The packs that a copy would share, or None when it has to be written anew."""
        if record.size == 0 or not record.scheme == origin.bucket.scheme == state.bucket.scheme:
            return None
        checksum = record.checksum
        if copy.algorithm is not None and (
            checksum is None or checksum.parts or checksum.algorithm is not copy.algorithm
        ):
            return None
        packs = packs_of(record)
        if record.extents_at is not None:
            table = Table(self._context.packs, record.extents_at)
            count = await table.count()
            if count > SHARED_PACKS_MAX:
                return None
            for start in range(0, count, WINDOW):
                for extent in await table.extents(start, WINDOW):
                    packs[extent.pack] = packs.get(extent.pack, 0) + extent.length
        return packs if len(packs) <= SHARED_PACKS_MAX else None

    async def _share(
        self,
        copy: CopyObject,
        tried: Try,
        origin: State,
        record: VersionRecord,
        where: Target,
        packs: dict[PackId, int],
    ) -> Stored:
        context = self._context
        version = new_version_id(context.randomness)
        modified_ms = context.now_ms()
        onto_itself = origin.target.head_row == where.head_row
        shared = record.shared or not onto_itself

        def encoded(order: int) -> Encoded:
            return encode_record(
                VersionRecord(
                    version,
                    order,
                    record.size,
                    record.etag,
                    modified_ms,
                    copy.headers if copy.replace else record.headers,
                    copy.metadata if copy.replace else record.metadata,
                    record.checksum,
                    record.extents,
                    record.extents_at,
                    record.parts,
                    copy.storage_class,
                    record.scheme,
                    shared,
                    record.part_count,
                )
            )

        share = rows.encode(ShareRow(rows.FORMAT, copy.bucket, copy.key))
        shares = tuple((keys.share_row(pack, version), share) for pack in packs) if shared else ()
        given_up = (
            tuple(keys.share_row(pack, record.version) for pack in packs)
            if onto_itself and record.shared
            else ()
        )
        alive = tuple(Expect(pack_row(pack), PRESENT) for pack in packs)
        source_row = Expect(origin.target.head_row, origin.head_revision)
        # Whoever changes the scheme of the source's bucket has to see this copy, or this copy the change.
        source_bucket = Expect(origin.target.bucket_row, origin.bucket_revision)
        elsewhere = () if origin.target.bucket == where.bucket else (source_bucket,)
        sources = (source_row, *elsewhere)

        def propose(state: State, others: Sequence[Row | None]) -> Transaction:
            if (before := remembered(state.head, copy.request)) is not None:
                raise AnsweredBefore(before)
            check_write(copy.conditions, state.current, copy.key)
            found = [source.revision if source else ABSENT for source in others]
            if found != [expected.revision for expected in sources]:
                raise _SourceChanged("The source has changed.", hint="Try again.")
            return put_transaction(
                state,
                encoded(state.next_order),
                copy.request,
                expects=(*tried.expects(), *(() if onto_itself else sources), *alive),
                puts=shares,
                deletes=given_up,
                keep_bytes=onto_itself,
            )

        claim = Claim(version, mark(encoded(0).record), {}, True)
        busy = conflict_error(copy.conditions, copy.key)
        await self._heads.persist(where, claim, propose, busy, tuple(source.key for source in sources))
        return Stored(record.etag, record.checksum, record.size, modified_ms, None, None)

    async def _rewrite(self, copy: CopyObject, tried: Try, source: Target, record: VersionRecord) -> Stored:
        checksum = record.checksum
        algorithm = copy.algorithm or (checksum.algorithm if checksum is not None else None)
        async with aclosing(self._body(source, record, Span(0, record.size), algorithm)) as body:
            return await self._writing.put(
                PutObject(
                    bucket=copy.bucket,
                    key=copy.key,
                    body=body,
                    headers=copy.headers if copy.replace else record.headers,
                    metadata=copy.metadata if copy.replace else record.metadata,
                    conditions=copy.conditions,
                    storage_class=copy.storage_class,
                    request=copy.request,
                ),
                tried,
            )

    def _body(
        self, source: Target, record: VersionRecord, span: Span, algorithm: ChecksumAlgorithm | None
    ) -> _CopiedBody:
        stream = self._reading.stream(source, record, span.first, span.length)
        return _CopiedBody(span.length, algorithm, stream)

    async def copy_part(self, copy: CopyPart) -> Stored:
        """UploadPartCopy: always written anew, under the upload's scheme and checksum."""
        source = target(copy.source_bucket, copy.source_key)
        record = self._source(copy, await self._heads.read(source))
        span = Span(0, record.size)
        if copy.range_ is not None:
            first, last = copy.range_
            if not 0 <= first <= last < record.size:
                raise InvalidRange(
                    f"Bytes {first} to {last} are not all in the source.",
                    hint=f"It has {record.size} bytes.",
                    size=record.size,
                )
            span = Span(first, last - first + 1)
        async with aclosing(self._body(source, record, span, None)) as body:
            return await self._uploads.put_part(
                UploadPart(
                    bucket=copy.bucket, key=copy.key, upload=copy.upload, number=copy.number, body=body
                ),
                Try(RequestId("")),
            )


def _check_onto_itself(copy: CopyObject, record: VersionRecord, *, onto_itself: bool) -> None:
    if record.size > BODY_BYTES_MAX:
        raise InvalidRequest(
            f"The source has {record.size} bytes; one copy takes at most {BODY_BYTES_MAX}.",
            hint="Copy it by parts.",
        )
    if not onto_itself or copy.replace or copy.storage_class != record.storage_class:
        return
    if copy.algorithm is None or (record.checksum and copy.algorithm is record.checksum.algorithm):
        raise InvalidRequest(
            "The object would be copied onto itself without any change.",
            hint="Replace its metadata, or change its storage class or checksum.",
        )

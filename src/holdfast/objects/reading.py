"""GetObject and HeadObject.

One index call says what there is; small answers are read whole, larger ones stream. What must hold:
all bytes of an answer are of one version; bytes that move while they are read are looked up again, and
the stream goes on where it was, or ends with an error, never with other bytes.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Unavailable
from holdfast.base.ids import VersionId
from holdfast.objects.conditions import check_read
from holdfast.objects.context import Context
from holdfast.objects.errors import InvalidPartNumber, InvalidRequest, NoSuchKey, NoSuchVersion
from holdfast.objects.heads import Target, target
from holdfast.objects.model import PARTS_MAX, ObjectView, ReadObject, VersionRecord
from holdfast.objects.ranges import Span, cut_extents, resolve_range, within_one
from holdfast.objects.rows import decode_head
from holdfast.objects.table import Table
from holdfast.packs.errors import PackGone
from holdfast.packs.model import Extent

WHOLE_BYTES_MAX = 1 << 20
NULL_VERSION = VersionId("null")
"""What the version of an object is called that was written without versioning."""

_MOVES_MAX = 5


class Reading:
    """Reads objects."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def current(self, where: Target, version: VersionId | None) -> VersionRecord:
        """The version asked for. Raises NoSuchBucket, NoSuchKey, NoSuchVersion."""
        state = await self._context.heads.read(where)
        record = state.current
        if version is not None and version != NULL_VERSION:
            raise NoSuchVersion(
                f"There is no version {version[:80]!r} of {where.key!r}.", key=where.key, version=version[:80]
            )
        if record is None:
            raise NoSuchKey(f"There is no object {where.key!r}.", key=where.key)
        return record

    async def head(self, read: ReadObject) -> ObjectView:
        """HeadObject."""
        where = target(read.bucket, read.key)
        for _ in range(_MOVES_MAX):
            record = await self.current(where, read.version)
            check_read(read.conditions, record)
            try:
                span, partial = await self._span(read, record)
            except PackGone:
                continue
            return ObjectView(record, span.first, span.length, partial, part_count=record.part_count)
        raise _moving(where)

    async def get(self, read: ReadObject) -> ObjectView:
        """GetObject."""
        where = target(read.bucket, read.key)
        for _ in range(_MOVES_MAX):
            record = await self.current(where, read.version)
            check_read(read.conditions, record)
            try:
                return await self._view(where, read, record)
            except PackGone:
                continue
        raise _moving(where)

    async def _view(self, where: Target, read: ReadObject, record: VersionRecord) -> ObjectView:
        span, partial = await self._span(read, record)
        first, length = span
        if length == 0:
            return ObjectView(record, first, 0, partial, whole=b"", part_count=record.part_count)
        if length <= WHOLE_BYTES_MAX and (extent := within_one(record.extents, first, length)) is not None:
            whole = await self._context.packs.read_small(extent)
            return ObjectView(record, first, length, partial, whole=whole, part_count=record.part_count)

        def body() -> AsyncIterator[Buffer]:
            return self.stream(where, record, first, length)

        return ObjectView(record, first, length, partial, body=body, part_count=record.part_count)

    async def _span(self, read: ReadObject, record: VersionRecord) -> tuple[Span, bool]:
        if read.part is not None:
            if read.range_ is not None:
                raise InvalidRequest(
                    "A range and a part number were both asked for.", hint="Ask for one of them."
                )
            return await self._part(read.part, record), True
        if read.range_ is not None and (span := resolve_range(read.range_, record.size)) is not None:
            return span, True
        return Span(0, record.size), False

    async def _part(self, number: int, record: VersionRecord) -> Span:
        if not 1 <= number <= PARTS_MAX:
            raise InvalidPartNumber(
                f"Part {number} is not possible.", hint=f"Parts are numbered 1 to {PARTS_MAX}.", part=number
            )
        if record.part_count == 0 and number == 1:
            return Span(0, record.size)
        if record.part_count and record.extents_at is not None:
            located = await Table(self._context.packs, record.extents_at).part(number)
            if located is not None:
                return Span(located.first, located.info.size)
        first = 0
        for part in record.parts:
            if part.number == number:
                return Span(first, part.size)
            first += part.size
        raise InvalidPartNumber(
            f"The object has no part {number}.", part=number, part_count=record.part_count or 1
        )

    async def stream(
        self, where: Target, record: VersionRecord, first: int, length: int
    ) -> AsyncGenerator[Buffer, None]:
        """`length` bytes of a version from byte `first`, in pieces. Raises Damaged, Unavailable."""
        done = moves = 0
        while done < length:
            try:
                async with aclosing(self._once(record, first + done, length - done)) as pieces:
                    async for piece in pieces:
                        yield piece
                        done += len(piece)
                        moves = 0
                assert done == length, "packs give exactly what was asked for"
            except PackGone:
                moves += 1
                if moves > _MOVES_MAX:
                    raise _moving(where) from None
                record = await self._again(where, record)

    async def _again(self, where: Target, record: VersionRecord) -> VersionRecord:
        """The same version, where its bytes are now."""
        (row,) = await self._context.index.get((where.head_row,))
        head = None if row is None else decode_head(row.value)
        if head is None or head.current.version != record.version:
            raise Unavailable(
                f"The object {where.key!r} was replaced or deleted while it was being read.",
                hint="Read it again.",
                key=where.key,
            )
        return head.current

    async def _once(self, record: VersionRecord, first: int, length: int) -> AsyncGenerator[Buffer, None]:
        if record.extents_at is None:
            extents, inside = cut_extents(record.extents, first, length)
            async with aclosing(self._read(extents, inside, length)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        table = Table(self._context.packs, record.extents_at)
        async with aclosing(table.from_byte(first)) as windows:
            async for window, start in windows:
                share = min(sum(extent.length for extent in window) - start, length)
                extents, inside = cut_extents(window, start, share)
                async with aclosing(self._read(extents, inside, share)) as pieces:
                    async for piece in pieces:
                        yield piece
                length -= share
                if not length:
                    return

    def _read(self, extents: Sequence[Extent], offset: int, length: int) -> AsyncGenerator[Buffer, None]:
        # Reading ahead is to stop when the client goes: packs answer with a generator, which is closed.
        return cast("AsyncGenerator[Buffer, None]", self._context.packs.read(extents, offset, length))


def _moving(where: Target) -> Unavailable:
    return Unavailable(
        f"The bytes of {where.key!r} are being moved again and again.", hint="Try again.", key=where.key
    )

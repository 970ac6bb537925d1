"""PutObject.

The key is looked at before the body is read, so that a request which cannot succeed costs nothing. A
small body joins the pack that is filling and brings its transaction along; a large one gets packs of
its own, committed together with the object. When the transaction meets a conflict, the bytes are
durable already: only the decision is repeated, on the state that is there now.

What must hold: a version becomes visible whole, with digests that were checked, under conditions that
held at the moment it became visible; or not at all, and then its bytes are recorded as dead.
"""

from collections.abc import Sequence

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Busy
from holdfast.base.ids import VersionId, new_version_id
from holdfast.index.port import Expect, Row, Transaction
from holdfast.objects.conditions import check_write, is_conditional
from holdfast.objects.context import Context
from holdfast.objects.digests import DEFAULT_ALGORITHM, Sums
from holdfast.objects.errors import ConditionalConflict, EntityTooLarge, InvalidRequest, MetadataTooLarge
from holdfast.objects.heads import (
    Claim,
    State,
    Target,
    alive,
    mark,
    not_let_go,
    packs_of,
    put_transaction,
    remembered,
    target,
)
from holdfast.objects.model import (
    USER_METADATA_BYTES_MAX,
    Conditions,
    ContentHeaders,
    PutObject,
    Stored,
    VersionRecord,
)
from holdfast.objects.receiving import Label, receive_small
from holdfast.objects.repeats import Try, digest_of
from holdfast.objects.rows import Encoded, Remembered, encode_record
from holdfast.packs.model import SMALL_BYTES_MAX, Extent, ManifestEntry, Piece, Receipt
from holdfast.scheme import Scheme


def check_metadata(metadata: tuple[tuple[str, str], ...]) -> None:
    """Raises MetadataTooLarge: names and values together, in UTF-8 (AWS, "User-defined metadata")."""
    if not metadata:
        return
    size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata)
    if size > USER_METADATA_BYTES_MAX:
        raise MetadataTooLarge(
            f"The user metadata has {size} bytes;",
            hint=f"at most {USER_METADATA_BYTES_MAX} are possible.",
            size=size,
        )


def check_length(length: int, limit: int) -> None:
    """Raises EntityTooLarge, or InvalidRequest for a length below zero."""
    if length < 0:
        raise InvalidRequest("The body's length is negative.", hint="Send its length in bytes.")
    if length > limit:
        raise EntityTooLarge(
            f"The body has {length} bytes;", hint=f"one request takes at most {limit}.", size=length
        )


def answer(result: Remembered) -> Stored:
    """What a request that is repeated is told."""
    return Stored(result.etag, result.checksum, result.size, result.modified_ms, None, None)


def conflict_error(conditions: Conditions, key: str) -> Busy:
    """What a writer is told whose patience ended among other writers."""
    if is_conditional(conditions):
        return ConditionalConflict(
            f"Other writes of {key!r} came between.", hint="Read the object, then try again.", key=key
        )
    return Busy(f"Too many writes of {key!r} at once.", hint="Try again.", key=key)


class AnsweredBefore(Busy):
    """The same request got there first by another way; `result` is what it earned."""

    def __init__(self, result: Remembered) -> None:
        super().__init__("The request was answered before.")
        self.result = result


RECENT_S = 1.0
"""A large body may take longer than this: then what was read before it is likely to be out of date, and is
read again. What is younger is left to the commit, which decides anyway."""


class _Version(Struct, frozen=True):
    """A version to be, without what depends on where it lies and on what it replaces."""

    version: VersionId
    size: int
    modified_ms: int
    headers: ContentHeaders
    metadata: tuple[tuple[str, str], ...]
    storage_class: str
    scheme: Scheme

    def record(self, order: int, sums: Sums, extents: tuple[Extent, ...]) -> Encoded:
        """The record, encoded."""
        algorithm = next(iter(sums.checksums))
        return encode_record(
            VersionRecord(
                self.version,
                order,
                self.size,
                sums.md5.hex(),
                self.modified_ms,
                self.headers,
                self.metadata,
                sums.checksum(algorithm),
                extents,
                None,
                (),
                self.storage_class,
                self.scheme,
            )
        )

    def stored(self, sums: Sums, receipt: Receipt) -> Stored:
        """What the client is told."""
        checksum = sums.checksum(next(iter(sums.checksums)))
        return Stored(sums.md5.hex(), checksum, self.size, self.modified_ms, None, receipt)


def _takes(record: VersionRecord, tried: Try) -> tuple[Expect, ...]:
    """What who puts a version that lies in packs of the index expects, of them and of other tries."""
    return (*tried.expects(), *alive(record), *not_let_go(packs_of(record), record.version))


class _SmallPut:
    """Describes and proposes a small object once packs know where it lies."""

    __slots__ = ("_encoded", "_extent", "_put", "_state", "_sums", "_tried", "_version")

    def __init__(self, state: State, version: _Version, sums: Sums, put: PutObject, tried: Try) -> None:
        self._state = state
        self._version = version
        self._sums = sums
        self._put = put
        self._tried = tried
        self._extent: Extent | None = None
        self._encoded: Encoded | None = None

    def _encode(self, extent: Extent) -> Encoded:
        if self._encoded is None or extent != self._extent:
            self._extent = extent
            self._encoded = self._version.record(self._state.next_order, self._sums, (extent,))
        return self._encoded

    def describe(self, extent: Extent) -> ManifestEntry:
        """The manifest's entry."""
        target_ = self._state.target
        return ManifestEntry(
            target_.bucket,
            target_.key,
            self._version.version,
            extent.offset,
            extent.length,
            0,
            0,
            self._encode(extent).raw,
            conditional=is_conditional(self._put.conditions),
        )

    def propose(self, extent: Extent) -> Transaction:
        """The transaction that makes it visible."""
        encoded, request = self._encode(extent), self._put.request
        return put_transaction(self._state, encoded, request, expects=self._tried.expects())


class Writing:
    """Writes whole objects."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._heads = context.heads

    async def put(self, put: PutObject, tried: Try) -> Stored:
        """PutObject."""
        context = self._context
        where = target(put.bucket, put.key)
        if tried.earned and (earned := tried.earned.get(digest_of(put.bucket, put.key))) is not None:
            return answer(earned)
        check_length(put.body.length, context.settings.limits.body_bytes_max)
        check_metadata(put.metadata)
        state = await self._heads.read_to_write(where)
        if (before := remembered(state.head, put.request)) is not None:
            return answer(before)
        check_write(put.conditions, state.current, put.key)
        version = _Version(
            new_version_id(context.randomness),
            put.body.length,
            context.now_ms(),
            put.headers,
            put.metadata,
            put.storage_class,
            state.bucket.scheme,
        )
        try:
            if put.body.length <= SMALL_BYTES_MAX:
                return await self._put_small(put, tried, state, version)
            return await self._put_large(put, tried, state, version)
        except AnsweredBefore as error:
            return answer(error.result)

    async def _put_small(self, put: PutObject, tried: Try, state: State, version: _Version) -> Stored:
        algorithm = put.body.algorithm or DEFAULT_ALGORITHM
        data, sums = await receive_small(put.body, (algorithm,))
        turns, where = self._heads.turns, state.target
        if not turns.hot(where.head_row):
            return await self._append(put, tried, state, version, data, sums, in_turn=False)
        # Others take turns at this key: joining them before the bytes are written saves a conflict.
        async with turns.take(where.head_row):
            state = await self._heads.read_to_write(where)
            if (before := remembered(state.head, put.request)) is not None:
                return answer(before)
            check_write(put.conditions, state.current, put.key)
            return await self._append(put, tried, state, version, data, sums, in_turn=True)

    async def _append(
        self,
        put: PutObject,
        tried: Try,
        state: State,
        version: _Version,
        data: Buffer,
        sums: Sums,
        *,
        in_turn: bool,
    ) -> Stored:
        small = _SmallPut(state, version, sums, put, tried)
        piece = Piece(data, small.describe, small.propose)
        appended = await self._context.packs.append(version.scheme, piece)
        decided = await self._context.committer.settle(appended.transaction, appended.outcome)
        if not decided.committed:
            extents, certain = (appended.extent,), decided.certain
            await self._persist(
                put, tried, state.target, version, sums, extents, certain=certain, in_turn=in_turn
            )
        return version.stored(sums, appended.receipt)

    async def _put_large(self, put: PutObject, tried: Try, state: State, version: _Version) -> Stored:
        algorithm = put.body.algorithm or DEFAULT_ALGORITHM
        label = Label(put.bucket, put.key, version.version, conditional=is_conditional(put.conditions))
        order, began = state.next_order, self._context.clock.monotonic()
        received = await self._context.receiver.receive(
            put.body,
            version.scheme,
            (algorithm,),
            label,
            lambda extents, sums: version.record(order, sums, extents).raw,
        )
        sums, extents = received.sums, received.extents
        if self._context.clock.monotonic() - began > RECENT_S:
            state = await self._heads.read_to_write(state.target)
            if (before := remembered(state.head, put.request)) is not None:
                return answer(before)
            check_write(put.conditions, state.current, put.key)
        encoded = version.record(state.next_order, sums, extents)
        change = put_transaction(state, encoded, put.request, expects=_takes(encoded.record, tried))
        decided = (await self._context.committer.decide((*received.transactions(), change)))[-1]
        if not decided.committed:
            where, certain = state.target, decided.certain
            await self._persist(put, tried, where, version, sums, extents, certain=certain, in_turn=False)
        return version.stored(sums, received.receipt)

    async def _persist(
        self,
        put: PutObject,
        tried: Try,
        where: Target,
        version: _Version,
        sums: Sums,
        extents: tuple[Extent, ...],
        *,
        certain: bool,
        in_turn: bool,
    ) -> None:
        """Bytes that are durable, after their transaction met a conflict."""
        record = version.record(0, sums, extents).record
        claim = Claim(version.version, mark(record), packs_of(record), certain)

        def propose(state: State, _: Sequence[Row | None]) -> Transaction:
            if (before := remembered(state.head, put.request)) is not None:
                raise AnsweredBefore(before)
            check_write(put.conditions, state.current, put.key)
            encoded = version.record(state.next_order, sums, extents)
            return put_transaction(state, encoded, put.request, expects=_takes(encoded.record, tried))

        busy = conflict_error(put.conditions, put.key)
        persist = self._heads.persist_in_turn if in_turn else self._heads.persist
        await persist(where, claim, propose, busy)

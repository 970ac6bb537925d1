"""A whole `Objects` over memory, and the books of its bytes.

`Desk` is a service with everything under it. `audit` holds the index against itself, from outside: every
byte of every pack that has a row is needed by exactly one owner or recorded as dead, never both; every
shared version has its share rows, and there are no others.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import msgspec

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, RequestId
from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory.index import MemoryIndex
from holdfast.index.port import Outcome, Row, Transaction, prefix_end
from holdfast.objects import rows
from holdfast.objects.model import (
    NO_CONDITIONS,
    Checksum,
    Conditions,
    DeleteKey,
    DeleteResult,
    ExpectedDigests,
    ObjectView,
    PutObject,
    ReadObject,
    Stored,
    VersionRecord,
)
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsPatience, ObjectsSettings
from holdfast.objects.table import Table
from holdfast.packs.model import Extent, PackRow
from tests.kit.memory_packs import MemoryPacks

BUCKET = "bucket-a"
STORES = 6


class BytesBody:
    """A body from memory, in buffers of `step` bytes. `sent` can be less or more than `length`."""

    def __init__(
        self,
        data: bytes,
        *,
        length: int | None = None,
        step: int = 1 << 16,
        md5: bytes | None = None,
        checksum: Checksum | None = None,
        algorithm: ChecksumAlgorithm | None = None,
        fail_after: int | None = None,
    ) -> None:
        self._data = data
        self._length = len(data) if length is None else length
        self._step = step
        self._expected = ExpectedDigests(md5, checksum, algorithm)
        self._algorithm = algorithm or (checksum.algorithm if checksum else None)
        self._fail_after = fail_after

    @property
    def length(self) -> int:
        return self._length

    @property
    def algorithm(self) -> ChecksumAlgorithm | None:
        return self._algorithm

    def expected(self) -> ExpectedDigests:
        return self._expected

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for start in range(0, len(self._data), self._step):
            if self._fail_after is not None and start >= self._fail_after:
                raise ConnectionError("the client is gone")
            yield self._data[start : start + self._step]


class Desk:
    """A service over memory, with short ways to use it."""

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 1,
        limits: ObjectsLimits | None = None,
        patience: ObjectsPatience | None = None,
        scheme: str = "rs-4-2",
        index: MemoryIndex | None = None,
        packs: MemoryPacks | None = None,
    ) -> None:
        randomness = SeededRandomness(seed)
        self.clock = clock
        self.index = index or MemoryIndex(clock)
        self.packs = packs or MemoryPacks(self.index, randomness)
        settings = ObjectsSettings(
            default_scheme=scheme,
            stores=lambda: STORES,
            limits=limits or ObjectsLimits(hashing_threads=0),
            patience=patience or ObjectsPatience(),
        )
        self.objects = Objects(self.index, self.packs, clock, randomness, settings)

    async def bucket(self, name: str = BUCKET, scheme: str | None = None) -> "Desk":
        await self.objects.create_bucket(name, scheme)
        return self

    async def put(
        self,
        key: str,
        data: bytes,
        conditions: Conditions = NO_CONDITIONS,
        *,
        bucket: str = BUCKET,
        request: str = "",
    ) -> Stored:
        put = PutObject(
            bucket=bucket, key=key, body=BytesBody(data), conditions=conditions, request=RequestId(request)
        )
        return await self.objects.put_object(put)

    async def view(self, key: str, *, bucket: str = BUCKET) -> ObjectView:
        return await self.objects.read_object(ReadObject(bucket=bucket, key=key))

    async def get(self, key: str, *, bucket: str = BUCKET) -> bytes:
        return await content(await self.view(key, bucket=bucket))

    async def delete(
        self, *keys: str, bucket: str = BUCKET, if_match: tuple[str, ...] | None = None
    ) -> Sequence[DeleteResult]:
        wanted = [DeleteKey(key=key, if_match=if_match) for key in keys]
        return await self.objects.delete_objects(bucket, wanted, RequestId(""))

    async def rows(self, prefix: bytes) -> list[Row]:
        """All rows that begin with `prefix`."""
        found: list[Row] = []
        start, end = prefix, prefix_end(prefix)
        while page := await self.index.scan(start, end, limit=1000):
            found.extend(item for item in page if isinstance(item, Row))
            start = page[-1].key + b"\0"
        return found

    async def audit(self) -> None:
        """Raises AssertionError when the books do not balance."""
        live: dict[PackId, list[tuple[int, int]]] = {}
        shared: set[bytes] = set()
        for row in await self.rows(b"head/"):
            record = rows.decode_head(row.value).current
            extents = await self.extents_of(record)
            if record.shared:
                version = record.version.encode()
                shared |= {b"share/" + extent.pack.hex().encode() + b"/" + version for extent in extents}
            else:
                _add(live, extents)
        for row in await self.rows(b"part/"):
            _add(live, rows.decode_part(row.value).extents)
        assert not await self.rows(b"cleanup/"), "finish the cleanups before the audit"
        assert {row.key for row in await self.rows(b"share/")} == shared
        dead: dict[PackId, int] = {}
        for row in await self.rows(b"dead/"):
            pack = PackId(bytes.fromhex(row.key.split(b"/")[1].decode()))
            dead[pack] = dead.get(pack, 0) + rows.decode_dead(row.value).size
        for row in await self.rows(b"pack/"):
            pack = PackId(bytes.fromhex(row.key.split(b"/")[1].decode()))
            size = msgspec.msgpack.decode(row.value, type=PackRow).object_bytes
            spans = sorted(span for span in live.pop(pack, []) if span[1])
            for (start, length), (next_start, _) in pairwise(spans):
                assert start + length <= next_start, "two owners of the same bytes"
            assert sum(length for _, length in spans) + dead.get(pack, 0) == size, (
                f"pack {pack.hex()}: {spans} live, {dead.get(pack, 0)} dead, {size} in all"
            )
        assert not any(length for spans in live.values() for _, length in spans), (
            "bytes of a pack that is gone"
        )

    async def extents_of(self, record: VersionRecord) -> list[Extent]:
        """All that a version names, its table included."""
        found = list(record.extents)
        if record.extents_at is not None:
            table = Table(self.packs, record.extents_at)
            found.append(record.extents_at)
            for start in range(0, await table.count(), 1000):
                found.extend(await table.extents(start, 1000))
        return found


def puts(transaction: Transaction, prefix: bytes) -> bool:
    """Whether a transaction puts a row that begins so."""
    return any(key.startswith(prefix) for key, _ in transaction.puts)


@asynccontextmanager
async def before_commit(
    desk: Desk,
    which: Callable[[Transaction], bool],
    meanwhile: Callable[[list[Transaction]], Awaitable[object] | None],
) -> AsyncGenerator[None, None]:
    """Something happens right before the first commit that holds such a transaction is decided."""
    real = desk.index.commit

    async def commit(transactions: Sequence[Transaction]) -> list[Outcome]:
        found = [one for one in transactions if which(one)]
        if found:
            desk.index.commit = real  # type: ignore[method-assign]
            work = meanwhile(found)
            if work is not None:
                await work
        return await real(transactions)

    desk.index.commit = commit  # type: ignore[method-assign]
    try:
        yield
    finally:
        assert desk.index.commit is not commit, "there was no such commit"
        desk.index.commit = real  # type: ignore[method-assign]


def _add(live: dict[PackId, list[tuple[int, int]]], extents: Iterable[Extent]) -> None:
    for extent in extents:
        live.setdefault(extent.pack, []).append((extent.offset, extent.length))


async def content(view: ObjectView) -> bytes:
    """All bytes of an answer."""
    if view.whole is not None:
        return bytes(view.whole)
    assert view.body is not None
    return b"".join([bytes(piece) async for piece in view.body()])

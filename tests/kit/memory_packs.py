"""Packs in memory, for tests of what stands on packs: real transactions, no stores.

It keeps the contract of `PackStorage` to the letter: small pieces that arrive together share a pack and
one commit (the pack's row first, then each piece's transaction, expecting that row to be present); packs
of their own stay out of the index until their writer commits them; a pack without a row is gone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, new_pack_id
from holdfast.base.randomness import Randomness
from holdfast.index.port import (
    ABSENT,
    PRESENT,
    Expect,
    Index,
    Outcome,
    Transaction,
    Unknown,
)
from holdfast.packs.errors import PackGone
from holdfast.packs.manifest import encode_manifest
from holdfast.packs.model import (
    PACK_BYTES_MAX,
    SMALL_BYTES_MAX,
    Appended,
    Extent,
    ManifestEntry,
    PackRow,
    Piece,
    Receipt,
    Written,
    buried_row,
    pack_row,
)
from holdfast.scheme import Scheme

READ_BYTES_MAX = 1 << 20
_ATTEMPTS = 10


class MemoryPacks:
    """`PackStorage` over a dictionary. `write_gate`, when set, is awaited by each write before it ends;
    `reads` counts calls of `read_small`; `broken` fails the next writes."""

    def __init__(self, index: Index, randomness: Randomness) -> None:
        self._index = index
        self._randomness = randomness
        self._filling: list[tuple[Scheme, Piece, asyncio.Future[Appended]]] = []
        self._flushing: set[asyncio.Task[None]] = set()
        self.data: dict[PackId, bytes] = {}
        self.manifests: dict[PackId, tuple[ManifestEntry, ...]] = {}
        self.write_gate: Callable[[], asyncio.Future[None]] | None = None
        self.before_read: Callable[[Extent], None] | None = None
        self.broken = 0
        self.reads = 0
        self.writing = 0
        self.writing_most = 0

    async def append(self, scheme: Scheme, piece: Piece) -> Appended:
        assert len(piece.data) <= SMALL_BYTES_MAX
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._filling.append((scheme, piece, future))
        if len(self._filling) == 1:
            task = asyncio.get_running_loop().create_task(self._flush())
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)
        return await future

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        batch, self._filling = self._filling, []
        try:
            appended = await self._store(batch[0][0], [piece for _, piece, _ in batch])
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), one in zip(batch, appended, strict=True):
            if not future.done():
                future.set_result(one)

    async def _store(self, scheme: Scheme, pieces: list[Piece]) -> list[Appended]:
        pack = new_pack_id(self._randomness)
        extents: list[Extent] = []
        offset = 0
        for piece in pieces:
            extents.append(Extent(pack, offset, len(piece.data)))
            offset += len(piece.data)
        self.manifests[pack] = tuple(
            piece.describe(Extent(PackId(b""), extent.offset, extent.length))
            for piece, extent in zip(pieces, extents, strict=True)
        )
        self.data[pack] = b"".join(piece.data for piece in pieces)
        transactions = [self._row(scheme, pack)]
        alive = Expect(pack_row(pack), PRESENT)
        for piece, extent in zip(pieces, extents, strict=True):
            proposed = piece.propose(extent)
            transactions.append(Transaction((*proposed.expects, alive), proposed.puts, proposed.deletes))
        outcomes = await self._index.commit(transactions)
        await self._ascertain(transactions[0], outcomes[0])
        return [
            Appended(extent, outcome, transaction, self._receipt(scheme))
            for extent, outcome, transaction in zip(extents, outcomes[1:], transactions[1:], strict=True)
        ]

    async def _ascertain(self, row: Transaction, outcome: Outcome) -> None:
        for _ in range(_ATTEMPTS):
            if not isinstance(outcome, Unknown):
                return
            await asyncio.sleep(0.01)
            (outcome,) = await self._index.commit([row])
        raise Unavailable("The outcome is unknown.")

    def _row(self, scheme: Scheme, pack: PackId, object_bytes: int | None = None) -> Transaction:
        size = len(self.data[pack])
        manifest = len(encode_manifest(self.manifests[pack]))
        row = PackRow(scheme, size, manifest, size if object_bytes is None else object_bytes, ())
        return Transaction(
            (Expect(pack_row(pack), ABSENT), Expect(buried_row(pack), ABSENT)),
            ((pack_row(pack), msgspec.msgpack.encode(row)),),
        )

    @staticmethod
    def _receipt(scheme: Scheme) -> Receipt:
        return Receipt(scheme, scheme.n, scheme.n, {"store": scheme.m}, False)

    async def write(
        self,
        scheme: Scheme,
        data: Sequence[Buffer],
        describe: Callable[[Extent], Sequence[ManifestEntry]],
        object_bytes: int | None = None,
        *,
        reserve_share: float = 0.0,
        bytes_max: int | None = None,
    ) -> Written:
        size = sum(len(buffer) for buffer in data)
        assert size <= PACK_BYTES_MAX
        pack = new_pack_id(self._randomness)
        extent = Extent(pack, 0, size)
        self.manifests[pack] = tuple(describe(Extent(PackId(b""), 0, size)))
        self.writing += 1
        self.writing_most = max(self.writing_most, self.writing)
        try:
            await asyncio.sleep(0)
            if self.write_gate is not None:
                await self.write_gate()
            if self.broken:
                self.broken -= 1
                raise Unavailable("Too few stores.")
            self.data[pack] = b"".join(data)
        finally:
            self.writing -= 1
        return Written(extent, self._receipt(scheme), (self._row(scheme, pack, object_bytes),))

    async def read(self, extents: Sequence[Extent], offset: int, length: int) -> AsyncIterator[Buffer]:
        for extent in extents:
            if offset >= extent.length:
                offset -= extent.length
                continue
            share = min(extent.length - offset, length)
            for start in range(0, share, READ_BYTES_MAX):
                size = min(READ_BYTES_MAX, share - start)
                yield await self._bytes(Extent(extent.pack, extent.offset + offset + start, size))
            length -= share
            offset = 0
            if not length:
                return
        assert not length, "more was asked for than the extents hold"

    async def read_small(self, extent: Extent) -> Buffer:
        assert extent.length <= READ_BYTES_MAX
        self.reads += 1
        return await self._bytes(extent)

    async def manifest(self, pack: PackId) -> tuple[ManifestEntry, ...]:
        (row,) = await self._index.get([pack_row(pack)])
        if row is None:
            raise PackGone("The pack is gone.")
        return self.manifests[pack]

    async def _bytes(self, extent: Extent) -> bytes:
        if self.before_read is not None:
            self.before_read(extent)
        (row,) = await self._index.get([pack_row(extent.pack)])
        if row is None:
            raise PackGone("The pack is gone.")
        data = self.data[extent.pack]
        assert extent.offset + extent.length <= len(data)
        return data[extent.offset : extent.offset + extent.length]

"""Packs, as objects see them: small pieces batched, large ones alone, reads verified.

The order of every write: shards durable, then the pack's row, then what refers to it, each its own
transaction in one commit. Every transaction that refers to a pack expects its row to be there, and
a row expects that its id was never buried; so an orphan can be declared dead by anyone without a
clock, and exactly one of writer and collector wins.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.base.randomness import Randomness
from holdfast.cluster.fences import NO_FENCES, Fences
from holdfast.cluster.rows import FENCES
from holdfast.health import StoreHealth
from holdfast.index.port import (
    ABSENT,
    PRESENT,
    Committed,
    Conflict,
    Expect,
    Index,
    Outcome,
    Transaction,
    Unknown,
)
from holdfast.packs.batching import Batcher, aligned
from holdfast.packs.manifest import decode_manifest, encode_manifest
from holdfast.packs.model import (
    PACK_BYTES_MAX,
    Appended,
    Extent,
    ManifestEntry,
    Piece,
    Written,
    buried_row,
    debt_row,
    pack_row,
    trash_row,
)
from holdfast.packs.promising import Promises
from holdfast.packs.reading import DamageReport, Reader
from holdfast.packs.rows import PackRows, encode_row
from holdfast.packs.settling import Settler, with_arrived
from holdfast.packs.writing import Landed, Room, Writer, alike
from holdfast.scheme import Scheme
from holdfast.stores.port import Store
from holdfast.topology import Topology

UNKNOWN_PATIENCE_S = 10.0
UNKNOWN_PAUSE_S = 0.05

_encoder = msgspec.msgpack.Encoder()


class Packs:
    """Implements `PackStorage`. `shared` says that other nodes use the same index."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        topology: Callable[[], Topology],
        index: Index,
        health: StoreHealth,
        clock: Clock,
        randomness: Randomness,
        on_damage: DamageReport,
        *,
        room: Room = alike,
        fences: Fences = NO_FENCES,
        shared: bool = False,
        promises: Promises | None = None,
    ) -> None:
        self._index = index
        self._clock = clock
        self._fences = fences
        self._batchers: dict[Scheme, Batcher] = {}
        self.rows = PackRows(index, clock=clock if shared else None)
        self.settler = Settler(stores, index, self.rows, clock)
        self.reader = Reader(stores, self.rows, health, clock, on_damage)
        self.writer = Writer(
            stores,
            topology,
            health,
            clock,
            randomness,
            self.settler.abandoned,
            room=room,
            fences=fences,
            promises=promises,
        )

    async def append(self, scheme: Scheme, piece: Piece) -> Appended:
        """See `PackStorage.append`."""
        batcher = self._batchers.get(scheme)
        if batcher is None:
            batcher = self._batchers[scheme] = Batcher(
                lambda pieces: self._write_batch(scheme, pieces), self._clock
            )
        return await batcher.append(piece)

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
        """See `PackStorage.write`."""
        length = sum(map(len, data))
        assert length <= PACK_BYTES_MAX
        # The manifest names offsets, not the pack: its id is chosen with every try.
        entries = describe(Extent(PackId(b""), 0, length))
        size = length if object_bytes is None else object_bytes
        landed = await self.writer.write(
            scheme,
            data,
            self._manifest(entries),
            size,
            reserve_share=reserve_share,
            bytes_max=bytes_max,
        )
        self.settler.landed(landed, known=False)
        return Written(
            Extent(landed.pack, 0, length),
            landed.receipt,
            (row_transaction(landed),),
            lambda: self.settler.abandoned(landed.abandoned),
            lambda: self._as_it_is(landed),
        )

    def _as_it_is(self, landed: Landed) -> tuple[Transaction, ...]:
        self.writer.check_there(landed)
        return (row_transaction(with_arrived(landed)),)

    async def adopt(
        self,
        pack: PackId,
        scheme: Scheme,
        payload: Sequence[Buffer],
        entries: Sequence[ManifestEntry],
        object_bytes: int,
    ) -> Transaction:
        """Write a pack of another site, under its own id, over the stores that there are. Answers what
        makes it known, to be committed together with what refers to it. Until then nobody may declare its
        id dead. A list is emptied, as by `write`. Raises Unavailable.

        Its manifest never brings an object into being, however the index is lost: whatever is in it was in an
        index before.
        """
        manifest = self._manifest([replace(entry, moved=True) for entry in entries])
        landed = await self.writer.write(scheme, payload, manifest, object_bytes, known_as=pack)
        self.settler.landed(landed, known=False)
        return row_transaction(landed)

    def read(self, extents: Sequence[Extent], offset: int, length: int) -> AsyncIterator[Buffer]:
        """See `PackStorage.read`."""
        return self.reader.read(extents, offset, length)

    async def read_small(self, extent: Extent) -> Buffer:
        """See `PackStorage.read_small`."""
        return await self.reader.read_small(extent)

    async def manifest(self, pack: PackId) -> tuple[ManifestEntry, ...]:
        """See `PackStorage.manifest`."""
        row = (await self.rows.get(pack)).row
        extent = Extent(pack, row.payload_bytes, row.manifest_bytes)
        data = b"".join([bytes(piece) async for piece in self.reader.read((extent,), 0, extent.length)])
        return decode_manifest(data, f"pack {pack.hex()}")

    async def close(self) -> None:
        """Stop what runs behind; what is not settled is left to the collector."""
        await self.settler.close()

    async def _write_batch(
        self, scheme: Scheme, pieces: Sequence[Piece], again: bool = True
    ) -> Sequence[Appended | Exception]:
        payload: list[Buffer] = []
        offsets: list[int] = []
        entries: list[ManifestEntry] = []
        end = 0
        for piece in pieces:
            start = aligned(end, len(piece.data))
            if start > end:
                payload.append(bytes(start - end))
            payload.append(piece.data)
            offsets.append(start)
            entries.append(piece.describe(Extent(PackId(b""), start, len(piece.data))))
            end = start + len(piece.data)
        object_bytes = sum(len(piece.data) for piece in pieces)
        landed = await self.writer.write(scheme, payload, self._manifest(entries), object_bytes)
        extents = [
            Extent(landed.pack, start, len(piece.data)) for start, piece in zip(offsets, pieces, strict=True)
        ]
        alive = Expect(pack_row(landed.pack), PRESENT)
        proposed: list[Transaction | Exception] = []
        for piece, extent in zip(pieces, extents, strict=True):
            try:
                transaction = piece.propose(extent)
                proposed.append(transaction._replace(expects=(*transaction.expects, alive)))
            except Exception as error:
                proposed.append(error)
        row = row_transaction(landed)
        referring = [entry for entry in proposed if isinstance(entry, Transaction)]
        try:
            outcomes = await self._index.commit([row, *referring])
        except (Unavailable, InvalidInput):
            self.settler.abandoned(landed.abandoned)  # nothing was committed, and nobody will try again
            raise
        if again and isinstance(outcomes[0], Conflict) and outcomes[0].key.startswith(FENCES):
            # This node was taken for gone. Nothing was committed: the same pieces may go into another pack.
            self.settler.abandoned(landed.abandoned)
            await self._fences.renew()
            return await self._write_batch(scheme, pieces, again=False)
        try:
            await self._ascertain(landed, row, outcomes[0])
        except HoldfastError:
            self.settler.landed(landed, known=False)  # the row may be there, or still come
            raise
        self.settler.landed(landed, known=True)
        result = iter(outcomes[1:])
        return [
            Appended(extent, next(result), entry, landed.receipt) if isinstance(entry, Transaction) else entry
            for extent, entry in zip(extents, proposed, strict=True)
        ]

    def _manifest(self, entries: Sequence[ManifestEntry]) -> bytes:
        """With how far the index is now: whoever makes a lost index again can tell by it whether a pack
        without a row is younger than the journal, or was left behind before."""
        status = self._index.status()
        return encode_manifest(entries, status.incarnation, status.revision)

    async def _ascertain(self, landed: Landed, row: Transaction, outcome: Outcome) -> None:
        """Make sure that the pack's row is in the index; see `ascertain_row`."""
        revision = await ascertain_row(self._index, self._clock, landed.pack, row, outcome)
        self.rows.learn(landed.pack, landed.row, revision)


async def ascertain_row(index: Index, clock: Clock, pack: PackId, row: Transaction, outcome: Outcome) -> int:
    """Resolve the outcome of a pack row's transaction; answers the row's revision.

    The same transaction again cannot coexist with the first: both expect the row to be absent. A
    conflict then says that the first one won, for nobody else knows this id, unless it was buried.
    """
    deadline = clock.monotonic() + UNKNOWN_PATIENCE_S
    while isinstance(outcome, Unknown):
        if clock.monotonic() > deadline:
            raise Unavailable(
                "The index did not say whether the write was committed: its outcome is unknown.",
                hint="Look at what is stored before you repeat it.",
                reason=outcome.reason,
                unknown=True,
            )
        await clock.sleep(UNKNOWN_PAUSE_S)
        try:
            (outcome,) = await index.commit([row])
        except Unavailable:
            continue  # says nothing about the first attempt
    if isinstance(outcome, Committed):
        return outcome.revision
    assert isinstance(outcome, Conflict)
    (found,) = await index.get([pack_row(pack)])
    if found is None:
        raise Busy(f"Pack {pack.hex()} was given up while it was being written.", hint="Try again.")
    return found.revision


def row_transaction(landed: Landed) -> Transaction:
    """The transaction that makes a pack known: its row, its debt if it has any, and which shards were put
    for nothing."""
    puts = [(pack_row(landed.pack), encode_row(landed.row))]
    if landed.debt is not None:
        puts.append((debt_row(landed.pack), _encoder.encode(landed.debt)))
    puts += [
        (trash_row(attempt.store, shard_name(landed.pack, attempt.shard, attempt.attempt)), b"")
        for attempt in landed.unused
    ]
    new = (Expect(pack_row(landed.pack), ABSENT), Expect(buried_row(landed.pack), ABSENT))
    return Transaction((*new, *landed.ticket.expects), tuple(puts))

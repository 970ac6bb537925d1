"""Rewriting a pack in place: shards that are missing or wrong, or the whole pack in a better scheme.

The pack's id and payload offsets never change, so no object is touched: only the pack's row moves on, to
shards under new attempt names, and the names it leaves are declared dead in the same transaction.
Readers that still follow the old row find a shard gone and look again. The new shards are read back
from their media before the row moves; one that does not agree ends the rewrite with nothing changed.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum

import msgspec
from msgspec.structs import replace

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.base.randomness import Randomness
from holdfast.index.port import Committed, Expect, Index, Transaction
from holdfast.packs import codec
from holdfast.packs.disposal import further_burial
from holdfast.packs.errors import PackGone
from holdfast.packs.layout import BLOCK_BYTES
from holdfast.packs.model import (
    DebtReason,
    DebtRow,
    PackRow,
    Place,
    buried_row,
    debt_row,
    pack_row,
    trash_row,
)
from holdfast.packs.quorum import Attempt
from holdfast.packs.reading import Reader
from holdfast.packs.rows import KnownPack, PackRows, encode_row
from holdfast.packs.writing import Encoded, Writer, choose_scheme, encode
from holdfast.scheme import Scheme
from holdfast.stores.port import Store
from holdfast.topology import Topology, place

THROW_AWAY_TRIES = 5
THROW_AWAY_PAUSE_S = 0.2

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DebtRow)


class Rewritten(Enum):
    """How a rewrite ended."""

    DONE = "done"
    NOTHING_TO_DO = "nothing-to-do"
    NOT_POSSIBLE_NOW = "not-possible-now"
    OVERTAKEN = "overtaken"
    GONE = "gone"


class Rewriter:
    """Rewrites one pack at a time."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        topology: Callable[[], Topology],
        index: Index,
        rows: PackRows,
        reader: Reader,
        writer: Writer,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._stores = stores
        self._topology = topology
        self._index = index
        self._rows = rows
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._randomness = randomness

    async def rewrite(self, pack: PackId, bad: Iterable[int] = ()) -> Rewritten:
        """Give a pack what it was promised, as far as the stores allow now.

        `bad` are shards that someone found missing or wrong: each is looked at again first. Raises
        TooManyShardsLost or TooFewShardsAnswer when the pack can't be read, and the stores' errors.
        """
        try:
            known = await self._rows.fresh(pack)
        except PackGone:
            return Rewritten.GONE
        (found,) = await self._index.get([debt_row(pack)])
        debt = _decoder.decode(found.value) if found else None
        promised = debt.promised if debt else known.row.scheme
        candidates = self._writer.candidates(set(), 0)
        scheme = choose_scheme(promised, known.row.stored_bytes, len(candidates))
        judged = {shard: await self._is_bad(known, shard) for shard in bad if shard in known.places}
        faulty = {shard for shard, is_bad in judged.items() if is_bad}
        faulty |= set(known.missing)
        if scheme is not None and scheme.k > known.row.scheme.k:
            return await self._anew(known, debt, scheme, candidates)
        if faulty:
            return await self._replace(known, debt, faulty, candidates)
        if None in judged.values():
            return Rewritten.NOT_POSSIBLE_NOW
        if debt is None:
            return Rewritten.NOTHING_TO_DO
        if known.row.scheme == promised:
            return await self._forgive(known)
        return Rewritten.NOT_POSSIBLE_NOW

    async def _forgive(self, known: KnownPack) -> Rewritten:
        """Nothing is missing any more; take the debt from the record."""
        change = Transaction(
            (Expect(pack_row(known.pack), known.revision),),
            ((pack_row(known.pack), encode_row(known.row)),),
            (debt_row(known.pack),),
        )
        (outcome,) = await self._index.commit([change])
        return Rewritten.DONE if isinstance(outcome, Committed) else Rewritten.OVERTAKEN

    async def _anew(
        self, known: KnownPack, debt: DebtRow | None, scheme: Scheme, candidates: list[StoreId]
    ) -> Rewritten:
        """All of the pack in another scheme."""
        payload: list[Buffer] = []
        for stripe in range(known.layout.stripes):
            payload += await self._reader.stripes(known, stripe, 1)
            await self._clock.sleep(0)
        encoded = await encode(scheme, payload, known.row.stored_bytes, self._clock)
        chosen = place(self._topology(), len(encoded.units), candidates)
        row = replace(known.row, scheme=scheme, places=())
        attempts = [
            Attempt(shard, store, self._new_attempt())
            for shard, store in zip(sorted(encoded.units), chosen, strict=True)
        ]
        return await self._carry_out(known, debt, row, encoded, attempts, keep=())

    async def _replace(
        self, known: KnownPack, debt: DebtRow | None, faulty: set[int], candidates: list[StoreId]
    ) -> Rewritten:
        """Only the shards that are missing or wrong, in the scheme the pack has."""
        keep = tuple(place for place in known.row.places if place.shard not in faulty)
        kept_stores = [place.store for place in keep]
        free = [store for store in candidates if store not in kept_stores]
        chosen = place(self._topology(), len(faulty), free, taken=kept_stores)
        if not chosen:
            return Rewritten.NOT_POSSIBLE_NOW
        # With fewer stores than faults, data first: those are what reads rebuild again and again.
        mending = sorted(faulty)[: len(chosen)]
        keep += tuple(
            place for place in known.row.places if place.shard in faulty and place.shard not in mending
        )
        units: dict[int, list[Buffer]] = {shard: [] for shard in mending}
        scheme = known.row.scheme
        for stripe in range(known.layout.stripes):
            (data,) = await self._reader.stripes(known, stripe, 1)
            whole = bytes(data)
            unit = known.layout.unit_of(stripe)
            redundant = codec.parity(scheme, whole) if any(shard >= scheme.k for shard in mending) else []
            for shard in mending:
                if shard < scheme.k:
                    units[shard].append(memoryview(whole)[shard * unit : (shard + 1) * unit])
                else:
                    units[shard].append(redundant[shard - scheme.k])
            await self._clock.sleep(0)
        attempts = [
            Attempt(shard, store, self._new_attempt()) for shard, store in zip(mending, chosen, strict=True)
        ]
        row = replace(known.row, places=())
        return await self._carry_out(known, debt, row, Encoded(known.layout, units), attempts, keep=keep)

    async def _carry_out(
        self,
        known: KnownPack,
        debt: DebtRow | None,
        row: PackRow,
        encoded: Encoded,
        attempts: list[Attempt],
        keep: tuple[Place, ...],
    ) -> Rewritten:
        """Write the shards, read them back, move the row. Whatever fails, the old row stays true."""
        pack = known.pack
        written: list[Attempt] = []
        try:
            for attempt in attempts:
                written.append(attempt)
                await self._writer.put_shard(pack, row, encoded, attempt)
            added = tuple(Place(attempt.shard, attempt.store, attempt.attempt) for attempt in attempts)
            places = tuple(sorted((*keep, *added), key=lambda place: place.shard))
            changed = replace(row, places=places)
            after = KnownPack(pack, changed, known.revision)
            for attempt in attempts:
                await self._read_back(after, attempt.shard)
            trash = {
                trash_row(place.store, shard_name(pack, place.shard, place.attempt)): b""
                for place in known.row.places
                if place not in places
            }
            puts = [(pack_row(pack), encode_row(changed)), *trash.items()]
            deletes: tuple[bytes, ...] = ()
            promised = debt.promised if debt else known.row.scheme
            if changed.scheme == promised and not after.missing:
                deletes = (debt_row(pack),) if debt else ()
            else:
                reason = debt.reason if debt else DebtReason.STORES_MISSING
                puts.append((debt_row(pack), _encoder.encode(DebtRow(promised, reason, after.missing))))
            change = Transaction((Expect(pack_row(pack), known.revision),), tuple(puts), deletes)
            (outcome,) = await self._index.commit([change])
        except HoldfastError:
            await self._throw_away(pack, written)
            raise
        if isinstance(outcome, Committed):
            self._rows.learn(pack, changed, outcome.revision)
            return Rewritten.DONE
        # Conflict: somebody else moved the row. Unknown: perhaps we did. Either way the row decides
        # which shards live; those that it does not name are thrown away.
        await self._throw_away(pack, written)
        return Rewritten.OVERTAKEN

    async def _read_back(self, known: KnownPack, shard: int) -> None:
        await self._reader.check_header(known, shard)
        for stripe in range(known.layout.stripes):
            first = known.layout.shard_offset(stripe) // BLOCK_BYTES
            count = known.layout.unit_of(stripe) // BLOCK_BYTES
            await self._reader.shard_blocks(known, shard, first, count, uncached=True)
            await self._clock.sleep(0)

    async def _throw_away(self, pack: PackId, written: list[Attempt]) -> None:
        """Declare dead what was written for nothing: the row is touched in the same transaction, so that
        a commit whose outcome is unknown can no longer win."""
        try:
            for _ in range(THROW_AWAY_TRIES):
                (outcome,) = await self._index.commit([await self._thrown_away(pack, written)])
                if isinstance(outcome, Committed):
                    return
                await self._clock.sleep(THROW_AWAY_PAUSE_S)
        except HoldfastError:
            # Stray shards take room until the collector finds them; nothing else depends on this.
            return

    async def _thrown_away(self, pack: PackId, written: list[Attempt]) -> Transaction:
        try:
            fresh = await self._rows.fresh(pack)
        except PackGone:
            # It died meanwhile: what no row has ever named is buried after the others.
            (grave,) = await self._index.get([buried_row(pack)])
            names = [(attempt.store, shard_name(pack, attempt.shard, attempt.attempt)) for attempt in written]
            return further_burial(pack, grave, names)
        named = {(place.shard, place.store, place.attempt) for place in fresh.row.places}
        trash = [
            (trash_row(attempt.store, shard_name(pack, attempt.shard, attempt.attempt)), b"")
            for attempt in written
            if tuple(attempt) not in named
        ]
        return Transaction(
            (Expect(pack_row(pack), fresh.revision),), ((pack_row(pack), encode_row(fresh.row)), *trash)
        )

    async def _is_bad(self, known: KnownPack, shard: int) -> bool | None:
        """Whether a shard can't be read in full; None when its store did not let us look. That a store is
        away is no proof, unless the topology does not know it any more: then it is gone for good."""
        place_ = known.places[shard]
        if place_.store not in self._stores:
            return self._topology().location(place_.store) is None
        try:
            await self._read_back(known, shard)
        except Damaged:
            return True
        except HoldfastError:
            return None
        return False

    def _new_attempt(self) -> int:
        """An attempt number that was never used: 32 random bits, and the store refuses a name twice."""
        return self._randomness.below(2**32 - 1) + 1

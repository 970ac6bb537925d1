"""Rewriting a pack in place: shards that are missing or wrong, or the whole pack in a better scheme.

The pack's id and payload offsets never change, so no object is touched: only the pack's row moves on, to
shards under new attempt names, and the names it leaves are declared dead in the same transaction.
Readers that still follow the old row find a shard gone and look again. The new shards are read back
from their media before the row moves; one that does not agree ends the rewrite with nothing changed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec
from msgspec import Struct
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
from holdfast.packs.layout import Layout
from holdfast.packs.model import (
    DebtReason,
    DebtRow,
    Place,
    buried_row,
    debt_row,
    pack_row,
    trash_row,
)
from holdfast.packs.quorum import Attempt
from holdfast.packs.reading import Reader
from holdfast.packs.rewrite_plan import Plan, Reason, Step, Target, plan_rewrite
from holdfast.packs.rows import KnownPack, PackRows, encode_row
from holdfast.packs.writing import Encoded, Writer, encode
from holdfast.scheme import Scheme
from holdfast.stores.port import ShardUnreadable, Store, StoreFull
from holdfast.topology import Topology

STRIPES_AT_ONCE = 4
"""Stripes that are read in one go: a MiB of a shard of four."""

READ_BACK_BYTES = 1 << 20
"""Most bytes of a shard that one call reads back."""

THROW_AWAY_TRIES = 5
THROW_AWAY_PAUSE_S = 0.2

NO_TARGET = Target()

Puts = tuple[tuple[bytes, bytes], ...]

_OWED_FOR = {
    Reason.HEAL: DebtReason.STORES_MISSING,
    Reason.DEBT: DebtReason.STORES_MISSING,
    Reason.DRAIN: DebtReason.STORES_MISSING,
    Reason.REBALANCE: DebtReason.STORES_MISSING,
    Reason.SCHEME: DebtReason.SCHEME,
}

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

    async def rewrite(self, pack: PackId, reason: Reason, target: Target = NO_TARGET) -> Rewritten:
        """Give a pack what it was promised and what `target` asks for, as far as the stores allow now.

        Raises TooManyShardsLost or TooFewShardsAnswer when the pack can't be read, and the stores' errors.
        """
        full: set[StoreId] = set()
        while True:
            known_full = len(full)
            try:
                return await self._once(pack, reason, target, full)
            except StoreFull:
                if len(full) == known_full:
                    raise  # whoever said so, it was none of the new homes

    async def _once(self, pack: PackId, reason: Reason, target: Target, full: set[StoreId]) -> Rewritten:
        """One plan, without the homes that were found to be full; one more of them is added to `full`."""
        try:
            known = await self._rows.fresh(pack)
        except PackGone:
            return Rewritten.GONE
        (found,) = await self._index.get([debt_row(pack)])
        debt = _decoder.decode(found.value) if found else None
        candidates = self._writer.candidates({*target.gone, *full}, 0)
        judged = {
            shard: await self._is_bad(known, shard, candidates)
            for shard in target.bad
            if shard in known.places
        }
        lost = {shard for shard, is_bad in judged.items() if is_bad} | set(known.missing)
        lost |= {
            place_.shard
            for place_ in known.row.places
            if place_.store in target.gone or self._is_gone(place_.store)
        }
        lost |= known.places.keys() & set(target.condemned)
        plan = plan_rewrite(
            known.row,
            frozenset(lost),
            target,
            debt.promised if debt else None,
            candidates,
            self._topology(),
            in_doubt=any(judged[shard] is None for shard in judged.keys() - lost),
            told=self._writer.promises.of,
        )
        job = _Job(known, debt, plan, _OWED_FOR[reason])
        sources = _Sources(_without(known, target.condemned), frozenset(lost))
        match plan.step:
            case Step.ANEW:
                return await self._carry_out(job, await self._anew(sources, plan.scheme), (), full)
            case Step.REPLACE:
                keep = tuple(place_ for place_ in known.row.places if place_.shard not in plan.homes)
                return await self._carry_out(job, await self._shards(sources, plan), keep, full)
            case Step.FORGIVE:
                return await self._record(known, (), (debt_row(pack),), Rewritten.DONE)
            case Step.OWE:
                owed = DebtRow(plan.promised, job.owed_for)
                debts = ((debt_row(pack), _encoder.encode(owed)),)
                return await self._record(known, debts, (), Rewritten.NOT_POSSIBLE_NOW)
            case Step.NOT_NOW:
                return Rewritten.NOT_POSSIBLE_NOW
            case Step.NOTHING:
                return Rewritten.NOTHING_TO_DO

    async def _record(
        self, known: KnownPack, puts: Puts, deletes: tuple[bytes, ...], then: Rewritten
    ) -> Rewritten:
        """Change only what is on record about a pack, together with a touch of its row."""
        row = (pack_row(known.pack), encode_row(known.row))
        change = Transaction((Expect(pack_row(known.pack), known.revision),), (row, *puts), deletes)
        (outcome,) = await self._index.commit([change])
        return then if isinstance(outcome, Committed) else Rewritten.OVERTAKEN

    async def _anew(self, sources: "_Sources", scheme: Scheme) -> Encoded:
        """All of the pack in another scheme."""
        known, lost = sources
        payload: list[Buffer] = []
        for stripe in range(known.layout.stripes):
            payload += await self._reader.stripes(known, stripe, 1, lost)
            await self._clock.sleep(0)
        return await encode(scheme, payload, known.row.stored_bytes, self._clock)

    async def _shards(self, sources: "_Sources", plan: Plan) -> Encoded:
        """Only the shards that get a new home, in the scheme that the pack has: copied where they are whole,
        else made from k others."""
        known, lost = sources
        scheme = known.row.scheme
        units: dict[int, list[Buffer]] = {shard: [] for shard in plan.homes}
        copied = {shard for shard in plan.copied if known.places[shard].store in self._stores}
        for first, count in _groups(known.layout):
            for shard in list(copied):
                try:
                    units[shard].append(await self._copy(known, shard, first, count))
                except HoldfastError:
                    copied.remove(shard)  # from here on it is made anew
            made = [shard for shard in plan.homes if shard not in copied]
            if made:
                unit = known.layout.unit_of(first)
                for data in await self._reader.stripes(known, first, count, lost):
                    parity = codec.parity(scheme, data) if any(shard >= scheme.k for shard in made) else []
                    for shard in made:
                        if shard < scheme.k:
                            units[shard].append(memoryview(data)[shard * unit : (shard + 1) * unit])
                        else:
                            units[shard].append(parity[shard - scheme.k])
                    await self._clock.sleep(0)
            else:
                await self._clock.sleep(0)
        return Encoded(known.layout, units)

    async def _copy(self, known: KnownPack, shard: int, first: int, count: int) -> Buffer:
        """A shard's units as they are where it lies, verified."""
        block, blocks = known.layout.blocks_of(first)
        return await self._reader.shard_blocks(known, shard, block, count * blocks)

    async def _carry_out(
        self, job: "_Job", encoded: Encoded, keep: tuple[Place, ...], full: set[StoreId]
    ) -> Rewritten:
        """Write the shards, read them back, move the row. Whatever fails, the old row stays true."""
        known, pack = job.known, job.known.pack
        row = replace(known.row, scheme=job.plan.scheme, places=())
        attempts = [Attempt(shard, store, self._new_attempt()) for shard, store in job.plan.homes.items()]
        written: list[Attempt] = []
        try:
            for attempt in attempts:
                written.append(attempt)
                try:
                    await self._writer.put_shard(pack, row, encoded, attempt)
                except StoreFull:
                    full.add(attempt.store)
                    raise
            added = tuple(Place(attempt.shard, attempt.store, attempt.attempt) for attempt in attempts)
            places = tuple(sorted((*keep, *added), key=lambda place: place.shard))
            after = KnownPack(pack, replace(row, places=places), known.revision)
            for attempt in attempts:
                await self._read_back(after, attempt.shard)
            (outcome,) = await self._index.commit([job.change(after)])
        except HoldfastError:
            await self._throw_away(pack, written)
            raise
        if isinstance(outcome, Committed):
            self._rows.learn(pack, after.row, outcome.revision)
            return Rewritten.DONE
        # Conflict: somebody else moved the row. Unknown: perhaps we did. Either way the row decides
        # which shards live; those that it does not name are thrown away.
        await self._throw_away(pack, written)
        return Rewritten.OVERTAKEN

    async def _read_back(self, known: KnownPack, shard: int) -> None:
        layout = known.layout
        chunk = max(1, READ_BACK_BYTES // layout.unit_of(0))
        table: Buffer | None = None
        for first in range(0, layout.stripes, chunk):
            end = min(first + chunk, layout.stripes)
            count = sum(layout.blocks_of(stripe)[1] for stripe in range(first, end))
            block, _ = layout.blocks_of(first)
            _, table = await self._reader.from_medium(known, shard, block, count, table)
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

    async def _is_bad(self, known: KnownPack, shard: int, well: Sequence[StoreId]) -> bool | None:
        """Whether a shard can't be read in full; None when its store did not let us look. That a store is
        away is no proof, unless it is gone for good. That its
        medium fails is one, if the store is `well` otherwise: what is written anew can be read again."""
        place_ = known.places[shard]
        if place_.store not in self._stores:
            return self._is_gone(place_.store)
        try:
            await self._read_back(known, shard)
        except Damaged:
            return True
        except ShardUnreadable:
            return True if place_.store in well else None
        except HoldfastError:
            return None
        return False

    def _is_gone(self, store: StoreId) -> bool:
        """Whether a store is no part of this installation any more, whatever anybody reported."""
        return store not in self._stores and self._topology().location(store) is None

    def _new_attempt(self) -> int:
        """An attempt number that was never used: 32 random bits, and the store refuses a name twice."""
        return self._randomness.below(2**32 - 1) + 1


def _groups(layout: Layout) -> Iterator[tuple[int, int]]:
    """Stripes to be read at once, as the first and how many: of the same size, so the last may be alone."""
    for first in range(0, layout.full_stripes, STRIPES_AT_ONCE):
        yield first, min(STRIPES_AT_ONCE, layout.full_stripes - first)
    if layout.stripes > layout.full_stripes:
        yield layout.full_stripes, 1


class _Sources(NamedTuple):
    """Where a rewrite reads from: the pack without what must not be read, and the shards that are lost, which
    are no more than a last resort."""

    known: KnownPack
    lost: frozenset[int]


def _without(known: KnownPack, shards: Collection[int]) -> KnownPack:
    """The pack as if it did not have these shards."""
    if not shards:
        return known
    places = tuple(place_ for place_ in known.row.places if place_.shard not in shards)
    return KnownPack(known.pack, replace(known.row, places=places), known.revision)


class _Job(Struct, frozen=True):
    """One rewrite: the pack as it was looked at, its debt, what is to be done, and what a debt that this
    leaves is owed for."""

    known: KnownPack
    debt: DebtRow | None
    plan: Plan
    owed_for: DebtReason

    def change(self, after: KnownPack) -> Transaction:
        """The row moves, shards that it does not name any more are dead, and the debt is what it is now."""
        pack, before = self.known.pack, self.known.row
        puts = [(pack_row(pack), encode_row(after.row))]
        puts += [
            (trash_row(place.store, shard_name(pack, place.shard, place.attempt)), b"")
            for place in before.places
            if place not in after.row.places
        ]
        deletes: tuple[bytes, ...] = ()
        if after.row.scheme == self.plan.promised and not after.missing:
            deletes = (debt_row(pack),) if self.debt else ()
        else:
            reason = self.debt.reason if self.debt else self.owed_for
            owed = DebtRow(self.plan.promised, reason, after.missing)
            puts.append((debt_row(pack), _encoder.encode(owed)))
        return Transaction((Expect(pack_row(pack), self.known.revision),), tuple(puts), deletes)

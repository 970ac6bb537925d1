"""Reading every shard of every pack from the medium, and saying what is whole, degraded or lost.

Independent of the read path's favours: no hedging, no cache, no stopping at k. All shards are read side by
side, a chunk ahead of what is being looked at. Shards that are right in themselves are compared with each
other by encoding again, so that parity that does not belong to its data, or the other way round, is found,
too, and whose fault it is (`packs.blaming`). What is found is told to the reader's `on_damage`, so that it
is mended. What must hold: a pack is called whole only when every byte of every shard was read and agrees.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from enum import Enum

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.blaming import agree, blame
from holdfast.packs.errors import PackGone
from holdfast.packs.reading import Reader
from holdfast.packs.rows import KnownPack, PackRows, decode_row
from holdfast.scheme import Scheme
from holdfast.stores.port import ShardUnreadable, Store

PAGE = 500

SHARD_READ_BYTES = 1 << 20
"""Most bytes of one shard that one call reads."""

PACK_READ_BYTES = 8 << 20
"""Most bytes of all shards together that are read at once; the next chunk needs as much again."""


class PackHealth(Enum):
    """What a pack is worth."""

    WHOLE = "whole"
    DEGRADED = "degraded"
    LOST = "lost"


class ShardFault(Struct, frozen=True):
    """One shard that is not as it should be, or `in_doubt`: that could not be looked at."""

    shard: int
    store: StoreId | None
    fault: str
    in_doubt: bool = False


class PackReport(Struct, frozen=True):
    """What reading all of a pack has shown. `losses_left` is how many more shards it can lose; `condemned`
    are shards that are right in themselves and do not belong to the others."""

    pack: PackId
    scheme: Scheme
    state: PackHealth
    faults: tuple[ShardFault, ...]
    losses_left: int
    bytes_read: int
    condemned: tuple[int, ...] = ()


class Verifier:
    """Verifies packs one after the other."""

    def __init__(
        self, stores: Mapping[StoreId, Store], index: Index, rows: PackRows, reader: Reader, clock: Clock
    ) -> None:
        self._stores = stores
        self._index = index
        self._rows = rows
        self._reader = reader
        self._clock = clock

    async def verify_all(self) -> AsyncIterator[PackReport]:
        """Every pack that the index knows, in the order of their ids."""
        start, end = b"pack/", prefix_end(b"pack/")
        while True:
            page = [row for row in await self._index.scan(start, end, limit=PAGE) if isinstance(row, Row)]
            for row in page:
                pack = PackId(bytes.fromhex(row.key[len(b"pack/") :].decode()))
                try:
                    yield await self.verify(KnownPack(pack, decode_row(row.value), row.revision))
                except PackGone:
                    continue
            if len(page) < PAGE:
                return
            start = page[-1].key + b"\0"

    async def verify(self, known: KnownPack) -> PackReport:
        """One pack. A fault is believed only if the row is still what it was. Raises PackGone."""
        while True:
            report = await self._verify(known)
            if report.state is PackHealth.WHOLE:
                return report
            fresh = await self._rows.fresh(known.pack)
            if fresh.revision == known.revision:
                return report
            known = fresh

    async def _verify(self, known: KnownPack) -> PackReport:
        look = _Look(known, self._faults_on_record(known), {}, set())
        stripes = known.layout.stripes
        chunk = _chunk_stripes(known)
        ahead = asyncio.create_task(self._read(look, 0, min(chunk, stripes)))
        try:
            for first in range(0, stripes, chunk):
                units = await ahead
                if first + chunk < stripes:
                    following = first + chunk
                    ahead = asyncio.create_task(self._read(look, following, min(following + chunk, stripes)))
                await self._compare(look, first, min(first + chunk, stripes), units)
        finally:
            ahead.cancel()
        return await self._conclude(look)

    def _faults_on_record(self, known: KnownPack) -> dict[int, ShardFault]:
        """What need not be read to be known."""
        faults = {shard: ShardFault(shard, None, "missing") for shard in known.missing}
        for shard, place in known.places.items():
            if place.store not in self._stores:
                faults[shard] = ShardFault(shard, place.store, "its store is away", in_doubt=True)
        return faults

    async def _conclude(self, look: "_Look") -> PackReport:
        known, faults = look.known, look.faults
        lost = faults.keys() & known.places.keys()
        losses_left = len(known.places) - len(lost) - known.layout.real_data_shards
        state = PackHealth.DEGRADED if faults else PackHealth.WHOLE
        if losses_left < 0:
            # What is wrong here in one and there in another shard can still be put together, block by block.
            state = PackHealth.DEGRADED if await self._is_readable(known) else PackHealth.LOST
            losses_left = 0 if state is PackHealth.DEGRADED else losses_left
        return PackReport(
            known.pack,
            known.row.scheme,
            state,
            tuple(faults[shard] for shard in sorted(faults)),
            losses_left,
            look.bytes_read,
            tuple(sorted(look.condemned)),
        )

    async def _read(self, look: "_Look", first: int, end: int) -> dict[int, Buffer]:
        """The units of some stripes, shard by shard, all shards side by side."""
        known = look.known
        block, _ = known.layout.blocks_of(first)
        count = sum(known.layout.blocks_of(stripe)[1] for stripe in range(first, end))
        shards = [shard for shard in known.places if shard not in look.faults]
        found = await asyncio.gather(*[self._read_shard(look, shard, block, count) for shard in shards])
        return {shard: data for shard, data in zip(shards, found, strict=True) if data is not None}

    async def _read_shard(self, look: "_Look", shard: int, block: int, count: int) -> Buffer | None:
        known = look.known
        try:
            data, look.tables[shard] = await self._reader.from_medium(
                known, shard, block, count, look.tables.get(shard)
            )
        except (Damaged, ShardUnreadable) as error:
            look.faults[shard] = ShardFault(shard, known.places[shard].store, str(error))
            return None
        except HoldfastError as error:
            look.faults[shard] = ShardFault(
                shard, known.places[shard].store, f"cannot be read: {error}", in_doubt=True
            )
            return None
        look.bytes_read += len(data)
        return data

    async def _compare(self, look: "_Look", first: int, end: int, read: Mapping[int, Buffer]) -> None:
        """Whether the shards of some stripes, each right in itself, agree with each other."""
        known, scheme = look.known, look.known.row.scheme
        at = 0
        for stripe in range(first, end):
            unit = known.layout.unit_of(stripe)
            units: dict[int, Buffer] = {
                shard: memoryview(data)[at : at + unit] for shard, data in read.items()
            }
            units.update(dict.fromkeys(known.virtual, bytes(unit)))
            at += unit
            if len(units) > scheme.k and not agree(scheme, units, unit):
                self._accuse(look, units, unit, stripe)
            await self._clock.sleep(0)

    def _accuse(self, look: "_Look", units: Mapping[int, Buffer], unit: int, stripe: int) -> None:
        known = look.known
        guilty = blame(known.row.scheme, units, unit)
        if guilty is None:
            # Rewriting either side could destroy the only right one.
            what = f"data and parity of stripe {stripe} disagree, and which is wrong cannot be told"
            shard = max(shard for shard in units if shard in known.places)
            look.faults.setdefault(shard, ShardFault(shard, known.places[shard].store, what))
            return
        for shard in guilty & known.places.keys() - look.condemned:
            sides = ("parity", "the data") if shard >= known.row.scheme.k else ("data", "the parity")
            what = f"{sides[0]} does not match {sides[1]} of stripe {stripe}"
            look.condemned.add(shard)
            look.faults.setdefault(shard, ShardFault(shard, known.places[shard].store, what))
            self._reader.tell_damage(known.pack, shard, what)

    async def _is_readable(self, known: KnownPack) -> bool:
        try:
            for stripe in range(known.layout.stripes):
                await self._reader.stripes(known, stripe, 1)
        except HoldfastError:
            return False
        return True


class _Look(Struct):
    """One look at a pack: what was found until now."""

    known: KnownPack
    faults: dict[int, ShardFault]
    tables: dict[int, Buffer]
    condemned: set[int]
    bytes_read: int = 0


def _chunk_stripes(known: KnownPack) -> int:
    """Stripes that are read at once: as much of each shard as one call reads well, within what all shards
    together may hold."""
    unit = known.layout.unit_of(0)
    return max(1, min(SHARD_READ_BYTES // unit, PACK_READ_BYTES // (unit * max(1, len(known.places)))))

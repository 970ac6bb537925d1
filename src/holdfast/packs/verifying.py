"""Reading every shard of every pack from the medium, and saying what is whole, degraded or lost.

Independent of the read path's favours: no hedging, no cache, no stopping at k. Parity is checked
against data by encoding again, so that a shard that is right in itself but belongs to other data is
found, too. What is found is told to the reader's `on_damage`, so that it is mended.
"""

from collections.abc import AsyncIterator, Mapping
from enum import Enum

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs import codec
from holdfast.packs.errors import PackGone
from holdfast.packs.reading import Reader
from holdfast.packs.rows import KnownPack, PackRows, decode_row
from holdfast.scheme import Scheme
from holdfast.stores.port import Store

PAGE = 500


class PackHealth(Enum):
    """What a pack is worth."""

    WHOLE = "whole"
    DEGRADED = "degraded"
    LOST = "lost"


class ShardFault(Struct, frozen=True):
    """One shard that is not as it should be."""

    shard: int
    store: StoreId | None
    fault: str


class PackReport(Struct, frozen=True):
    """What reading all of a pack has shown. `losses_left` is how many more shards it can lose."""

    pack: PackId
    scheme: Scheme
    state: PackHealth
    faults: tuple[ShardFault, ...]
    losses_left: int
    bytes_read: int


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
        scheme, layout = known.row.scheme, known.layout
        faults = {shard: ShardFault(shard, None, "missing") for shard in known.missing}
        read = 0
        for shard, place in known.places.items():
            if (fault := await self._header_fault(known, shard)) is not None:
                faults[shard] = ShardFault(shard, place.store, fault)
        for stripe in range(layout.stripes):
            unit = layout.unit_of(stripe)
            first, count = layout.blocks_of(stripe)
            units: dict[int, Buffer] = dict.fromkeys(known.virtual, bytes(unit))
            for shard, place in known.places.items():
                if shard in faults:
                    continue
                try:
                    units[shard] = await self._reader.shard_blocks(known, shard, first, count, uncached=True)
                    read += unit
                except HoldfastError as error:
                    faults[shard] = ShardFault(shard, place.store, str(error))
            if all(shard in units for shard in range(scheme.k)):
                data = codec.restore(scheme, units, unit)
                for number, redundant in enumerate(codec.parity(scheme, data), scheme.k):
                    # As bytes: memory views are compared item by item, 6 ms a MiB.
                    if number in units and bytes(units[number]) != bytes(redundant):
                        faults[number] = ShardFault(
                            number,
                            known.places[number].store,
                            f"parity does not match the data of stripe {stripe}",
                        )
            await self._clock.sleep(0)
        losses_left = len(known.places) - len(faults.keys() & known.places.keys()) - layout.real_data_shards
        state = PackHealth.DEGRADED if faults else PackHealth.WHOLE
        if losses_left < 0:
            # What is wrong here in one and there in another shard can still be put together, block by block.
            state = PackHealth.DEGRADED if await self._is_readable(known) else PackHealth.LOST
            losses_left = 0 if state is PackHealth.DEGRADED else losses_left
        ordered = tuple(faults[shard] for shard in sorted(faults))
        return PackReport(known.pack, scheme, state, ordered, losses_left, read)

    async def _is_readable(self, known: KnownPack) -> bool:
        try:
            for stripe in range(known.layout.stripes):
                await self._reader.stripes(known, stripe, 1)
        except HoldfastError:
            return False
        return True

    async def _header_fault(self, known: KnownPack, shard: int) -> str | None:
        if known.places[shard].store not in self._stores:
            return "its store is away"
        try:
            await self._reader.check_header(known, shard)
        except Damaged as error:
            return str(error)
        except HoldfastError as error:
            return f"cannot be read: {error}"
        return None

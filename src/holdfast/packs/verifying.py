"""Reading every shard of every pack from the medium, and saying what is whole, degraded or lost.

Independent of the read path's favours: no hedging, no cache, no stopping at k. All shards are read side by
side, a chunk ahead of what is being looked at (`packs.examining`, in a thread where it is much). Shards that
are right in themselves are compared with each other by encoding again, so that parity that does not belong
to its data, or the other way round, is found, too, and whose fault it is (`packs.blaming`). What is found is
told to the reader's `on_damage`, so that it is mended. What must hold: a pack is called whole only when every
byte of every shard was read and agrees.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from concurrent.futures import Executor
from enum import Enum
from functools import partial

from msgspec import Struct, field

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs import folding
from holdfast.packs.blaming import blame
from holdfast.packs.errors import PackGone
from holdfast.packs.examining import Chunk, Found, examine, units_of
from holdfast.packs.folding import Run
from holdfast.packs.layout import BLOCK_BYTES
from holdfast.packs.reading import Reader, WrongBytes
from holdfast.packs.rows import KnownPack, PackRows, decode_row
from holdfast.scheme import Scheme
from holdfast.stores.port import ShardUnreadable, Store

PAGE = 500
FIND_TIMEOUT_S = 10.0

SHARD_READ_BYTES = 1 << 20
"""Most bytes of one shard that one call reads."""

PACK_READ_BYTES = 8 << 20
"""Most bytes of all shards together that are read at once; the next chunk needs as much again."""


IN_THREAD_BYTES_MIN = 512 << 10
"""What is verified in a thread; less takes less time than to send it there."""


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
    """Verifies packs one after the other; what is large in `threads`, if there are some."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        index: Index,
        rows: PackRows,
        reader: Reader,
        clock: Clock,
        threads: Executor | None = None,
    ) -> None:
        folding.prepare(SHARD_READ_BYTES // BLOCK_BYTES)
        self._stores = stores
        self._threads = threads
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

    async def verify(self, known: KnownPack, unread: Collection[StoreId] = ()) -> PackReport:
        """One pack. A fault is believed only if the row is still what it was. At the stores `unread` shards
        are not read, since that costs money: it is only seen that they are there. Raises PackGone."""
        while True:
            report = await self._verify(known, unread)
            if report.state is PackHealth.WHOLE:
                return report
            fresh = await self._rows.fresh(known.pack)
            if fresh.revision == known.revision:
                return report
            known = fresh

    async def _verify(self, known: KnownPack, unread: Collection[StoreId]) -> PackReport:
        look = _Look(known, self._faults_on_record(known), {}, set(), set())
        if unread:
            look.unread = {shard for shard, place in known.places.items() if place.store in unread}
            await asyncio.gather(*[self._find(look, shard) for shard in look.unread - look.faults.keys()])
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
        """The units of some stripes, shard by shard, all shards side by side; as they are."""
        known = look.known
        block, _ = known.layout.blocks_of(first)
        count = sum(known.layout.blocks_of(stripe)[1] for stripe in range(first, end))
        shards = [shard for shard in known.places if shard not in look.faults and shard not in look.unread]
        found = await asyncio.gather(*[self._read_shard(look, shard, block, count) for shard in shards])
        return {shard: data for shard, data in zip(shards, found, strict=True) if data is not None}

    async def _find(self, look: "_Look", shard: int) -> None:
        """See whether a shard is there, without reading it."""
        place = look.known.places[shard]
        try:
            name = shard_name(look.known.pack, shard, place.attempt)
            await self._stores[place.store].size(name, timeout_s=FIND_TIMEOUT_S)
        except (Damaged, ShardUnreadable) as error:
            self._fault(look, shard, str(error))
        except HoldfastError as error:
            look.faults[shard] = ShardFault(shard, place.store, f"cannot be seen: {error}", in_doubt=True)

    async def _read_shard(self, look: "_Look", shard: int, block: int, count: int) -> Buffer | None:
        known = look.known
        try:
            data, look.tables[shard] = await self._reader.unverified(
                known, shard, block, count, look.tables.get(shard)
            )
        except (Damaged, ShardUnreadable) as error:
            self._fault(look, shard, str(error))
            return None
        except HoldfastError as error:
            look.faults[shard] = ShardFault(
                shard, known.places[shard].store, f"cannot be read: {error}", in_doubt=True
            )
            return None
        return data

    def _fault(self, look: "_Look", shard: int, what: str) -> None:
        look.faults[shard] = ShardFault(shard, look.known.places[shard].store, what)

    async def _compare(self, look: "_Look", first: int, end: int, read: Mapping[int, Buffer]) -> None:
        """Whether the shards of some stripes are right, each in itself, and agree with each other."""
        known = look.known
        block, _ = known.layout.blocks_of(first)
        runs = {
            # What was found wrong while this was read is not looked at twice.
            shard: Run(data, _entries(look, shard, block, data), known.seeds[shard] + block)
            for shard, data in read.items()
            if shard not in look.wrong
        }
        units = tuple(known.layout.unit_of(stripe) for stripe in range(first, end))
        chunk = Chunk(known.row.scheme, runs, tuple(known.virtual), units)
        found = await self._examine(chunk)
        look.wrong |= set(found.wrong)
        for shard in found.wrong:
            data = runs[shard].data
            try:
                self._reader.check_blocks(known, shard, data, runs[shard].entries, block)
            except WrongBytes as error:
                self._fault(look, shard, str(error))
            else:
                raise AssertionError(f"blocks of shard {shard} are wrong together, and right one by one")
        right = {shard: run for shard, run in runs.items() if shard not in found.wrong}
        look.bytes_read += sum(len(run.data) for run in right.values())
        for number in found.disagree:
            self._accuse(look, units_of(chunk, right, number), units[number], first + number)
        await self._clock.sleep(0)

    async def _examine(self, chunk: Chunk) -> Found:
        size = sum(len(run.data) for run in chunk.runs.values())
        if self._threads is None or size < IN_THREAD_BYTES_MIN:
            return examine(chunk, in_thread=False)
        call = partial(examine, chunk, in_thread=True)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

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
    wrong: set[int]
    bytes_read: int = 0
    unread: set[int] = field(default_factory=set)


def _entries(look: _Look, shard: int, block: int, data: Buffer) -> Buffer:
    return memoryview(look.tables[shard])[4 * block : 4 * block + len(data) // (BLOCK_BYTES // 4)]


def _chunk_stripes(known: KnownPack) -> int:
    """Stripes that are read at once: as much of each shard as one call reads well, within what all shards
    together may hold."""
    unit = known.layout.unit_of(0)
    return max(1, min(SHARD_READ_BYTES // unit, PACK_READ_BYTES // (unit * max(1, len(known.places)))))

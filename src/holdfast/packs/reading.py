"""Reading: find the blocks, verify each, rebuild what is missing, wrong or late.

No byte leaves this file that was not verified against its checksum. What turns out wrong or missing
is told to `on_damage`, so that it is written back.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError, Unavailable
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.health import StoreHealth
from holdfast.packs import codec
from holdfast.packs.errors import PackGone, TooFewShardsAnswer, TooManyShardsLost
from holdfast.packs.format import (
    TABLE_OFFSET,
    ShardHeader,
    check_head,
    data_offset,
    wrong_blocks,
)
from holdfast.packs.hedging import UNCONDITIONAL_S, HedgeBudget, PlanState, ReadPlan, to_avoid, too_far
from holdfast.packs.layout import BLOCK_BYTES, STRIPE_BYTES
from holdfast.packs.model import Extent
from holdfast.packs.rows import KnownPack, PackRows
from holdfast.stores.port import Range, ShardSpoiled, ShardTruncated, ShardUnreadable, Store

WINDOW_BYTES = 1 << 20
"""Most bytes of one shard that one call reads: bounds what a cached read costs the loop."""

READING_BYTES = 32 << 20
"""What all large reads together hold, window and next window; rebuilding needs as much again."""

READERS_AHEAD_MAX = READING_BYTES // (2 * STRIPE_BYTES)

READ_TIMEOUT_S = 10.0

READING_S = 3600.0
"""How long packs that other nodes have buried wait for a read: it is a slow client's own affair then."""

OVERDUE_S = 0.060
"""A read that has not answered by then speaks against its store; before, it is only hedged."""

TIMER_EARLY_S = 1e-6
"""A timer may fire this much before its time: rounded, what is due now must not look as if it were to come,
or it is waited for again and again without any time passing."""

DamageReport = Callable[[PackId, int, str], None]
"""Told of a pack, a shard (-1: not one alone) and what is wrong with it."""


class WrongBytes(Damaged):
    """A store answered with blocks whose checksums are wrong."""


class Reader:
    """Reads verified bytes of packs."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        rows: PackRows,
        health: StoreHealth,
        clock: Clock,
        on_damage: DamageReport,
    ) -> None:
        self._stores = stores
        self._rows = rows
        self._health = health
        self._clock = clock
        self._on_damage = on_damage
        self.budget = HedgeBudget()
        self._turn = 0
        self._readers = 0
        self._in_use: Counter[PackId] = Counter()
        self._under_way: dict[int, tuple[int, float]] = {}
        self._reads = 0

    def in_use(self, pack: PackId) -> bool:
        """Whether somebody reads from a pack, or will before the read ends that it belongs to."""
        return pack in self._in_use

    def oldest_read(self, known: int) -> int:
        """The oldest revision that a read under way may go by, where `known` is the newest; of those that do
        not take for ever."""
        since = self._clock.monotonic() - READING_S
        return min((at for at, began in self._under_way.values() if began > since), default=known)

    async def read_small(self, extent: Extent) -> Buffer:
        """All of one extent, at most 1 MiB. Raises TooManyShardsLost, TooFewShardsAnswer, PackGone."""
        known = self._rows.cached(extent.pack) or await self._find(extent.pack)
        while True:
            pieces = list(known.layout.slices(extent.offset, extent.length))
            try:
                if len(pieces) == 1:
                    return await self._slice(known, pieces[0].shard, pieces[0].offset, pieces[0].length)
                parts = await asyncio.gather(
                    *[self._slice(known, piece.shard, piece.offset, piece.length) for piece in pieces]
                )
                return b"".join(parts)
            except PackMoved as moved:
                known = moved.known

    async def read(self, extents: Sequence[Extent], offset: int, length: int) -> AsyncIterator[Buffer]:
        """See `PackStorage.read`. While few read, the next window is fetched as the last is being used."""
        self._readers += 1
        steps = self._steps(extents, offset, length)
        packs = [extent.pack for extent in extents]
        ahead: asyncio.Task[deque[Buffer]] | None = None
        self._in_use.update(packs)
        self._reads += 1
        number = self._reads
        if self._rows.is_shared:
            self._under_way[number] = self._rows.revision, self._clock.monotonic()
        try:
            for step in steps:
                current, ahead = ahead, asyncio.create_task(self._step(*step))
                if current is None and self._readers > READERS_AHEAD_MAX:
                    current, ahead = ahead, None
                if current is not None:
                    pieces = await current
                    del current
                    while pieces:
                        yield pieces.popleft()
            if ahead is not None:
                for piece in await ahead:
                    yield piece
        finally:
            self._readers -= 1
            self._under_way.pop(number, None)
            if ahead is not None:
                ahead.cancel()
                ahead.add_done_callback(_ignore)
            for pack in packs:
                self._in_use[pack] -= 1
                if not self._in_use[pack]:
                    del self._in_use[pack]

    def _steps(
        self, extents: Sequence[Extent], offset: int, length: int
    ) -> Iterable[tuple[PackId, int, int]]:
        """The range as (pack, offset, length), each at most a window; windows shrink as readers grow."""
        for extent in extents:
            if offset >= extent.length:
                offset -= extent.length
                continue
            take = min(length, extent.length - offset)
            at, length = extent.offset + offset, length - take
            offset = 0
            while take:
                # Windows begin where stripes do, so that only the ends of a range are cut.
                window = self._window_bytes()
                size = min(take, window - at % window)
                yield extent.pack, at, size
                at, take = at + size, take - size
            if not length:
                return
        assert length == 0, "a read reaches beyond its extents"

    def _window_bytes(self) -> int:
        """What one step reads: so that all readers together hold about `READING_BYTES`, and each at
        least a stripe."""
        stripes = READING_BYTES // (2 * STRIPE_BYTES * max(1, self._readers))
        return STRIPE_BYTES * min(max(1, stripes), 4)

    async def _step(self, pack: PackId, offset: int, length: int) -> deque[Buffer]:
        known = self._rows.cached(pack) or await self._find(pack)
        while True:
            try:
                return await self._window(known, offset, length)
            except PackMoved as moved:
                known = moved.known

    async def _find(self, pack: PackId) -> KnownPack:
        """A pack's row. What another node has buried while it is read here keeps its row in the grave, and
        its shards until this read is over. Raises PackGone."""
        try:
            return await self._rows.get(pack)
        except PackGone:
            if not self._rows.is_shared:
                raise
            buried = await self._rows.buried(pack)
            if buried is None:
                raise
            return buried

    async def _window(self, known: KnownPack, offset: int, length: int) -> deque[Buffer]:
        layout = known.layout
        full = layout.unit_bytes * layout.k
        result: deque[Buffer] = deque()
        while length:
            stripe, inside = divmod(offset, full)
            stripe_bytes = min(full, layout.stored_bytes - stripe * full)
            if inside == 0 and length >= stripe_bytes:
                count = 1
                while (
                    length >= (count + 1) * full
                    and (count + 1) * layout.unit_bytes <= WINDOW_BYTES
                    and stripe + count < layout.full_stripes
                ):
                    count += 1
                window = await self.stripes(known, stripe, count)
                window[-1] = memoryview(window[-1])[: stripe_bytes if count == 1 else full]
                result += window
                taken = stripe_bytes if count == 1 else count * full
            else:
                taken = min(length, stripe_bytes - inside)
                pieces = [
                    self._slice(known, piece.shard, piece.offset, piece.length)
                    for piece in layout.slices(offset, taken)
                ]
                result += [await pieces[0]] if len(pieces) == 1 else await asyncio.gather(*pieces)
            offset += taken
            length -= taken
        return result

    async def stripes(
        self, known: KnownPack, first: int, count: int, without: Collection[int] = ()
    ) -> list[Buffer]:
        """`count` whole stripes from `first`, each with its filling; all full, or one alone. Shards `without`
        which it can be done are only read when others fail."""
        layout, scheme = known.layout, known.row.scheme
        unit = layout.unit_of(first)
        start = layout.shard_offset(first) // BLOCK_BYTES
        blocks = count * unit // BLOCK_BYTES
        wanted = range(layout.real_data_shards) if scheme.k > 1 else [self._copy(known)]
        if without or (scheme.k > 1 and self._health.has_far):
            wanted = self._sources(known, without) or wanted
        units = await self._blocks(known, wanted, start, blocks)
        zeros = bytes(unit) if known.virtual else b""
        result: list[Buffer] = []
        for number in range(count):
            part: dict[int, Buffer] = {
                shard: memoryview(data)[number * unit : (number + 1) * unit] for shard, data in units.items()
            }
            part.update(dict.fromkeys(known.virtual, zeros))
            result.append(codec.restore(scheme, part, unit))
            if number + 1 < count and not all(shard in part for shard in range(scheme.k)):
                await self._clock.sleep(0)
        return result

    def _sources(self, known: KnownPack, without: Collection[int]) -> list[int]:
        """Just as many shards as the others can be made from: those on well stores first, near ones before
        far ones, data before parity, which has to be decoded, quick stores before slow ones. None when there
        are not enough."""
        there = [shard for shard in known.places if shard not in without]
        needed = known.row.scheme.k - len(known.virtual)

        avoided = self._avoided(known)

        def cost(shard: int) -> tuple[bool, int, bool, float]:
            store = known.places[shard].store
            away = store not in self._stores or shard in avoided
            far = self._health.nearness(store)
            return away, far, shard >= known.row.scheme.k, self._health.hedge_after_s(store)

        there.sort(key=cost)
        return there[:needed] if len(there) >= needed else []

    async def _slice(self, known: KnownPack, shard: int, offset: int, length: int) -> Buffer:
        """Bytes of the data region of one data shard, inside one stripe."""
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        scheme = known.row.scheme
        wanted = shard if scheme.k > 1 else self._copy(known)
        units = await self._blocks(known, [wanted], first, last - first + 1)
        if wanted in units:
            data = units[wanted]
        else:
            size = (last - first + 1) * BLOCK_BYTES
            units.update(dict.fromkeys(known.virtual, bytes(size)))
            stripe = codec.restore(scheme, units, size)
            data = stripe[shard * size : (shard + 1) * size] if scheme.k > 1 else stripe
        start = offset - first * BLOCK_BYTES
        if start == 0 and length == len(data):
            return data
        return memoryview(data)[start : start + length]

    def _avoided(self, known: KnownPack) -> set[int]:
        health, places = self._health, known.places
        out = [shard for shard, place in places.items() if not health.readable(place.store)]
        doubted = [shard for shard, place in places.items() if not health.preferred(place.store)]
        return to_avoid(places, out, doubted)

    def _copy(self, known: KnownPack) -> int:
        """Which copy of a mirror to read: each in turn, those of well stores first."""
        self._turn += 1
        there = list(known.places)
        avoided = self._avoided(known)
        well = [shard for shard in there if shard not in avoided] or there
        if self._health.has_far:
            far = {shard: self._health.nearness(known.places[shard].store) for shard in well}
            least = min(far.values(), default=0)
            well = [shard for shard in well if far[shard] == least]
        return well[self._turn % len(well)] if well else 0

    async def _blocks(
        self, known: KnownPack, wanted: Iterable[int], first: int, count: int
    ) -> dict[int, Buffer]:
        """Right blocks of the wanted shards, or, when one can't be had, of any k (virtual included)."""
        self.budget.earn()
        wanted = list(wanted)
        if len(wanted) == 1:
            if (data := self._peek(known, wanted[0], first, count)) is not None:
                return {wanted[0]: data}
            if (units := self._peek_others(known, wanted[0], first, count)) is not None:
                return units
        try:
            return await self._race(known, wanted, first, count)
        except (TooManyShardsLost, TooFewShardsAnswer) as error:
            # Shards move; only what the index says now counts.
            fresh = await self._rows.fresh(known.pack)
            if fresh.revision == known.revision:
                if count == 1 or not error.facts["spoiled"]:
                    raise
                return await self._block_by_block(known, wanted, first, count)
            if fresh.row.scheme != known.row.scheme:
                # Written anew with another geometry: the caller's blocks are not its blocks.
                raise PackMoved(fresh) from None
            return await self._blocks(fresh, wanted, first, count)

    async def _block_by_block(
        self, known: KnownPack, wanted: Sequence[int], first: int, count: int
    ) -> dict[int, Buffer]:
        """The wanted shards' blocks where more shards than the scheme can lose have some that are spoiled,
        but not all at the same place: each block is rebuilt from those that are right there. Raises as
        `_race`, for the first block that can't be."""
        scheme = known.row.scheme
        found: dict[int, bytearray] = {shard: bytearray() for shard in wanted}
        for block in range(first, first + count):
            units = await self._race(known, wanted, block, 1)
            if not found.keys() <= units.keys():
                units.update(dict.fromkeys(known.virtual, bytes(BLOCK_BYTES)))
                stripe = codec.restore(scheme, units, BLOCK_BYTES)
                for shard in wanted:
                    at = shard * BLOCK_BYTES if scheme.k > 1 else 0
                    units[shard] = memoryview(stripe)[at : at + BLOCK_BYTES]
            for shard, data in found.items():
                data += units[shard]
            await self._clock.sleep(0)
        return dict(found)

    def _peek(self, known: KnownPack, shard: int, first: int, count: int) -> Buffer | None:
        """One shard's blocks, if they are in memory, on a well store, and right."""
        place = known.places.get(shard)
        if place is None or not self._health.readable(place.store):
            return None
        store = self._stores.get(place.store)
        if store is None:
            return None
        found = store.peek(
            shard_name(known.pack, shard, place.attempt), _ranges(known.layout.blocks, first, count)
        )
        if found is None or wrong_blocks(found[1], found[0], known.seeds[shard], first):
            return None
        return found[1]

    def _peek_others(self, known: KnownPack, shard: int, first: int, count: int) -> dict[int, Buffer] | None:
        """Enough of the others to rebuild the blocks of a shard whose store is away, if all are in memory, on
        well stores, and right. The usual read while stores are lost; a race would only cost tasks."""
        place = known.places.get(shard)
        if place is None or (place.store in self._stores and self._health.readable(place.store)):
            return None
        self._rows.suspect(known)
        needed = known.row.scheme.k - len(known.virtual)
        well = [
            other
            for other, where in known.places.items()
            if other != shard and where.store in self._stores and self._health.readable(where.store)
        ]
        if known.row.scheme.k == 1 or len(well) < needed:
            return None
        units: dict[int, Buffer] = {}
        for other in well[:needed]:
            data = self._peek(known, other, first, count)
            if data is None:
                return None
            units[other] = data
        return units

    async def _race(
        self, known: KnownPack, wanted: Sequence[int], first: int, count: int
    ) -> dict[int, Buffer]:
        health, clock = self._health, self._clock
        places = known.places
        avoided = self._avoided(known)
        if health.has_far:
            nearness = {shard: health.nearness(place.store) for shard, place in places.items()}
            avoided |= too_far(known.row.scheme.k - len(known.virtual), wanted, nearness, avoided)
        there: Iterable[int] = places
        if avoided or health.has_far:
            # Near ones first; where it has to be one of those to avoid: in doubt rather than out of use, and
            # quick ones first.
            there = sorted(
                places,
                key=lambda shard: (
                    shard in avoided,
                    not health.readable(places[shard].store),
                    health.nearness(places[shard].store),
                    shard in avoided and health.hedge_after_s(places[shard].store),
                ),
            )
        plan = ReadPlan(known.row.scheme.k, wanted, there, known.virtual, avoided)
        units: dict[int, Buffer] = {}
        errors: list[str] = []
        tasks: dict[asyncio.Task[Buffer], int] = {}
        due: dict[int, float] = {}
        began = clock.monotonic()

        def begin(shards: Iterable[int]) -> None:
            now = clock.monotonic()
            for shard in shards:
                tasks[asyncio.create_task(self.shard_blocks(known, shard, first, count))] = shard
                due[shard] = now + health.hedge_after_s(places[shard].store, count * BLOCK_BYTES)

        for shard in wanted:
            if shard not in places and shard not in known.virtual:
                self._on_damage(known.pack, shard, "missing")
        lost = spoiled = 0
        begin(plan.start())
        try:
            while plan.state is PlanState.READING:
                wake = min((due[shard] for shard in tasks.values() if shard in due), default=None)
                now = clock.monotonic()
                timeout = None if wake is None else max(0.0, wake - now)
                done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in tasks if task in done]:  # `done` has no order of its own
                    shard = tasks.pop(task)
                    due.pop(shard, None)
                    error = task.exception()
                    if error is None:
                        units[shard] = task.result()
                        plan.arrive(shard)
                    elif isinstance(error, HoldfastError):
                        self._rows.suspect(known)
                        errors.append(f"shard {shard}: {error}")
                        lost += isinstance(error, Damaged)
                        spoiled += isinstance(
                            error, WrongBytes | ShardSpoiled | ShardTruncated | ShardUnreadable
                        )
                        begin(plan.fail(shard))
                    else:
                        raise error
                now = clock.monotonic() + TIMER_EARLY_S
                for shard in [shard for shard, moment in due.items() if moment <= now]:
                    last = began + UNCONDITIONAL_S + health.way_s(places[shard].store, count * BLOCK_BYTES)
                    if now >= last or self.budget.spend():
                        del due[shard]
                        begin(plan.late(shard))
                    else:
                        due[shard] = last
        finally:
            for task, shard in tasks.items():
                # Left to land: its store's latency is known only when it does.
                task.add_done_callback(_ignore)
                self._watch(task, places[shard].store, began)
        if plan.state is PlanState.FAILED:
            hint = "; ".join(errors) or "no shard has a place."
            k, name = known.row.scheme.k, known.pack.hex()
            if len(places) + len(known.virtual) - lost >= k:
                raise TooFewShardsAnswer(
                    f"Fewer than {k} shards of pack {name} answer for blocks {first} to {first + count - 1}:",
                    hint=hint,
                    pack=name,
                    spoiled=spoiled,
                )
            raise TooManyShardsLost(
                f"Pack {name} has fewer than {k} readable shards for blocks {first} to {first + count - 1}:",
                hint=hint,
                pack=name,
                spoiled=spoiled,
            )
        return units

    def _watch(self, task: asyncio.Task[Buffer], store: StoreId, began: float) -> None:
        """Tell health of a read that others have overtaken, should it stay out for long."""

        def look() -> None:
            if not task.done():
                self._health.overdue(store, self._clock.monotonic())

        left_s = began + OVERDUE_S + self._health.way_s(store, WINDOW_BYTES) - self._clock.monotonic()
        asyncio.get_running_loop().call_later(max(0.0, left_s), look)

    async def shard_blocks(
        self, known: KnownPack, shard: int, first: int, count: int, *, uncached: bool = False
    ) -> Buffer:
        """Blocks of one shard, verified. Raises WrongBytes and the store's errors, after telling
        `on_damage` what is wrong for good."""
        place = known.places[shard]
        store = self._stores.get(place.store)
        if store is None:
            # Nothing to mend: what it holds is there again when it is.
            raise Unavailable(f"store {place.store} is not attached")
        name = shard_name(known.pack, shard, place.attempt)
        ranges = _ranges(known.layout.blocks, first, count)
        try:
            table, data = await store.get(name, ranges, timeout_s=READ_TIMEOUT_S, uncached=uncached)
        except (Damaged, ShardUnreadable) as error:
            self._on_damage(known.pack, shard, str(error))
            raise
        self.check_blocks(known, shard, data, table, first)
        return data

    def check_blocks(self, known: KnownPack, shard: int, data: Buffer, table: Buffer, first: int) -> None:
        """Whether blocks of a shard are right. Raises WrongBytes, after telling what is wrong."""
        wrong = wrong_blocks(data, table, known.seeds[shard], first)
        if wrong:
            place = known.places[shard]
            self._health.wrong(place.store, len(wrong))
            self.tell_damage(known.pack, shard, f"{len(wrong)} wrong blocks, first {wrong[0]}")
            name = shard_name(known.pack, shard, place.attempt)
            raise WrongBytes(
                f"{len(wrong)} blocks of {name} on store {place.store} are wrong", store=place.store
            )

    def tell_damage(self, pack: PackId, shard: int, what: str) -> None:
        """Something is wrong with a shard: tell `on_damage`."""
        self._on_damage(pack, shard, what)

    async def from_medium(
        self, known: KnownPack, shard: int, first: int, count: int, table: Buffer | None = None
    ) -> tuple[Buffer, Buffer]:
        """Blocks of one shard, verified, and its table of checksums, from the medium, in one call. Without
        the table (then `first` is 0), all of its file that is not blocks is read and verified as well: what
        it says of itself, and that nothing was added to it. Raises as `shard_blocks`."""
        data, table = await self.unverified(known, shard, first, count, table)
        self.check_blocks(known, shard, data, memoryview(table)[4 * first : 4 * (first + count)], first)
        return data, table

    async def unverified(
        self, known: KnownPack, shard: int, first: int, count: int, table: Buffer | None = None
    ) -> tuple[Buffer, Buffer]:
        """As `from_medium`, for callers who then verify the blocks themselves."""
        place = known.places[shard]
        store = self._stores.get(place.store)
        if store is None:
            raise Unavailable(f"store {place.store} is not attached")
        name = shard_name(known.pack, shard, place.attempt)
        begin = data_offset(known.layout.blocks)
        try:
            if table is None:
                assert first == 0
                whole = Range(0, begin + count * BLOCK_BYTES)
                (found,) = await store.get(name, [whole], timeout_s=READ_TIMEOUT_S, uncached=True)
                size = await store.size(name, timeout_s=READ_TIMEOUT_S)
                view = memoryview(found)
                check_head(view[:begin], _header_of(known, shard), size, f"{name} on store {place.store}")
                table, data = view[TABLE_OFFSET : TABLE_OFFSET + 4 * known.layout.blocks], view[begin:]
            else:
                blocks = Range(begin + first * BLOCK_BYTES, count * BLOCK_BYTES)
                (found,) = await store.get(name, [blocks], timeout_s=READ_TIMEOUT_S, uncached=True)
                data = memoryview(found)
        except (Damaged, ShardUnreadable) as error:
            self._on_damage(known.pack, shard, str(error))
            raise
        return data, table


class PackMoved(Damaged):
    """The pack was written anew while it was read: start the read again with `known`. A pack moves
    rarely and for good reason, so that trying again ends."""

    def __init__(self, known: KnownPack) -> None:
        super().__init__("The pack was written anew while it was read.")
        self.known = known


def _header_of(known: KnownPack, shard: int) -> ShardHeader:
    """What a shard has to say of itself."""
    row = known.row
    attempt = known.places[shard].attempt
    return ShardHeader(known.pack, shard, attempt, row.scheme, row.payload_bytes, row.manifest_bytes)


def _ranges(blocks: int, first: int, count: int) -> tuple[Range, Range]:
    """Where the checksums and the bytes of some blocks lie in a shard file of `blocks` blocks."""
    return (
        Range(TABLE_OFFSET + 4 * first, 4 * count),
        Range(data_offset(blocks) + first * BLOCK_BYTES, count * BLOCK_BYTES),
    )


def _ignore(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()

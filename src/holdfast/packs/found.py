"""Reading a pack that only its shards tell of: no row, no index, just names found at stores.

Every shard file says which pack, scheme and sizes it belongs to, and every block is bound to its place; so
shards that agree are put together from any k of them. What must hold: nothing unverified is ever
answered. A shard that lies about itself, is cut short or wrong in one block is passed over for that read,
and when fewer than k are left the answer is an error that says so, never a guess. Shards of one pack that
were written in different schemes (a rewrite was under way) are never mixed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Damaged, HoldfastError, Unavailable
from holdfast.base.ids import PackId, StoreId
from holdfast.packs import codec
from holdfast.packs.format import (
    HEADER_BYTES,
    TABLE_OFFSET,
    ShardHeader,
    binding,
    data_offset,
    decode_header,
    wrong_blocks,
)
from holdfast.packs.layout import BLOCK_BYTES, Layout
from holdfast.packs.manifest import Manifest, decode_manifest_whole
from holdfast.packs.model import PackRow, Place
from holdfast.scheme import Scheme
from holdfast.stores.port import Range, Store

READ_TIMEOUT_S = 10.0
ROUNDS_PER_STRIPE_MAX = 64


class FoundShard(NamedTuple):
    """One shard as a listing showed it: the blob's whole name, and what the name says."""

    store: StoreId
    name: str
    shard: int
    attempt: int


class FoundPack(Struct, frozen=True):
    """Shards that agree with each other on what pack they are of. `shards` may hold several for one number;
    any of them will do."""

    pack: PackId
    scheme: Scheme
    payload_bytes: int
    manifest_bytes: int
    shards: tuple[FoundShard, ...]

    @property
    def layout(self) -> Layout:
        """The geometry."""
        return Layout(self.scheme.k, self.payload_bytes + self.manifest_bytes)

    @property
    def numbers(self) -> frozenset[int]:
        """Which shards are there."""
        return frozenset(shard.shard for shard in self.shards)

    @property
    def missing(self) -> tuple[int, ...]:
        """Real shards that nobody has."""
        layout = self.layout
        return tuple(
            shard
            for shard in range(self.scheme.n)
            if shard not in self.numbers and not layout.is_virtual(shard)
        )

    @property
    def losses_left(self) -> int:
        """How many more shards may go; below zero the pack cannot be read."""
        return len(self.numbers) - self.layout.real_data_shards

    def row(self, object_bytes: int) -> PackRow:
        """The row that names one shard of each number, on as many stores as there are."""
        places: dict[int, Place] = {}
        used: set[StoreId] = set()
        for shard in sorted(self.shards, key=lambda shard: (shard.shard, shard.attempt, shard.store)):
            there = places.get(shard.shard)
            if there is None or (there.store in used - {shard.store} and shard.store not in used):
                places[shard.shard] = Place(shard.shard, shard.store, shard.attempt)
                used = {place.store for place in places.values()}
        ordered = tuple(places[number] for number in sorted(places))
        return PackRow(self.scheme, self.payload_bytes, self.manifest_bytes, object_bytes, ordered)


async def identify(
    stores: Mapping[StoreId, Store], pack: PackId, shards: Sequence[FoundShard]
) -> list[FoundPack]:
    """What these shards say they are, the most complete first. Shards without a valid header of this very
    pack are left out. A store that fails is taken as not having its shards."""
    headers = await asyncio.gather(*[_header(stores, shard) for shard in shards])
    groups: dict[tuple[Scheme, int, int], list[FoundShard]] = {}
    for shard, header in zip(shards, headers, strict=True):
        if header is None or (header.pack, header.shard, header.attempt) != (
            pack,
            shard.shard,
            shard.attempt,
        ):
            continue
        groups.setdefault((header.scheme, header.payload_bytes, header.manifest_bytes), []).append(shard)
    found = [FoundPack(pack, *key, tuple(group)) for key, group in groups.items()]
    return sorted(found, key=lambda one: (-one.losses_left, one.scheme.name))


async def _header(stores: Mapping[StoreId, Store], shard: FoundShard) -> ShardHeader | None:
    store = stores.get(shard.store)
    if store is None:
        return None
    try:
        (head,) = await store.get(shard.name, [Range(0, HEADER_BYTES)], timeout_s=READ_TIMEOUT_S)
        return decode_header(head, shard.name)
    except HoldfastError:
        return None  # what it cannot say counts as absent; the others say it


class FoundReader:
    """Reads one found pack. Remembers which shards were wrong, so that they are asked only once."""

    def __init__(self, stores: Mapping[StoreId, Store], found: FoundPack, *, uncached: bool = False) -> None:
        self._stores = stores
        self._found = found
        self._layout = found.layout
        self._uncached = uncached
        self.wrong: dict[FoundShard, str] = {}

    async def payload(self) -> bytes:
        """All of the payload. Raises Damaged or Unavailable when fewer than k shards can be read."""
        return await self.read(0, self._found.payload_bytes)

    async def manifest(self) -> Manifest:
        """What the pack says of itself. Raises as `payload`."""
        raw = await self.read(self._found.payload_bytes, self._found.manifest_bytes)
        return decode_manifest_whole(raw, f"pack {self._found.pack.hex()}")

    async def read(self, offset: int, length: int) -> bytes:
        """These of the stored bytes. Raises as `payload`."""
        if not length:
            return b""
        layout = self._layout
        full = layout.unit_bytes * layout.k
        parts: list[Buffer] = []
        for stripe in range(offset // full, (offset + length - 1) // full + 1):
            data = await self._stripe(stripe)
            start = max(0, offset - stripe * full)
            parts.append(memoryview(data)[start : offset + length - stripe * full])
        return b"".join(parts)

    async def _stripe(self, stripe: int) -> Buffer:
        layout, scheme = self._layout, self._found.scheme
        unit = layout.unit_of(stripe)
        units: dict[int, Buffer] = {
            shard: bytes(unit) for shard in range(scheme.k) if layout.is_virtual(shard)
        }
        for _ in range(ROUNDS_PER_STRIPE_MAX):
            wanted = scheme.k - len(units)
            if wanted <= 0:
                return codec.restore(scheme, units, unit)
            chosen = self._choose(set(units), wanted)
            if len(chosen) < wanted:
                break
            answers = await asyncio.gather(*[self._unit(shard, stripe) for shard in chosen])
            for shard, answer in zip(chosen, answers, strict=True):
                if answer is not None:
                    units[shard.shard] = answer
        raise self._too_few()

    def _choose(self, have: set[int], wanted: int) -> list[FoundShard]:
        """Shards to ask next: data before parity, one of each number."""
        chosen: dict[int, FoundShard] = {}
        for shard in sorted(self._found.shards):
            if shard.shard not in have and shard not in self.wrong:
                chosen.setdefault(shard.shard, shard)
        return [chosen[number] for number in sorted(chosen)][:wanted]

    async def _unit(self, shard: FoundShard, stripe: int) -> Buffer | None:
        layout = self._layout
        first, count = layout.shard_offset(stripe) // BLOCK_BYTES, layout.unit_of(stripe) // BLOCK_BYTES
        ranges = [
            Range(TABLE_OFFSET + 4 * first, 4 * count),
            Range(data_offset(layout.blocks) + first * BLOCK_BYTES, count * BLOCK_BYTES),
        ]
        store = self._stores.get(shard.store)
        if store is None:
            self.wrong[shard] = "its store is away"
            return None
        try:
            table, data = await store.get(
                shard.name, ranges, timeout_s=READ_TIMEOUT_S, uncached=self._uncached
            )
        except HoldfastError as error:
            self.wrong[shard] = str(error)
            return None
        if wrong := wrong_blocks(data, table, binding(self._found.pack, shard.shard, shard.attempt), first):
            self.wrong[shard] = f"{len(wrong)} wrong blocks, first {wrong[0]}"
            return None
        return data

    async def verify(self) -> bytes:
        """Read every shard, parity included, and the payload from them; `wrong` says what is not as it
        should be, a parity that does not match its data, too. Raises as `payload`."""
        layout, scheme = self._layout, self._found.scheme
        for stripe in range(layout.stripes):
            unit = layout.unit_of(stripe)
            data = await self._stripe(stripe)
            redundant = codec.parity(scheme, data)
            shards = [shard for shard in self._found.shards if shard not in self.wrong]
            units = await asyncio.gather(*[self._unit(shard, stripe) for shard in shards])
            for shard, found in zip(shards, units, strict=True):
                if found is None:
                    continue
                right = (
                    data[shard.shard * unit : (shard.shard + 1) * unit]
                    if shard.shard < scheme.k
                    else bytes(redundant[shard.shard - scheme.k])
                )
                if bytes(found) != right:
                    self.wrong[shard] = f"does not match the others in stripe {stripe}"
        return await self.payload()

    def _too_few(self) -> HoldfastError:
        found = self._found
        left = len({shard.shard for shard in found.shards if shard not in self.wrong})
        said = "; ".join(f"{shard.name} at {shard.store}: {why}" for shard, why in self.wrong.items())
        kind = Damaged if any("wrong blocks" in why for why in self.wrong.values()) else Unavailable
        return kind(
            f"Pack {found.pack.hex()} needs {found.layout.real_data_shards} shards and has {left}.",
            hint=f"Not readable: {said}." if said else "Bring stores back.",
        )

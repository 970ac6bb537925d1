"""Pack rows as readers need them: decoded once, kept in a bounded cache.

A cached row may be out of date: shards move. That is safe, because a shard's name is never used twice
and every block is verified against pack, shard and attempt: a reader that finds a shard gone asks
again with `fresh`.
"""

from collections import OrderedDict

import msgspec

from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Index
from holdfast.packs.errors import PackGone
from holdfast.packs.format import binding
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow, Place, pack_row

PLACES_CACHED = 131_072
"""Bounds the cache by what its rows weigh, about 400 bytes a place: 20,000 packs of six shards, 50 MB."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PackRow)


def encode_row(row: PackRow) -> bytes:
    """A pack row as the index holds it."""
    return _encoder.encode(row)


def decode_row(value: bytes) -> PackRow:
    """The other way."""
    return _decoder.decode(value)


class KnownPack:
    """A pack row with what follows from it."""

    __slots__ = ("layout", "pack", "places", "revision", "row", "seeds", "virtual")

    def __init__(self, pack: PackId, row: PackRow, revision: int) -> None:
        self.pack = pack
        self.row = row
        self.revision = revision
        self.layout = Layout(row.scheme.k, row.stored_bytes)
        self.places: dict[int, Place] = {place.shard: place for place in row.places}
        self.seeds = {place.shard: binding(pack, place.shard, place.attempt) for place in row.places}
        self.virtual = tuple(range(self.layout.real_data_shards, row.scheme.k))

    @property
    def stores(self) -> list[StoreId]:
        """The store of each durable shard."""
        return [place.store for place in self.row.places]

    @property
    def missing(self) -> tuple[int, ...]:
        """Real shards without a place."""
        return tuple(
            shard
            for shard in range(self.row.scheme.n)
            if shard not in self.places and not self.layout.is_virtual(shard)
        )


class PackRows:
    """The rows of packs, by id."""

    def __init__(self, index: Index, places_max: int = PLACES_CACHED) -> None:
        self._index = index
        self._places_max = places_max
        self._places = 0
        self._cache: OrderedDict[PackId, KnownPack] = OrderedDict()

    def cached(self, pack: PackId) -> KnownPack | None:
        """The row, if it is in memory."""
        return self._cache.get(pack)

    async def get(self, pack: PackId) -> KnownPack:
        """The row, from memory if it is there. Raises PackGone."""
        return self._cache.get(pack) or await self.fresh(pack)

    async def fresh(self, pack: PackId) -> KnownPack:
        """The row as the index has it now. Raises PackGone."""
        (found,) = await self._index.get([pack_row(pack)])
        if found is None:
            self.forget(pack)
            raise PackGone(f"Pack {pack.hex()} is not in the index any more.")
        return self.learn(pack, decode_row(found.value), found.revision)

    def learn(self, pack: PackId, row: PackRow, revision: int) -> KnownPack:
        """Remember a row that was just read or committed."""
        known = KnownPack(pack, row, revision)
        self.forget(pack)
        self._cache[pack] = known
        self._places += len(known.places)
        while self._places > self._places_max and len(self._cache) > 1:
            # The oldest by entry, not by use: keeping order of use would cost every read.
            _, oldest = self._cache.popitem(last=False)
            self._places -= len(oldest.places)
        return known

    def forget(self, pack: PackId) -> None:
        """The pack died, or another row is to take this one's place."""
        if (known := self._cache.pop(pack, None)) is not None:
            self._places -= len(known.places)

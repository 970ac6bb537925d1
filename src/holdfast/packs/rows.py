"""Pack rows as readers need them: decoded once, kept in a bounded cache.

A cached row may be out of date: shards move. That is safe, because a shard's name is never used twice
and every block is verified against pack, shard and attempt: a reader that finds a shard gone asks
again with `fresh`. Where other nodes move shards, too, a row that a read could not go by is forgotten
(`suspect`), or every later read would have to rebuild what lies well elsewhere.
"""

from collections import OrderedDict

import msgspec

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Index, Row
from holdfast.packs.disposal import row_buried
from holdfast.packs.errors import PackGone
from holdfast.packs.format import binding
from holdfast.packs.layout import Layout
from holdfast.packs.model import DebtRow, PackRow, Place, buried_row, pack_row
from holdfast.scheme import Scheme

PLACES_CACHED = 131_072
"""Bounds the cache by what its rows weigh, about 400 bytes a place: 20,000 packs of six shards, 50 MB."""

SUSPECT_S = 5.0
"""How old a row has to be before it is looked up again: what is lost is lost, however often one looks."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PackRow)
_debt_decoder = msgspec.msgpack.Decoder(DebtRow)


def encode_row(row: PackRow) -> bytes:
    """A pack row as the index holds it."""
    return _encoder.encode(row)


def decode_row(value: bytes) -> PackRow:
    """The other way."""
    return _decoder.decode(value)


def promised_scheme(row: PackRow, debt: Row | None) -> Scheme:
    """What a pack was promised, by its row and its debt row, if it has one, both read at once: not what it
    got while stores were missing."""
    return row.scheme if debt is None else _debt_decoder.decode(debt.value).promised


class KnownPack:
    """A pack row with what follows from it."""

    __slots__ = ("layout", "learned", "pack", "places", "revision", "row", "seeds", "virtual")

    def __init__(self, pack: PackId, row: PackRow, revision: int) -> None:
        self.pack = pack
        self.row = row
        self.revision = revision
        self.learned = 0.0
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
    """The rows of packs, by id. With a `clock`, others change them, too."""

    def __init__(self, index: Index, places_max: int = PLACES_CACHED, *, clock: Clock | None = None) -> None:
        self._clock = clock
        self._index = index
        self._places_max = places_max
        self._places = 0
        self._cache: OrderedDict[PackId, KnownPack] = OrderedDict()

    @property
    def is_shared(self) -> bool:
        """Whether other nodes use the same index."""
        return self._clock is not None

    @property
    def revision(self) -> int:
        """How far the index is, as far as this process knows."""
        return self._index.status().revision

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

    async def buried(self, pack: PackId) -> KnownPack | None:
        """The row of a pack that was buried a moment ago. It is not remembered."""
        (grave,) = await self._index.get([buried_row(pack)])
        row = None if grave is None else row_buried(grave)
        return None if grave is None or row is None else KnownPack(pack, row, grave.revision)

    def learn(self, pack: PackId, row: PackRow, revision: int) -> KnownPack:
        """Remember a row that was just read or committed."""
        known = KnownPack(pack, row, revision)
        if self._clock is not None:
            known.learned = self._clock.monotonic()
        self.forget(pack)
        self._cache[pack] = known
        self._places += len(known.places)
        while self._places > self._places_max and len(self._cache) > 1:
            # The oldest by entry, not by use: keeping order of use would cost every read.
            _, oldest = self._cache.popitem(last=False)
            self._places -= len(oldest.places)
        return known

    def suspect(self, known: KnownPack) -> None:
        """A read found a place of this row of no use: it may be out of date."""
        if self._clock is None or self._cache.get(known.pack) is not known:
            return
        if self._clock.monotonic() - known.learned >= SUSPECT_S:
            self.forget(known.pack)

    def forget(self, pack: PackId) -> None:
        """The pack died, or another row is to take this one's place."""
        if (known := self._cache.pop(pack, None)) is not None:
            self._places -= len(known.places)

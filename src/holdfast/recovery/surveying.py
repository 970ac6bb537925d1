"""What lies on the stores, held against the rows: shards that rows miss, packs that no row names.

Both are in the order of pack ids, so one walk through both is enough, however many there are. What must
hold: a row is only changed to name shards that say of themselves that they are the ones; a store that does
not answer is not taken for empty; and nothing is written or removed on any store.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, parse_shard_name, shard_name
from holdfast.index.port import Row, prefix_end
from holdfast.packs.found import FoundPack, FoundShard, identify
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow, Place, buried_row, pack_row
from holdfast.packs.rows import decode_row, encode_row
from holdfast.recovery.scratch import Scratch
from holdfast.stores.port import Store

PAGE = 500
TIMEOUT_S = 30.0
NAMED_MAX = 200
"""How many packs a report names."""

_PACKS = b"pack/"


class Nameless(NamedTuple):
    """A pack that no row names, alive or buried."""

    pack: PackId
    shards: tuple[FoundShard, ...]


class Survey(Struct):
    """What was found. `recent` are packs with rows that changed at or after the window's revision; `short`
    are packs that cannot be read from the stores that are there (`lost` are all of them, `short` those that
    are named); `stores` are all that rows name."""

    packs: int = 0
    shards: int = 0
    moved: int = 0
    degraded: int = 0
    nameless: list[Nameless] = []
    recent: list[Nameless] = []
    short: list[str] = []
    short_count: int = 0
    lost: set[PackId] = set()
    silent: dict[StoreId, str] = {}
    stores: set[StoreId] = set()


async def survey(
    stores: Mapping[StoreId, Store],
    scratch: Scratch,
    window: int,
    next_revision: Callable[[], int],
) -> Survey:
    """Walk through rows and stores."""
    found = Survey()
    rows = scratch.scan(_PACKS, prefix_end(_PACKS))
    row = next(rows, None)
    async for pack, shards in _by_pack(stores, found.silent):
        found.shards += len(shards)
        key = pack_row(pack)
        while row is not None and row.key < key:
            _count(found, row, {}, set(stores) - set(found.silent))
            row = next(rows, None)
        if row is None or row.key != key:
            (grave,) = scratch.get([buried_row(pack)])
            if grave is None:
                found.nameless.append(Nameless(pack, shards))
            continue
        if row.revision >= window:
            found.recent.append(Nameless(pack, shards))
        await _hold_against(stores, scratch, found, row, pack, shards, next_revision)
        row = next(rows, None)
    while row is not None:
        _count(found, row, {}, set(stores) - set(found.silent))
        row = next(rows, None)
    return found


async def _hold_against(
    stores: Mapping[StoreId, Store],
    scratch: Scratch,
    found: Survey,
    row: Row,
    pack: PackId,
    shards: tuple[FoundShard, ...],
    next_revision: Callable[[], int],
) -> None:
    """One pack that has a row."""
    there = {(shard.store, shard.name) for shard in shards}
    answering = set(stores) - set(found.silent)
    named = decode_row(row.value)
    missing = [
        place
        for place in named.places
        if place.store in answering
        and (place.store, shard_name(pack, place.shard, place.attempt)) not in there
    ]
    if missing and (mended := mend(named, missing, await identify(stores, pack, shards))) is not None:
        found.moved += 1
        row = Row(row.key, encode_row(mended), next_revision())
        scratch.put_rows([row])
    _count(found, row, {shard.name: shard.store for shard in shards}, answering)


def mend(row: PackRow, missing: list[Place], groups: list[FoundPack]) -> PackRow | None:
    """The row with shards that it does not name in the place of those that are missing; None when there are
    none. A pack that was written in another scheme after the journal's end is known by that. Pure."""
    same = [
        group
        for group in groups
        if (group.scheme, group.payload_bytes, group.manifest_bytes)
        == (row.scheme, row.payload_bytes, row.manifest_bytes)
    ]
    places = {place.shard: place for place in row.places if place not in missing}
    for group in same:
        for shard in group.shards:
            places.setdefault(shard.shard, Place(shard.shard, shard.store, shard.attempt))
    layout = Layout(row.scheme.k, row.stored_bytes)
    if len(places) >= layout.real_data_shards:
        for place in missing:
            places.setdefault(place.shard, place)  # repair finds it missing, and writes it again
        mended = tuple(places[number] for number in sorted(places))
        return replace(row, places=mended) if mended != row.places else None
    for group in groups:
        if group.losses_left >= 0 and group.payload_bytes == row.payload_bytes:
            return group.row(row.object_bytes)
    return None


def _count(found: Survey, row: Row, shards: Mapping[str, StoreId], answering: set[StoreId]) -> None:
    """How many shards of a pack are there."""
    pack = PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode()))
    value = decode_row(row.value)
    layout = Layout(value.scheme.k, value.stored_bytes)
    here = sum(
        shards.get(shard_name(pack, place.shard, place.attempt)) == place.store
        for place in value.places
        if place.store in answering
    )
    found.packs += 1
    found.stores.update(place.store for place in value.places)
    found.degraded += here < layout.real_data_shards + value.scheme.m
    if here < layout.real_data_shards:
        found.short_count += 1
        found.lost.add(pack)
        if len(found.short) < NAMED_MAX:
            found.short.append(pack.hex())


async def _by_pack(
    stores: Mapping[StoreId, Store], silent: dict[StoreId, str]
) -> AsyncIterator[tuple[PackId, tuple[FoundShard, ...]]]:
    """All shards of ordinary packs, pack by pack, in the order of their ids."""
    walks = {store: _Walk(store, there) for store, there in stores.items()}
    while True:
        for store, walk in list(walks.items()):
            if walk.at < len(walk.page):
                continue
            try:
                await walk.turn()
            except HoldfastError as error:
                # What it said before stands; what it did not say is not known.
                silent[store] = str(error)
                del walks[store]
                continue
            if not walk.page:
                del walks[store]
        if not walks:
            return
        pack = min(walk.page[walk.at].pack for walk in walks.values())
        shards: list[FoundShard] = []
        for walk in walks.values():
            while True:
                while walk.at < len(walk.page) and walk.page[walk.at].pack == pack:
                    shards.append(walk.page[walk.at].shard)
                    walk.at += 1
                if walk.at < len(walk.page) or walk.ended:
                    break
                try:
                    await walk.turn()
                except HoldfastError:
                    break  # found again, and told, when its next page is needed
        yield pack, tuple(shards)


class _Seen(NamedTuple):
    pack: PackId
    shard: FoundShard


class _Walk:
    """Through the names of one store."""

    def __init__(self, store: StoreId, there: Store) -> None:
        self._store = store
        self._there = there
        self._after = ""
        self.page: list[_Seen] = []
        self.at = 0
        self.ended = False

    async def turn(self) -> None:
        """The next page that has shards of ordinary packs; empty at the end."""
        self.page, self.at = [], 0
        while not self.page and not self.ended:
            names = await self._there.list(self._after, limit=PAGE, timeout_s=TIMEOUT_S)
            if not names:
                self.ended = True
                return
            self._after = names[-1]
            for name in names:
                if (parts := parse_shard_name(name)) is not None:
                    self.page.append(_Seen(parts[0], FoundShard(self._store, name, *parts[1:])))

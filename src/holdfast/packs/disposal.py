"""Removing shards, and only those that the index has declared dead for good.

Two kinds of rows are to-do lists, written in the transaction that made the shards dead and removed when the
stores have confirmed: `buried/<pack>` (all shards of a pack) and `trash/<store>/<name>` (one shard of a pack
that lives on without it). A store that is away keeps its entries until it is back.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, shard_name
from holdfast.cluster.others import NOBODY, Others
from holdfast.index.port import ABSENT, Expect, Index, Row, Transaction, prefix_end
from holdfast.packs.model import PackRow, buried_row, pack_row
from holdfast.stores.port import Store

DELETE_TIMEOUT_S = 10.0
PAGE = 200


class Burial(Struct, frozen=True, array_like=True):
    """Value of a `buried` row: the shards that are left to remove, as (store, name); and, where several nodes
    use the index, the row that the pack had, for those who are reading it still."""

    shards: tuple[tuple[StoreId, str], ...]
    row: PackRow | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Burial)


def shards_of(pack: PackId, row: PackRow) -> tuple[tuple[StoreId, str], ...]:
    """Store and name of every shard that a row names."""
    return tuple((place.store, shard_name(pack, place.shard, place.attempt)) for place in row.places)


def burial(pack: PackId, shards: Sequence[tuple[StoreId, str]]) -> Transaction:
    """Declare a pack id dead that has no row: the collector's half of the race with its writer."""
    return Transaction(
        (Expect(pack_row(pack), ABSENT), Expect(buried_row(pack), ABSENT)),
        ((buried_row(pack), encode_burial(shards)),),
    )


def further_burial(pack: PackId, grave: Row | None, shards: Sequence[tuple[StoreId, str]]) -> Transaction:
    """Add shards to a pack id that is dead already; `grave` is its `buried` row, if that is still there."""
    if grave is None:
        return burial(pack, shards)
    found = _decoder.decode(grave.value)
    all_shards = tuple(dict.fromkeys((*found.shards, *shards)))
    value = encode_burial(all_shards, found.row)
    return Transaction((Expect(grave.key, grave.revision),), ((grave.key, value),))


def shards_buried(grave: Row) -> tuple[tuple[StoreId, str], ...]:
    """Store and name of every shard that a `buried` row has yet to see removed."""
    return _decoder.decode(grave.value).shards


def row_buried(grave: Row) -> PackRow | None:
    """The row that a pack had before it was buried, as long as none of its shards has been removed."""
    return _decoder.decode(grave.value).row


def encode_burial(shards: Sequence[tuple[StoreId, str]], row: PackRow | None = None) -> bytes:
    """The value of a `buried` row."""
    burial_ = Burial(tuple(shards), row)
    # Without a row nothing is said of one: as it always was.
    return _encoder.encode(burial_ if row is not None else (burial_.shards,))


class Disposal:
    """Carries the to-do lists out. `is_gone` says of a store that it will never be back: what was to be
    removed there is removed with it. `is_awaited` says of a buried pack that a writer may still come with
    its row: the grave stays, empty, so that it is turned away. `is_covered` says of a revision that the
    journal has it: what recovery does not know to be dead is not removed yet. A grave waits for the readers
    and writers of `others`, too, who use the same index."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        index: Index,
        is_gone: Callable[[StoreId], bool] = lambda store: False,
        is_awaited: Callable[[PackId], bool] = lambda pack: False,
        is_covered: Callable[[int], bool] = lambda revision: True,
        others: Others = NOBODY,
    ) -> None:
        self._others = others
        self._is_covered = is_covered
        self._is_awaited = is_awaited
        self._stores = stores
        self._index = index
        self._is_gone = is_gone

    async def sweep_buried(self, after: bytes = b"") -> tuple[int, bytes]:
        """One page of `buried` rows; answers how many shards went and where to go on (b"" at the end)."""
        rows = await self._page(b"buried/", after)
        said = await self._others.look() if rows else None
        failed: set[StoreId] = set()
        changes = []
        removed = 0
        for row in rows:
            if not self._is_covered(row.revision):
                continue
            shards = shards_buried(row)
            if shards and said is not None and said.is_read(row.revision):
                continue
            pack = PackId(bytes.fromhex(row.key.removeprefix(b"buried/").decode()))
            left = [shard for shard in shards if not await self._remove(*shard, failed)]
            removed += len(shards) - len(left)
            expects = (Expect(row.key, row.revision),)
            awaited = self._is_awaited(pack) or said is None or said.may_come_back(row.revision)
            if not left and not awaited:
                changes.append(Transaction(expects, (), (row.key,)))
            elif len(left) < len(shards):
                changes.append(Transaction(expects, ((row.key, encode_burial(left)),)))
        if changes:
            # Whatever the outcomes: a row still says what is left, and removing twice is harmless.
            await self._index.commit(changes)
        return removed, rows[-1].key if len(rows) == PAGE else b""

    async def sweep_trash(self, after: bytes = b"") -> tuple[int, bytes]:
        """One page of `trash` rows, likewise."""
        rows = await self._page(b"trash/", after)
        failed: set[StoreId] = set()
        done = []
        for row in rows:
            _, store, name = row.key.decode().split("/", 2)
            if self._is_covered(row.revision) and await self._remove(StoreId(store), name, failed):
                done.append(Transaction((Expect(row.key, row.revision),), (), (row.key,)))
        if done:
            await self._index.commit(done)
        return len(done), rows[-1].key if len(rows) == PAGE else b""

    async def _page(self, prefix: bytes, after: bytes) -> list[Row]:
        start = after + b"\0" if after else prefix
        found = await self._index.scan(start, prefix_end(prefix), limit=PAGE)
        return [row for row in found if isinstance(row, Row)]

    async def _remove(self, store: StoreId, name: str, failed: set[StoreId]) -> bool:
        """Whether a shard is gone. A store that failed once is left alone for the rest of the page: one that
        hangs must not hold up what others have room to give back for."""
        there = self._stores.get(store)
        if there is None:
            return self._is_gone(store)
        if store in failed:
            return False
        try:
            await there.delete(name, timeout_s=DELETE_TIMEOUT_S)
        except HoldfastError:
            # Its health is told by the store's own observer; the row stays, so it is tried again.
            failed.add(store)
            return False
        return True

"""Collecting: a pack of which all is dead dies, and its shards give their space back.

`dead` rows are written in the transaction that let the bytes go; `share` rows say that a copy still needs
them. A pack dies when its `dead` rows add up to all its object bytes and no `share` row is left: its row
is replaced by a `buried` row with the shards to remove, in one transaction that expects the pack row at the
revision that was looked at. Dead rows are read before shares: once all owners are gone nobody can share
from them any more, and whoever shares from a sharer has a row of its own before that one goes. No clock,
no counter that could be wrong twice: what adds up to more than there is kills nothing. A pack that is being
read is left for the next round, so that a reader is not cut off by whoever replaces what it reads. Space
comes back with whole packs only; packs that are mostly dead wait for compaction.
"""

from collections.abc import Callable

from holdfast.base.errors import Bug
from holdfast.base.ids import PackId
from holdfast.index.port import Committed, Expect, Index, Row, Transaction, prefix_end
from holdfast.objects.rows import decode_dead
from holdfast.packs.disposal import Disposal, encode_burial, shards_of
from holdfast.packs.model import buried_row, debt_row, pack_row
from holdfast.packs.rows import PackRows, decode_row

PAGE = 1000
INTERVAL_S = 2.0
INTERVAL_PACK_S = 0.01
BURY_DELETES_MAX = 400
"""Dead rows that one transaction removes; the rest go in later ones, the pack being gone already."""


class Collect:
    """Folds `dead` rows into packs, one pack at a time."""

    name = "collect"

    def __init__(self, index: Index, rows: PackRows, in_use: Callable[[PackId], bool]) -> None:
        self._index = index
        self._rows = rows
        self._in_use = in_use
        self._looked_at = 0
        self._next = b"dead/"
        self.collected = 0

    @property
    def interval_s(self) -> float:
        """Between rounds: longer, the more packs there are that are dead in part, and are looked at anew."""
        return max(INTERVAL_S, self._looked_at * INTERVAL_PACK_S)

    async def step(self) -> bool:
        """Look at the next pack that has dead bytes; False at the end of each round."""
        if self._next == b"dead/":
            self._looked_at = 0
        first = await self._scan(self._next, prefix_end(b"dead/"), 1)
        if not first:
            self._next = b"dead/"
            return False
        self._looked_at += 1
        name = first[0].key.split(b"/", 2)[1]
        pack = PackId(bytes.fromhex(name.decode()))
        prefix = b"dead/" + name + b"/"
        self._next = prefix_end(prefix)
        dead_bytes = 0
        keys: list[bytes] = []
        start = prefix
        while page := await self._scan(start, prefix_end(prefix), PAGE):
            dead_bytes += sum(decode_dead(row.value).size for row in page)
            keys += [row.key for row in page]
            start = page[-1].key + b"\0"
        (found,) = await self._index.get([pack_row(pack)])
        if found is None:
            await self._forget(keys)
            return True
        row = decode_row(found.value)
        shares = b"share/" + name + b"/"
        if dead_bytes > row.object_bytes:
            raise Bug(f"Pack {pack.hex()} has {row.object_bytes} bytes, of which {dead_bytes} are dead.")
        if dead_bytes < row.object_bytes or self._in_use(pack):
            return True
        if await self._scan(shares, prefix_end(shares), 1):
            return True
        (debt,) = await self._index.get([debt_row(pack)])
        # The pack's own transactions move the debt row only together with the pack row, so that the
        # expectation of the pack row covers both.
        deletes = [pack_row(pack), *([debt_row(pack)] if debt else []), *keys[:BURY_DELETES_MAX]]
        burial = (buried_row(pack), encode_burial(shards_of(pack, row)))
        (outcome,) = await self._index.commit(
            [Transaction((Expect(pack_row(pack), found.revision),), (burial,), tuple(deletes))]
        )
        self._rows.forget(pack)
        self.collected += isinstance(outcome, Committed)
        return True

    async def _forget(self, keys: list[bytes]) -> None:
        """Remove dead rows of a pack that is gone."""
        for start in range(0, len(keys), BURY_DELETES_MAX):
            await self._index.commit([Transaction((), (), tuple(keys[start : start + BURY_DELETES_MAX]))])

    async def _scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        return [row for row in await self._index.scan(start, end, limit=limit) if isinstance(row, Row)]


class Sweep:
    """Removes the shards that the index has declared dead for good."""

    name = "sweep"
    interval_s = 2.0

    def __init__(self, disposal: Disposal) -> None:
        self._disposal = disposal
        self._buried = b""
        self._trash = b""
        self.removed = 0

    async def step(self) -> bool:
        """A page of each list."""
        buried, self._buried = await self._disposal.sweep_buried(self._buried)
        trash, self._trash = await self._disposal.sweep_trash(self._trash)
        self.removed += buried + trash
        # Pages of what is at stores that are away are not worth hurrying through.
        return buried + trash > 0
